# SPDX-License-Identifier: Apache-2.0
"""A finished sweep as its file has it, with spreads over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from lutwise.consumers.diffusion.grid import Setting
from lutwise.files import read_json

__all__ = ["SWEEP_FILE", "Cell", "Spread", "SweepSummary", "cheapest_front", "read_sweep"]

SWEEP_FILE: Final = "sweep.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A number over seeds.

    Args:
        mean: Of all seeds.
        low: Smallest.
        high: Largest.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of at least one value."""
        return cls(mean=fmean(values), low=min(values), high=max(values))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cell:
    """A cell over all its seeds.

    Args:
        setting: All but the compensation.
        compensation: Its name.
        cost: Of one sample, as `cost.DitCost.to_json` has it.
        frechet: Distance to real images; None where nothing measures it.
        frechet_error: Mean jackknife standard error of it for one seed.
        frechet_to_float: Distance to the float model's samples of the same noise; None where
            nothing measures it, and for the float model.
        paired_mse: Squared error to the float model's samples of the same noise; None for the
            float model.
        psnr_db: The same as a peak signal-to-noise ratio; None where nothing differs.
        accuracy: Share of samples that a classifier takes for their class; None where there is
            none.
        seconds: To sample with fake quantization, by the clock.
        processor_seconds: The same, on the processor.
        variance: Of what the model was given, mean over seeds and channels, by step; None where
            the file leaves it out.
    """

    setting: Setting
    compensation: str
    cost: Mapping[str, Any]
    frechet: Spread | None
    frechet_error: float | None
    frechet_to_float: Spread | None
    paired_mse: Spread | None
    psnr_db: Spread | None
    accuracy: Spread | None
    seconds: Spread
    processor_seconds: Spread
    variance: tuple[float, ...] | None

    @property
    def name(self) -> str:
        """Name of the cell."""
        return self.setting.name(self.compensation)

    @property
    def quality(self) -> Spread | None:
        """Distance to real images; squared error where nothing measures that."""
        return self.frechet if self.frechet is not None else self.paired_mse

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Cell":
        """Make a cell of what a sweep wrote."""
        seeds: list[Mapping[str, Any]] = plain["seeds"]

        def spread(*path: str) -> Spread | None:
            values = [_at(seed, path) for seed in seeds]
            found = [value for value in values if value is not None]
            return Spread.of(found) if len(found) == len(seeds) else None

        seconds, processor = spread("seconds"), spread("processor_seconds")
        assert seconds is not None
        assert processor is not None
        error = spread("frechet", "standard_error")
        return cls(
            setting=Setting.from_json(plain),
            compensation=plain["compensation"],
            cost=plain["cost"],
            frechet=spread("frechet", "value"),
            frechet_error=None if error is None else error.mean,
            frechet_to_float=spread("frechet_to_float", "value"),
            paired_mse=spread("paired_mse", "value"),
            psnr_db=spread("psnr_db"),
            accuracy=spread("of_the_wanted_class"),
            seconds=seconds,
            processor_seconds=processor,
            variance=_mean_variance(seeds),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SweepSummary:
    """A sweep.

    Args:
        model: Name.
        samples: Of each cell and seed.
        seeds: How many.
        measured: Whether samples were compared with real images.
        cells: All, the float model first for each number of steps.
        timesteps: Of the noise schedule, by the number of steps.
        facts: What all cells share, name and value, for people.
    """

    model: str
    samples: int
    seeds: int
    measured: bool
    cells: tuple[Cell, ...]
    timesteps: Mapping[int, tuple[int, ...]]
    facts: tuple[tuple[str, str], ...]

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "SweepSummary":
        """Make a summary of what a sweep wrote."""
        cells = tuple(Cell.from_json(cell) for cell in plain["cells"])
        calibration, sampling = plain["calibration"], plain["sampling"]
        versions = ", ".join(f"{name} {v}" for name, v in sorted(plain["versions"].items()))
        return cls(
            model=plain["model"]["name"],
            samples=plain["samples"],
            seeds=plain["grid"]["seeds"],
            measured=all(cell.frechet is not None for cell in cells),
            cells=cells,
            timesteps={int(t): tuple(found) for t, found in plain["timesteps"].items()},
            facts=(
                ("weights, SHA-256", plain["model"]["sha256"]),
                ("samples of a cell", f"{plain['samples']} for each of {plain['grid']['seeds']} "
                 "seeds"),
                ("sampler", f"{sampling['sampler']}, guidance {sampling['guidance']:g}"),
                ("calibration", f"{calibration['samples']} samples of "
                 f"{calibration['trajectories']} trajectories of the float model with the cell's "
                 "cache"),
                ("compensation", f"fitted step by step on {plain['fit_samples']} trajectories of "
                 "other noise"),
                ("ranges", f"weights {plain['recipe']['weight_range']['method']}, activations "
                 f"{plain['recipe']['activation_range']['method']}"),
                ("threads", str(plain["threads"])),
                ("versions", versions),
            ),
        )  # fmt: skip

    def floats(self) -> dict[int, Cell]:
        """Return the float model's cells by the number of steps."""
        return {cell.setting.steps: cell for cell in self.cells if cell.setting.exact}


def read_sweep(folder: Path) -> SweepSummary:
    """Read what a sweep wrote.

    Raises:
        DataError: There is none, or it is damaged.
    """
    return read_json(folder / SWEEP_FILE, SweepSummary.from_json, command="dit sweep")


def cheapest_front(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Return the cells that none with as few bit operations beats, the cheapest first."""
    best = float("inf")
    found = []
    for cell in sorted(cells, key=lambda c: (c.cost["bops"], _value(c), c.name)):
        if _value(cell) < best:
            best = _value(cell)
            found.append(cell)
    return tuple(found)


def _value(cell: Cell) -> float:
    return float("inf") if cell.quality is None else cell.quality.mean


def _at(seed: Mapping[str, Any], path: Sequence[str]) -> float | None:
    found: Any = seed
    for key in path:
        if found is None:
            return None
        found = found.get(key)
    return None if found is None else float(found)


def _mean_variance(seeds: Sequence[Mapping[str, Any]]) -> tuple[float, ...] | None:
    found = [seed.get("variance_by_step_and_channel") for seed in seeds]
    rows = [[fmean(step) for step in seed] for seed in found if seed is not None]
    if len(rows) < len(seeds):
        return None
    return tuple(fmean(values) for values in zip(*rows, strict=True))
