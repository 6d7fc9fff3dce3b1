# SPDX-License-Identifier: Apache-2.0
"""Many cells of one model: quality against cost, over seeds.

Each cell is a run (`lutwise.consumers.diffusion.run`) whose results are kept, and cells share what
they can: samples of the float model, calibration pools, quantized models. What is large and no
other cell needs is dropped when a cell is measured.
"""

import functools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch

from lutwise.consumers.diffusion.evaluation import Judge, judge_of
from lutwise.consumers.diffusion.grid import Grid
from lutwise.consumers.diffusion.job import DitJob
from lutwise.consumers.diffusion.run import DitRun, job_cost, versions
from lutwise.consumers.diffusion.sampling import build_scheduler, timesteps
from lutwise.consumers.diffusion.sweep_cell import CellResult, Unit, float_distances, run_cell
from lutwise.consumers.diffusion.sweep_progress import SweepProgress
from lutwise.consumers.diffusion.sweep_report import ShownSamples, draw_sweep
from lutwise.consumers.diffusion.sweep_result import SWEEP_FILE
from lutwise.errors import ConfigError, DataError, LutwiseError
from lutwise.files import read_json, write_atomic
from lutwise.machine import use_threads
from lutwise.quant.progress import Tell, silent
from lutwise.sweep import PointTell, silent_points
from lutwise.workers import busy, interrupts_held, worker_pool
from lutwise.workspace import Steps, to_json

__all__ = ["MODEL_FILE", "sweep_dit", "units_of"]

MODEL_FILE: Final = "model.json"

Load: TypeAlias = Callable[[], DitJob]
Results: TypeAlias = list[list[CellResult]]
"""By unit and compensation."""


def sweep_dit(
    load: Load,
    grid: Grid,
    out: Path,
    *,
    jobs: int = 1,
    progress: PointTell = silent_points,
) -> dict[str, Any]:
    """Run all cells; write ``sweep.json``, pictures and ``report.html``.

    Cells that a killed sweep finished are not run again, and another grid in the same directory
    runs only what is new to it.

    Args:
        load: Returns a job with all that the cells share; picklable where ``jobs > 1``.
        grid: What the cells differ in.
        out: The sweep's directory.
        jobs: Cells at a time, each in a process of its own.
        progress: Told about every step (with ``jobs > 1`` about finished cells); shares are of the
            whole sweep.

    Returns:
        What is in ``sweep.json``.

    Raises:
        ConfigError: The directory holds the sweep of another model.
        LutwiseError: Whatever a cell refuses.
    """
    base = load()
    _claim(base, out)
    units = units_of(base, grid)
    vae = base.dit.load_vae()  # before the long work, as it may be damaged
    shown = SweepProgress(base, units, progress)
    if jobs == 1:
        judge = judge_of(base.dit)
        results = [_run_unit(base, judge, unit, out, shown.told, shown.done) for unit in units]
    else:
        results = _run_parallel(load, units, out, jobs, shown)
    result: dict[str, Any] = json.loads(to_json(_collect(base, grid, units, results, out)))
    write_atomic(out / SWEEP_FILE, to_json(result))
    latents = {
        unit.setting.name(compensated): found.shown
        for unit, cells in zip(units, results, strict=True)
        if unit.seed == 0
        for compensated, found in zip(unit.compensations, cells, strict=True)
    }
    labels = base.labels(min(map(len, latents.values()))).numpy()
    draw_sweep(result, ShownSamples(latents=latents, labels=labels), vae, out)
    return result


def units_of(base: DitJob, grid: Grid) -> list[Unit]:
    """Return what is run, in this order.

    Raises:
        LutwiseError: A cell makes no sense for this model; found before the first one runs.
    """
    found = []
    for setting in grid.settings():
        compensations = grid.compensations_of(setting)
        for compensated in compensations:
            job = setting.job(base, compensated, 0)
            if not setting.exact:
                job.check_calibration()
        found += [
            Unit(setting=setting, compensations=compensations, seed=seed)
            for seed in range(grid.seeds)
        ]
    return found


