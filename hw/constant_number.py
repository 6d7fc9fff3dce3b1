# SPDX-License-Identifier: Apache-2.0
"""The integers behind the codes of a constant unit's inputs."""

from functools import cache

from lutwise.hw.bounds import code_integers, legal_codes, width_of_range
from lutwise.hw.circuit import LUT_INPUTS, lut_sites
from lutwise.quant.formats import Format, IntFormat

__all__ = ["number_bits", "number_range", "number_sites"]


@cache
def number_range(fmt: Format) -> tuple[int, int]:
    """Return the least and the greatest number of a format, in its units."""
    numbers = code_integers(fmt)[legal_codes(fmt)]
    return int(min(numbers)), int(max(numbers))


@cache
def number_bits(fmt: Format) -> int:
    """Return the bits of a number of a format: two's complement where it can be negative."""
    return width_of_range(*number_range(fmt))


@cache
def number_sites(fmt: Format) -> float:
    """Count the LUT sites that turn a code into its number; integers are their own numbers.

    Each bit is a function of all bits of the code. One of seven or eight takes about a site
    beside the others, which share the decoded exponent, and a sign takes as much again.
    """
    if isinstance(fmt, IntFormat):
        return 0.0
    per_bit = lut_sites(fmt.bits) if fmt.bits <= LUT_INPUTS else 1.0 + fmt.signed
    return number_bits(fmt) * per_bit
