# SPDX-License-Identifier: Apache-2.0
"""What the commands do: build configurations, call the library, return plain values."""

import functools
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from lutwise.cost_models.estimate import LayerCost, NetworkCost, estimate, fold_to_budget
from lutwise.cost_models.folding import Folding, folding_from_json, folding_json
from lutwise.cost_models.from_network import layer_shapes, shapes_from_json
from lutwise.cost_models.layer_cost import Memory
from lutwise.cost_models.layer_shape import LayerShape
from lutwise.errors import ConfigError
from lutwise.export.check import check as run_check
from lutwise.export.flavours import Flavour, prove, to_flavour
from lutwise.export.qcdq import to_qcdq
from lutwise.export.reader import load_qonnx, read_layers
from lutwise.export.report import write_run_report
from lutwise.export.runnable import NETWORK_FILE, Runnable, Runner, runnable
from lutwise.files import locked, read_json, write_atomic
from lutwise.hw.simulator import simulator_available, simulator_name
from lutwise.job import Job, load_job
from lutwise.machine import use_threads
from lutwise.pipeline import Result
from lutwise.pipeline import run as run_job
from lutwise.planning import run_effort
from lutwise.quant.algorithms import list_algorithms
from lutwise.quant.data import Split, load_data
from lutwise.quant.formats import parse_element, parse_weight
from lutwise.quant.lower import try_lower
from lutwise.quant.models import load_model, zoo_names
from lutwise.quant.network import Network
from lutwise.quant.network_file import load_network
from lutwise.quant.preprocessing import Preprocessing
from lutwise.quant.quantize import collect_samples, prepare, quantize
from lutwise.quant.recipe import Recipe, load_recipe
from lutwise.reporting import SWEEP_FILE, draw_sweep, read_sweep, run_summary
from lutwise.rtl_proof import RTL_FOLDER, LayerProof, UnitOptions, prove_layers
from lutwise.run_directory import preprocessing_near
from lutwise.shown import points_shown, steps_shown
from lutwise.space import load_space
from lutwise.sweep import sweep as run_sweep
from lutwise.workspace import Steps, to_json, tool_versions

__all__ = [
    "atlas",
    "check",
    "convert",
    "doctor",
    "estimate_run",
    "export",
    "report",
    "run",
    "sweep",
    "synth",
    "verify",
]

Options = Mapping[str, Any]

_PROVEN: Final = 16
"""Images on which a file for a tool is compared with the exact executor."""

_COMMAND: Final = ("model", "arch", "calib", "evaluation", "eval_images", "check_images")
"""Options that a run notes, so that its model and images can be loaded again."""


