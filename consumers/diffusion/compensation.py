# SPDX-License-Identifier: Apache-2.0
"""Variance compensation: what quantization and caching do to latents, undone per channel.

At each step the latent ``x`` of a quantized, cached model becomes ``mu + K (x - mu)``, with a gain
``K`` and a mean ``mu`` per step and channel, fitted on trajectories of the same noise and labels
of that model and of the float model without a cache (`lutwise.consumers.diffusion.gains`).

Correcting step i changes what all later steps see. `fit` takes whole trajectories, and so finds
gains for latents that no correction touched before; for a sequential fit a sampler runs the
corrupted model, calls `fit_step` at each step with the reference's latents of that step, and goes
on from the corrected latents; `Compensation.of_steps` puts the results together. Data that gains
were fitted on say nothing of how good they are; keep trajectories aside.

Reference:
    Q&C: When Quantization Meets Cache in Efficient Image Generation, arXiv 2503.02508;
    Timestep-Aware Correction for Quantized Diffusion Models (TAC-Diffusion), arXiv 2407.03917.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lutwise.consumers.diffusion.gains import METHODS, FitParameters
from lutwise.errors import CalibrationError, ConfigError, DataError, ModelError
from lutwise.files import write_atomic

__all__ = [
    "METHODS",
    "Compensation",
    "FitParameters",
    "StepCompensation",
    "fit",
    "fit_step",
]

_KEY: Final = "lutwise.compensation"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepCompensation:
    """The correction of one step.

    Args:
        gain: K per channel, float32, shape (c,).
        mean: mu per channel, float32, shape (c,).
    """

    gain: Tensor
    mean: Tensor

    def apply(self, latents: Tensor) -> Tensor:
        """Return ``mu + K (x - mu)``; with a gain of 1 exactly the latents.

        Args:
            latents: Shape (n, c, h, w).

        Raises:
            DataError: They have other channels.
        """
        if latents.ndim != 4 or latents.shape[1] != len(self.gain):
            raise DataError(
                f"the compensation is for latents of shape (n, {len(self.gain)}, h, w), got "
                f"{tuple(latents.shape)}"
            )
        gain = self.gain.to(latents).reshape(1, -1, 1, 1)
        mean = self.mean.to(latents).reshape(1, -1, 1, 1)
        # Not as in the formula, so that a gain of 1 changes no bit.
        return latents * gain + mean * (1 - gain)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compensation:
    """Corrections of all steps, one per group of steps.

    Args:
        method: That fitted it.
        gain: K per group and channel, float32, shape (groups, c).
        mean: mu per group and channel, float32, shape (groups, c).
        groups: Group of each step: from 0, rising by at most 1.

    Raises:
        ConfigError: Shapes and groups contradict each other.
        CalibrationError: A gain or mean is NaN or infinite.
    """

    method: str
    gain: Tensor
    mean: Tensor
    groups: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(_unknown(self.method))
        if self.gain.ndim != 2 or self.gain.shape != self.mean.shape or not self.gain.numel():
            raise ConfigError(
                "a compensation has gains and means of one shape (groups, channels), got "
                f"{tuple(self.gain.shape)} and {tuple(self.mean.shape)}"
            )
        _check_groups(self.groups, len(self.groups))
        if self.groups[-1] + 1 != len(self.gain):
            raise ConfigError(
                f"a compensation has a row per group of steps, got {len(self.gain)} rows and "
                f"{self.groups[-1] + 1} groups"
            )
        if not bool(torch.isfinite(self.gain).all() and torch.isfinite(self.mean).all()):
            raise CalibrationError(
                f"the {self.method} compensation has gains or means that are NaN or infinite; look "
                "at the trajectories it was fitted on"
            )

    @property
    def steps(self) -> int:
        """Sampling steps."""
        return len(self.groups)

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self.gain.shape[1]

    @classmethod
    def of_steps(cls, method: str, steps: Sequence[StepCompensation]) -> "Compensation":
        """Put the corrections of single steps together, the first step first.

        Raises:
            ConfigError: There are none, or their channels differ.
        """
        if len({step.gain.shape for step in steps}) != 1:
            raise ConfigError(
                "a compensation is made of steps with the same channels, got "
                f"{[len(step.gain) for step in steps]}"
            )
        return cls(
            method=method,
            gain=torch.stack([step.gain for step in steps]),
            mean=torch.stack([step.mean for step in steps]),
            groups=tuple(range(len(steps))),
        )

    def step(self, step: int) -> StepCompensation:
        """Return the correction of a step.

        Raises:
            ConfigError: There is no such step.
        """
        if not 0 <= step < self.steps:
            raise ConfigError(
                f"the compensation was fitted for {self.steps} steps, there is no step {step}; fit "
                "one for this number of steps"
            )
        group = self.groups[step]
        return StepCompensation(gain=self.gain[group], mean=self.mean[group])

    def apply(self, latents: Tensor, step: int) -> Tensor:
        """Correct the latents before a step.

        Args:
            latents: Shape (n, c, h, w).
            step: Index from 0, in the order of sampling.

        Raises:
            ConfigError: There is no such step.
            DataError: The latents have other channels.
        """
        return self.step(step).apply(latents)

    def check(self, *, steps: int, channels: int) -> None:
        """Make sure that the compensation fits a sampling run.

        Raises:
            ConfigError: It has other steps or channels.
        """
        if (self.steps, self.channels) != (steps, channels):
            raise ConfigError(
                f"the compensation was fitted for {self.steps} steps and {self.channels} channels, "
                f"sampling has {steps} steps and {channels} channels; fit one for these"
            )

    def save(self, path: Path) -> None:
        """Write as safetensors.

        Raises:
            OutputError: The place cannot be written.
        """
        described = {
            "version": _VERSION,
            "method": self.method,
            "steps": self.steps,
            "channels": self.channels,
            "groups": self.groups,
        }
        tensors = {"gain": self.gain.contiguous(), "mean": self.mean.contiguous()}
        write_atomic(path, save(tensors, metadata={_KEY: json.dumps(described)}))

    @classmethod
    def load(cls, path: Path) -> "Compensation":
        """Read what `save` wrote.

        Raises:
            ModelError: The file is missing, damaged, of a later version, or holds no
                compensation.
        """
        if not path.is_file():
            raise ModelError(
                f"the file of a compensation is needed, {str(path)!r} does not exist; fit one, or "
                "sample without"
            )
        try:
            with safe_open(path, framework="pt") as held:
                described = json.loads((held.metadata() or {})[_KEY])
                gain, mean = held.get_tensor("gain"), held.get_tensor("mean")
            if described["version"] != _VERSION:
                raise ValueError(f"it has version {described['version']}, wanted {_VERSION}")
            found = cls(
                method=described["method"],
                gain=gain,
                mean=mean,
                groups=tuple(described["groups"]),
            )
            found.check(steps=described["steps"], channels=described["channels"])
        except (
            SafetensorError, KeyError, ValueError, TypeError, OSError, ConfigError,
            CalibrationError,
        ) as error:  # fmt: skip
            raise ModelError(
                f"{path} is no file of a compensation ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}); fit it again"
            ) from error
        return found


def fit(
    method: str,
    corrupted: Tensor,
    reference: Tensor,
    *,
    groups: Sequence[int] | None = None,
    parameters: FitParameters | None = None,
) -> Compensation:
    """Fit the compensation of paired trajectories.

    Args:
        method: One of `METHODS`.
        corrupted: Latents before each step, of the quantized and cached model, shape
            (steps, n, c, h, w).
        reference: Those of the float model from the same noise and labels, the same shape.
        groups: Group of each step, from 0 and rising by at most 1, where neighbouring steps
            shall share one correction; ``None`` for one per step.
        parameters: Of the fit.

    Raises:
        ConfigError: No such method, or groups that do not fit.
        DataError: The shapes are not those of paired trajectories.
        CalibrationError: Latents are NaN or infinite.
    """
    if corrupted.ndim != 5 or corrupted.shape != reference.shape or not corrupted.numel():
        raise DataError(
            "paired trajectories have one shape (steps, n, c, h, w), got "
            f"{tuple(corrupted.shape)} and {tuple(reference.shape)}"
        )
    steps = len(corrupted)
    groups = tuple(range(steps)) if groups is None else tuple(groups)
    _check_groups(groups, steps)
    fitted = []
    for group in range(groups[-1] + 1):
        members = [step for step in range(steps) if groups[step] == group]
        pooled = (x[members].flatten(0, 1) for x in (corrupted, reference))
        fitted.append(fit_step(method, *pooled, parameters=parameters))
    rows = Compensation.of_steps(method, fitted)
    return Compensation(method=method, gain=rows.gain, mean=rows.mean, groups=groups)


def fit_step(
    method: str,
    corrupted: Tensor,
    reference: Tensor,
    *,
    parameters: FitParameters | None = None,
) -> StepCompensation:
    """Fit the correction of one step.

    A channel without any variance gets the gain 1.

    Args:
        method: One of `METHODS`.
        corrupted: Latents of the quantized and cached model, shape (n, c, h, w).
        reference: Those of the float model, the same shape.
        parameters: Of the fit.

    Raises:
        ConfigError: No such method.
        DataError: The shapes are not those of paired latents.
        CalibrationError: Latents are NaN or infinite.
    """
    if method not in METHODS:
        raise ConfigError(_unknown(method))
    if corrupted.ndim != 4 or corrupted.shape != reference.shape or not corrupted.numel():
        raise DataError(
            f"paired latents have one shape (n, c, h, w), got {tuple(corrupted.shape)} and "
            f"{tuple(reference.shape)}"
        )
    for name, latents in (("corrupted", corrupted), ("reference", reference)):
        bad = int((~torch.isfinite(latents)).sum())
        if bad:
            raise CalibrationError(
                f"{bad} of {latents.numel()} numbers of the {name} latents are NaN or infinite; "
                "the sampler diverged"
            )
    gain, mean = METHODS[method](
        corrupted.detach().double(), reference.detach().double(), parameters or FitParameters()
    )
    return StepCompensation(gain=gain.float(), mean=mean.float())


def _check_groups(groups: Sequence[int], steps: int) -> None:
    rising = all(after - before in (0, 1) for before, after in pairwise(groups))
    if len(groups) != steps or not groups or groups[0] != 0 or not rising:
        raise ConfigError(
            f"groups of {steps} steps are as many numbers, from 0 and rising by at most 1, got "
            f"{tuple(groups)}"
        )


def _unknown(method: str) -> str:
    return f"no compensation {method!r}: {', '.join(METHODS)} exist"
