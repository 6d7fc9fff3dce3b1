# SPDX-License-Identifier: Apache-2.0
"""Gains of variance compensation: ways to fit them, the paper's objective solved.

At each step a latent ``x`` of a quantized, cached model becomes ``mu + K (x - mu)``, with a gain
``K`` and a mean ``mu`` per step and channel, fitted on trajectories of the same noise and labels:
``x`` of the corrupted model and ``r`` of the float model without a cache. Sums below run over
samples and pixels of a channel, ``d = x - mu`` and ``mu`` is the mean of ``x``.

The objective of the paper is ``J(K) = sum (x~ - r)^2 / r^2 + sum (x~ - r)^2`` with
``x~ = mu + K d``: squared relative error (rQNSR^2) plus squared error. With weights
``w = 1 + 1 / r^2`` it is ``sum w (K d - (r - mu))^2``, a parabola in K, so that
``dJ/dK = 2 sum w d (K d - (r - mu)) = 0`` gives its one minimum,

    K = sum w d (r - mu) / sum w d^2.

The formula as printed (in the notes that could be read) has ``d / r`` in place of
``d (r - mu) / r^2`` in the numerator: the minimum only where ``mu = 0``.

Where ``r`` is near 0, ``1 / r^2`` lets a few pixels rule. So below a threshold of ``|r|`` the
relative error does not count, as in TAC-Diffusion, from which the objective descends.

Reference:
    Q&C: When Quantization Meets Cache in Efficient Image Generation, arXiv 2503.02508;
    Timestep-Aware Correction for Quantized Diffusion Models (TAC-Diffusion), arXiv 2407.03917.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import Final, TypeAlias

import torch
from torch import Tensor

from lutwise.errors import ConfigError

__all__ = ["METHODS", "MOMENTS", "Fit", "FitParameters"]

MOMENTS: Final = "moments"
"""Gains of ``std``, where a corrected latent also gets the mean of the reference, and the finished
sample is corrected as well."""

_CHANNEL: Final = (0, 2, 3)
_ROUNDING: Final = 1e-12
"""Relative to the largest number: what a float64 mean leaves of a constant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitParameters:
    """How gains are fitted.

    Args:
        mask_threshold: Of ``minimiser``: pixels whose reference is nearer to 0, in the unit of
            the latents, do not count in the relative error; 0 leaves out exact zeros only.
            Latents have a variance near 1, so by default 4 percent of the pixels of noise are
            left out, and no weight is above 401.

    Raises:
        ConfigError: The threshold is negative or not finite.
    """

    mask_threshold: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.mask_threshold < inf:
            raise ConfigError(f"a mask threshold is at least 0, got {self.mask_threshold}")


def _none(x: Tensor, r: Tensor, parameters: FitParameters) -> tuple[Tensor, Tensor]:
    """The gain 1."""
    return torch.ones_like(_mean(x)), _mean(x)


def _printed(x: Tensor, r: Tensor, parameters: FitParameters) -> tuple[Tensor, Tensor]:
    """``[sum (r - mu) d + sum d / r] / [sum d^2 + sum d^2 / r^2]``, without pixels of r = 0."""
    mean, d = _mean(x), _centred(x)
    inverse = torch.where(r != 0, 1 / torch.where(r != 0, r, 1.0), 0.0)
    over = ((r - _spread(mean)) * d).sum(_CHANNEL) + (d * inverse).sum(_CHANNEL)
    return _ratio(over, (d**2 * (1 + inverse**2)).sum(_CHANNEL)), mean


def _minimiser(x: Tensor, r: Tensor, parameters: FitParameters) -> tuple[Tensor, Tensor]:
    """``sum w d (r - mu) / sum w d^2`` with ``w = 1 + 1 / r^2``, or 1 near 0."""
    mean, d = _mean(x), _centred(x)
    counts = (r != 0) & (r.abs() >= parameters.mask_threshold)
    weight = torch.where(counts, 1 + torch.where(counts, r, 1.0) ** -2, 1.0)
    over = (weight * d * (r - _spread(mean))).sum(_CHANNEL)
    return _ratio(over, (weight * d**2).sum(_CHANNEL)), mean


def _least_squares(x: Tensor, r: Tensor, parameters: FitParameters) -> tuple[Tensor, Tensor]:
    """``sum d (r - mu) / sum d^2``: the least squared error.

    It is below 1 as soon as the pair is not perfectly correlated, and so takes variance away.
    """
    d = _centred(x)
    return _ratio((d * r).sum(_CHANNEL), (d**2).sum(_CHANNEL)), _mean(x)


def _std(x: Tensor, r: Tensor, parameters: FitParameters) -> tuple[Tensor, Tensor]:
    """Ratio of standard deviations: the variance becomes that of the reference."""
    d, e = _centred(x), _centred(r)
    return _ratio((e**2).sum(_CHANNEL), (d**2).sum(_CHANNEL)).sqrt(), _mean(x)


def _qdrift(x: Tensor, r: Tensor, parameters: FitParameters) -> tuple[Tensor, Tensor]:
    """One ratio of standard deviations over all channels of a step.

    After Q-Drift (arXiv 2603.18095) in that one variance per timestep is the statistic. Q-Drift
    itself puts it into the sampler's drift instead of scaling latents.
    """
    d, e = x - x.mean(), r - r.mean()
    ratio = _ratio((e**2).sum(), (d**2).sum()).sqrt()
    return ratio.expand(x.shape[1]).clone(), x.mean().expand(x.shape[1]).clone()


Fit: TypeAlias = Callable[[Tensor, Tensor, FitParameters], tuple[Tensor, Tensor]]

METHODS: Final[Mapping[str, Fit]] = MappingProxyType(
    {
        "none": _none,
        "printed": _printed,
        "minimiser": _minimiser,
        "least_squares": _least_squares,
        "std": _std,
        MOMENTS: _std,
        "qdrift": _qdrift,
    }
)
"""Ways to fit by name: gain and mean per channel from float64 latents (n, c, h, w)."""


def _mean(x: Tensor) -> Tensor:
    return x.mean(_CHANNEL)


def _spread(channels: Tensor) -> Tensor:
    return channels.reshape(1, -1, 1, 1)


def _centred(x: Tensor) -> Tensor:
    d = x - _spread(_mean(x))
    return torch.where(d.abs() > _ROUNDING * _spread(x.abs().amax(_CHANNEL)), d, 0.0)


def _ratio(over: Tensor, under: Tensor) -> Tensor:
    return torch.where(under > 0, over / torch.where(under > 0, under, 1.0), 1.0)
