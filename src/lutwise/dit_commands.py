# SPDX-License-Identifier: Apache-2.0
"""What the commands of ``quantize dit`` do: options to settings, results to plain values."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lutwise.consumers.diffusion.grid import Formats, Grid
from lutwise.consumers.diffusion.job import CalibrationChoice, DitJob
from lutwise.consumers.diffusion.model import Dit, load_dit
from lutwise.consumers.diffusion.recipe import FLOAT, DitRecipe, LayerOverride
from lutwise.consumers.diffusion.run import METRICS_FILE, job_cost, run_dit
from lutwise.consumers.diffusion.sampling import Sampler, SamplingSettings
from lutwise.consumers.diffusion.schedule import CacheSchedule, NamedSchedule
from lutwise.consumers.diffusion.stock import blocks_of
from lutwise.consumers.diffusion.sweep import MODEL_FILE, sweep_dit, units_of
from lutwise.consumers.diffusion.sweep_report import redraw_sweep
from lutwise.consumers.diffusion.sweep_result import SWEEP_FILE, Cell, SweepSummary, read_sweep
from lutwise.errors import ConfigError
from lutwise.files import locked
from lutwise.quant.ranges import RangeMethod, RangeSearch
from lutwise.run_directory import MANIFEST
from lutwise.shown import points_shown, steps_shown

__all__ = ["redraw", "run", "sweep"]

Options = Mapping[str, Any]


def run(options: Options) -> dict[str, Any]:
    """Do ``quantize dit run``."""
    torch.set_num_threads(options["threads"] or len(os.sched_getaffinity(0)))
    job = _job(load_dit(options["model"]), options)
    out: Path = options["out"] or Path("runs") / _name(options)
    with locked(out), steps_shown(options["quiet"]) as show:
        _refuse_others(out, {SWEEP_FILE: "a sweep", MANIFEST: "a run of `quantize run`"})
        metrics = run_dit(job, out, tell=show)
    return {
        "out": str(out),
        "pictures": [str(out / "samples.png"), str(out / "variance.png")],
        "samples": metrics["samples"],
        "models": [_row(entry, metrics["models"][0]) for entry in metrics["models"]],
    }


def sweep(options: Options) -> dict[str, Any]:
    """Do ``quantize dit sweep``."""
    grid = _grid(options)
    out: Path = options["out"]
    load = partial(_sweep_base, dict(options), grid)
    if options["dry_run"]:
        base = load()
        units_of(base, grid)
        return {"model": base.dit.name, "out": str(out), "cells": _planned(base, grid)}
    total = grid.seeds * len(list(grid.cells()))
    with locked(out), points_shown(total, options["quiet"]) as show:
        others = {METRICS_FILE: "a run"}
        if not (out / MODEL_FILE).exists():
            others[SWEEP_FILE] = "a sweep of `quantize sweep`"
        _refuse_others(out, others)
        result = sweep_dit(load, grid, out, jobs=options["jobs"], progress=show)
    summary = SweepSummary.from_json(result)
    floats = summary.floats()
    return {
        "out": str(out),
        "report": str(out / "report.html"),
        "model": summary.model,
        "samples": f"{summary.samples} for each of {summary.seeds} seeds",
        "cells": [_cell_row(cell, floats[cell.setting.steps]) for cell in summary.cells],
    }


def redraw(directory: Path) -> dict[str, Any]:
    """Do ``quantize report`` for a sweep of diffusion transformers."""
    summary = read_sweep(directory)
    with locked(directory):
        return {"report": str(redraw_sweep(summary, directory))}


def _refuse_others(out: Path, others: Mapping[str, str]) -> None:
    """Make sure that a directory holds no results of another command, which would be lost.

    Args:
        out: The directory.
        others: Files of other commands and what they are of.

    Raises:
        ConfigError: There is one.
    """
    for name, what in others.items():
        if (out / name).exists():
            raise ConfigError(f"{str(out)!r} holds {what} ({name}); give another --out")


def _grid(options: Options) -> Grid:
    return Grid(
        steps=_numbers("--steps", options["steps"]),
        intervals=_numbers("--intervals", options["intervals"]),
        formats=tuple(map(Formats.parse, _words(options["formats"]))),
        orders=_numbers("--orders", options["orders"]),
        calibrations=_words(options["calibs"]),
        compensations=_words(options["compensations"]),
        schedules=tuple(map(NamedSchedule.load, options["schedules"])),
        seeds=options["seeds"],
    )


def _sweep_base(options: Options, grid: Grid) -> DitJob:
    """Load what all cells share; a module-level function, so that worker processes can."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(options["threads"] or max(1, cores // options["jobs"]))
    first = {"weights": FLOAT, "acts": FLOAT, "overrides": (), "steps": grid.steps[0],
             "interval": 1, "schedule": None, "order": 0, "compensation": "none",
             "calib": grid.calibrations[0], "seed": 0}  # fmt: skip
    return _job(load_dit(options["model"]), {**options, **first})


