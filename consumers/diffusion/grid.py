# SPDX-License-Identifier: Apache-2.0
"""The cells of a sweep: steps, intervals, formats, forecasts, calibrations and compensations."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Any, Final

from lutwise.consumers.diffusion import calibration, compensation
from lutwise.consumers.diffusion.job import DitJob
from lutwise.consumers.diffusion.recipe import FLOAT, DitRecipe
from lutwise.consumers.diffusion.schedule import CacheSchedule
from lutwise.consumers.diffusion.stock import blocks_of
from lutwise.errors import ConfigError

__all__ = ["Formats", "Grid", "Setting"]

_NONE: Final = "none"


@dataclass(frozen=True, slots=True)
class Formats:
    """Formats of weights and activations, or ``float``.

    Args:
        weights: Of all linear layers.
        activations: Of their inputs.

    Raises:
        FormatError: A format that does not exist.
    """

    weights: str
    activations: str

    def __post_init__(self) -> None:
        DitRecipe(weights=self.weights, activations=self.activations)

    @classmethod
    def parse(cls, text: str) -> "Formats":
        """Read ``W/A``, or one format for both.

        Raises:
            FormatError: A format that does not exist.
        """
        weights, slash, activations = text.partition("/")
        return cls(weights, activations if slash else weights)

    def __str__(self) -> str:
        """Return ``W/A``; ``float`` if nothing is quantized."""
        return FLOAT if self.is_float else f"{self.weights}/{self.activations}"

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.weights == self.activations == FLOAT


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A cell of a sweep, but for its compensations.

    Args:
        steps: Of sampling.
        interval: From one refresh of the cache to the next; 1 for no cache.
        formats: Of weights and activations.
        order: Of the forecast of what the cache leaves out.
        calibration: How calibration samples are chosen; empty where there is nothing to calibrate.
    """

    steps: int
    interval: int
    formats: Formats
    order: int
    calibration: str

    @property
    def exact(self) -> bool:
        """Whether it is the float model without a cache, with which all are compared."""
        return self.formats.is_float and self.interval == 1

    def name(self, compensated: str) -> str:
        """Return the name of a cell.

        Args:
            compensated: One of `compensation.METHODS`.
        """
        parts = [f"T{self.steps}", f"N{self.interval}", str(self.formats)]
        if self.order:
            parts.append(f"order {self.order}")
        if self.calibration:
            parts.append(self.calibration)
        if compensated != _NONE:
            parts.append(f"+{compensated}")
        return " ".join(parts)

    def job(self, base: DitJob, compensated: str, seed: int) -> DitJob:
        """Return what to do for a cell and seed.

        Args:
            base: A job with all that the cells share.
            compensated: One of `compensation.METHODS`.
            seed: Of noise, of choices, and of numbers.
        """
        weights, activations = self.formats.weights, self.formats.activations
        # What is to be float stays float in all layers.
        less: dict[str, Any] = {"algorithms": {}} if self.formats.is_float else {}
        return replace(
            base,
            recipe=replace(
                base.recipe, weights=weights, activations=activations, seed=seed, **less
            ),
            sampling=replace(base.sampling, steps=self.steps, seed=seed),
            schedule=CacheSchedule.every(
                self.interval, steps=self.steps, blocks=len(blocks_of(base.dit.transformer))
            ),
            order=self.order,
            calibration=replace(
                base.calibration, method=self.calibration or base.calibration.method
            ),
            compensation=compensated,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "steps": self.steps,
            "interval": self.interval,
            **asdict(self.formats),
            "order": self.order,
            "calibration": self.calibration,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """All combinations of some values, each once.

    The float model without a cache is always among them. Where a value does not matter (the order
    of a forecast without a cache, calibration of a float model), there is one cell for all.

    Args:
        steps: Of sampling.
        intervals: From one refresh of the cache to the next.
        formats: Of weights and activations.
        orders: Of forecasts.
        calibrations: Of `calibration.METHODS`.
        compensations: Of `compensation.METHODS`.
        seeds: Repetitions; each has other noise, calibration samples and fits.

    Raises:
        ConfigError: A list is empty or names something twice, a number is out of range, or
            there is no such method.
    """

    steps: tuple[int, ...]
    intervals: tuple[int, ...]
    formats: tuple[Formats, ...]
    orders: tuple[int, ...] = (0,)
    calibrations: tuple[str, ...] = ("random",)
    compensations: tuple[str, ...] = (_NONE,)
    seeds: int = 3

    def __post_init__(self) -> None:
        for axis in fields(self):
            values = getattr(self, axis.name)
            if not isinstance(values, tuple):
                continue
            if not values:
                raise ConfigError(f"a sweep needs at least one of its {axis.name}, got none")
            twice = [str(value) for i, value in enumerate(values) if value in values[:i]]
            if twice:
                raise ConfigError(f"the {axis.name} of a sweep name {twice[0]} twice")
        if min(*self.steps, *self.intervals, self.seeds) < 1 or min(self.orders) < 0:
            raise ConfigError(
                "steps, intervals and seeds of a sweep are at least 1 and orders at least 0, got "
                f"steps {self.steps}, intervals {self.intervals}, seeds {self.seeds}, orders "
                f"{self.orders}"
            )
        _known("calibrations", self.calibrations, list(calibration.METHODS))
        _known("compensations", self.compensations, list(compensation.METHODS))

    def settings(self) -> tuple[Setting, ...]:
        """Return the settings, for each number of steps the float model first."""
        found: dict[Setting, None] = {}
        for steps in self.steps:
            found[_setting(steps, 1, Formats(FLOAT, FLOAT), 0, "")] = None
            for values in product(self.intervals, self.formats, self.orders, self.calibrations):
                found[_setting(steps, *values)] = None
        return tuple(found)

    def compensations_of(self, setting: Setting) -> tuple[str, ...]:
        """Return the compensations of a setting; the float model needs none."""
        return (_NONE,) if setting.exact else self.compensations

    def cells(self) -> Iterator[tuple[Setting, str]]:
        """Yield settings with a compensation each."""
        for setting in self.settings():
            for compensated in self.compensations_of(setting):
                yield setting, compensated

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        plain = {axis.name: getattr(self, axis.name) for axis in fields(self)}
        lists = {name: list(v) for name, v in plain.items() if isinstance(v, tuple)}
        return {**plain, **lists, "formats": [str(formats) for formats in self.formats]}


def _setting(steps: int, interval: int, formats: Formats, order: int, calibrated: str) -> Setting:
    return Setting(
        steps=steps,
        interval=interval,
        formats=formats,
        order=order if interval > 1 else 0,
        calibration="" if formats.is_float else calibrated,
    )


def _known(what: str, values: Sequence[str], known: Sequence[str]) -> None:
    for value in values:
        if value not in known:
            raise ConfigError(f"{what} of a sweep are of {', '.join(known)}, got {value!r}")
