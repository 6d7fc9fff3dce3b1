# SPDX-License-Identifier: Apache-2.0
"""One run: from a loaded model and a recipe to a run directory."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
from pydantic import TypeAdapter
from safetensors.torch import save

from lutwise.cost_models.estimate import NetworkCost, estimate
from lutwise.cost_models.from_network import layer_shapes
from lutwise.errors import MismatchError
from lutwise.export.qonnx import to_qonnx
from lutwise.export.run import Executor, compare
from lutwise.export.runnable import NETWORK_FILE
from lutwise.files import write_atomic
from lutwise.job import Job
from lutwise.layer_table import layer_rows, layers_csv
from lutwise.point import Logits, Point
from lutwise.quant import evaluate
from lutwise.quant.advice import advise
from lutwise.quant.data import Dataset
from lutwise.quant.diagnose import Diagnosis, diagnose
from lutwise.quant.executor import Statistics, execute
from lutwise.quant.lower import try_lower
from lutwise.quant.network import Network
from lutwise.quant.network_file import save_network
from lutwise.quant.progress import Tell, silent
from lutwise.quant.quantized import QuantizedModel, predict
from lutwise.quant.recipe import GraphMode, Recipe
from lutwise.quant.search import Trial, choose, clips_at_six, divergence, divided
from lutwise.quant.sensitivity import affordable_images
from lutwise.quant.state import to_state
from lutwise.run_directory import MANIFEST, written_preprocessing
from lutwise.workspace import Steps, code_digest, digest, sha256_of, to_json, tool_versions

__all__ = ["DIAGNOSED_IMAGES", "Result", "run"]

DIAGNOSED_IMAGES: Final = 64
_DIAGNOSIS: Final = TypeAdapter(Diagnosis)
_RECIPE, _METRICS, _COST = "recipe.yaml", "metrics.json", "cost.json"
_MODEL, _WEIGHTS, _LAYERS = "model.qonnx", "weights.safetensors", "layers.csv"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """What a run found.

    Args:
        recipe: What was done.
        metrics: Content of ``metrics.json``.
        cost: Prices, or None where the model has no form for hardware.
        layers: Rows of ``layers.csv``.
        manifest: Content of ``manifest.json``.
    """

    recipe: Recipe
    metrics: dict[str, Any]
    cost: NetworkCost | None
    layers: list[dict[str, Any]]
    manifest: dict[str, Any]


def run(
    job: Job,
    recipe: Recipe,
    out: Path,
    steps: Steps,
    *,
    name: str,
    command: Mapping[str, Any] | None = None,
    progress: Tell = silent,
) -> Result:
    """Quantize, evaluate, export, check and price; write the run directory.

    Args:
        job: Model, images and target.
        recipe: What to do.
        out: The run directory.
        steps: Finished steps, to continue from and add to.
        name: Of the run, for people.
        command: Options that load the same job again, noted in the manifest.
        progress: Told about each step.

    Raises:
        LutwiseError: Anything that the steps refuse.
        MismatchError: The exported file does not give what the exact executor gives.
    """
    recipe, trials = _searched(job, recipe, steps, progress)
    point = Point(job, recipe, steps, progress)
    prepared = point.prepared()
    model = point.quantized(prepared)
    network, reason = try_lower(model)
    metrics: dict[str, Any] = {
        "name": name,
        "model": job.model.name,
        "mode": recipe.mode.value,
        "calibration": {"data": job.calibration.name, "images": len(job.calibration)},
        "evaluation": None,
        "search": [asdict(trial) for trial in trials],
    }
    if job.evaluation is not None:
        metrics["evaluation"] = _measure(point, model, network)
    files: dict[str, bytes] = {_RECIPE: recipe.to_yaml().encode(), _WEIGHTS: _weights(model)}
    cost = None
    if network is None:
        metrics["export"] = {"written": False, "reason": reason}
    else:
        progress("export")
        proto = to_qonnx(network)
        files[_MODEL] = proto.SerializeToString(deterministic=True)
        files[NETWORK_FILE] = save_network(network)
        metrics["export"] = {"written": True, "checks": _check(point, network, proto)}
        progress("price")
        cost = estimate(layer_shapes(network), job.folding)
        files[_COST] = to_json(cost.to_json())
    diagnosis = _diagnosis(point, model)
    layers = layer_rows(diagnosis.layers, cost.layers if cost else None, model.changes)
    advice = advise(diagnosis.layers, diagnosis.points, logits_sqnr_db=diagnosis.logits_sqnr_db)
    metrics["diagnosis"] = {k: v for k, v in asdict(diagnosis).items() if k != "layers"}
    metrics["advice"] = [asdict(a) for a in advice]
    files[_LAYERS] = layers_csv(layers)
    files[_METRICS] = to_json(metrics)
    for file, content in files.items():
        write_atomic(out / file, content)
    manifest = _manifest(job, recipe, name, out, list(files)) | {"command": dict(command or {})}
    write_atomic(out / MANIFEST, to_json(manifest))
    result = Result(recipe=recipe, metrics=metrics, cost=cost, layers=layers, manifest=manifest)
    _fail_on_mismatch(metrics, recipe)
    return result


def _searched(
    job: Job, recipe: Recipe, steps: Steps, progress: Tell
) -> tuple[Recipe, tuple[Trial, ...]]:
    """Return the recipe that the calibration images speak for, where a search is asked for."""
    if not recipe.search:
        return recipe, ()
    count = len(job.calibration)
    calibrating, held_back = divided(count, job.input_shape)
    comparing = torch.from_numpy(job.calibration.slice(count - held_back, count))
    reference = predict(job.model.module, comparing)
    tried = 0

    def score(change: str, candidate: Recipe, images: int = calibrating) -> float:
        nonlocal tried
        tried += 1
        name = f"candidate {tried} ({change})"

        def tell(step: str, share: float | None = None) -> None:
            progress(f"{name}: {step}", share)

        point = Point(job, candidate, steps, tell, images)

        def compute() -> float:
            model = point.quantized(point.prepared())
            tell("compare with the float model")
            return divergence(reference, predict(model, comparing))

        return float(steps.json("trial", point.keys.quantized, compute))

    def settle(change: str, winner: Recipe) -> float:
        return score(change, winner, count)  # the run's own steps, which are kept

    return choose(recipe, score, settle, clips_at_six=clips_at_six(job.model.module))


def _measure(point: Point, model: QuantizedModel, network: Network | None) -> dict[str, Any]:
    data, job = point.job.evaluation, point.job
    assert data is not None
    assert data.labels is not None

    def forward(module: torch.nn.Module) -> Logits:
        return predict(module, torch.from_numpy(data.images)).numpy()

    point.progress("evaluate float")
    reference = point.evaluate("float", point.keys.float, lambda: forward(job.model.module))
    point.progress("evaluate fake quantization")
    fake = point.evaluate("fake", point.keys.evaluated, lambda: forward(model))
    found: dict[str, Any] = {
        "data": data.name,
        "images": len(data),
        "interval": "95 %: Wilson score; difference: paired normal approximation",
        "float": asdict(evaluate.accuracy(reference, data.labels)),
        "fake_quantization": asdict(evaluate.accuracy(fake, data.labels)),
    }
    final = fake
    if network is not None:
        point.progress("evaluate exactly")
        kept = _exact(point, network)
        final = _logits(network, kept["values"])
        found["exact"] = asdict(evaluate.accuracy(final, data.labels))
        found["exact_executor"] = {
            "requantized": int(kept["results"]),
            "decided_with_fractions": int(kept["decided_again"]),
        }
        found["fake_against_exact"] = asdict(evaluate.compare(final, fake, data.labels))
    found["against_float"] = asdict(evaluate.compare(reference, final, data.labels))
    found["reported"] = "exact" if network is not None else "fake_quantization"
    return found


def _exact(point: Point, network: Network) -> dict[str, npt.NDArray[Any]]:
    data = point.job.evaluation
    assert data is not None

    def compute() -> dict[str, npt.NDArray[Any]]:
        counts = Statistics()
        values = execute(network, data.images, statistics=counts)
        return {
            "values": values,
            "results": np.array(counts.results),
            "decided_again": np.array(counts.decided_again),
        }

    return point.steps.arrays("exact", point.keys.evaluated, compute)


def _logits(network: Network, values: npt.NDArray[np.float64]) -> Logits:
    scale = float(network.tensors[network.output].scale)
    return (values * scale).astype(np.float32)


def _check(point: Point, network: Network, proto: onnx.ModelProto) -> list[dict[str, Any]]:
    """Compare the file with the exact executor, on evaluation images where there are some."""
    job = point.job
    data = job.evaluation or job.calibration
    count = min(job.check_images, len(data))
    if count == 0:
        return []

    def compute() -> list[dict[str, Any]]:
        images = data.slice(0, count)
        expected = None
        if job.evaluation is not None:
            expected = _exact(point, network)["values"][:count]
        found = []
        for executor in (Executor.ONNXRUNTIME, Executor.QONNX):
            point.progress(f"check in {executor.value}")
            report = compare(
                network,
                proto,
                images,
                executors=(executor,),
                threads=job.threads,
                expected=expected,
            )
            (agreement,) = report.agreements
            found.append(
                {
                    "executor": executor.value,
                    "images": report.images,
                    "outputs": report.outputs,
                    "mismatches": agreement.mismatches,
                    "first": list(agreement.first) if agreement.first else None,
                }
            )
        return found

    key = {**point.keys.evaluated, "count": count, "calibration": data is job.calibration}
    checks: list[dict[str, Any]] = point.steps.json("check", key, compute)
    return checks


def _fail_on_mismatch(metrics: Mapping[str, Any], recipe: Recipe) -> None:
    """Raise where a dataflow file differs; floats between layers leave other modes no right to."""
    for check in metrics["export"].get("checks", []):
        if check["mismatches"] and recipe.mode is GraphMode.DATAFLOW:
            raise MismatchError(
                f"{check['executor']} gives {check['mismatches']} of {check['outputs']} outputs "
                f"that the exact executor does not, the first at {check['first']}; the run "
                "directory holds the file"
            )


def _weights(model: QuantizedModel) -> bytes:
    tensors, meanings = to_state(model)
    content: bytes = save(tensors, metadata={"lutwise": json.dumps(meanings, sort_keys=True)})
    return content


def _diagnosis(point: Point, model: QuantizedModel) -> Diagnosis:
    def compute() -> Any:
        point.progress("diagnose layers")
        images = point.calibration_images()
        count = affordable_images(model, min(DIAGNOSED_IMAGES, len(images)))
        return _DIAGNOSIS.dump_python(diagnose(model, images[:count]), mode="json")

    return _DIAGNOSIS.validate_python(point.steps.json("diagnose", point.keys.quantized, compute))


def _manifest(job: Job, recipe: Recipe, name: str, out: Path, files: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "versions": tool_versions(),
        "code_sha256": code_digest(),
        "machine": platform.machine(),
        "threads": job.threads,
        "seed": recipe.seed,
        "recipe_sha256": digest(recipe.model_dump(mode="json")),
        "inputs": {
            "model": {
                "name": job.model.name,
                "sha256": job.model.sha256,
                "preprocessing": written_preprocessing(job.model.preprocessing),
            },
            "calibration": _data_entry(job.calibration),
            "evaluation": _data_entry(job.evaluation) if job.evaluation else None,
        },
        "outputs": {file: sha256_of(out / file) for file in files},
    }


def _data_entry(data: Dataset) -> dict[str, Any]:
    return {"name": data.name, "images": len(data), "sha256": data.fingerprint}
