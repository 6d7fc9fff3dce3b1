# SPDX-License-Identifier: Apache-2.0
"""Exact integers behind codes, and the one rule that sizes products and accumulators.

Every value of a format is an integer multiple of its unit, so a product is an integer multiple
of the product of two units. The rule for widths looks only at the range of these integers; it
does not ask whether a format is called an integer or a minifloat.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from lutwise.errors import ConfigError, FormatError
from lutwise.quant.formats import Format, code_values

__all__ = [
    "accumulator_range",
    "code_integers",
    "exact_integers",
    "is_legal",
    "legal_codes",
    "product_range",
    "weight_bounded_range",
    "width_of_range",
]


@cache
def is_legal(fmt: Format) -> npt.NDArray[np.bool_]:
    """Tell for every code whether it is a number of the format, shape (2**bits,), read-only."""
    mask = np.isfinite(code_values(fmt))
    mask.setflags(write=False)
    return mask


@cache
def legal_codes(fmt: Format) -> npt.NDArray[np.int64]:
    """Return the codes that are numbers of the format, ascending, read-only."""
    codes = np.flatnonzero(is_legal(fmt)).astype(np.int64)
    codes.setflags(write=False)
    return codes


@cache
def code_integers(fmt: Format) -> npt.NDArray[Any]:
    """Return the value of every code as a Python integer in units of ``2**fmt.unit_exponent``.

    Shape (2**bits,), dtype object, read-only. Codes that are no number of the format hold 0.
    """
    found = np.array(
        [
            int(np.ldexp(value, -fmt.unit_exponent)) if np.isfinite(value) else 0
            for value in code_values(fmt)
        ],
        dtype=object,
    )
    found.setflags(write=False)
    return found


def exact_integers(fmt: Format, codes: npt.ArrayLike) -> npt.NDArray[Any]:
    """Look up codes.

    Args:
        fmt: Format of the codes.
        codes: Bit patterns, any shape, 0 .. 2**bits - 1.

    Returns:
        Integers in units of the format, same shape, dtype object.

    Raises:
        FormatError: A code is out of range, or is Inf, NaN or outside the narrow range.
    """
    wanted = np.asarray(codes)
    if wanted.size and not np.issubdtype(wanted.dtype, np.integer):
        raise FormatError(f"codes are integers, got an array of {wanted.dtype}")
    wanted = wanted.astype(np.int64)
    if wanted.size and (wanted.min() < 0 or wanted.max() >= 1 << fmt.bits):
        raise FormatError(
            f"a code of {fmt} is 0..{(1 << fmt.bits) - 1}, got {wanted.min()}..{wanted.max()}"
        )
    legal = is_legal(fmt)[wanted]
    if not legal.all():
        bad = int(wanted[~legal].flat[0])
        raise FormatError(f"code {bad:#x} is not a number of {fmt}")
    return np.asarray(code_integers(fmt)[wanted], dtype=object)


@cache
def _extremes(fmt: Format) -> tuple[int, int]:
    numbers = code_integers(fmt)[legal_codes(fmt)]
    return int(min(numbers)), int(max(numbers))


@cache
def product_range(weights: Format, activations: Format) -> tuple[int, int]:
    """Return the least and the greatest product, in units of both formats multiplied."""
    corners = [w * a for w in _extremes(weights) for a in _extremes(activations)]
    return min(corners), max(corners)


def accumulator_range(weights: Format, activations: Format, length: int) -> tuple[int, int]:
    """Return the range of a sum of at most ``length`` products.

    Raises:
        ConfigError: The length is not positive.
    """
    if length < 1:
        raise ConfigError(f"a dot product has at least one term, got length {length!r}")
    low, high = product_range(weights, activations)
    return min(0, low * length), max(0, high * length)


def weight_bounded_range(
    weight_integers: Sequence[int] | npt.NDArray[Any], activations: Format
) -> tuple[int, int]:
    """Return the range of one output's sum for known weights and any activations.

    Args:
        weight_integers: The weights of one output in units of their format.
        activations: Format of the activations.
    """
    low_a, high_a = _extremes(activations)
    numbers = [int(weight) for weight in np.asarray(weight_integers, dtype=object).ravel()]
    low = sum(min(w * low_a, w * high_a) for w in numbers)
    high = sum(max(w * low_a, w * high_a) for w in numbers)
    return min(0, low), max(0, high)


def width_of_range(low: int, high: int) -> int:
    """Return the fewest bits that hold ``low .. high``.

    Two's complement when ``low`` is negative, unsigned otherwise; at least one bit.

    Raises:
        ConfigError: The range is empty.
    """
    if low > high:
        raise ConfigError(f"wanted low <= high, got {low} and {high}")
    if low >= 0:
        return max(1, high.bit_length())
    return max((-low - 1).bit_length(), high.bit_length() if high > 0 else 0) + 1
