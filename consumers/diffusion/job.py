# SPDX-License-Identifier: Apache-2.0
"""What a run of a diffusion transformer does."""

from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import partial
from typing import Any

import torch

from lutwise.consumers.diffusion import calibration
from lutwise.consumers.diffusion.calibration import TapParameters
from lutwise.consumers.diffusion.compensation import METHODS
from lutwise.consumers.diffusion.forecast import Reuse, Taylor
from lutwise.consumers.diffusion.model import Dit
from lutwise.consumers.diffusion.quantized import linear_layers
from lutwise.consumers.diffusion.recipe import DitRecipe
from lutwise.consumers.diffusion.sampling import (
    Caching,
    SamplingSettings,
    build_scheduler,
    timesteps,
)
from lutwise.consumers.diffusion.schedule import CacheSchedule
from lutwise.consumers.diffusion.stock import blocks_of
from lutwise.errors import ConfigError, ModelError

__all__ = ["CalibrationChoice", "DitJob", "Use"]


class Use(IntEnum):
    """What noise is for.

    Each use has seeds of its own, so nothing is judged by the noise it was fitted on.
    """

    EVALUATION = 0
    CALIBRATION = 1
    FIT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationChoice:
    """What a model is calibrated on.

    Args:
        method: One of `calibration.METHODS`.
        samples: How many.
        trajectories: Of the float model, with the run's cache, to choose from.
        tap: Parameters of TAP.

    Raises:
        ConfigError: A number is not positive, or no such method.
    """

    method: str = "random"
    samples: int = 256
    trajectories: int = 64
    tap: TapParameters = field(default_factory=TapParameters)

    def __post_init__(self) -> None:
        if min(self.samples, self.trajectories) < 1:
            raise ConfigError(
                "calibration takes at least one sample of at least one trajectory, got "
                f"samples={self.samples}, trajectories={self.trajectories}"
            )
        if self.method not in calibration.METHODS:
            raise ConfigError(
                f"calibration samples are chosen by one of {', '.join(calibration.METHODS)}, got "
                f"{self.method!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DitJob:
    """What to do.

    Args:
        dit: The float model.
        recipe: How to quantize it.
        sampling: How to sample; its seed is that of the whole run.
        schedule: What the quantized model computes when.
        order: Of the forecast of what it does not compute; 0 reuses it.
        calibration: What to calibrate on.
        compensation: One of `compensation.METHODS`; ``none`` for none.
        fit_samples: Trajectories that the compensation is fitted on.
        samples: To make of each model.
        classes: That the samples go through in turn; empty for all.

    Raises:
        ConfigError: A number is out of range, no such compensation, a class that the model has
            not, an override of no layer, a schedule for another model, or more steps than the
            model has timesteps.
        ModelError: The scheduler's configuration makes no scheduler that takes these steps.
    """

    dit: Dit
    recipe: DitRecipe
    sampling: SamplingSettings
    schedule: CacheSchedule
    order: int = 0
    calibration: CalibrationChoice = field(default_factory=CalibrationChoice)
    compensation: str = "std"
    fit_samples: int = 200
    samples: int = 200
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min(self.samples, self.fit_samples) < 2 or self.order < 0:
            raise ConfigError(
                "a run takes at least 2 samples, 2 to fit on, and an order of at least 0, got "
                f"samples={self.samples}, fit_samples={self.fit_samples}, order={self.order}"
            )
        if self.compensation not in METHODS:
            raise ConfigError(
                f"a compensation is one of {', '.join(METHODS)}, got {self.compensation!r}"
            )
        if any(not 0 <= label < self.dit.classes for label in self.classes):
            raise ConfigError(
                f"{self.dit.name} has classes 0 .. {self.dit.classes - 1}, got {self.classes}"
            )
        self.recipe.check_globs(linear_layers(self.dit.transformer))
        blocks = len(blocks_of(self.dit.transformer))
        self.schedule.check(steps=self.sampling.steps, blocks=blocks)
        _check_scheduler(self.dit, self.sampling)

    def check_calibration(self) -> None:
        """Make sure, before anything is sampled, that it will be enough to calibrate on.

        Raises:
            ConfigError: Sampling has too few steps for the samples or groups that are wanted.
        """
        choice, steps = self.calibration, self.sampling.steps
        groups = self.recipe.timestep_groups
        if groups > steps:
            raise ConfigError(
                f"{groups} groups of timesteps have activation scales of their own, and {steps} "
                "steps are too few for that; sample with more steps, or make fewer groups"
            )
        chosen_from = choice.tap.candidate_steps
        candidates = steps if chosen_from is None else len(set(chosen_from) & set(range(steps)))
        if choice.samples > choice.trajectories * candidates:
            raise ConfigError(
                f"calibration takes {choice.samples} samples, and {choice.trajectories} "
                f"trajectories of {candidates} steps have {choice.trajectories * candidates}; take "
                "fewer samples, or more trajectories to choose them from"
            )

    @property
    def guided(self) -> bool:
        """Whether each step runs the model with and without the class."""
        return self.sampling.guidance > 1

    @property
    def caching(self) -> Caching:
        """The schedule with its forecaster."""
        make = partial(Taylor, self.order) if self.order else Reuse
        return Caching(schedule=self.schedule, forecaster=make)

    def labels(self, count: int) -> torch.Tensor:
        """Return the classes of so many samples, in turn."""
        classes = torch.tensor(self.classes or range(self.dit.classes))
        return classes.repeat(-(-count // len(classes)))[:count]

    def noise(self, use: Use, **changes: Any) -> SamplingSettings:
        """Return the settings of a use of noise."""
        return replace(self.sampling, seed=len(Use) * self.sampling.seed + use, **changes)


def _check_scheduler(dit: Dit, sampling: SamplingSettings) -> None:
    """Try the first and the last step of a model's scheduler on zeros."""
    zeros = torch.zeros(1, 1, 1, 1)
    try:
        stepper = build_scheduler(dit.scheduler, sampling.sampler)
        times = timesteps(stepper, sampling.steps)
        for time in (times[0], times[-1]):
            stepper.step(zeros, time, zeros, generator=torch.Generator())
    except ConfigError as error:
        # torch's complaints about an argument have many lines, and the first has the reason
        raise ConfigError(str(error).splitlines()[0]) from error
    except Exception as error:
        # any: the values come from a file, and diffusers checks few of them
        reason = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"the scheduler of {dit.name} takes no {sampling.steps} steps of "
            f"{sampling.sampler.value}: {type(error).__name__}: {reason}; check its "
            "scheduler_config.json"
        ) from error
