# SPDX-License-Identifier: Apache-2.0
"""A module under construction: its Verilog and a count of the LUTs that each part should take.

Text and count come from the same calls, so that what is priced is what is written. A count is
what a careful engineer would find by looking at the circuit; it is not the result of synthesis.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Final

from lutwise.hw.verilog import extend

__all__ = ["LUT_INPUTS", "Bit", "Bus", "Circuit", "Part", "Term", "lut_sites", "mux_sites"]

_SHARED_INPUTS: Final = 5
LUT_INPUTS: Final = 6
"""Inputs of a LUT."""


class Part(Enum):
    """What LUTs are spent on."""

    MULTIPLY = "multiply"
    """Products of significands, or tables of whole products."""

    SHIFT = "shift"
    """Moving a product to where its exponent says."""

    EXPONENT = "exponent"
    """Exponents: recognising subnormals, adding, selecting a shift."""

    SIGN = "sign"
    """Signs of sign-magnitude products."""

    ADD = "add"
    """Adders of sums and of the accumulator."""


def lut_sites(inputs: int) -> float:
    """Return the sites of a function of so many inputs, beside others of the same inputs.

    Two functions that have five inputs together share a site; above six inputs sites multiply.
    """
    if inputs <= 1:
        return 0.0
    if inputs <= _SHARED_INPUTS:
        return 0.5
    return float(1 << (inputs - LUT_INPUTS))


def mux_sites(inputs: int) -> float:
    """Return the sites of a function of so many inputs, beside others with one in common."""
    return lut_sites(inputs) if inputs <= _SHARED_INPUTS // 2 + 1 else max(1.0, lut_sites(inputs))


@dataclass(frozen=True, slots=True)
class Bus:
    """A named wire and its width."""

    name: str
    bits: int

    def __getitem__(self, index: int) -> str:
        return f"{self.name}[{index}]"


@dataclass(frozen=True, slots=True)
class Bit:
    """One bit of a term, not yet a wire of its own.

    Args:
        text: Verilog expression.
        inputs: Inputs of the function that makes it out of wires.
    """

    text: str
    inputs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One summand: bits that a LUT may still make together with an adder.

    Args:
        bits: Lowest first.
        signed: Two's complement: the highest bit repeats.
        negate: Wire that says to negate; ``None`` for never.
        low: Least number, after negation.
        high: Greatest number.
    """

    bits: tuple[Bit, ...]
    signed: bool
    negate: str | None
    low: int
    high: int

    def bit(self, index: int) -> Bit:
        """Return a bit of the ones' complement where the term is to be negated."""
        if index < len(self.bits):
            found = self.bits[index]
        else:
            found = self.bits[-1] if self.signed else Bit("1'b0", 0)
        if self.negate is None:
            return found
        return Bit(f"({found.text}) ^ {self.negate}", found.inputs + 1)

    def text(self, bits: int) -> str:
        """Write the term with so many bits."""
        return "{" + ", ".join(self.bit(index).text for index in reversed(range(bits))) + "}"


@dataclass(slots=True)
class Circuit:
    """Lines of a module's body, and LUT sites per part."""

    lines: list[str] = field(default_factory=list)
    sites: dict[Part, float] = field(default_factory=lambda: dict.fromkeys(Part, 0.0))
    _names: int = 0

    def write(self, line: str) -> None:
        """Add a line."""
        self.lines.append(line)

    def count(self, part: Part, sites: float) -> None:
        """Count sites."""
        self.sites[part] += sites

    def name(self, stem: str) -> str:
        """Return a name that is not in use."""
        self._names += 1
        return f"{stem}_{self._names}"

    def wire(self, stem: str, bits: int, expression: str = "") -> Bus:
        """Declare a wire, with what drives it if that is an expression."""
        bus = Bus(self.name(stem), bits)
        drive = f" = {expression}" if expression else ""
        self.write(f"wire [{bits - 1}:0] {bus.name}{drive};")
        return bus

    def extend(self, bus: Bus, bits: int, *, signed: bool) -> str:
        """Return an expression that cuts or extends a wire."""
        return extend(bus.name, bus.bits, signed=signed, to=bits)

    def add(
        self,
        a: str,
        b: str,
        carry: str,
        bits: int,
        *,
        part: Part | None = Part.ADD,
        stem: str = "sum",
    ) -> Bus:
        """Write an adder: one site per bit, with a function of five inputs in front of ``b``.

        ``part`` is what its sites are counted for; ``None`` where the caller counts them.
        """
        total = self.wire(stem, bits)
        self.write(
            f"lw_add #(.W({bits})) {self.name('add')} "
            f"(.a({a}), .b({b}), .cin({carry}), .y({total.name}));"
        )
        if part is not None:
            self.count(part, bits)
        return total

    def table(
        self,
        inputs: Sequence[tuple[str, int]],
        function: Callable[[Sequence[int]], int],
        bits: int,
        *,
        part: Part | None,
        stem: str = "table",
        hard: bool = False,
    ) -> tuple[Bus, tuple[int, ...]]:
        """Write a truth table.

        Args:
            inputs: Expressions and their widths, lowest first.
            function: Result for one number per input.
            bits: Width of the result.
            part: What its sites are counted for; ``None`` where the caller counts them.
            stem: Of the name.
            hard: Let the mapper neither merge the LUTs with others nor take them apart; for at
                most six inputs.

        Returns:
            The result and, per bit, the inputs that it depends on.
        """
        width = sum(w for _, w in inputs)
        assert not hard or width <= LUT_INPUTS
        tables = [0] * bits
        for index in range(1 << width):
            numbers, rest = [], index
            for _, w in inputs:
                numbers.append(rest & ((1 << w) - 1))
                rest >>= w
            value = function(numbers)
            for bit in range(bits):
                tables[bit] |= ((value >> bit) & 1) << index
        joined = self.wire(
            f"{stem}_in", width, "{" + ", ".join(text for text, _ in reversed(inputs)) + "}"
        )
        result = self.wire(stem, bits)
        support = tuple(_support(table, width) for table in tables)
        module = "lw_lut" if hard else "lw_table"
        for bit, table in enumerate(tables):
            self.write(
                f"{module} #(.N({width}), .T({1 << width}'h{table:x})) "
                f"{self.name('lut')} (.x({joined.name}), .y({result[bit]}));"
            )
        if part is not None:
            self.count(part, sum(lut_sites(inputs) for inputs in support))
        return result, support


@cache
def _support(table: int, inputs: int) -> int:
    """Count the inputs that a truth table depends on."""
    found = 0
    for number in range(inputs):
        low = sum(1 << index for index in range(1 << inputs) if not index >> number & 1)
        found += ((table >> (1 << number)) ^ table) & low != 0
    return found
