# SPDX-License-Identifier: Apache-2.0
"""Number formats as frozen value objects.

A format is a finite set of numbers, each with a bit pattern (its *code*). Every number of an
element format is an integer multiple of one power of two, the format's *unit*; that is what
makes products and sums of codes exact.
"""

import re
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from lutwise.errors import FormatError

__all__ = [
    "MAX_BITS",
    "OCP_FORMATS",
    "BlockFormat",
    "FloatFormat",
    "Format",
    "IntFormat",
    "SpecialCodes",
    "all_formats",
    "code_values",
    "parse",
    "parse_element",
    "parse_weight",
    "values",
]

MAX_BITS: Final = 8


class SpecialCodes(Enum):
    """Which codes of a minifloat are not finite numbers."""

    NONE = "none"
    """Every code is a finite number (the formats of arXiv 2311.12359)."""

    NAN = "nan"
    """The code with all ones below the sign is NaN (OCP FP8 E4M3)."""

    IEEE = "ieee"
    """The largest exponent is Inf and NaN (OCP FP8 E5M2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntFormat:
    """An integer of ``bits`` bits; two's complement when signed.

    Args:
        bits: Width, 2..8.
        signed: Two's complement, or unsigned.
        narrow: Leave out the most negative code, so that the range is symmetric.

    Raises:
        FormatError: The width is not 2..8, or an unsigned format is narrow.
    """

    bits: int
    signed: bool = True
    narrow: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= MAX_BITS:
            raise FormatError(f"an integer has 2..{MAX_BITS} bits, got {self.bits}")
        if self.narrow and not self.signed:
            raise FormatError("only a signed integer can have the narrow range")

    def __str__(self) -> str:
        return self.name + ("n" if self.narrow else "")

    @property
    def name(self) -> str:
        """Spelling without the narrow-range mark, as people write it."""
        return f"{'int' if self.signed else 'uint'}{self.bits}"

    @property
    def unit_exponent(self) -> int:
        """Power of two of which every value is an integer multiple."""
        return 0

    @property
    def max_value(self) -> float:
        """Largest value."""
        return float((1 << (self.bits - self.signed)) - 1)

    @property
    def min_value(self) -> float:
        """Smallest value."""
        return float(-(1 << (self.bits - 1)) + self.narrow) if self.signed else 0.0

    def as_unsigned(self) -> "IntFormat":
        """Return the format of the same width for tensors that are never negative."""
        return IntFormat(bits=self.bits, signed=False)

    def as_signed(self) -> "IntFormat":
        """Return the full-range signed format of the same width."""
        return IntFormat(bits=self.bits) if not self.signed else self


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatFormat:
    """A minifloat: optional sign, exponent, mantissa; subnormals; saturating.

    The bias is ``2**(exponent_bits - 1) - 1``. With exponent field ``e`` and mantissa field
    ``m`` a code means ``m * 2**(1 - bias - M)`` for ``e == 0`` and
    ``(1 + m / 2**M) * 2**(e - bias)`` otherwise.

    Args:
        exponent_bits: E, at least 1.
        mantissa_bits: M, at least 0.
        signed: Whether the highest bit is a sign.
        special: Which codes are not finite numbers.

    Raises:
        FormatError: E < 1, M < 0, a width outside 2..8, or special codes that no standard has.

    Reference:
        arXiv 2311.12359, section III; OCP 8-bit Floating Point Specification 1.0.
    """

    exponent_bits: int
    mantissa_bits: int
    signed: bool = True
    special: SpecialCodes = SpecialCodes.NONE

    def __post_init__(self) -> None:
        e, m = self.exponent_bits, self.mantissa_bits
        if e < 1 or m < 0 or not 2 <= self.bits <= MAX_BITS:
            raise FormatError(
                f"a minifloat has E >= 1, M >= 0 and 2..{MAX_BITS} bits, got {self.name!r} "
                f"with {self.bits} bits"
            )
        if self.special is not SpecialCodes.NONE and (e, m, self.signed, self.special) not in {
            (4, 3, True, SpecialCodes.NAN),
            (5, 2, True, SpecialCodes.IEEE),
        }:
            raise FormatError(
                "only the OCP formats fp8_e4m3 and fp8_e5m2 have codes for Inf or NaN, "
                f"got {self.special.value!r} for e{e}m{m}"
            )

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """Spelling, as people write it."""
        core = f"e{self.exponent_bits}m{self.mantissa_bits}"
        if self.special is not SpecialCodes.NONE:
            return f"fp8_{core}"
        return core if self.signed else f"u{core}"

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.exponent_bits + self.mantissa_bits + self.signed

    @property
    def bias(self) -> int:
        """Exponent bias."""
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number, and of all subnormal ones."""
        return 1 - self.bias

    @property
    def unit_exponent(self) -> int:
        """Power of two of which every value is an integer multiple (smallest subnormal)."""
        return self.min_exponent - self.mantissa_bits

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest finite number."""
        top = (1 << self.exponent_bits) - 1
        return top - self.bias - (self.special is SpecialCodes.IEEE)

    @property
    def max_value(self) -> float:
        """Largest finite value."""
        lost = 2 if self.special is SpecialCodes.NAN else 1
        return float((2 << self.mantissa_bits) - lost) * 2.0 ** (
            self.max_exponent - self.mantissa_bits
        )

    @property
    def min_value(self) -> float:
        """Smallest finite value."""
        return -self.max_value if self.signed else 0.0

    def as_unsigned(self) -> "FloatFormat":
        """Return the format of the same width without a sign: the sign bit becomes mantissa."""
        if not self.signed:
            return self
        return FloatFormat(
            exponent_bits=self.exponent_bits, mantissa_bits=self.mantissa_bits + 1, signed=False
        )

    def as_signed(self) -> "FloatFormat":
        """Return the signed format of the same width: one mantissa (else exponent) bit less."""
        if self.signed:
            return self
        if self.mantissa_bits:
            return FloatFormat(
                exponent_bits=self.exponent_bits, mantissa_bits=self.mantissa_bits - 1
            )
        return FloatFormat(exponent_bits=self.exponent_bits - 1, mantissa_bits=0)


Format: TypeAlias = IntFormat | FloatFormat
"""An element format: one code, one number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFormat:
    """Microscaling: ``block`` elements share one power-of-two scale (E8M0).

    Args:
        name: OCP spelling, for example ``mxfp4``.
        element: Format of one element.
        element_exponent: Power of two that multiplies an element's value (-6 for ``mxint8``,
            whose elements are fixed-point numbers below 2).
        max_exponent: Exponent of the largest element (``emax_elem`` in the specification).
        block: Elements that share a scale.

    Reference:
        OCP Microscaling Formats (MX) Specification 1.0, section 5.
    """

    name: str
    element: Format
    max_exponent: int
    element_exponent: int = 0
    block: int = 32

    def __str__(self) -> str:
        return self.name

    @property
    def bits(self) -> float:
        """Width of an element with its share of the scale."""
        return self.element.bits + 8 / self.block


