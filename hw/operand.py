# SPDX-License-Identifier: Apache-2.0
"""What a circuit needs to know about a format."""

from dataclasses import dataclass

from lutwise.hw.bounds import code_integers, legal_codes
from lutwise.quant.formats import Format, IntFormat

__all__ = ["Operand", "operand_of"]


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
