# SPDX-License-Identifier: Apache-2.0
"""What the commands of ``quantize dit`` do: options to settings, results to plain values."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lutwise.consumers.diffusion.job import CalibrationChoice, DitJob
from lutwise.consumers.diffusion.model import Dit, load_dit
from lutwise.consumers.diffusion.recipe import DitRecipe, LayerOverride
from lutwise.consumers.diffusion.run import run_dit
from lutwise.consumers.diffusion.sampling import Sampler, SamplingSettings
from lutwise.consumers.diffusion.schedule import CacheSchedule
from lutwise.consumers.diffusion.stock import blocks_of
from lutwise.errors import ConfigError
from lutwise.files import locked
from lutwise.quant.ranges import RangeMethod, RangeSearch
from lutwise.shown import steps_shown

__all__ = ["run"]

Options = Mapping[str, Any]


def run(options: Options) -> dict[str, Any]:
    """Do ``quantize dit run``."""
    torch.set_num_threads(options["threads"] or len(os.sched_getaffinity(0)))
    job = _job(load_dit(options["model"]), options)
    out: Path = options["out"] or Path("runs") / _name(options)
    with locked(out), steps_shown(options["quiet"]) as show:
        metrics = run_dit(job, out, tell=show)
    return {
        "out": str(out),
        "pictures": [str(out / "samples.png"), str(out / "variance.png")],
        "samples": metrics["samples"],
        "models": [_row(entry, metrics["models"][0]) for entry in metrics["models"]],
    }


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
            weights=options["weights"],
            activations=options["acts"],
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
        classes=_classes(options["classes"]),
    )


def _override(text: str) -> LayerOverride:
    glob, equals, formats = text.partition("=")
    weights, _, activations = formats.partition("/")
    if not glob or not equals or not (weights or activations):
        raise ConfigError(f"--layer wants GLOB=WEIGHTS/ACTIVATIONS, got {text!r}")
    return LayerOverride(layers=glob, weights=weights or None, activations=activations or None)


def _classes(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError as error:
        raise ConfigError(f"--classes wants numbers such as 1,2,3, got {text!r}") from error


def _name(options: Options) -> str:
    model = Path(options["model"]).name or "dit"
    formats = f"{options['weights']}-{options['acts']}"
    return f"{model}-{formats}-T{options['steps']}-N{options['interval']}"


def _row(entry: Mapping[str, Any], float_entry: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        "model": entry["model"],
        "macs": f"{entry['macs_per_sample'] / float_entry['macs_per_sample']:.3f}",
        "bit_operations": (
            f"{entry['bit_operations_per_sample'] / float_entry['bit_operations_per_sample']:.4f}"
        ),
        "paired_mse": round(entry["paired_mse"]["value"], 6) if "paired_mse" in entry else 0.0,
    }
    if "frechet_distance" in entry:
        found["frechet_distance"] = round(entry["frechet_distance"], 3)
    return found
