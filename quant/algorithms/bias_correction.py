# SPDX-License-Identifier: Apache-2.0
"""Empirical bias correction."""

from dataclasses import dataclass

import torch
from torch import nn

from lutwise.errors import ConfigError
from lutwise.quant.algorithms.registry import Stage, register
from lutwise.quant.quantized import QuantizedModel
from lutwise.quant.walk import walk

__all__ = ["BiasCorrectionConfig", "correct_biases"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasCorrectionConfig:
    """Settings.

    Args:
        images: Calibration images to look at, at most; memory grows with them.
        batch: Images at a time.

    Raises:
        ConfigError: Not positive.
    """

    images: int = 128
    batch: int = 32

    def __post_init__(self) -> None:
        if self.images < 1 or self.batch < 1:
            raise ConfigError(
                "bias_correction needs at least one image and a batch of at least one, got "
                f"images={self.images}, batch={self.batch}"
            )


@register("bias_correction", Stage.CORRECT, BiasCorrectionConfig)
@torch.no_grad()
def correct_biases(
    model: QuantizedModel, images: torch.Tensor, config: BiasCorrectionConfig
) -> None:
    """Shift each layer's bias so that its mean output per channel is the float model's.

    Layer by layer, each after the corrections of those before it.

    Reference:
        arXiv 1906.04721, section 4.2 (the empirical variant, appendix D).
    """
    batches = list(images[: config.images].split(config.batch))
    for step in walk(model, batches):
        layer = step.layer
        if layer is None:
            continue
        axes = [0, 2, 3] if isinstance(layer, nn.Conv2d) else list(range(step.floats[0].dim() - 1))
        shift = _mean(step.floats, axes) - _mean(step.quantized, axes)
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros_like(shift), requires_grad=False)
        layer.bias.add_(shift)
        view = shift.reshape(-1, 1, 1) if isinstance(layer, nn.Conv2d) else shift
        for output in step.quantized:
            output.add_(view)


def _mean(batches: list[torch.Tensor], axes: list[int]) -> torch.Tensor:
    count = sum(b.numel() / b.mean(axes).numel() for b in batches)
    total = sum((b.sum(axes, dtype=torch.float64) for b in batches), torch.zeros(1))
    return (total / count).float()
