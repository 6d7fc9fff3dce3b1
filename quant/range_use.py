# SPDX-License-Identifier: Apache-2.0
"""How numbers use the range and the codes of their format."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

import torch

from lutwise.quant import kernels
from lutwise.quant.evaluate import ratio_db
from lutwise.quant.formats import Format, values
from lutwise.quant.quantized import QuantizedWeight, TensorQuantizer

__all__ = ["RangeUse", "activation_use", "weight_use"]

_FLOAT32_ROUNDING: Final = 1 + 2.0**-20
"""A number that a scale maps to the format's end up to rounding in float32 is not beyond it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeUse:
    """Counts of numbers before, and of values after rounding to a format.

    Args:
        format: The format.
        numbers: How many numbers were looked at.
        clipped: Those beyond the largest or below the smallest value of the format.
        zeros: Those other than zero that became zero.
        taken: Values of the format that some number took.
        signal: Sum of the squared numbers, in units of their scale.
        noise: Sum of the squared differences that rounding and clipping make, in the same.
    """

    format: Format
    numbers: int
    clipped: int
    zeros: int
    taken: frozenset[float]
    signal: float
    noise: float

    @property
    def clipped_share(self) -> float:
        """Share of the numbers that the range cuts off."""
        return self.clipped / self.numbers

    @property
    def zero_share(self) -> float:
        """Share of the numbers that are lost to zero."""
        return self.zeros / self.numbers

    @property
    def dead_share(self) -> float:
        """Share of the format's values that no number takes; both codes of zero count as one."""
        return 1 - len(self.taken) / len(values(self.format))

    @property
    def rounding_db(self) -> float:
        """Signal to the noise that the quantizer adds by itself, decibel."""
        return ratio_db(self.signal, self.noise)

    def join(self, other: Self) -> Self:
        """Return the use of both sets of numbers, which have the same format and scale."""
        return type(self)(
            format=self.format,
            numbers=self.numbers + other.numbers,
            clipped=self.clipped + other.clipped,
            zeros=self.zeros + other.zeros,
            taken=self.taken | other.taken,
            signal=self.signal + other.signal,
            noise=self.noise + other.noise,
        )


def _taken(fmt: Format, rounded: torch.Tensor) -> frozenset[float]:
    # bfloat16 holds every value of a format of up to 8 bits, so its 16 bits are a bin of each.
    bits = rounded.to(torch.bfloat16).view(torch.int16).reshape(-1).int() & 0xFFFF
    counts = torch.bincount(bits, minlength=1 << 16)
    table = torch.from_numpy(values(fmt).copy())
    bins = table.to(torch.bfloat16).view(torch.int16).int() & 0xFFFF
    found = table[counts[bins] > 0].tolist()
    return frozenset(found if counts[0x8000] == 0 else [*found, 0.0])  # -0.0


def _use(fmt: Format, scaled: torch.Tensor, rounded: torch.Tensor) -> RangeUse:
    """Count numbers in units of the format's scale."""
    beyond = (scaled > fmt.max_value * _FLOAT32_ROUNDING) | (
        scaled < fmt.min_value * _FLOAT32_ROUNDING
    )
    return RangeUse(
        format=fmt,
        numbers=scaled.numel(),
        clipped=int(beyond.sum()),
        zeros=int(((rounded == 0) & (scaled != 0)).sum()),
        taken=_taken(fmt, rounded),
        signal=float(scaled.square().sum(dtype=torch.float64)),
        noise=float((rounded - scaled).square().sum(dtype=torch.float64)),
    )


@torch.no_grad()
def activation_use(quantizer: TensorQuantizer, batches: Iterable[torch.Tensor]) -> RangeUse:
    """Return how activations use the format of their quantizer.

    Args:
        quantizer: Their format and scale.
        batches: At least one tensor, before quantization.
    """
    found: RangeUse | None = None
    for batch in batches:
        scaled = batch / quantizer.scale
        use = _use(quantizer.format, scaled, kernels.quantize(quantizer.format, scaled))
        found = use if found is None else found.join(use)
    assert found is not None
    return found


@torch.no_grad()
def weight_use(weight: QuantizedWeight, real: torch.Tensor) -> RangeUse:
    """Return how weights use their format, over all channels.

    Args:
        weight: The quantized weights, however they were rounded.
        real: The float weights, of the same shape.
    """
    shape = (-1,) + (1,) * (real.dim() - 1)
    return _use(weight.format, real.double() / weight.scales.double().reshape(shape), weight.values)
