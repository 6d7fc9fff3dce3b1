# SPDX-License-Identifier: Apache-2.0
"""What plots and reports read: points of a sweep and the summary of a run, as plain values."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import Any, Final

from pydantic import JsonValue

from lutwise.errors import ConfigError
from lutwise.export.layer_row import LayerAdvice, LayerRow, PointRow
from lutwise.export.records import Record, check_range
from lutwise.files import write_atomic

__all__ = [
    "PARETO_COSTS",
    "Check",
    "Estimate",
    "Family",
    "Point",
    "RunSummary",
    "SweepResult",
    "TrialRow",
    "fronts",
    "pareto",
    "write_csv",
]

INTERVAL: Final = "95 % Wilson score interval"


class Family(StrEnum):
    """What kind of numbers a point uses."""

    INTEGER = "integer"
    MINIFLOAT = "minifloat"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate(Record):
    """A share of images, or a difference of two shares, with its 95 % confidence interval.

    Args:
        value: The share.
        low: Lower end of the interval.
        high: Upper end.

    Raises:
        ConfigError: Not finite, or not ``low <= value <= high``.
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not -inf < self.low <= self.value <= self.high < inf:
            raise ConfigError(
                "an estimate has finite low <= value <= high, got "
                f"low={self.low!r}, value={self.value!r}, high={self.high!r}"
            )