def _threads(options: Options) -> int:
    """Return how many threads work on one model; by default the processes share all cores."""
    given: int | None = options["threads"]
    jobs: int = options.get("jobs", 1)
    return given or max(1, len(os.sched_getaffinity(0)) // jobs)


def _load(options: Options, calib_images: int, seed: int) -> Job:
    """Load model and images; a module-level function, so that worker processes can."""
    threads = _threads(options)
    use_threads(threads)
    model = load_model(options["model"], arch=options["arch"], trust_code=options["trust_code"])
    if options["preprocessing"] is not None:
        model = replace(model, preprocessing=Preprocessing.parse(options["preprocessing"]))
    return load_job(
        model,
        calib=options["calib"],
        evaluation=options["evaluation"],
        calib_images=calib_images,
        eval_images=options["eval_images"],
        seed=seed,
        folding=Folding(pe=options["pe"], simd=options["simd"]),
        check_images=options["check_images"],
        threads=threads,
    )


def run(options: Options, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Do ``quantize run``."""
    recipe = load_recipe(options["recipe"], changes)
    out: Path = options["out"] or Path("runs") / _default_name(options["model"], recipe)
    if options["dry_run"]:
        return _plan_run(options, recipe, out)
    job = _load(options, recipe.calibration.images, recipe.seed)
    with locked(out), steps_shown(options["quiet"]) as show:
        result = run_job(
            job,
            recipe,
            out,
            Steps(out / ".steps", out / "events.jsonl"),
            name=out.name,
            command={name: options[name] for name in _COMMAND},
            progress=show,
        )
        show("report")
        write_run_report(run_summary(result), out)
        written = []
        for tool in options["tools"]:
            show(f"export for {tool}")
            network = load_network(out / NETWORK_FILE)
            data = job.evaluation or job.calibration
            images = data.slice(0, _PROVEN)
            written.append(_write_flavour(out, network, Flavour(tool), None, data.name, images))
    if not options["quiet"]:
        _warn(result.metrics["advice"])
    found = {"out": str(out), **_headline(result, options)}
    return found | {"exports": written} if written else found


def _warn(advice: Sequence[Mapping[str, Any]]) -> None:
    """Name the layers that dominate the loss, with the lines of a recipe that may help."""
    lines = [f"warning: {one['text']}" for one in advice]
    items = [f"    {one['override']}" for one in advice if one["override"]]
    if items:
        lines += ["for the recipe:", "  overrides:", *items]
    for line in lines:
        print(line, file=sys.stderr)  # noqa: T201


def _default_name(model: str, recipe: Recipe) -> str:
    stem = Path(model).stem if "." in Path(model).name else model.replace("/", "-")
    return f"{stem}-{recipe.weights.format}-{recipe.activations.format}"


def _headline(result: Result, options: Options) -> dict[str, Any]:
    found: dict[str, Any] = {
        "model": result.metrics["model"],
        "weights": result.recipe.weights.format,
        "activations": result.recipe.activations.format,
        "mode": result.recipe.mode.value,
    }
    if measured := result.metrics["evaluation"]:
        found["data"] = f"{measured['data']}, {measured['images']} images"
        found["float_accuracy"] = _interval(measured["float"])
        found["accuracy"] = _interval(measured[measured["reported"]])
        found["accuracy_is"] = measured["reported"]
        against = measured["against_float"]
        found["difference_points"] = {
            key: round(100 * against[name], 2)
            for key, name in (
                ("value", "difference"), ("low", "difference_low"), ("high", "difference_high"),
            )
        }  # fmt: skip
        found["agreement"] = round(against["agreement"], 4)
    if result.cost is not None:
        folded, unrolled = result.cost.folded, result.cost.unrolled
        found["luts_per_mac"] = round(result.cost.lut_per_mac, 2)
        found["luts_folded"] = {
            "all": round(folded.luts),
            "dot_products": round(folded.dot_product_luts),
            "requantizers": round(folded.requantizer_luts),
            "folding": f"PE {options['pe']}, SIMD {options['simd']}",
            "cycles": folded.cycles,
        }
        found["luts_unrolled"] = round(unrolled.luts)
    found["export"] = result.metrics["export"]
    return found


def _interval(entry: Mapping[str, Any]) -> dict[str, float]:
    return {key: round(entry[key], 4) for key in ("value", "low", "high")}


def _plan_run(options: Options, recipe: Recipe, out: Path) -> dict[str, Any]:
    """Say what a run would do: layers, formats, price, and an estimate of time and memory."""
    job = _load(options, recipe.calibration.images, recipe.seed)
    few = torch.from_numpy(job.calibration.slice(0, 8))
    prepared = prepare(job.model.module, job.input_shape, recipe, name=job.model.name, images=few)
    samples = collect_samples(prepared, few, batch=8, seed=recipe.seed)
    quick = recipe.model_copy(update={"algorithms": {}})
    model = quantize(prepared, samples, few, quick)
    network, _ = try_lower(model)
    images = len(job.evaluation) if job.evaluation else 0
    found: dict[str, Any] = {
        "out": str(out),
        "model": job.model.name,
        "calibration": f"{job.calibration.name}, {len(job.calibration)} images",
        "evaluation": f"{job.evaluation.name}, {images} images" if job.evaluation else None,
        **run_effort(job, recipe, prepared, model, network).to_json(),
        "recipe": recipe.model_dump(mode="json"),
    }
    if network is not None:
        cost = estimate(layer_shapes(network), job.folding)
        found["macs"] = cost.macs
        found["luts_folded"] = round(cost.folded.luts)
        found["layers"] = [
            {
                "layer": layer.shape.name,
                "weights": layer.shape.weights.name,
                "inputs": layer.shape.activations.name,
                "macs": layer.shape.macs,
            }
            for layer in cost.layers
        ]
    return found


def sweep(options: Options, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Do ``quantize sweep``."""
    if options["recipe"] is not None:
        # The space says the formats; the recipe says everything else.
        base = load_recipe(options["recipe"]).model_dump(mode="json")
        for part in ("weights", "activations"):
            del base[part]["format"]
        changes = {**base, **changes}
    points = load_space(options["space"], changes)
    first = points[0].recipe
    if any(
        (p.recipe.calibration, p.recipe.seed) != (first.calibration, first.seed) for p in points
    ):
        raise ConfigError("the points of a sweep share calibration settings and seed")
    if len({point.recipe.mode for point in points}) > 1:
        raise ConfigError(
            "the points of a sweep share one graph mode: layerwise points leave the float "
            "operations between layers out of their LUTs, so the prices do not compare"
        )
    out: Path = options["out"]
    load = functools.partial(_load, dict(options), first.calibration.images, first.seed)
    if options["dry_run"]:
        job = load()
        return {
            "model": job.model.name,
            "out": str(out),
            "points": [point.name for point in points],
        }
    with locked(out), points_shown(len(points), options["quiet"]) as show:
        result = run_sweep(load, points, out, jobs=options["jobs"], progress=show)
    return {
        "out": str(out),
        "report": str(out / "report.html"),
        "model": result.model,
        "data": f"{result.data}, {result.images} images",
        "float_accuracy": round(result.float_accuracy.value, 4),
        "points": [
            {
                "name": p.name,
                "accuracy": round(p.accuracy.value, 4),
                "low": round(p.accuracy.low, 4),
                "high": round(p.accuracy.high, 4),
                "weight_bits": round(p.weight_bits, 2),
                "luts_per_mac": round(p.luts_per_mac, 2),
                "luts_folded": round(p.luts_folded),
            }
            for p in result.points
        ],
    }


def synth(options: Options) -> dict[str, Any]:
    """Do ``quantize synth``."""
    from lutwise.hw.cli_support import synthesize_dot_product

    return synthesize_dot_product(
        parse_weight(options["weights"]),
        parse_element(options["activations"]),
        options["lanes"],
        options["style"],
    )


def atlas(options: Options) -> dict[str, Any]:
    """Do ``quantize atlas``."""
    from lutwise.cost_models.characterize import rebuild

    with locked(options["out"]):
        written = rebuild(
            options["out"], jobs=options["jobs"], only=options["only"], quiet=options["quiet"]
        )
    return {"written": [str(path) for path in written]}


def estimate_run(options: Options) -> dict[str, Any]:
    """Do ``quantize estimate``."""
    path: Path = options["run"]
    if path.is_file() or (path.suffix in (".onnx", ".qonnx") and not path.is_dir()):
        layers = read_layers(load_qonnx(path))
    else:
        layers = read_json(path / "cost.json", shapes_from_json, command="run")
    memory = Memory(options["weights_in"])
    folding = _folding(options, layers, memory)
    cost = estimate(layers, folding, memory=memory, clock_mhz=options["clock"])
    if options["folding_out"]:
        found = {layer.shape.name: layer.folding for layer in cost.layers}
        write_atomic(options["folding_out"], to_json(folding_json(found)))
    return cost.to_json() if options["as_json"] else _bill(cost)


def _folding(
    options: Options, layers: Sequence[LayerShape], memory: Memory
) -> Folding | tuple[Folding, ...]:
    given, budget = options["folding"], options["budget"]
    if (given == "auto") != (budget is not None):
        raise ConfigError(
            "--folding auto and --budget lut=N belong together; got "
            f"--folding {given or 'none'}, --budget {budget or 'none'}"
        )
    if given is None:
        return Folding(pe=options["pe"], simd=options["simd"])
    if given == "auto":
        return fold_to_budget(layers, _budget(budget), memory=memory)
    return _read_folding(Path(given), layers)


def _read_folding(path: Path, layers: Sequence[LayerShape]) -> tuple[Folding, ...]:
    try:
        return folding_from_json(json.loads(path.read_bytes()), layers)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"cannot read the folding {path}: {error}; wanted a file as `quantize estimate "
            "--folding-out` writes it"
        ) from error


def _budget(given: str) -> float:
    what, _, number = given.partition("=")
    try:
        luts = float(number)
    except ValueError:
        luts = 0.0
    if what != "lut" or not luts > 0:
        raise ConfigError(f"--budget wants lut=N, such as lut=50000, got {given!r}")
    return luts


def _bill(cost: NetworkCost) -> dict[str, Any]:
    """Return a network's price as people read it."""
    folded, slowest = cost.folded, cost.bottleneck
    return {
        "layers": [_bill_row(layer) for layer in cost.layers],
        "LUTs": f"{folded.luts:,.0f} (+- {folded.uncertainty_luts:,.0f}): dot products "
        f"{folded.dot_product_luts:,.0f}, requantizers {folded.requantizer_luts:,.0f}, weights "
        f"{folded.weight_luts:,.0f}, buffers {folded.buffer_luts:,.0f}, control "
        f"{folded.control_luts:,.0f}",
        "of these LUTRAM": folded.lut_rams,
        "RAMB18": folded.block_rams,
        "DSP48E2 instead of integer products": folded.dsps,
        "speed": f"{cost.inputs_per_second:,.1f} inputs per second at {cost.clock_mhz:g} MHz",
        "bottleneck": f"{slowest.shape.name}, {folded.cycles:,} cycles" if slowest else "none",
        "by FINN's formula": f"{cost.finn_luts:,.0f} LUTs, memories and thresholds left out",
        "unrolled": f"{cost.unrolled.luts:,.0f} LUTs",
        "not priced": "windows of convolutions, pooling, sums of branches, stream buffers, routing",
    }


def _bill_row(layer: LayerCost) -> dict[str, Any]:
    folded = layer.folded
    return {
        "layer": layer.shape.name,
        "formats": f"{layer.shape.weights} x {layer.shape.activations}",
        "PE": layer.folding.pe,
        "SIMD": layer.folding.simd,
        "LUTs": round(folded.luts),
        "+-": round(folded.uncertainty_luts),
        "products": round(folded.dot_product_luts),
        "requantizers": round(folded.requantizer_luts),
        "weights": round(folded.weight_luts),
        "LUTRAM": folded.lut_rams,
        "RAMB18": folded.block_rams,
        "DSP instead": folded.dsps,
        "cycles": folded.cycles,
    }


def check(options: Options) -> dict[str, Any]:
    """Do ``quantize check``."""
    given: str = options["first"]
    first = _runnable(given, Runner.QONNX)
    other = Runner.QONNX if given.startswith(f"{Runner.ONNXRUNTIME}:") else Runner.ONNXRUNTIME
    second = _runnable(options["second"] or first.name.partition(":")[2], other)
    paths = [Path(one.name.partition(":")[2]) for one in (first, second)]
    known = [near for path in paths if (near := preprocessing_near(path))]
    name, images = _images(options, first.image_shape, known[0] if known else None)
    found = run_check(first, second, images, tolerance=options["tolerance"])
    return {
        "first": first.name,
        "second": second.name,
        "data": name,
        **asdict(found),
        "differences": [asdict(difference) for difference in found.differences],
    }


def _runnable(spec: str, default: Runner) -> Runnable:
    if spec.startswith("torch:"):
        from lutwise.torch_run import torch_runnable

        return torch_runnable(Path(spec.removeprefix("torch:")))
    return runnable(spec, default)


def _images(
    options: Options, shape: tuple[int, ...], preprocessing: Preprocessing | None
) -> tuple[str, npt.NDArray[np.float32]]:
    """Return images to compare executors on, and what they are."""
    if options["data"] is None:
        generator = np.random.default_rng(0)
        images = generator.standard_normal((options["images"], *shape)).astype(np.float32)
        return "normally distributed numbers, seed 0", images
    split = Split.EVAL if options["data"].startswith("zoo/") else None
    data = load_data(options["data"], preprocessing, shape, split=split, limit=options["images"])
    return data.name, data.images


def export(options: Options) -> dict[str, Any]:
    """Do ``quantize export``."""
    folder: Path = options["run"]
    network = load_network(folder / NETWORK_FILE)
    shape = network.tensors[network.input].shape
    name, images = _images(options, shape, preprocessing_near(folder))
    flavour, target = Flavour(options["tool"]), options["out"]
    return _write_flavour(folder, network, flavour, target, name, images)


def _write_flavour(
    folder: Path,
    network: Network,
    flavour: Flavour,
    out: Path | None,
    name: str,
    images: npt.NDArray[np.float32],
) -> dict[str, Any]:
    """Write the network of a run for a tool, proven on images of that name."""
    model = to_flavour(network, flavour)
    found = prove(network, model, flavour, images)
    target = out or folder / f"model.{flavour}.onnx"
    write_atomic(target, model.SerializeToString(deterministic=True))
    return {
        "written": str(target),
        "nodes": len(model.graph.node),
        "check": {"data": name, **asdict(found)},
    }


def verify(options: Options) -> dict[str, Any]:
    """Do ``quantize verify``."""
    folder: Path = options["run"]
    network = load_network(folder / NETWORK_FILE)
    shape = network.tensors[network.input].shape
    folding = {}
    if options["folding"] is not None:
        layers = layer_shapes(network)
        foldings = _read_folding(options["folding"], layers)
        folding = {layer.name: one for layer, one in zip(layers, foldings, strict=True)}
    name, images = _images(options, shape, preprocessing_near(folder))
    with locked(folder), steps_shown(options["quiet"]) as show:
        proofs = prove_layers(
            network,
            images,
            folder / RTL_FOLDER,
            layers=options["layers"],
            options=UnitOptions(
                default=Folding(pe=options["pe"], simd=options["simd"]),
                folding=folding,
                pipeline=options["pipeline"],
                pressure=options["pressure"],
                vectors=options["vectors"],
            ),
            tell=show,
        )
    bad = [f"{proof.layer}: {proof.first_mismatch}" for proof in proofs if proof.mismatches]
    return {
        "data": name,
        "images": len(images),
        "simulator": simulator_name(),
        "values": sum(proof.values for proof in proofs),
        "mismatches": sum(proof.mismatches for proof in proofs),
        **({"first_mismatches": bad} if bad else {}),
        "transcripts": str(folder / RTL_FOLDER),
        "layers": [_proof_row(proof) for proof in proofs],
    }


def _proof_row(proof: LayerProof) -> dict[str, Any]:
    shown = ("layer", "pe", "simd", "architecture", "form", "accumulator_bits", "vectors",
             "values", "mismatches", "interval", "cycles")  # fmt: skip
    plain = asdict(proof)
    return {key: plain[key] for key in shown}


def convert(options: Options) -> dict[str, Any]:
    """Do ``quantize convert``."""
    model = to_qcdq(load_qonnx(options["source"]))
    write_atomic(options["target"], model.SerializeToString(deterministic=True))
    return {"written": str(options["target"]), "nodes": len(model.graph.node)}


def report(directory: Path) -> dict[str, Any]:
    """Do ``quantize report``."""
    if _of_transformers(directory):
        # Only now: the core does without diffusers.
        from lutwise import dit_commands

        return dit_commands.redraw(directory)
    result = read_sweep(directory)
    with locked(directory):
        return {"report": str(draw_sweep(result, directory))}


def _of_transformers(directory: Path) -> bool:
    """Whether a directory holds a sweep of diffusion transformers, which has cells, not points."""
    try:
        plain = json.loads((directory / SWEEP_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(plain, dict) and "cells" in plain


def doctor() -> dict[str, Any]:
    """Do ``quantize doctor``."""
    found: dict[str, Any] = {"versions": tool_versions(), "threads": len(os.sched_getaffinity(0))}
    able = {
        "synthesis (pyosys)": "pyosys",
        "timm models": "timm",
        "torchvision models": "torchvision",
        "diffusion transformers (diffusers)": "diffusers",
    }
    found["can"] = {
        what: importlib.util.find_spec(module) is not None for what, module in able.items()
    }
    found["can"]["simulation (verilator)"] = simulator_available()
    found["zoo"] = list(zoo_names())
    found["algorithms"] = {a.name: a.summary for a in list_algorithms()}
    return found
