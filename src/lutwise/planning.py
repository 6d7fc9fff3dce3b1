# SPDX-License-Identifier: Apache-2.0
"""What a run would take, before it is started: seconds by step, memory by purpose."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from lutwise.export.qonnx import to_qonnx
from lutwise.export.run import run_onnxruntime, run_qonnx
from lutwise.job import Job
from lutwise.pipeline import DIAGNOSED_IMAGES
from lutwise.quant.effort import Effort, estimate_effort
from lutwise.quant.executor import execute
from lutwise.quant.graph import PreparedModel
from lutwise.quant.network import Network
from lutwise.quant.quantized import QuantizedModel, predict
from lutwise.quant.recipe import Recipe
from lutwise.quant.search import choose, clips_at_six, divided
from lutwise.quant.sensitivity import affordable_images, products_per_image
from lutwise.quant.work import Speed, Work, measure_speed

__all__ = ["RANGE", "RunEffort", "run_effort"]

RANGE: Final = (0.5, 2.0)
"""What a run takes lies between these times the estimate, on a machine that does nothing else."""

_START_AND_END_S: Final = 3.0
"""Loading, tracing, export, price and report, whatever the model."""

_BATCH: Final = 64
_TRIAL_S: Final = 1.0
"""No larger batch is tried after one that took so long."""

_LARGEST: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEffort:
    """What a run takes.

    Args:
        seconds: By step, in order.
        effort: Of quantization; of a search's most expensive candidate.
        program_bytes: What interpreter, libraries, model and images take already.
    """

    seconds: Mapping[str, float]
    effort: Effort
    program_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Bound of the memory that a run takes to quantize."""
        return self.program_bytes + self.effort.peak_bytes

    def to_json(self) -> dict[str, object]:
        """Return what a dry run shows."""
        total = sum(self.seconds.values())
        layers = sorted(self.effort.layers, key=lambda layer: layer.total_seconds, reverse=True)
        low, high = (round(total * end, 1) for end in RANGE)
        memory = {"program, model and images": self.program_bytes, **self.effort.memory}
        return {
            "seconds_about": {"value": round(total, 1), "low": low, "high": high},
            "seconds_by_step": {step: round(s, 2) for step, s in self.seconds.items()},
            "memory_mib_at_most": _mib(self.peak_bytes),
            "memory_mib_by_purpose": {purpose: _mib(size) for purpose, size in memory.items()},
            "files_mib": _mib(self.effort.filed_bytes),
            "largest_layers": [
                {
                    "layer": layer.layer,
                    "seconds": round(layer.total_seconds, 2),
                    "memory_mib": _mib(layer.peak_bytes),
                }
                for layer in layers[:_LARGEST]
            ],
        }


def _mib(size: int) -> int:
    return ceil(size / 2**20)


def run_effort(
    job: Job,
    recipe: Recipe,
    prepared: PreparedModel,
    model: QuantizedModel,
    network: Network | None,
) -> RunEffort:
    """Estimate a run. Quantization is counted; evaluation is tried on a few images.

    Args:
        job: Model and images.
        recipe: What to do.
        prepared: The float model, prepared.
        model: Any quantized form of it.
        network: Its exact form; None where there is none.
    """
    speed = measure_speed()
    seconds: dict[str, float] = {}
    efforts = _efforts(job, recipe, prepared, speed)
    for effort in efforts:
        for step, more in effort.steps.items():
            seconds[step] = seconds.get(step, 0.0) + more
    if len(efforts) > 1:
        seconds = {f"{s}, {len(efforts)} models": t for s, t in seconds.items()}
    seconds |= _evaluation(job, model, network)
    wanted = min(DIAGNOSED_IMAGES, len(job.calibration))
    products = products_per_image(model) * affordable_images(model, wanted)
    seconds["load, trace, export, report"] = _START_AND_END_S
    seconds["diagnose layers"] = speed.seconds(Work(flops=2 * products))
    return RunEffort(
        seconds=seconds,
        effort=max(efforts, key=lambda effort: effort.peak_bytes),
        program_bytes=_resident_bytes(),
    )


def _efforts(job: Job, recipe: Recipe, prepared: PreparedModel, speed: Speed) -> list[Effort]:
    """Return the effort of each candidate of a search, and of the recipe that is left."""
    images = len(job.calibration)
    found: list[Effort] = []
    if recipe.search:
        calibrating, _ = divided(images, job.input_shape)

        def score(change: str, candidate: Recipe) -> float:
            del change
            found.append(estimate_effort(prepared, candidate, calibrating, speed))
            return 0.0  # which one wins is not known; the others cost much the same

        recipe, _ = choose(recipe, score, score, clips_at_six=clips_at_six(job.model.module))
    return [*found, estimate_effort(prepared, recipe, images, speed)]


def _evaluation(job: Job, model: QuantizedModel, network: Network | None) -> dict[str, float]:
    """Return the seconds of what runs on evaluation images, by step."""
    measured = len(job.evaluation) if job.evaluation else 0
    checked = min(job.check_images, measured or len(job.calibration))
    images = job.calibration.slice(0, _BATCH)
    found: dict[str, float] = {}
    if measured:
        found["evaluate float"] = _seconds(_predicting(job.model.module), images, measured)
        found["evaluate fake quantization"] = _seconds(_predicting(model), images, measured)
    if network is None:
        return found
    exact = network
    if count := measured or checked:
        found["evaluate exactly"] = _seconds(lambda part: execute(exact, part), images, count)
    if checked:
        proto = to_qonnx(exact)
        found["check in onnxruntime"] = _seconds(
            lambda part: run_onnxruntime(proto, part, threads=job.threads), images, checked
        )
        found["check in qonnx"] = _seconds(
            lambda part: run_qonnx(proto, part, batch=_BATCH), images, checked
        )
    return found


def _predicting(model: torch.nn.Module) -> Callable[[npt.NDArray[np.float32]], object]:
    return lambda part: predict(model, torch.from_numpy(part))


def _seconds(
    run: Callable[[npt.NDArray[np.float32]], object],
    images: npt.NDArray[np.float32],
    count: int,
) -> float:
    """Return seconds for so many images in batches, from batches of up to `_BATCH` tried here."""
    run(images[:1])  # what is made once is no part of it
    sizes, times = [0], [0.0]
    for size in (1, 8, _BATCH):
        # Two sizes at least: one alone does not say what a batch costs and what an image.
        if size > len(images) or (len(sizes) > 2 and times[-1] > _TRIAL_S):
            break
        start = time.perf_counter()
        run(images[:size])
        sizes.append(size)
        times.append(time.perf_counter() - start)
    per_image = max(0.0, (times[-1] - times[-2]) / (sizes[-1] - sizes[-2]))
    per_batch = max(0.0, times[-1] - per_image * sizes[-1])
    return ceil(count / _BATCH) * per_batch + count * per_image


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
