# SPDX-License-Identifier: Apache-2.0
"""Linear layers with quantized weights and inputs, by float32 fake quantization."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lutwise.quant import kernels
from lutwise.quant.formats import Format
from lutwise.quant.quantized import QuantizedWeight

__all__ = [
    "Clock",
    "FakeQuantLinear",
    "InputQuantizer",
    "QuantizedInput",
    "QuantizedLayer",
    "TimeGroups",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeGroups:
    """Equal groups of neighbouring timesteps.

    Args:
        groups: How many.
        trained: Timesteps that the model was trained with.
    """

    groups: int
    trained: int

    def of(self, timestep: torch.Tensor) -> torch.Tensor:
        """Return the group of each timestep, int64, same shape."""
        return (timestep.long() * self.groups).div(self.trained, rounding_mode="floor")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizedInput:
    """Format and scales of a layer's input.

    Args:
        format: Of the values.
        scales: Positive, float32, shape (groups of timesteps,).
    """

    format: Format
    scales: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizedLayer:
    """What is quantized of a linear layer.

    Args:
        weight: Values and scales per output channel; None where it stays float.
        input: None where it stays float.
    """

    weight: QuantizedWeight | None
    input: QuantizedInput | None


class Clock:
    """The group of timesteps of each sample in the batch that a model works on.

    As a forward pre-hook of the model it reads them from the model's own arguments.
    """

    def __init__(self, groups: TimeGroups) -> None:
        self._groups = groups
        self.now: torch.Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of the timesteps that the model is called with."""
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        groups = self._groups.of(timestep.reshape(-1))
        # In sampling all are of one group, and one scale is much faster than one per sample.
        self.now = groups[:1] if bool((groups == groups[0]).all()) else groups

    def choose(self, scales: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the scale of each sample, in a shape that broadcasts against ``x``."""
        if len(scales) == 1 or self.now is None:
            return scales[:1].reshape(())
        return scales[self.now].reshape(-1, *[1] * (x.dim() - 1))


class InputQuantizer(nn.Module):
    """Quantizes what a layer reads.

    Args:
        quantized: Format and scales.
        clock: Says which scale it is.
    """

    scales: torch.Tensor

    def __init__(self, quantized: QuantizedInput, clock: Clock) -> None:
        super().__init__()
        self._format, self._clock = quantized.format, clock
        self.register_buffer("scales", quantized.scales.float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``scale * round(x / scale)``, shape (n, ..., features)."""
        return kernels.quantize_scaled(self._format, x, self._clock.choose(self.scales, x))


class FakeQuantLinear(nn.Module):
    """A linear layer with quantized weight and input; the bias stays float32.

    Args:
        layer: The float layer.
        quantized: Its formats, values and scales.
        clock: Says which scale of the input it is.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, layer: nn.Linear, quantized: QuantizedLayer, clock: Clock) -> None:
        super().__init__()
        real = layer.weight if quantized.weight is None else quantized.weight.real()
        self.register_buffer("weight", real.detach())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())
        self.input: nn.Module = (
            nn.Identity() if quantized.input is None else InputQuantizer(quantized.input, clock)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, ..., in) to (n, ..., out)."""
        return nn.functional.linear(self.input(x), self.weight, self.bias)
