# SPDX-License-Identifier: Apache-2.0
"""Variance compensation: what quantization and caching do to latents, undone per channel.

At each step the latent ``x`` of a quantized, cached model becomes ``mu + K (x - mu)``, with a gain
``K`` and a mean ``mu`` per step and channel, fitted on trajectories of the same noise and labels
of that model and of the float model without a cache (`lutwise.consumers.diffusion.gains`).
``moments`` puts the float model's mean in place of the first ``mu``, and corrects the finished
sample too, which no later step would.

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

from lutwise.consumers.diffusion.gains import METHODS, MOMENTS, FitParameters
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
_VERSION: Final = 2
_TENSORS: Final = ("gain", "mean", "target")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepCompensation:
    """The correction of one step.

    Args:
        gain: K per channel, float32, shape (c,).
        mean: What latents are taken from before they are scaled, per channel, float32, shape (c,).
        target: What they are put on after that; the mean, but for ``moments``.
    """

    gain: Tensor
    mean: Tensor
    target: Tensor

    def apply(self, latents: Tensor) -> Tensor:
        """Return ``target + K (x - mean)``; exactly the latents where that changes nothing.

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
        gain, mean, target = (
            row.to(latents).reshape(1, -1, 1, 1) for row in (self.gain, self.mean, self.target)
        )
        # Not as in the formula, so that a gain of 1 on the mean itself changes no bit.
        return latents * gain + (mean * (1 - gain) + (target - mean))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compensation:
    """Corrections of all steps, one per group of steps, and of the finished sample.

    Args:
        method: That fitted it.
        gain: K per group and channel, float32, shape (groups, c); one more row where the finished
            sample is corrected.
        mean: What latents are taken from, float32, the same shape.
        target: What they are put on, float32, the same shape.
        groups: Group of each step: from 0, rising by at most 1.

    Raises:
        ConfigError: Shapes and groups contradict each other.
        CalibrationError: A gain, mean or target is NaN or infinite.
    """

    method: str
    gain: Tensor
    mean: Tensor
    target: Tensor
    groups: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(_unknown(self.method))
        tensors = (self.gain, self.mean, self.target)
        shapes = {tuple(tensor.shape) for tensor in tensors}
        if self.gain.ndim != 2 or len(shapes) != 1 or not self.gain.numel():
            raise ConfigError(
                "a compensation has gains, means and targets of one shape (groups, channels), got "
                f"{', '.join(str(tuple(tensor.shape)) for tensor in tensors)}"
            )
        _check_groups(self.groups, len(self.groups))
        if len(self.gain) - 1 - self.groups[-1] not in {0, 1}:
            raise ConfigError(
                "a compensation has a row per group of steps, and one more if it corrects the "
                f"finished sample; got {len(self.gain)} rows and {self.groups[-1] + 1} groups"
            )
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
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
    def of_steps(
        cls,
        method: str,
        rows: Sequence[StepCompensation],
        *,
        groups: Sequence[int] | None = None,
        finished: StepCompensation | None = None,
    ) -> "Compensation":
        """Put the corrections of single steps together.

        Args:
            method: That fitted them.
            rows: The first step first.
            groups: Row of each step, where steps share one.
            finished: Of the finished sample.

        Raises:
            ConfigError: There are none, or their channels differ.
        """
        if len({row.gain.shape for row in rows}) != 1:
            raise ConfigError(
                "a compensation is made of steps with the same channels, got "
                f"{[len(row.gain) for row in rows]}"
            )
        groups = tuple(range(len(rows)) if groups is None else groups)
        rows = (*rows, finished) if finished is not None else rows
        return cls(
            method=method,
            gain=torch.stack([row.gain for row in rows]),
            mean=torch.stack([row.mean for row in rows]),
            target=torch.stack([row.target for row in rows]),
            groups=groups,
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
        return self._row(self.groups[step])

    def _row(self, row: int) -> StepCompensation:
        return StepCompensation(gain=self.gain[row], mean=self.mean[row], target=self.target[row])

    def finish(self, latents: Tensor) -> Tensor:
        """Correct the finished sample, if that was fitted.

        Args:
            latents: Shape (n, c, h, w).

        Raises:
            DataError: The latents have other channels.
        """
        return self._row(-1).apply(latents) if len(self.gain) > self.groups[-1] + 1 else latents

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

    def tensors(self) -> dict[str, Tensor]:
        """Return gains, means and targets by name."""
        return {name: getattr(self, name).contiguous() for name in _TENSORS}

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
        write_atomic(path, save(self.tensors(), metadata={_KEY: json.dumps(described)}))

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
                if described["version"] != _VERSION:
                    raise ValueError(f"it has version {described['version']}, wanted {_VERSION}")
                tensors = {name: held.get_tensor(name) for name in _TENSORS}
            found = cls(method=described["method"], groups=tuple(described["groups"]), **tensors)
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
    return Compensation.of_steps(method, fitted, groups=groups)


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
    x, r = corrupted.detach().double(), reference.detach().double()
    gain, mean = METHODS[method](x, r, parameters or FitParameters())
    target = r.mean((0, 2, 3)) if method == MOMENTS else mean
    return StepCompensation(gain=gain.float(), mean=mean.float(), target=target.float())


def _check_groups(groups: Sequence[int], steps: int) -> None:
    rising = all(after - before in (0, 1) for before, after in pairwise(groups))
    if len(groups) != steps or not groups or groups[0] != 0 or not rising:
        raise ConfigError(
            f"groups of {steps} steps are as many numbers, from 0 and rising by at most 1, got "
            f"{tuple(groups)}"
        )


def _unknown(method: str) -> str:
    return f"no compensation {method!r}: {', '.join(METHODS)} exist"
