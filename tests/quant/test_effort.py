# SPDX-License-Identifier: Apache-2.0
"""Estimates against what torch counts and what the kernel sees."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lutwise.quant.effort import Effort, estimate_effort, shares_before
from lutwise.quant.graph import PreparedModel, layer_nodes
from lutwise.quant.quantize import collect_samples, prepare, quantize
from lutwise.quant.recipe import Recipe, build_recipe
from lutwise.quant.work import TYPICAL, Speed
from tests.quant.nets import INPUT_SHAPE, NETS, make

ROUNDING: dict[str, dict[str, Any]] = {
    "gptq": {"gptq": {"sweeps": 2}, "bias_correction": {}},
    "qronos": {"qronos": {}, "norm_reestimation": {}},
    "gpfq": {"gpfq": {}},
    "learned_rounding": {"learned_rounding": {"iterations": 30}},
    "block_rounding": {"block_rounding": {"iterations": 10}, "bias_correction": {}},
}


def recipe(algorithms: Mapping[str, Any], **changes: Any) -> Recipe:
    return build_recipe(
        {"weights": "int4", "activations": "uint4", "algorithms": algorithms},
        changes=changes,
        where="a test",
    )


def effort_of(name: str, settings: Recipe, images: int = 24, speed: Speed = TYPICAL) -> Effort:
    prepared = prepare(make(name)[0], INPUT_SHAPE, settings, name=name)
    return estimate_effort(prepared, settings, images, speed)


def wide(channels: int) -> nn.Module:
    """Return a net whose matrices are wide enough for the full speed."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
        nn.Conv2d(channels, channels, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10),
    ).eval()  # fmt: skip


def run(prepared: PreparedModel, images: torch.Tensor, settings: Recipe) -> None:
    samples = collect_samples(prepared, images, batch=settings.calibration.batch, seed=0)
    quantize(prepared, samples, images, settings)


@pytest.mark.parametrize("algorithms", ROUNDING.values(), ids=ROUNDING)
def test_operations_are_those_that_torch_counts(algorithms: Mapping[str, Any]) -> None:
    settings = recipe(algorithms)
    images = torch.randn(40, 3, 12, 12)
    prepared = prepare(wide(96), (3, 12, 12), settings, name="wide")
    with FlopCounterMode(display=False) as counter:
        run(prepared, images, settings)
    only_flops = Speed(flops=1.0, numbers=float("inf"), call_s=0.0)
    estimated = estimate_effort(prepared, settings, len(images), only_flops).seconds
    # More than counted: narrow products are slower, and torch counts no factorization.
    assert 0.9 < estimated / counter.get_total_flops() < 1.7


@pytest.mark.parametrize("algorithms", ROUNDING.values(), ids=ROUNDING)
@pytest.mark.parametrize("name", NETS)
def test_shares_and_totals_add_up(name: str, algorithms: Mapping[str, Any]) -> None:
    settings = recipe(algorithms)
    effort = effort_of(name, settings)
    assert list(algorithms) == [step for step in effort.steps if step in algorithms]
    assert all(seconds > 0 for seconds in effort.steps.values())
    assert effort.seconds == pytest.approx(sum(layer.total_seconds for layer in effort.layers))
    prepared = prepare(make(name)[0], INPUT_SHAPE, settings, name=name)
    assert [layer.node for layer in effort.layers] == [n.name for n in layer_nodes(prepared)]
    shares = list(shares_before(prepared, settings, 24, tuple(algorithms)).values())
    assert shares[0] == 0.0
    assert shares == sorted(set(shares))
    assert shares[-1] < 1.0


def test_images_cost_time_and_memory_up_to_its_bound() -> None:
    settings = recipe({"gptq": {}}, **{"calibration.memory_gib": 0.001})
    efforts = [effort_of("residual", settings, images) for images in (64, 640, 6400)]
    times = [effort.seconds for effort in efforts]
    assert times[0] < times[1] < times[2] < 100 * times[0]
    held = [effort.memory["activations"] for effort in efforts]
    assert held[0] < 2**20 < held[1] < 2 * 2**20
    assert held[2] < 7 * 2**20, "small tensors alone may exceed the bound"
    assert efforts[0].filed_bytes < efforts[1].filed_bytes < efforts[2].filed_bytes
    assert efforts[2].filed_bytes + held[2] == pytest.approx(
        100 * (efforts[0].filed_bytes + held[0]), rel=0.1
    )


def test_nothing_to_round_is_nothing_to_run() -> None:
    effort = effort_of("chain", recipe({}))
    assert list(effort.steps) == ["calibrate", "find ranges"]
    assert effort.memory["activations"] == 0


RESERVE = 64 << 20
"""Bytes for what Python and torch keep for themselves while they work."""

WATCHED = """
import json, sys, threading, time
import torch
from lutwise.machine import use_threads
from lutwise.quant.effort import estimate_effort
from lutwise.quant.quantize import prepare
from lutwise.quant.work import TYPICAL
from tests.quant.test_effort import recipe, run, wide

def anonymous():
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

def watch():
    while True:
        peaks.append(anonymous())
        time.sleep(0.002)

use_threads(1)  # as the command does
settings = recipe(json.loads(sys.argv[1]), **{"calibration.memory_gib": float(sys.argv[2])})
prepared = prepare(wide(64), (3, 32, 32), settings, name="wide")
run(prepared, torch.randn(2, 3, 32, 32), recipe({}))  # whatever is loaded late is there now
before, peaks = anonymous(), []
threading.Thread(target=watch, daemon=True).start()
run(prepared, torch.randn(256, 3, 32, 32), settings)
bound = estimate_effort(prepared, settings, 256, TYPICAL).peak_bytes
print(json.dumps({"grown": max(peaks) - before, "bound": bound}))
"""


@pytest.mark.parametrize("gib", [0.0, 4.0], ids=["files", "memory"])
@pytest.mark.parametrize("name", ["qronos", "block_rounding"])
def test_memory_stays_below_the_bound(name: str, gib: float) -> None:
    command = [sys.executable, "-c", WATCHED, json.dumps(ROUNDING[name]), str(gib)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    found = json.loads(done.stdout)
    assert found["grown"] < found["bound"] + RESERVE
    assert found["bound"] < 4 * found["grown"], "a bound that says nothing"
