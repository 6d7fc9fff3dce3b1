# SPDX-License-Identifier: Apache-2.0
"""Re-estimation of batch-norm statistics, on layers that have absorbed their batch norm."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lutwise.errors import ConfigError
from lutwise.quant.algorithms.bias_correction import channel_mean
from lutwise.quant.algorithms.problems import Correction, LayerOutputs
from lutwise.quant.algorithms.registry import Stage, register
from lutwise.quant.work import Demand, LayerSize, Work

__all__ = ["NormReestimationConfig", "norm_reestimation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NormReestimationConfig:
    """Settings.

    Args:
        largest_gain: Gains are limited to this and its inverse; channels that quantization has
            all but silenced would get any gain.

    Raises:
        ConfigError: Below one.
    """

    largest_gain: float = 2.0

    def __post_init__(self) -> None:
        if not self.largest_gain >= 1:
            raise ConfigError(
                f"norm_reestimation.largest_gain is at least 1, got {self.largest_gain}"
            )


def _demand(size: LayerSize, config: NormReestimationConfig) -> Demand:
    del config
    numbers = size.outputs * size.images
    return Demand(work=Work(numbers=40 * numbers, calls=200))


@register("norm_reestimation", Stage.RESCALE, NormReestimationConfig, demand=_demand)
@torch.no_grad()
def norm_reestimation(outputs: LayerOutputs, config: NormReestimationConfig) -> Correction:
    """Give each channel of a convolution the mean and variance that it has in the float model.

    A batch norm whose statistics are taken anew behind the quantized layer would normalise to the
    mean and variance it had; here it is folded, so its new factor goes into the weights' scales,
    which cost nothing, and its offset into the bias. Linear layers are left alone.

    Raises:
        ConfigError: The weights have one scale for all channels.

    Reference:
        arXiv 1906.04721, section 4.2.1, for the idea; the statistics are empirical here.
    """
    if not isinstance(outputs.layer, torch.nn.Conv2d):
        return Correction(gain=None, shift=torch.zeros(outputs.layer.out_features))
    if not outputs.per_channel:
        raise ConfigError(
            f"{outputs.name}: norm_reestimation changes scales per channel and needs "
            "`weights: {granularity: channel}`"
        )
    mean, variance = _moments(outputs.floats, outputs.axes)
    found_mean, found_variance = _moments(outputs.quantized, outputs.axes)
    moving = (variance > 0) & (found_variance > 0)
    ratio = torch.where(moving, variance, 1.0) / torch.where(moving, found_variance, 1.0)
    gain = ratio.sqrt().clamp(1 / config.largest_gain, config.largest_gain)
    return Correction(gain=gain.float(), shift=(mean - gain * found_mean).float())


def _moments(batches: Sequence[torch.Tensor], axes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    mean = channel_mean(batches, axes)
    # A generator: one batch in float64 at a time.
    square = channel_mean((b.double().square() for b in batches), axes)
    return mean, (square - mean.square()).clamp_min(0)