def _planned(base: DitJob, grid: Grid) -> list[dict[str, Any]]:
    """Return the cells of a grid with what they cost."""
    floats = {s.steps: job_cost(s.job(base, "none", 0)) for s in grid.settings() if s.exact}
    found = []
    for setting, compensated in grid.cells():
        cost, reference = job_cost(setting.job(base, compensated, 0)), floats[setting.steps]
        found.append(
            {
                "cell": setting.name(compensated),
                "macs": f"{cost.macs / reference.macs:.3f}",
                "bit_operations": f"{cost.bops / reference.bops:.4f}",
            }
        )
    return found


def _cell_row(cell: Cell, reference: Cell) -> dict[str, Any]:
    """Return what is printed of a cell: means over seeds, and a range."""
    found: dict[str, Any] = {
        "cell": cell.name,
        "macs": f"{cell.cost['macs'] / reference.cost['macs']:.3f}",
        "bit_operations": f"{cell.cost['bops'] / reference.cost['bops']:.4f}",
        "paired_mse": 0.0 if cell.paired_mse is None else round(cell.paired_mse.mean, 6),
    }
    if cell.frechet is not None:
        found |= {
            "frechet_distance": round(cell.frechet.mean, 3),
            "low": round(cell.frechet.low, 3),
            "high": round(cell.frechet.high, 3),
        }
    return found


def _words(text: str) -> tuple[str, ...]:
    """Return the words of a list with commas; none of an empty one."""
    return tuple(word.strip() for word in text.split(",")) if text.strip() else ()


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, _words(text)))
    except ValueError as error:
        raise ConfigError(f"{option} wants numbers such as 1,2,3, got {text!r}") from error


def _job(dit: Dit, options: Options) -> DitJob:
    steps: int = options["steps"]
    blocks = len(blocks_of(dit.transformer))
    if options["schedule"] is not None:
        if options["interval"] != 1:
            raise ConfigError("give --schedule or --interval, not both")
        schedule = CacheSchedule.load(options["schedule"])
    else:
        schedule = CacheSchedule.every(options["interval"], steps=steps, blocks=blocks)
    search = RangeSearch(method=RangeMethod(options["search"]))
    return DitJob(
        dit=dit,
        recipe=DitRecipe(
            weights=options["weights"].strip(),
            activations=options["acts"].strip(),
            overrides=tuple(map(_override, options["overrides"])),
            weight_range=search,
            activation_range=search,
            timestep_groups=options["timestep_groups"],
            algorithms={options["algorithm"]: {}} if options["algorithm"] else {},
            seed=options["seed"],
        ),
        sampling=SamplingSettings(
            steps=steps,
            sampler=Sampler(options["sampler"]),
            guidance=options["guidance"],
            batch=options["batch"],
            seed=options["seed"],
        ),
        schedule=schedule,
        order=options["order"],
        calibration=CalibrationChoice(
            method=options["calib"],
            samples=options["calib_samples"],
            trajectories=options["calib_trajectories"],
        ),
        compensation=options["compensation"],
        fit_samples=options["fit_samples"],
        samples=options["samples"],
        classes=_numbers("--classes", options["classes"] or ""),
    )


def _override(text: str) -> LayerOverride:
    glob, equals, formats = text.partition("=")
    weights, _, activations = formats.partition("/")
    if not glob or not equals or not (weights or activations):
        raise ConfigError(f"--layer wants GLOB=WEIGHTS/ACTIVATIONS, got {text!r}")
    return LayerOverride(layers=glob, weights=weights or None, activations=activations or None)


def _name(options: Options) -> str:
    model = Path(options["model"]).name or "dit"
    formats = f"{options['weights']}-{options['acts']}"
    schedule: Path | None = options["schedule"]
    cache = f"N{options['interval']}" if schedule is None else schedule.stem
    return f"{model}-{formats}-T{options['steps']}-{cache}"


def _row(entry: Mapping[str, Any], float_entry: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        "model": entry["model"],
        "macs": f"{entry['macs_per_sample'] / float_entry['macs_per_sample']:.3f}",
        "bit_operations": (
            f"{entry['bit_operations_per_sample'] / float_entry['bit_operations_per_sample']:.4f}"
        ),
        "paired_mse": round(entry["paired_mse"]["value"], 6) if "paired_mse" in entry else 0.0,
    }
    if "frechet" in entry:
        found["frechet_distance"] = round(entry["frechet"]["value"], 3)
    return found
