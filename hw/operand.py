# SPDX-License-Identifier: Apache-2.0
"""What a circuit needs to know about a format, and the styles of product that follow from it."""

from dataclasses import dataclass
from enum import Enum

from lutwise.hw.bounds import code_integers, legal_codes
from lutwise.quant.formats import Format, IntFormat

__all__ = ["Operand", "ProductStyle", "applicable_styles", "operand_of"]

_TABLE_INPUTS = 8


class ProductStyle(Enum):
    """How the product of two operands is built."""

    PLAIN = "plain"
    """Behavioural Verilog throughout, one expression; the reference that others beat."""

    STAR = "star"
    """The synthesizer's multiplier for the significands, one shifter behind it."""

    BOOTH = "booth"
    """Radix-4 Booth rows for the significands, one shifter behind them."""

    ROWS = "rows"
    """A chain of AND rows for unsigned significands, one shifter behind it."""

    TWO_SHIFT = "two_shift"
    """Two small shifters one after the other instead of an exponent adder and a wide one."""

    TABLE = "table"
    """A truth table of the magnitudes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """A code, split into the parts that a multiplier sees.

    The number is ``significand << shift``, negated when the sign bit of a sign-magnitude code
    is set. An integer is its own significand.

    Args:
        bits: Width of the code.
        twos_complement: The significand is two's complement (signed integers).
        sign_bit: The highest bit of the code is the sign of a magnitude (signed minifloats).
        exponent_bits: Width of the exponent field, 0 for integers.
        mantissa_bits: Width of the mantissa field; without meaning for integers.
        significand_bits: Width of the significand.
        max_shift: Largest shift of a legal code.
    """

    bits: int
    twos_complement: bool
    sign_bit: bool
    exponent_bits: int
    mantissa_bits: int
    significand_bits: int
    max_shift: int

    @property
    def magnitude_bits(self) -> int:
        """Bits of the code without the sign of a magnitude."""
        return self.bits - self.sign_bit


def operand_of(fmt: Format) -> Operand:
    """Describe a format to a circuit."""
    if isinstance(fmt, IntFormat):
        return Operand(
            bits=fmt.bits,
            twos_complement=fmt.signed,
            sign_bit=False,
            exponent_bits=0,
            mantissa_bits=0,
            significand_bits=fmt.bits,
            max_shift=0,
        )
    largest = int(max(code_integers(fmt)[legal_codes(fmt)]))
    return Operand(
        bits=fmt.bits,
        twos_complement=False,
        sign_bit=fmt.signed,
        exponent_bits=fmt.exponent_bits,
        mantissa_bits=fmt.mantissa_bits,
        significand_bits=fmt.mantissa_bits + 1,
        max_shift=max(0, largest.bit_length() - fmt.mantissa_bits - 1),
    )


def applicable_styles(weights: Format, activations: Format) -> tuple[ProductStyle, ...]:
    """List the structured styles that make sense for a pair of formats.

    ``PLAIN`` is left out: it fits every pair and is only a reference. ``TWO_SHIFT`` is listed
    where one exponent has two bits; for wider ones the second shifter costs a multiplexer
    stage more than the exponent adder that it saves.
    """
    w, a = operand_of(weights), operand_of(activations)
    narrow = min(w.significand_bits, a.significand_bits)
    found = [ProductStyle.STAR]
    if narrow > 1:
        found.append(ProductStyle.BOOTH)
    if narrow > 1 and not (w.twos_complement or a.twos_complement):
        found.append(ProductStyle.ROWS)
    if min(w.exponent_bits, a.exponent_bits) == 2:
        found.append(ProductStyle.TWO_SHIFT)
    if w.magnitude_bits + a.magnitude_bits <= _TABLE_INPUTS:
        found.append(ProductStyle.TABLE)
    return tuple(found)
