# SPDX-License-Identifier: Apache-2.0
"""One cell of a sweep, measured for one seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lutwise.consumers.diffusion.evaluation import Judge, compare, variance_by_step
from lutwise.consumers.diffusion.grid import Setting
from lutwise.consumers.diffusion.job import DitJob
from lutwise.consumers.diffusion.run import DitRun, Seconds
from lutwise.consumers.diffusion.sampling import Samples
from lutwise.quant.progress import Tell, silent
from lutwise.workspace import Steps

__all__ = ["SHOWN", "CellResult", "Unit", "float_distances", "run_cell"]

SHOWN: Final = 12
"""Samples of a cell that are kept for pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Cells of one seed that differ in their compensation only.

    Args:
        setting: Of the cells.
        compensations: One for each cell.
        seed: Of noise and choices.
    """

    setting: Setting
    compensations: tuple[str, ...]
    seed: int

    def names(self) -> tuple[str, ...]:
        """Return the names of the cells, with the seed."""
        return tuple(f"{self.setting.name(c)}, seed {self.seed}" for c in self.compensations)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellResult:
    """What a cell gave for one seed.

    Args:
        measured: Plain values.
        shown: The first latents, shape (n, c, h, w).
    """

    measured: dict[str, Any]
    shown: npt.NDArray[np.float32]


def run_cell(
    base: DitJob,
    unit: Unit,
    compensated: str,
    steps: Steps,
    judge: Judge | None,
    *,
    tell: Tell = silent,
) -> CellResult:
    """Run a cell, or find what it gave before.

    Args:
        base: What all cells share.
        unit: With setting and seed.
        compensated: The compensation.
        steps: Where results are kept. Samples of the cell are not, once they are measured.
        judge: Measures samples by themselves, where there is one.
        tell: Told where the work stands.
    """
    run = DitRun(unit.setting.job(base, compensated, unit.seed), steps, tell=tell)
    exact = unit.setting.exact
    key = {
        **(run.reference_key if exact else run.made_key(compensated=compensated != "none")),
        "judge": None if judge is None else judge.sha256,
    }
    kept = steps.arrays("dit-shown", key, lambda: {"latents": _samples(run, exact)[:SHOWN]})
    measured: dict[str, Any] = steps.json("dit-measure", key, lambda: _measure(run, judge, exact))
    if not exact:
        run.forget_made(compensated=compensated != "none")
    return CellResult(measured=measured, shown=kept["latents"])


def float_distances(
    base: DitJob, units: Mapping[int, Unit], steps: Steps, judge: Judge | None
) -> dict[str, Any]:
    """Return how far the float model is from itself, between every two seeds.

    Args:
        base: What all cells share.
        units: The float model's, by seed, all of one number of steps.
        steps: Where its samples are kept.
        judge: Measures samples.
    """
    if judge is None:
        return {"between_seeds": []}
    runs = [DitRun(unit.setting.job(base, "none", seed), steps) for seed, unit in units.items()]
    features = [judge.features(run.reference[0]) for run in runs]
    return {
        "between_seeds": [
            {"seeds": [a, b], **judge.distance(features[i], features[j])}
            for (i, a), (j, b) in combinations(enumerate(units), 2)
        ]
    }


def _made(run: DitRun, exact: bool) -> tuple[Samples, Seconds]:
    return run.reference if exact else run.made(run.compensation)


def _samples(run: DitRun, exact: bool) -> npt.NDArray[np.float32]:
    run.reference  # noqa: B018  (first, as it is for the estimate of the time that is left)
    found: npt.NDArray[np.float32] = _made(run, exact)[0].latents.numpy()
    return found


def _measure(run: DitRun, judge: Judge | None, exact: bool) -> dict[str, Any]:
    (reference, _), (found, seconds) = run.reference, _made(run, exact)
    entry: dict[str, Any] = {
        "seconds": round(seconds.clock, 3),
        "processor_seconds": round(seconds.processor, 3),
    }
    if judge is not None:
        entry |= judge.measure(found)
        if not exact:
            entry["frechet_to_float"] = judge.distance(
                judge.features(found), judge.features(reference)
            )
    if not exact:
        entry |= compare(found, reference)
    entry["variance_by_step_and_channel"] = variance_by_step(found).tolist()
    return entry
