# SPDX-License-Identifier: Apache-2.0
"""The fast path: quantization of torch tensors in one pass over cache-sized pieces.

A number is rounded to ``k`` units in the last place by adding and subtracting
``1.5 * 2**(p - 1) * ulp``, ``p`` being the precision of the tensor: the hardware's own rounding
to nearest even then happens exactly at that unit. The constant is built from the exponent bits
of the number itself, so normal numbers, subnormals and binade ends need no case of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from lutwise.errors import FormatError
from lutwise.quant.formats import FloatFormat, Format, IntFormat

__all__ = ["quantize", "quantize_scaled", "rounder"]

_PIECE: Final = 1 << 17
"""Elements per thread handled at a time: small enough for the L2 cache, large enough to hide
dispatch."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a floating-point type is laid out in an integer of its size."""

    integer: torch.dtype
    exponent_mask: int
    bias: int
    fraction_bits: int


_LAYOUTS: Final = {
    torch.float32: _Layout(torch.int32, 0x7F800000, 127, 23),
    torch.float64: _Layout(torch.int64, 0x7FF0000000000000, 1023, 52),
}


def _layout(fmt: Format, x: torch.Tensor) -> _Layout:
    layout = _LAYOUTS.get(x.dtype)
    if layout is None:
        raise FormatError(f"quantize takes float32 or float64 tensors, got {x.dtype}")
    if fmt.max_value > torch.finfo(x.dtype).max:
        raise FormatError(f"{fmt} reaches {fmt.max_value:g}, which {x.dtype} does not hold")
    return layout


def _magic(fmt: FloatFormat, layout: _Layout) -> tuple[int, int]:
    """Return the exponent bits of subnormals, and what makes the constant of exponent bits."""
    lowest = (fmt.min_exponent + layout.bias) << layout.fraction_bits
    lift = ((layout.fraction_bits - fmt.mantissa_bits) << layout.fraction_bits) | (
        1 << (layout.fraction_bits - 1)
    )
    return lowest, lift


def _dense(x: torch.Tensor) -> torch.Tensor:
    """Return the elements in memory order as a flat tensor, without a copy where possible."""
    if not x.is_contiguous() and x.dim() == 4:
        channels_last = x.permute(0, 2, 3, 1)
        if channels_last.is_contiguous():
            return channels_last.reshape(-1)
    return x.reshape(-1)


def rounder(fmt: Format, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that rounds dense tensors of a type in place and returns them.

    For loops over small tensors, where checks and look-ups would take longer than the rounding.

    Raises:
        FormatError: The type is neither float32 nor float64, or too narrow to hold the format.
    """
    layout = _layout(fmt, torch.empty(0, dtype=dtype))
    low, high = fmt.min_value, fmt.max_value
    if isinstance(fmt, IntFormat):
        return lambda x: x.clamp_(low, high).round_().add_(0.0)
    lowest, lift = _magic(fmt, layout)
    integer, mask = layout.integer, layout.exponent_mask

    def round_(x: torch.Tensor) -> torch.Tensor:
        x.clamp_(low, high)
        bits = torch.bitwise_and(x.view(integer), mask)
        magic = bits.clamp_(min=lowest).add_(lift).view(dtype)
        return x.add_(magic).sub_(magic)

    return round_


@torch.no_grad()
def quantize(fmt: Format, x: torch.Tensor) -> torch.Tensor:
    """Round each number to the format; equals `numerics.quantize`.

    Raises:
        FormatError: ``x`` is neither float32 nor float64, or too narrow to hold the format.
    """
    return rounder(fmt, x.dtype)(x.clone(memory_format=torch.contiguous_format))


@torch.no_grad()
def quantize_scaled(fmt: Format, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Quantize ``x / scale`` and multiply back; equals `numerics.quantize_scaled`.

    Args:
        fmt: The format.
        x: Numbers, any shape, any strides; not changed.
        scale: Positive, of the dtype of ``x``; broadcast against ``x``.

    Raises:
        FormatError: ``x`` is neither float32 nor float64, or too narrow to hold the format.
    """
    round_ = rounder(fmt, x.dtype)
    if scale.numel() != 1:
        return round_((x / scale).contiguous()).mul_(scale)
    out = torch.empty_like(x)
    source, target = _dense(x), _dense(out)
    if target.data_ptr() != out.data_ptr():  # strides that no flat view covers
        return round_((x / scale).contiguous()).mul_(scale)
    step = scale.reshape(())
    size = _PIECE * torch.get_num_threads()
    for start in range(0, source.numel(), size):
        piece = target[start : start + size]
        torch.div(source[start : start + size], step, out=piece)
        round_(piece).mul_(step)
    return out
