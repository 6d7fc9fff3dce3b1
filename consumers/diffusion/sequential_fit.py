# SPDX-License-Identifier: Apache-2.0
"""A compensation fitted while sampling: each step sees the corrections of those before it.

Gains of whole, uncorrected trajectories add up when they are applied one after another: what an
earlier gain has repaired, a later one repairs again. Fitted in sequence each gain has only to
undo what its own step did.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lutwise.consumers.diffusion.compensation import (
    Compensation,
    FitParameters,
    StepCompensation,
    fit_step,
)
from lutwise.consumers.diffusion.gains import MOMENTS
from lutwise.consumers.diffusion.sampling import Caching, Samples, SamplingSettings, sample
from lutwise.errors import ConfigError
from lutwise.quant.progress import Tell, silent

__all__ = ["fit_in_sequence"]


class _Fitting:
    """Corrects each step by what it has just fitted for it."""

    def __init__(self, method: str, reference: Samples, parameters: FitParameters | None) -> None:
        assert reference.trajectory is not None
        self._method, self._parameters = method, parameters
        self._trajectory, self._finished = reference.trajectory, reference.latents
        self._steps: list[StepCompensation] = []
        self._last: StepCompensation | None = None

    def apply(self, latents: torch.Tensor, step: int) -> torch.Tensor:
        fitted = self._fit(latents, self._trajectory[step])
        self._steps.append(fitted)
        return fitted.apply(latents)

    def finish(self, latents: torch.Tensor) -> torch.Tensor:
        if self._method != MOMENTS:
            return latents
        self._last = self._fit(latents, self._finished)
        return self._last.apply(latents)

    def found(self) -> Compensation:
        return Compensation.of_steps(self._method, self._steps, finished=self._last)

    def _fit(self, latents: torch.Tensor, reference: torch.Tensor) -> StepCompensation:
        return fit_step(self._method, latents, reference, parameters=self._parameters)


def fit_in_sequence(
    method: str,
    transformer: nn.Module,
    scheduler: Mapping[str, Any],
    reference: Samples,
    settings: SamplingSettings,
    *,
    caching: Caching | None = None,
    parameters: FitParameters | None = None,
    tell: Tell = silent,
) -> Compensation:
    """Fit the compensation of a quantized and cached model on its way from noise to samples.

    Args:
        method: One of `compensation.METHODS`.
        transformer: The quantized model.
        scheduler: Configuration of its noise schedule.
        reference: What the float model made, without reuse, of the same settings; its trajectory
            and labels are used.
        settings: How the reference was sampled, all in one batch.
        caching: What the quantized model reuses.
        parameters: Of the fit.
        tell: Told how much is done.

    Raises:
        ConfigError: No such method, a reference without trajectory, or made in several batches.
    """
    if reference.trajectory is None:
        raise ConfigError("a fit needs the trajectory of the float model; sample with record=True")
    if settings.batch < len(reference.labels):
        raise ConfigError(
            f"gains are fitted on all samples at once: {len(reference.labels)} samples need a "
            f"batch of as many, got {settings.batch}"
        )
    if len(reference.timesteps) != settings.steps:
        raise ConfigError(
            f"the reference has {len(reference.timesteps)} steps, the settings {settings.steps}"
        )
    fitting = _Fitting(method, reference, parameters)

    def told(step: str, share: float | None = None) -> None:
        del step
        tell("fit compensation", share)

    sample(
        transformer,
        scheduler,
        reference.labels,
        settings,
        caching=caching,
        corrector=fitting,
        tell=told,
    )
    return fitting.found()