def _mx(name: str, element: Format) -> BlockFormat:
    if isinstance(element, IntFormat):
        return BlockFormat(name=name, element=element, max_exponent=0, element_exponent=-6)
    return BlockFormat(name=name, element=element, max_exponent=element.max_exponent)


_FP8_E4M3 = FloatFormat(exponent_bits=4, mantissa_bits=3, special=SpecialCodes.NAN)
_FP8_E5M2 = FloatFormat(exponent_bits=5, mantissa_bits=2, special=SpecialCodes.IEEE)
_FP6_E3M2 = FloatFormat(exponent_bits=3, mantissa_bits=2)
_FP6_E2M3 = FloatFormat(exponent_bits=2, mantissa_bits=3)
_FP4_E2M1 = FloatFormat(exponent_bits=2, mantissa_bits=1)

OCP_FORMATS: Final[dict[str, Format | BlockFormat]] = {
    "fp8_e4m3": _FP8_E4M3,
    "fp8_e5m2": _FP8_E5M2,
    "fp6_e3m2": _FP6_E3M2,
    "fp6_e2m3": _FP6_E2M3,
    "fp4_e2m1": _FP4_E2M1,
    "mxfp8_e4m3": _mx("mxfp8_e4m3", _FP8_E4M3),
    "mxfp8_e5m2": _mx("mxfp8_e5m2", _FP8_E5M2),
    "mxfp6_e3m2": _mx("mxfp6_e3m2", _FP6_E3M2),
    "mxfp6_e2m3": _mx("mxfp6_e2m3", _FP6_E2M3),
    "mxfp4": _mx("mxfp4", _FP4_E2M1),
    "mxint8": _mx("mxint8", IntFormat(bits=8, narrow=True)),
}

_INT = re.compile(r"(u?)int(\d+)(n?)")
_FLOAT = re.compile(r"(u?)e(\d+)m(\d+)")


