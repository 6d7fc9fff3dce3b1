# SPDX-License-Identifier: Apache-2.0
"""The fast path: quantization of torch tensors in one pass over cache-sized pieces.

A number is rounded to ``k`` units in the last place by adding and subtracting
``1.5 * 2**(p - 1) * ulp``, ``p`` being the precision of the tensor: the hardware's own rounding
to nearest even then happens exactly at that unit. The constant is built from the exponent bits
of the number itself, so normal numbers, subnormals and binade ends need no case of their own.
"""

from dataclasses import dataclass
from typing import Final

import torch

from lutwise.errors import FormatError
from lutwise.quant.formats import Format, IntFormat

__all__ = ["quantize", "quantize_scaled"]

_PIECE: Final = 1 << 16
"""Elements handled at a time: small enough for the L2 cache, large enough to hide dispatch."""


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


def _round_(fmt: Format, x: torch.Tensor, layout: _Layout) -> torch.Tensor:
    """Round a dense tensor in place."""
    x.clamp_(fmt.min_value, fmt.max_value)
    if isinstance(fmt, IntFormat):
        return x.round_().add_(0.0)
    lowest = (fmt.min_exponent + layout.bias) << layout.fraction_bits
    lift = ((layout.fraction_bits - fmt.mantissa_bits) << layout.fraction_bits) | (
        1 << (layout.fraction_bits - 1)
    )
    bits = torch.bitwise_and(x.view(layout.integer), layout.exponent_mask)
    magic = bits.clamp_(min=lowest).add_(lift).view(x.dtype)
    return x.add_(magic).sub_(magic)


def _dense(x: torch.Tensor) -> torch.Tensor:
    """Return the elements in memory order as a flat tensor, without a copy where possible."""
    if not x.is_contiguous() and x.dim() == 4:
        channels_last = x.permute(0, 2, 3, 1)
        if channels_last.is_contiguous():
            return channels_last.reshape(-1)
    return x.reshape(-1)


@torch.no_grad()
def quantize(fmt: Format, x: torch.Tensor) -> torch.Tensor:
    """Round each number to the format; equals `numerics.quantize`.

    Raises:
        FormatError: ``x`` is neither float32 nor float64, or too narrow to hold the format.
    """
    return _round_(fmt, x.clone(memory_format=torch.contiguous_format), _layout(fmt, x))


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
    layout = _layout(fmt, x)
    if scale.numel() != 1:
        return _round_(fmt, (x / scale).contiguous(), layout).mul_(scale)
    out = torch.empty_like(x)
    source, target = _dense(x), _dense(out)
    if target.data_ptr() != out.data_ptr():  # strides that no flat view covers
        return _round_(fmt, (x / scale).contiguous(), layout).mul_(scale)
    step = scale.reshape(())
    for start in range(0, source.numel(), _PIECE):
        piece = target[start : start + _PIECE]
        torch.div(source[start : start + _PIECE], step, out=piece)
        _round_(fmt, piece, layout).mul_(step)
    return out