def _check_share(owner: str, name: str, estimate: Estimate | None) -> None:
    if estimate is not None:
        check_range(owner, f"{name}.low", estimate.low, high=1.0)
        check_range(owner, f"{name}.high", estimate.high, high=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point(Record):
    """One quantized model: how good, and what it costs.

    Args:
        name: Unique in a sweep.
        family: Of both formats.
        weights: Format of the weights, as people write it.
        activations: Format of the activations.
        accuracy: Top-1 accuracy.
        agreement: Share of images with the float model's top-1 class.
        sqnr_db: Signal to quantization noise of the outputs; None where not measured.
        weight_bits: Average bits per weight.
        activation_bits: Average bits of the inputs of multiply-accumulates.
        bits_per_mac: Weight bits times activation bits, averaged over multiply-accumulates.
        bops: Bit operations for one image.
        luts_per_mac: LUTs per multiply-accumulate, averaged over the work.
        luts_full: LUTs with every multiply-accumulate in a lane of its own.
        luts_folded: LUTs of the folded network.
        requantizer_luts: The part of ``luts_folded`` that requantizes.
        model_bytes: Bytes of all weights.
        cost_error: Expected relative error of ``luts_folded``.

    Raises:
        ConfigError: No name, or a number out of its range.
    """

    name: str
    family: Family
    weights: str
    activations: str
    accuracy: Estimate
    agreement: float
    sqnr_db: float | None
    weight_bits: float
    activation_bits: float
    bits_per_mac: float
    bops: float
    luts_per_mac: float
    luts_full: float
    luts_folded: float
    requantizer_luts: float
    model_bytes: float
    cost_error: float

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("a point needs a name")
        owner = f"point {self.name!r}"
        _check_share(owner, "accuracy", self.accuracy)
        check_range(owner, "agreement", self.agreement, high=1.0)
        check_range(owner, "sqnr_db", self.sqnr_db, low=-1000.0, high=1000.0)
        for name in (
            "weight_bits", "activation_bits", "bits_per_mac", "bops", "luts_per_mac", "luts_full",
            "luts_folded", "requantizer_luts", "model_bytes", "cost_error",
        ):  # fmt: skip
            check_range(owner, name, getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult(Record):
    """Many points of one model, measured on the same images.

    Args:
        model: Name of the float model.
        data: Name of the evaluation images.
        images: How many.
        float_accuracy: Of the float model.
        mode: Graph mode, ``dataflow`` or ``layerwise``.
        folding: Of the hardware that is priced, in words.
        points: The points; none is allowed here, but nothing can be drawn of it.
        versions: Version by package.
        seed: Of the choice of images and of the algorithms.
        interval: How the confidence intervals were made.
        calibration: What the points were calibrated on, in words; empty where not recorded.
        assumptions: What the prices contain and leave out, in words by topic.

    Raises:
        ConfigError: Two points have the same name, or there are no images.
    """

    model: str
    data: str
    images: int
    float_accuracy: Estimate
    mode: str
    folding: str
    points: tuple[Point, ...]
    versions: dict[str, str]
    seed: int
    interval: str = INTERVAL
    calibration: str = ""
    assumptions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_range("sweep", "images", self.images, low=1)
        _check_share("sweep", "float_accuracy", self.float_accuracy)
        names = [point.name for point in self.points]
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ConfigError(f"points of a sweep have different names, got {twice} more than once")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check(Record):
    """An executor of the exported file against the exact executor.

    Args:
        executor: Name.
        images: Images run.
        outputs: Numbers compared.
        mismatches: Numbers that differ.
    """

    executor: str
    images: int
    outputs: int
    mismatches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow(Record):
    """A candidate that the search for a recipe tried.

    Args:
        change: What it changes of the best one before it.
        divergence: Of its outputs from the float model's, on calibration images.
        kept: It was the best so far.
    """

    change: str
    divergence: float
    kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary(Record):
    """A run, as its report shows it. Accuracies are None where nothing was evaluated.

    Args:
        name: Of the run.
        model: Name of the float model.
        mode: Graph mode, ``dataflow`` or ``layerwise``.
        recipe_yaml: The complete recipe.
        calibration_data: Name of the calibration images.
        calibration_images: How many.
        evaluation_data: Name of the evaluation images; None without evaluation.
        evaluation_images: How many.
        float_accuracy: Of the float model.
        fake_accuracy: Of fake quantization in float32.
        exact_accuracy: Of the exact executor; None where the model has no hardware form.
        difference: Reported accuracy minus float accuracy, paired on the same images.
        agreement: Share of images with the float model's top-1 class.
        sqnr_db: Signal to quantization noise of the outputs against the float model.
        fake_agreement: Share of images where fake quantization and exact executor name the
            same class.
        trials: What the search for a recipe tried, in order.
        checks: Executors of the exported file against the exact one.
        export_note: Why there is no file, or empty.
        layers: The layers, in order.
        points: Quantizers that belong to no layer, in order.
        advice: Layers that dominate the loss, worst first.
        diagnosed_images: Images that the noise of layers was measured on.
        cost: What ``cost.json`` holds, without the layers; nested plain values.
        files: SHA-256 by file name.
        versions: Version by package.
        seed: Of the recipe.
        interval: How the confidence intervals were made.
    """

    name: str
    model: str
    mode: str
    recipe_yaml: str
    calibration_data: str
    calibration_images: int
    evaluation_data: str | None = None
    evaluation_images: int = 0
    float_accuracy: Estimate | None = None
    fake_accuracy: Estimate | None = None
    exact_accuracy: Estimate | None = None
    difference: Estimate | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    fake_agreement: float | None = None
    trials: tuple[TrialRow, ...] = ()
    checks: tuple[Check, ...] = ()
    export_note: str = ""
    layers: tuple[LayerRow, ...] = ()
    points: tuple[PointRow, ...] = ()
    advice: tuple[LayerAdvice, ...] = ()
    diagnosed_images: int = 0
    cost: dict[str, JsonValue] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    interval: str = INTERVAL

    def __post_init__(self) -> None:
        owner = f"run {self.name!r}"
        for name in ("float_accuracy", "fake_accuracy", "exact_accuracy"):
            _check_share(owner, name, getattr(self, name))
        for name in ("agreement", "fake_agreement"):
            check_range(owner, name, getattr(self, name), high=1.0)


def _accuracy(point: Point) -> float:
    return point.accuracy.value


def pareto(
    points: Sequence[Point],
    cost: Callable[[Point], float],
    accuracy: Callable[[Point], float] = _accuracy,
) -> tuple[int, ...]:
    """Return the indices of the points that no other point beats, cheapest first.

    A point beats another when it costs no more, is at least as accurate, and is better in one of
    the two. Points that are equal in both beat each other not: all of them stay, in input order.

    Args:
        points: Any number, none included.
        cost: To be small.
        accuracy: To be large.
    """
    order = sorted(range(len(points)), key=lambda i: (cost(points[i]), -accuracy(points[i]), i))
    front: list[int] = []
    for i in order:
        if front:
            price, best = cost(points[front[-1]]), accuracy(points[front[-1]])
            found = accuracy(points[i])
            if found < best or (found == best and cost(points[i]) > price):
                continue
        front.append(i)
    return tuple(front)


PARETO_COSTS: Final[Mapping[str, Callable[[Point], float]]] = {
    "weight_bits": lambda point: point.weight_bits,
    "bits_per_mac": lambda point: point.bits_per_mac,
    "luts": lambda point: point.luts_folded,
}
"""The costs of which the Pareto fronts are kept, by name."""


def fronts(points: Sequence[Point]) -> dict[str, frozenset[int]]:
    """Return the indices of the Pareto-optimal points for each of `PARETO_COSTS`."""
    return {name: frozenset(pareto(points, cost)) for name, cost in PARETO_COSTS.items()}


def _text(value: Any) -> str:
    """Return a value as CSV holds it: floats with all digits that matter, whole ones bare."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)


def write_csv(result: SweepResult, path: Path) -> None:
    """Write one row per point, with the Pareto fronts as true and false columns.

    Args:
        result: The sweep.
        path: The file.

    Raises:
        OutputError: The place cannot be written.
    """
    plain = [f.name for f in fields(Point) if f.name != "accuracy"]
    at = plain.index("agreement")
    header = [*plain[:at], "accuracy", "accuracy_low", "accuracy_high", *plain[at:]]
    optimal = fronts(result.points)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*header, *(f"pareto_{name}" for name in optimal)])
    for i, point in enumerate(result.points):
        found = {name: getattr(point, name) for name in plain}
        estimate = point.accuracy
        found |= {
            "accuracy": estimate.value,
            "accuracy_low": estimate.low,
            "accuracy_high": estimate.high,
        }
        row = [_text(found[name]) for name in header]
        writer.writerow([*row, *(_text(i in front) for front in optimal.values())])
    write_atomic(path, text.getvalue().encode())
