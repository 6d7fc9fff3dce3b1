# SPDX-License-Identifier: Apache-2.0
"""Time and compare GPTQ, a whole recipe and evaluation with Brevitas, in one run.

    python benchmarks/ptq_vs_brevitas.py --json ptq.json

Both quantize the same ResNet-18-shaped net with the same images, weights per channel with
least-squared-error ranges, inputs of layers per tensor, GPTQ with quantized inputs and columns in
the order of their activity. Between the two float nets nothing differs but who folds batch norms.
Run it on an idle machine; ratios are what counts.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import torch
from torch import Tensor, nn

if not __package__:  # run as a script: the benchmarks are a package of the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.brevitas_flow import BrevitasSettings, RangeKind, build, evaluate
from benchmarks.common import circumstances, quantized
from benchmarks.nets import resnet18_cifar
from lutwise.quant import solvers
from lutwise.quant.graph import PreparedModel, layer_nodes
from lutwise.quant.keep import compute
from lutwise.quant.presets import Preset
from lutwise.quant.progress import silent
from lutwise.quant.quantized import QuantizedModel, apply_layer, predict
from lutwise.quant.recipe import Recipe, build_recipe
from lutwise.quant.rounding import round_layers
from lutwise.quant.shelf import Shelf
from lutwise.quant.walk import walk

FORMATS: Final = ("int4", "e2m1")
MINIFLOAT: Final = "e2m1"
SIZE: Final = (3, 32, 32)


def recipe(fmt: str, **settings: Any) -> Recipe:
    """Return a recipe of the mode that both tools know."""
    base = {"weights": fmt, "activations": fmt, "mode": "layerwise"}
    return build_recipe(base, settings, changes={}, where="the benchmark")


@contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the time of a block to an entry."""
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


@contextmanager
def solver_clock(seconds: dict[str, float]) -> Iterator[None]:
    """Add up the time spent in the column solver, its factorization included."""
    solver = solvers.gptq

    def clocked(*args: Any, **kwargs: Any) -> solvers.Solution:
        with clock(seconds, "solver"):
            return solver(*args, **kwargs)

    with patch.object(solvers, "gptq", clocked):
        yield


def our_gptq(net: nn.Module, images: Tensor, fmt: str, sweeps: int) -> dict[str, Any]:
    """Time lutwise's GPTQ step."""
    model = quantized(net, images, recipe(fmt, algorithms=[]))
    step = recipe(fmt, algorithms={"gptq": {"sweeps": sweeps}})
    batches = images.split(step.calibration.batch)
    seconds: dict[str, float] = {}
    with solver_clock(seconds), clock(seconds, "gptq"):
        round_layers(model, batches, step, keep=compute, tell=silent, shelf=Shelf())
    weights = {str(n.target): model.layer(n).weight for n in layer_nodes(model.prepared)}
    return {"seconds": seconds, "weights": weights, "prepared": model.prepared}


def their_gptq(net: nn.Module, images: Tensor, fmt: str) -> dict[str, Any]:
    """Time Brevitas's GPTQ step."""
    model, seconds = build(net, images, replace(brevitas_settings(fmt), gptq=True))
    weights = {
        name: module.quant_weight().value.detach()
        for name, module in model.named_modules()
        if hasattr(module, "quant_weight")
    }
    return {
        "seconds": {"gptq": seconds["gptq"], "solver": seconds["gptq.columns"]},
        "weights": weights,
    }


def brevitas_settings(fmt: str) -> BrevitasSettings:
    """Return the settings that mean the same in Brevitas, without algorithms."""
    return BrevitasSettings(
        weights=fmt,
        activations=fmt if fmt.startswith("e") else f"u{fmt}",
        weight_range=RangeKind.MSE,
        activation_range=RangeKind.MSE,
        relu6_to_relu=False,
        equalize_iterations=0,
        act_order=True,
        gptq_quantized_activations=True,
        bias_correction=False,
        batch=64,
    )