def parse(text: str) -> Format | BlockFormat:
    """Read a format from its spelling.

    Args:
        text: ``int4``, ``uint4``, ``e2m1``, ``ue2m2``, ``fp8_e4m3``, ``mxfp4``, ...
            ``int4n`` is the narrow range -7..7.

    Raises:
        FormatError: No such format.
    """
    spelled = text.strip().lower()
    if spelled in OCP_FORMATS:
        return OCP_FORMATS[spelled]
    if match := _INT.fullmatch(spelled):
        unsigned, bits, narrow = match.groups()
        try:
            return IntFormat(bits=int(bits), signed=not unsigned, narrow=bool(narrow))
        except FormatError as error:
            raise FormatError(f"no format {text!r}: {error}") from error
    if match := _FLOAT.fullmatch(spelled):
        unsigned, e, m = match.groups()
        try:
            return FloatFormat(exponent_bits=int(e), mantissa_bits=int(m), signed=not unsigned)
        except FormatError as error:
            raise FormatError(f"no format {text!r}: {error}") from error
    raise FormatError(
        f"no format {text!r}: wanted int2..int8, uint2..uint8, eXmY or ueXmY of 2..8 bits "
        f"(e2m1, ue2m2, ...), or one of {', '.join(OCP_FORMATS)}"
    )


def parse_element(text: str) -> Format:
    """Read an element format; block formats are refused.

    Raises:
        FormatError: No such format, or a block format.
    """
    fmt = parse(text)
    if isinstance(fmt, BlockFormat):
        raise FormatError(
            f"{text!r} shares scales between blocks of elements; wanted an element format such "
            "as int4 or e2m1 here"
        )
    return fmt


def parse_weight(text: str, *, narrow: bool = True) -> Format:
    """Read a format for weights, whose signed integers have the narrow range by default.

    Args:
        text: Spelling of an element format.
        narrow: Whether ``intK`` means -(2**(K-1) - 1) .. 2**(K-1) - 1.

    Raises:
        FormatError: No such element format.
    """
    fmt = parse_element(text)
    if narrow and isinstance(fmt, IntFormat) and fmt.signed:
        return IntFormat(bits=fmt.bits, narrow=True)
    return fmt


def all_formats(*, min_bits: int = 2, max_bits: int = MAX_BITS) -> tuple[Format, ...]:
    """List every integer and minifloat format, signed and unsigned, of the given widths."""
    found: list[Format] = []
    for bits in range(min_bits, max_bits + 1):
        found += [IntFormat(bits=bits), IntFormat(bits=bits, signed=False)]
        for signed in (True, False):
            found += [
                FloatFormat(exponent_bits=e, mantissa_bits=bits - signed - e, signed=signed)
                for e in range(1, bits - signed + 1)
            ]
    return tuple(found)


@cache
def _code_values(fmt: Format) -> npt.NDArray[np.float64]:
    codes = np.arange(1 << fmt.bits)
    if isinstance(fmt, IntFormat):
        wrapped = codes - (codes >= 1 << (fmt.bits - 1)) * (1 << fmt.bits)
        table = (wrapped if fmt.signed else codes).astype(np.float64)
        if fmt.narrow:
            table[1 << (fmt.bits - 1)] = np.nan
    else:
        e_bits, m_bits = fmt.exponent_bits, fmt.mantissa_bits
        mantissa = codes & ((1 << m_bits) - 1)
        exponent = (codes >> m_bits) & ((1 << e_bits) - 1)
        significand = mantissa + ((exponent > 0) << m_bits)
        table = np.ldexp(
            significand.astype(np.float64), np.maximum(exponent, 1) - 1 + fmt.unit_exponent
        )
        if fmt.special is SpecialCodes.IEEE:
            table[exponent == (1 << e_bits) - 1] = np.nan
            table[(exponent == (1 << e_bits) - 1) & (mantissa == 0)] = np.inf
        elif fmt.special is SpecialCodes.NAN:
            table[(codes & ((1 << (e_bits + m_bits)) - 1)) == (1 << (e_bits + m_bits)) - 1] = np.nan
        if fmt.signed:
            table = np.where(codes >> (e_bits + m_bits) == 1, -table, table)
    table.setflags(write=False)
    return table


def code_values(fmt: Format) -> npt.NDArray[np.float64]:
    """Return the value of every code, shape (2**bits,), read-only.

    Codes that are no number of the format (Inf and NaN of the OCP formats, the most negative
    code of a narrow integer) hold Inf or NaN.
    """
    return _code_values(fmt)


@cache
def _values(fmt: Format) -> npt.NDArray[np.float64]:
    table = _code_values(fmt)
    found = np.unique(table[np.isfinite(table)] + 0.0)
    found.setflags(write=False)
    return found


def values(fmt: Format) -> npt.NDArray[np.float64]:
    """Return the finite values of a format, ascending, without repeats, read-only."""
    return _values(fmt)
