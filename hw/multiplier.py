# SPDX-License-Identifier: Apache-2.0
"""Products of significands: rows of partial products on carry chains.

A row that is added to what came before needs one LUT per bit when its own bit is a function of
five inputs or fewer: the LUT in front of the carry chain makes the bit and adds it. What kinds
of row there are follows from that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache

from lutwise.hw.circuit import LUT_INPUTS, Bus, Circuit, Part

__all__ = ["Array", "Factor", "array_sites", "booth_rows", "write_array"]


class Array(Enum):
    """How significands are multiplied."""

    BOOTH = "booth"
    """Radix-4 Booth rows."""

    DIGITS = "digits"
    """Rows of one, two or three bits of the multiplier: AND rows, pairs of AND rows in one
    adder, and tables of a digit times the multiplicand where six inputs hold both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """An operand of a multiplication.

    Args:
        bus: The wire.
        signed: Two's complement.
    """

    bus: Bus
    signed: bool

    @property
    def bits(self) -> int:
        """Width."""
        return self.bus.bits


class _Row(Enum):
    """Kinds of row; the value is a name for it in the module."""

    AND = "one"
    PAIR = "pair"
    TABLE = "digit"


def write_array(circuit: Circuit, one: Factor, other: Factor, array: Array) -> Factor:
    """Write the product of two operands.

    Args:
        circuit: Where to.
        one: An operand.
        other: Another operand.
        array: How to multiply; with two's complement on both sides ``DIGITS`` is Booth rows.

    Returns:
        The product, ``one.bits + other.bits`` wide; narrower where an operand has one bit.
    """
    signed = one.signed or other.signed
    narrow, wide = sorted((one, other), key=lambda factor: (factor.signed, factor.bits))
    if narrow.bits == 1 and not narrow.signed:
        text = f"{wide.bus.name} & {{{wide.bits}{{{narrow.bus.name}}}}}"
        return Factor(bus=circuit.wire("gated", wide.bits, text), signed=wide.signed)
    circuit.count(Part.MULTIPLY, array_sites(one.bits, one.signed, other.bits, other.signed, array))
    bits = one.bits + other.bits
    if array is Array.BOOTH or narrow.signed:
        x, b = _booth_order(one, other)
        product = circuit.wire("product", bits)
        circuit.write(
            f"lw_booth #(.X({x.bits}), .X_SIGNED({int(x.signed)}), .B({b.bits}), "
            f".B_SIGNED({int(b.signed)})) {circuit.name('booth')} "
            f"(.x({x.bus.name}), .b({b.bus.name}), .p({product.name}));"
        )
        return Factor(bus=product, signed=signed)
    x, b = _digit_order(one, other)
    return Factor(bus=_write_digits(circuit, x, b), signed=signed)


def array_sites(x: int, x_signed: bool, b: int, b_signed: bool, array: Array) -> float:
    """Count the sites of a product.

    Args:
        x: Bits of an operand.
        x_signed: Whether it is two's complement.
        b: Bits of the other operand.
        b_signed: Whether that is.
        array: How to multiply.
    """
    booth = min(_booth_sites(x, x_signed, b, b_signed), _booth_sites(b, b_signed, x, x_signed))
    if array is Array.BOOTH or (x_signed and b_signed):
        return booth
    choices = []
    if not b_signed:
        choices.append(_digits(x, b)[0])
    if not x_signed:
        choices.append(_digits(b, x)[0])
    # The synthesizer's own multiplier never beats the better of the two.
    return min(choices) if array is Array.DIGITS else min(booth, *choices)


def booth_rows(bits: int, *, signed: bool) -> int:
    """Return the radix-4 Booth digits of a number of so many bits."""
    return (bits + 1) // 2 if signed else (bits + 2) // 2


def _booth_sites(x: int, x_signed: bool, b: int, b_signed: bool) -> float:
    return booth_rows(b, signed=b_signed) * (x + 2 + (not x_signed)) - 1


def _booth_order(one: Factor, other: Factor) -> tuple[Factor, Factor]:
    """Return multiplicand and multiplier of the smaller array."""
    here = _booth_sites(one.bits, one.signed, other.bits, other.signed)
    there = _booth_sites(other.bits, other.signed, one.bits, one.signed)
    return (one, other) if here <= there else (other, one)


def _digit_order(one: Factor, other: Factor) -> tuple[Factor, Factor]:
    """Return multiplicand and (unsigned) multiplier of the smaller array."""
    if one.signed or other.signed:
        return (one, other) if one.signed else (other, one)
    here, there = _digits(one.bits, other.bits)[0], _digits(other.bits, one.bits)[0]
    return (one, other) if here <= there else (other, one)