@torch.no_grad()
def layer_errors(
    prepared: PreparedModel, images: Tensor, weights: dict[str, Tensor]
) -> list[float]:
    """Return each layer's squared output error relative to its output, on float inputs."""
    untouched = QuantizedModel(prepared, prepared.graph, weights={}, outputs={}, layer_inputs={})
    found = []
    for step in walk(untouched, list(images.split(64)), floats=False):
        if step.layer is None:
            continue
        noise = signal = 0.0
        for x in step.inputs:
            wanted = apply_layer(step.layer, x, step.layer.weight)
            given = apply_layer(step.layer, x, weights[str(step.node.target)])
            noise += (wanted - given).double().square().sum().item()
            signal += wanted.double().square().sum().item()
        found.append(noise / signal)
    return found


def compare_gptq(net: nn.Module, images: Tensor, fmt: str, repeats: int) -> dict[str, Any]:
    """Compare the GPTQ step of both tools on one format."""
    theirs = their_gptq(net, images, fmt)
    runs = [our_gptq(net, images, fmt, sweeps=0) for _ in range(repeats)]
    swept = our_gptq(net, images, fmt, sweeps=3)
    ours = {
        key: statistics.median(run["seconds"][key] for run in runs) for key in ("gptq", "solver")
    }
    errors = {
        name: layer_errors(runs[0]["prepared"], images, weights)
        for name, weights in (
            ("brevitas", theirs["weights"]),
            ("lutwise", runs[0]["weights"]),
            ("lutwise with 3 sweeps", swept["weights"]),
        )
    }
    mean = {name: statistics.fmean(found) for name, found in errors.items()}
    return {
        "format": fmt,
        "brevitas_seconds": theirs["seconds"],
        "lutwise_seconds": ours,
        "lutwise_seconds_with_3_sweeps": swept["seconds"],
        "speedup": theirs["seconds"]["gptq"] / ours["gptq"],
        "solver_speedup": theirs["seconds"]["solver"] / ours["solver"],
        "mean_relative_layer_mse": mean,
        "mse_ratio": mean["lutwise"] / mean["brevitas"],
        "mse_ratio_with_3_sweeps": mean["lutwise with 3 sweeps"] / mean["brevitas"],
    }


def compare_recipe(net: nn.Module, images: Tensor, fmt: str) -> dict[str, Any]:
    """Compare `balanced`, and the same steps in Brevitas, and evaluation on one format."""
    start = time.perf_counter()
    settings = replace(brevitas_settings(fmt), qronos=True, bias_correction=True)
    theirs, by_step = build(net, images, settings)
    their_seconds = time.perf_counter() - start
    start = time.perf_counter()
    ours = quantized(net, images, recipe(fmt, preset=Preset.BALANCED))
    our_seconds = time.perf_counter() - start
    calls: dict[str, Callable[[], Tensor]] = {
        "float": lambda: predict(net, images),
        "lutwise": lambda: predict(ours, images),
        "brevitas": lambda: evaluate(theirs, images),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(5):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    evaluation = {name: statistics.median(found) for name, found in times.items()}
    return {
        "format": fmt,
        "brevitas_seconds": their_seconds,
        "brevitas_seconds_by_step": by_step,
        "lutwise_seconds": our_seconds,
        "speedup": their_seconds / our_seconds,
        "evaluation_seconds": evaluation,
        "overhead": evaluation["lutwise"] / evaluation["float"],
        "brevitas_overhead": evaluation["brevitas"] / evaluation["float"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3, help="of lutwise's GPTQ; the median")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    images = torch.randn(args.images, *SIZE, generator=torch.Generator().manual_seed(0))
    net = resnet18_cifar(images)
    gptq = [compare_gptq(net, images, fmt, args.repeats) for fmt in FORMATS]
    recipes = [compare_recipe(net, images, fmt) for fmt in FORMATS]
    evaluated = next(r for r in recipes if r["format"] == MINIFLOAT)
    record = {
        "gptq": {
            "speedup": min(r["speedup"] for r in gptq),
            "solver_speedup": min(r["solver_speedup"] for r in gptq),
            "mse_ratio": max(r["mse_ratio"] for r in gptq),
            "formats": gptq,
        },
        "recipe": {"speedup": min(r["speedup"] for r in recipes), "formats": recipes},
        "evaluation": {
            "overhead": evaluated["overhead"],
            "brevitas_overhead": evaluated["brevitas_overhead"],
        },
        "images": args.images,
        **circumstances(args.threads),
    }
    text = json.dumps(record, indent=2) + "\n"
    sys.stdout.write(text)
    if args.json:
        args.json.write_text(text)


if __name__ == "__main__":
    main()
