# SPDX-License-Identifier: Apache-2.0
"""Empirical bias correction."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from lutwise.quant.algorithms.problems import Correction, LayerOutputs
from lutwise.quant.algorithms.registry import Stage, register
from lutwise.quant.work import Demand, LayerSize, Work

__all__ = ["BiasCorrectionConfig", "bias_correction", "channel_mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasCorrectionConfig:
    """No settings."""


def _demand(size: LayerSize, config: BiasCorrectionConfig) -> Demand:
    del config
    # Sums in float64 run at a fifth of the speed of plain passes.
    return Demand(work=Work(numbers=14 * size.outputs * size.images, calls=100))


@register("bias_correction", Stage.CORRECT, BiasCorrectionConfig, demand=_demand)
@torch.no_grad()
def bias_correction(outputs: LayerOutputs, config: BiasCorrectionConfig) -> Correction:
    """Shift each layer's bias so that its mean output per channel is the float model's.

    Reference:
        arXiv 1906.04721, section 4.2 (the empirical variant, appendix D).
    """
    axes = outputs.axes
    shift = channel_mean(outputs.floats, axes) - channel_mean(outputs.quantized, axes)
    return Correction(gain=None, shift=shift.float())


def channel_mean(batches: Iterable[torch.Tensor], axes: list[int]) -> torch.Tensor:
    """Return the mean over all batches and the given dimensions, float64."""
    sums, numbers = [], 0
    for batch in batches:
        sums.append(batch.sum(axes, dtype=torch.float64))
        numbers += batch.numel()
    return torch.stack(sums).sum(0) / (numbers // sums[0].numel())