def _claim(base: DitJob, out: Path) -> None:
    """Mark a directory as this model's.

    Raises:
        ConfigError: It is another model's, or holds something else.
    """
    path = out / MODEL_FILE
    mine = {"name": base.dit.name, "sha256": base.dit.sha256}
    if path.exists():
        try:
            name, sha256 = read_json(
                path, lambda plain: (str(plain["name"]), str(plain["sha256"])), command="dit sweep"
            )
        except DataError as error:
            raise ConfigError(
                f"{path} was not written by a sweep of diffusion transformers; give another --out"
            ) from error
        if sha256 != base.dit.sha256:
            raise ConfigError(
                f"{str(out)!r} holds a sweep of {name!r} with weights {sha256[:12]}..., and "
                f"{base.dit.name!r} has {base.dit.sha256[:12]}...; give another --out"
            )
    write_atomic(path, to_json(mine))


def _run_unit(
    base: DitJob,
    judge: Judge | None,
    unit: Unit,
    out: Path,
    told: Callable[[str], Tell],
    done: Callable[[str], None],
) -> list[CellResult]:
    steps = _steps(out)
    found = []
    for compensated, name in zip(unit.compensations, unit.names(), strict=True):
        found.append(run_cell(base, unit, compensated, steps, judge, tell=told(name)))
        done(name)
    if not unit.setting.exact:
        DitRun(unit.setting.job(base, "none", unit.seed), steps).forget_quantized()
    return found


def _steps(out: Path) -> Steps:
    return Steps(out / ".steps", out / "events.jsonl")


_WORKER: tuple[DitJob, Judge | None] | None = None


def _run_parallel(
    load: Load, units: Sequence[Unit], out: Path, jobs: int, shown: SweepProgress
) -> Results:
    """Run units in processes; the float model first, whose samples the others share."""
    threads = torch.get_num_threads()
    results: dict[Unit, list[CellResult]] = {}
    first = [unit for unit in units if unit.setting.exact]
    try:
        with worker_pool(jobs) as pool:
            for part in (first, [unit for unit in units if unit not in first]):
                with interrupts_held():
                    futures = {pool.submit(_work, load, unit, out, threads): unit for unit in part}
                for future, unit in futures.items():
                    future.add_done_callback(functools.partial(_tell_done, shown, unit))
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                results |= {unit: future.result() for future, unit in futures.items()}
    except BrokenProcessPool as error:
        raise LutwiseError(
            f"a process that worked on {str(out)!r} was killed, perhaps for want of memory; the "
            "same command continues where it stopped, with fewer --jobs in less memory"
        ) from error
    return [results[unit] for unit in units]


def _tell_done(shown: SweepProgress, unit: Unit, future: Future[list[CellResult]]) -> None:
    if not future.cancelled() and future.exception() is None:
        for name in unit.names():
            shown.done(name)


def _work(load: Load, unit: Unit, out: Path, threads: int) -> list[CellResult]:
    """Run a unit in a worker process, which loads the model once."""
    global _WORKER
    with busy():
        if _WORKER is None:
            base = load()
            use_threads(threads)
            _WORKER = base, judge_of(base.dit)
        base, judge = _WORKER
        return _run_unit(base, judge, unit, out, lambda name: silent, lambda name: None)


def _collect(
    base: DitJob, grid: Grid, units: Sequence[Unit], results: Results, out: Path
) -> dict[str, Any]:
    found = dict(zip(units, results, strict=True))
    judge, steps = judge_of(base.dit), _steps(out)
    cells = []
    for setting in grid.settings():
        members = [unit for unit in units if unit.setting == setting]
        cost = job_cost(setting.job(base, "none", 0)).to_json()
        del cost["step_macs"]
        for place, compensated in enumerate(grid.compensations_of(setting)):
            seeds = [{"seed": u.seed, **found[u][place].measured} for u in members]
            cells.append(
                {
                    "name": setting.name(compensated),
                    **setting.to_json(),
                    "compensation": compensated,
                    "cost": cost,
                    "seeds": seeds,
                }
            )
    floats = {
        str(count): float_distances(
            base,
            {u.seed: u for u in units if u.setting.exact and u.setting.steps == count},
            steps,
            judge,
        )
        for count in grid.steps
    }
    sampling = asdict(base.sampling)
    return {
        "model": {"name": base.dit.name, "sha256": base.dit.sha256},
        "grid": grid.to_json(),
        "samples": base.samples,
        "fit_samples": base.fit_samples,
        "classes": list(base.classes),
        "sampling": {k: sampling[k] for k in ("sampler", "guidance", "eta", "batch")},
        "timesteps": {
            str(count): timesteps(build_scheduler(base.dit.scheduler, base.sampling.sampler), count)
            for count in grid.steps
        },
        "calibration": asdict(base.calibration),
        "recipe": base.recipe.to_json(),
        "float": floats,
        "cells": cells,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
