# SPDX-License-Identifier: Apache-2.0
"""Array numerics on numpy: encode, decode, quantize.

Rounding is to nearest, ties to the even significand; overflow saturates, infinities included;
NaN stays NaN; a result of zero is +0. Nothing is random and nothing is kept between calls.
`lutwise.quant.kernels` does the same on torch tensors, much faster.
"""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from lutwise.errors import FormatError
from lutwise.quant.formats import BlockFormat, Format, IntFormat, code_values, values

__all__ = ["decode", "encode", "quantize", "quantize_block", "quantize_scaled"]

_F = TypeVar("_F", np.float32, np.float64)


def decode(fmt: Format, codes: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the value of each code; codes that are no number give NaN or Inf.

    Args:
        fmt: The format.
        codes: Bit patterns, integers in 0 .. 2**bits - 1, any shape.

    Raises:
        FormatError: A code does not fit the width.
    """
    array = np.asarray(codes)
    if array.size and (array.min() < 0 or array.max() >= 1 << fmt.bits):
        raise FormatError(
            f"a code of {fmt} is in 0..{(1 << fmt.bits) - 1}, got {array.min()}..{array.max()}"
        )
    found: npt.NDArray[np.float64] = code_values(fmt)[array]
    return found


def encode(fmt: Format, x: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Return the code of each value. Zero of either sign becomes the code of +0.

    Args:
        fmt: The format.
        x: Finite values of the format, any shape.

    Raises:
        FormatError: A value is not one of the format's.
    """
    array = np.asarray(x, dtype=np.float64)
    allowed = values(fmt)
    index = np.searchsorted(allowed, array)
    wrong = allowed[np.minimum(index, len(allowed) - 1)] != array
    if wrong.any():
        raise FormatError(
            f"{int(wrong.sum())} of {array.size} values are not in {fmt}, the first is "
            f"{float(array[wrong].flat[0])!r}; quantize before encoding"
        )
    table = code_values(fmt)
    codes = np.empty(len(allowed), dtype=np.uint8)
    # Descending, so that of the two zeros the positive one (the smaller code) stays.
    for code in reversed(np.flatnonzero(np.isfinite(table))):
        codes[np.searchsorted(allowed, table[code])] = code
    found: npt.NDArray[np.uint8] = codes[index]
    return found


def quantize(fmt: Format, x: npt.NDArray[_F]) -> npt.NDArray[_F]:
    """Round each number to the format, in the precision of ``x``; exact for every input.

    Raises:
        FormatError: ``x`` is no floating-point array, or too narrow to hold the format.
    """
    if x.dtype not in (np.float32, np.float64):
        raise FormatError(f"quantize takes float32 or float64 arrays, got {x.dtype}")
    if fmt.max_value > float(np.finfo(x.dtype).max):
        raise FormatError(f"{fmt} reaches {fmt.max_value:g}, which {x.dtype} does not hold")
    clipped = np.clip(x, fmt.min_value, fmt.max_value)
    if isinstance(fmt, IntFormat):
        whole: npt.NDArray[_F] = np.rint(clipped) + x.dtype.type(0)
        return whole
    wide = clipped.astype(np.float64)
    exponent = np.frexp(wide)[1] - 1
    step = np.maximum(exponent, fmt.min_exponent) - fmt.mantissa_bits
    rounded = np.ldexp(np.rint(np.ldexp(wide, -step)), step) + 0.0
    result: npt.NDArray[_F] = rounded.astype(x.dtype)
    return result


def quantize_scaled(fmt: Format, x: npt.NDArray[_F], scale: npt.ArrayLike) -> npt.NDArray[_F]:
    """Quantize ``x / scale`` and multiply back, both in the precision of ``x``.

    Args:
        fmt: The format.
        x: Numbers, any shape.
        scale: Positive, broadcast against ``x``: () per tensor, (C, 1, 1, 1) per channel.

    Reference:
        arXiv 2311.12359, section III-A; QONNX ``Quant`` and ``FloatQuant``.
    """
    step = np.asarray(scale, dtype=x.dtype)
    result: npt.NDArray[_F] = quantize(fmt, x / step) * step
    return result


def quantize_block(fmt: BlockFormat, x: npt.NDArray[_F]) -> npt.NDArray[_F]:
    """Quantize to a microscaling format along the last axis.

    The shared scale is ``2**(floor(log2(max|x|)) - emax)``, limited to E8M0; a block of zeros
    stays zero. Elements saturate.

    Args:
        fmt: The block format.
        x: Numbers, shape (..., n) with n a multiple of the block.

    Raises:
        FormatError: The last axis is not a multiple of the block.

    Reference:
        OCP Microscaling Formats (MX) Specification 1.0, section 6.3.
    """
    if x.shape[-1] % fmt.block:
        raise FormatError(
            f"{fmt} needs a last axis that is a multiple of {fmt.block}, got shape {x.shape}"
        )
    blocks = x.astype(np.float64).reshape(*x.shape[:-1], -1, fmt.block)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    exponent = np.where(largest > 0, np.frexp(largest)[1] - 1, 0) - fmt.max_exponent
    exponent = np.clip(exponent, -127, 127)
    element = np.ldexp(blocks, -exponent - fmt.element_exponent)
    result = np.ldexp(quantize(fmt.element, element), exponent + fmt.element_exponent)
    back: npt.NDArray[_F] = result.reshape(x.shape).astype(x.dtype)
    return back
