# SPDX-License-Identifier: Apache-2.0
"""The cells of a sweep: steps, intervals, formats, forecasts, calibrations and compensations."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Any, Final

from lutwise.consumers.diffusion import calibration, compensation
from lutwise.consumers.diffusion.job import DitJob
from lutwise.consumers.diffusion.recipe import FLOAT, DitRecipe
from lutwise.consumers.diffusion.schedule import CacheSchedule, NamedSchedule
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
        weights, slash, activations = map(str.strip, text.partition("/"))
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
        interval: From one refresh of the cache to the next; 1 for no cache; 0 where a schedule
            says what is computed.
        formats: Of weights and activations.
        order: Of the forecast of what the cache leaves out.
        calibration: How calibration samples are chosen; empty where there is nothing to calibrate.
        schedule: In place of an interval.
    """

    steps: int
    interval: int
    formats: Formats
    order: int
    calibration: str
    schedule: NamedSchedule | None = None

    @property
    def cache(self) -> str:
        """What the cache is called: ``N3`` for an interval of 3, or the name of its schedule."""
        return f"N{self.interval}" if self.schedule is None else self.schedule.name

    @property
    def exact(self) -> bool:
        """Whether it is the float model without a cache, with which all are compared."""
        return self.formats.is_float and self.interval == 1

    def name(self, compensated: str) -> str:
        """Return the name of a cell.

        Args:
            compensated: One of `compensation.METHODS`.
        """
        parts = [f"T{self.steps}", self.cache, str(self.formats)]
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
        if self.schedule is None:
            blocks = len(blocks_of(base.dit.transformer))
            table = CacheSchedule.every(self.interval, steps=self.steps, blocks=blocks)
        else:
            table = self.schedule.table
        return replace(
            base,
            recipe=replace(
                base.recipe, weights=weights, activations=activations, seed=seed, **less
            ),
            sampling=replace(base.sampling, steps=self.steps, seed=seed),
            schedule=table,
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
            **({} if self.schedule is None else {"schedule": self.schedule.to_json()}),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Setting":
        """Make a setting of what `to_json` gave, among other values."""
        named = plain.get("schedule")
        return cls(
            steps=plain["steps"],
            interval=plain["interval"],
            formats=Formats(plain["weights"], plain["activations"]),
            order=plain["order"],
            calibration=plain["calibration"],
            schedule=None if named is None else NamedSchedule.from_json(named),
        )


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
        schedules: Beside the intervals, each where its number of steps is sampled.
        seeds: Repetitions; each has other noise, calibration samples and fits.

    Raises:
        ConfigError: A list is empty or names something twice, a number is out of range,
            there is no such method, a schedule is for other steps, or there is nothing but the
            float model.
    """

    steps: tuple[int, ...]
    intervals: tuple[int, ...]
    formats: tuple[Formats, ...]
    orders: tuple[int, ...] = (0,)
    calibrations: tuple[str, ...] = ("random",)
    compensations: tuple[str, ...] = (_NONE,)
    schedules: tuple[NamedSchedule, ...] = ()
    seeds: int = 3

    def __post_init__(self) -> None:
        for axis in fields(self):
            values = getattr(self, axis.name)
            if not isinstance(values, tuple):
                continue
            if not values and axis.name != "schedules":
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
        self._check_schedules()
        if all(setting.exact for setting in self.settings()):
            raise ConfigError(
                "a sweep compares cells with the float model without a cache, and this one has no "
                "other; add formats or intervals"
            )

    def _check_schedules(self) -> None:
        names = [f"N{interval}" for interval in {1, *self.intervals}]
        for schedule in self.schedules:
            if schedule.name in names:
                raise ConfigError(
                    f"two caches of a sweep are called {schedule.name}; rename the schedule's file"
                )
            names.append(schedule.name)
            if schedule.table.steps not in self.steps:
                raise ConfigError(
                    f"the schedule {schedule.name} is for {schedule.table.steps} steps, and the "
                    f"sweep samples with {', '.join(map(str, self.steps))}"
                )

    def settings(self) -> tuple[Setting, ...]:
        """Return the settings, for each number of steps the float model first."""
        found: dict[Setting, None] = {}
        for steps in self.steps:
            found[_setting(steps, 1, Formats(FLOAT, FLOAT), 0, "")] = None
            fitting = [s for s in self.schedules if s.table.steps == steps]
            caches: list[int | NamedSchedule] = [*self.intervals, *fitting]
            for values in product(caches, self.formats, self.orders, self.calibrations):
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
        return {
            **plain,
            **lists,
            "formats": [str(formats) for formats in self.formats],
            "schedules": [schedule.name for schedule in self.schedules],
        }


def _setting(
    steps: int, cache: int | NamedSchedule, formats: Formats, order: int, calibrated: str
) -> Setting:
    return Setting(
        steps=steps,
        interval=cache if isinstance(cache, int) else 0,
        formats=formats,
        order=0 if cache == 1 else order,
        calibration="" if formats.is_float else calibrated,
        schedule=None if isinstance(cache, int) else cache,
    )


def _known(what: str, values: Sequence[str], known: Sequence[str]) -> None:
    for value in values:
        if value not in known:
            raise ConfigError(f"{what} of a sweep are of {', '.join(known)}, got {value!r}")
