# SPDX-License-Identifier: Apache-2.0
"""How much of a sweep is done, in multiply-accumulates of sampling."""

from collections.abc import Sequence

from lutwise.consumers.diffusion.grid import Setting
from lutwise.consumers.diffusion.job import DitJob
from lutwise.consumers.diffusion.run import job_cost
from lutwise.consumers.diffusion.sweep_cell import Unit
from lutwise.quant.progress import Tell
from lutwise.sweep import DONE, PointTell

__all__ = ["SweepProgress"]


class SweepProgress:
    """Turns shares of a cell's stages into shares of the whole sweep.

    Args:
        base: What all cells share.
        units: All cells, in the order in which they run.
        progress: Told about every cell.
    """

    def __init__(self, base: DitJob, units: Sequence[Unit], progress: PointTell) -> None:
        self._progress = progress
        self._work = _work(base, units)
        self._total = sum(sum(stages.values()) for stages in self._work.values())
        self._finished = 0.0

    @property
    def cells(self) -> int:
        """How many cells there are, with seeds."""
        return len(self._work)

    def told(self, cell: str) -> Tell:
        """Return what is to be told of the steps of a cell."""
        stages = self._work[cell]
        names = list(stages)

        def tell(step: str, share: float | None = None) -> None:
            within = 0.0
            if step in stages:
                before = sum(stages[name] for name in names[: names.index(step)])
                within = before + stages[step] * (share or 0.0)
            self._progress(cell, step, (self._finished + within) / self._total)

        return tell

    def done(self, cell: str) -> None:
        """Take note of a finished cell."""
        self._finished += sum(self._work[cell].values())
        self._progress(cell, DONE, self._finished / self._total)


def _work(base: DitJob, units: Sequence[Unit]) -> dict[str, dict[str, float]]:
    """Return the work of each stage of each cell; what cells share counts for the first."""
    found: dict[str, dict[str, float]] = {}
    seen: set[tuple[object, ...]] = set()
    macs: dict[Setting, int] = {}
    for unit in units:
        setting = unit.setting
        job = setting.job(base, "none", unit.seed)
        if setting not in macs:
            macs[setting] = job_cost(job).macs
        floats = job_cost(job, exact=True).macs
        shared = {
            "sample float": ((setting.steps, unit.seed), job.samples * floats),
            "sample for calibration": (
                (setting.steps, setting.cache, setting.order, unit.seed),
                job.calibration.trajectories * macs[setting],
            ),
            "sample float to fit": ((setting.steps, unit.seed), job.fit_samples * floats),
        }
        for compensated, name in zip(unit.compensations, unit.names(), strict=True):
            stages: dict[str, float] = {}
            for stage, (key, work) in shared.items():
                needed = stage == "sample float" or (
                    not setting.exact and (stage != "sample float to fit" or compensated != "none")
                )
                if needed and (stage, *key) not in seen:
                    seen.add((stage, *key))
                    stages[stage] = work
            if compensated != "none":
                stages["fit compensation"] = job.fit_samples * macs[setting]
            if not setting.exact:
                stages["sample quantized"] = job.samples * macs[setting]
            # Found before, or measured only: little, but not nothing.
            stages[DONE] = floats
            found[name] = stages
    return found