@cache
def _digits(x: int, b: int) -> tuple[float, tuple[tuple[_Row, int], ...]]:
    """Return the fewest sites for an unsigned multiplier of ``b`` bits, and its rows.

    Rows come lowest first, each with the bits that it takes.
    """
    return _best_rows(x, b, first=True)


@cache
def _best_rows(x: int, left: int, *, first: bool) -> tuple[float, tuple[tuple[_Row, int], ...]]:
    if left == 0:
        return 0.0, ()
    choices = []
    for row, size in ((_Row.AND, 1), (_Row.PAIR, 2), (_Row.TABLE, 2), (_Row.TABLE, 3)):
        if size > left or (row is _Row.TABLE and x + size > LUT_INPUTS):
            continue
        rest, rows = _best_rows(x, left - size, first=False)
        choices.append((_row_sites(x, row, size, first=first) + rest, ((row, size), *rows)))
    return min(choices, key=lambda choice: choice[0])


def _row_sites(x: int, row: _Row, size: int, *, first: bool) -> float:
    if row is _Row.AND:
        return x / 2 if first else x + 1.0
    if row is _Row.PAIR:
        # One adder for both rows; its lowest bit needs no carry. Then one more to join it.
        return x + 1.5 + (0.0 if first else x + 2.0)
    # The lowest bits of a table depend on few inputs; all others on six.
    wide = x + size if x + size == LUT_INPUTS else 0
    explicit = max(0, x + size - 3) if wide else (x + size) / 2
    if first:
        return explicit + 1.5 if wide else explicit
    # With the adder's own input, bits of five inputs are free, and so are the two above the
    # carried-in number.
    return x + size + (max(0, explicit - 2) if wide else 0)


def _write_digits(circuit: Circuit, x: Factor, b: Factor) -> Bus:
    """Write rows for an unsigned multiplier, lowest first, on a chain of adders."""
    low: list[str] = []
    total: Bus | None = None
    position = 0
    for row, size in _digits(x.bits, b.bits)[1]:
        product = _write_row(circuit, x, b, row, position, size)
        if total is None:
            total = product
        else:
            bits = min(max(total.bits, product.bits) + 1, x.bits + b.bits - position)
            total = _join(circuit, total, product, bits, signed=x.signed)
        position += size
        if position < b.bits:
            low.append(f"{total.name}[{size - 1}:0]")
            rest = f"{total.name}[{total.bits - 1}:{size}]"
            total = circuit.wire("high", total.bits - size, rest)
    assert total is not None
    parts = ", ".join([total.name, *reversed(low)])
    return circuit.wire("product", x.bits + b.bits, f"{{{parts}}}")


def _write_row(circuit: Circuit, x: Factor, b: Factor, row: _Row, position: int, size: int) -> Bus:
    if row is _Row.AND:
        return circuit.wire(row.value, x.bits, f"{x.bus.name} & {{{x.bits}{{{b.bus[position]}}}}}")
    bits = x.bits + size
    if row is _Row.PAIR:
        once = circuit.extend(x.bus, bits, signed=x.signed)
        twice = circuit.extend(x.bus, bits - 1, signed=x.signed)
        first = circuit.wire(row.value, bits, f"{once} & {{{bits}{{{b.bus[position]}}}}}")
        second = circuit.wire(
            row.value, bits, f"{{{twice}, 1'b0}} & {{{bits}{{{b.bus[position + 1]}}}}}"
        )
        return _join(circuit, first, second, bits, signed=x.signed)

    def product(numbers: Sequence[int]) -> int:
        multiplicand, digit = numbers
        if x.signed and multiplicand >> (x.bits - 1):
            multiplicand -= 1 << x.bits
        return multiplicand * digit & ((1 << bits) - 1)

    digit = f"{b.bus.name}[{position + size - 1}:{position}]"
    found, _ = circuit.table(
        [(x.bus.name, x.bits), (digit, size)], product, bits, part=None, stem=row.value
    )
    return found


def _join(circuit: Circuit, one: Bus, other: Bus, bits: int, *, signed: bool) -> Bus:
    """Add two rows; ``array_sites`` has counted the sites."""
    return circuit.add(
        circuit.extend(one, bits, signed=signed),
        circuit.extend(other, bits, signed=signed),
        "1'b0",
        bits,
        part=None,
    )
