# SPDX-License-Identifier: Apache-2.0
"""The slow reference: one number at a time, decided with integers and fractions only.

Nothing here is fast and nothing here uses floating point to decide. `numerics` and `kernels`
are tested against these functions.
"""

from fractions import Fraction
from functools import cache

from lutwise.quant.formats import FloatFormat, Format, IntFormat, SpecialCodes

__all__ = ["decode", "finite_values", "quantize"]


def decode(fmt: Format, code: int) -> Fraction | None:
    """Return the value of one code, or None where the code is no finite number of the format."""
    if isinstance(fmt, IntFormat):
        half = 1 << (fmt.bits - 1)
        if not fmt.signed or code < half:
            return Fraction(code)
        return None if fmt.narrow and code == half else Fraction(code - 2 * half)
    e_bits, m_bits = fmt.exponent_bits, fmt.mantissa_bits
    negative = fmt.signed and bool(code >> (e_bits + m_bits))
    exponent = (code >> m_bits) & ((1 << e_bits) - 1)
    mantissa = code & ((1 << m_bits) - 1)
    top = exponent == (1 << e_bits) - 1
    if top and (
        fmt.special is SpecialCodes.IEEE
        or (fmt.special is SpecialCodes.NAN and mantissa == (1 << m_bits) - 1)
    ):
        return None
    bias = (1 << (e_bits - 1)) - 1
    if exponent == 0:
        value = Fraction(mantissa) * Fraction(2) ** (1 - bias - m_bits)
    else:
        value = (1 + Fraction(mantissa, 1 << m_bits)) * Fraction(2) ** (exponent - bias)
    return -value if negative else value


@cache
def finite_values(fmt: Format) -> tuple[Fraction, ...]:
    """Return every finite value of the format, ascending, without repeats."""
    found = {decode(fmt, code) for code in range(1 << fmt.bits)}
    return tuple(sorted(value for value in found if value is not None))


def quantize(fmt: Format, x: Fraction) -> Fraction:
    """Round one number to the format: nearest, ties to the even significand, saturating.

    The significand is counted in units in the last place of the binade that holds ``|x|``; with
    no mantissa bits it is 1 inside a binade and 2 at its upper end, so such ties go up.
    """
    allowed = finite_values(fmt)
    if x >= allowed[-1]:
        return allowed[-1]
    if x <= allowed[0]:
        return allowed[0]
    above = next(value for value in allowed if value >= x)
    if above == x:
        return above
    below = max(value for value in allowed if value < x)
    if x - below != above - x:
        return below if x - below < above - x else above
    unit = _unit(fmt, x)
    return below if (below / unit) % 2 == 0 else above


def _unit(fmt: Format, x: Fraction) -> Fraction:
    if isinstance(fmt, IntFormat):
        return Fraction(1)
    magnitude, exponent = abs(x), fmt.min_exponent
    while magnitude >= Fraction(2) ** (exponent + 1):
        exponent += 1
    assert isinstance(fmt, FloatFormat)
    return Fraction(2) ** (exponent - fmt.mantissa_bits)
