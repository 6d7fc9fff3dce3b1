# SPDX-License-Identifier: Apache-2.0
"""Sums of products as one chain of Booth rows, for integers.

The rows of equal weight of all lanes follow each other on a chain, the rows of the next weight
start from what is left above the lowest two bits. Each row costs one LUT per bit, and no lane
pays for an adder that joins its product to the others.
"""

from dataclasses import dataclass

from lutwise.hw.bounds import code_integers, legal_codes, product_range, width_of_range
from lutwise.hw.circuit import Bus, Circuit, Part
from lutwise.hw.multiplier import booth_rows
from lutwise.hw.operand import Operand, operand_of
from lutwise.quant.formats import Format

__all__ = ["Sum", "write_booth_chain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """A sum on a wire.

    Args:
        bus: The wire; it holds the sum less the number of pending wires that are set.
        low: Least sum.
        high: Greatest sum.
        pending: Wires that are still to be added, to complete negations.
    """

    bus: Bus
    low: int
    high: int
    pending: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Factor:
    """An operand: its format and one wire per lane."""

    fmt: Format
    operand: Operand
    wires: tuple[Bus, ...]

    @property
    def numbers(self) -> list[int]:
        """Values of the codes."""
        return [int(number) for number in code_integers(self.fmt)[legal_codes(self.fmt)]]

    def bit(self, lane: int, index: int) -> str:
        """Return a bit of the number, extended to both sides."""
        if index < 0:
            return "1'b0"
        if index < self.operand.bits:
            return self.wires[lane][index]
        return self.wires[lane][self.operand.bits - 1] if self.operand.twos_complement else "1'b0"


def write_booth_chain(
    circuit: Circuit,
    weights: Format,
    activations: Format,
    lanes: list[tuple[Bus, Bus]],
    *,
    recoded: str,
) -> Sum:
    """Write the sum of the products of some lanes.

    Args:
        circuit: Where to.
        weights: Format of the weights, as on their wires.
        activations: Format of the activations.
        lanes: Weight and activation of each lane.
        recoded: Which operand the Booth digits come from, ``w`` or ``a``.
    """
    w = _Factor(fmt=weights, operand=operand_of(weights), wires=tuple(w for w, _ in lanes))
    a = _Factor(fmt=activations, operand=operand_of(activations), wires=tuple(a for _, a in lanes))
    x, b = (a, w) if recoded == "w" else (w, a)
    rows = booth_rows(b.operand.bits, signed=b.operand.twos_complement)
    total: Bus | None = None
    low = high = 0
    settled: list[str] = []
    for row in range(rows):
        least, most = _row_range(x, b, row)
        for lane in range(len(lanes)):
            low, high = low + least, high + most
            width = width_of_range(min(low, -1), high)
            total = _write_row(circuit, x, b, lane, row, total, width)
        assert total is not None
        if row < rows - 1:
            settled.append(f"{total.name}[1:0]")
            total = circuit.wire("high", total.bits - 2, f"{total.name}[{total.bits - 1}:2]")
            low, high = low >> 2, high >> 2
    assert total is not None
    whole = circuit.wire(
        "chain", total.bits + 2 * len(settled), f"{{{', '.join([total.name, *reversed(settled)])}}}"
    )
    least, most = (bound * len(lanes) for bound in product_range(weights, activations))
    width = min(whole.bits, width_of_range(least, most))
    return Sum(
        bus=circuit.wire("chain", width, f"{whole.name}[{width - 1}:0]"), low=least, high=most
    )


def _row_range(x: _Factor, b: _Factor, row: int) -> tuple[int, int]:
    """Return the least and the greatest partial product of a row."""
    digits = {_digit(number, b.operand, row) for number in b.numbers}
    numbers = (min(x.numbers), max(x.numbers))
    products = [digit * number for digit in digits for number in numbers]
    return min(products), max(products)


def _digit(number: int, operand: Operand, row: int) -> int:
    """Return a radix-4 Booth digit of a number."""

    def bit(index: int) -> int:
        if index < 0 or (index >= operand.bits and not operand.twos_complement):
            return 0
        return number >> index & 1

    return bit(2 * row) + bit(2 * row - 1) - 2 * bit(2 * row + 1)


def _write_row(
    circuit: Circuit, x: _Factor, b: _Factor, lane: int, row: int, total: Bus | None, bits: int
) -> Bus:
    """Write one partial product and the adder that takes it in."""
    high, middle, low = (b.bit(lane, 2 * row + offset) for offset in (1, 0, -1))
    one = circuit.wire("one", 1, f"{middle} ^ {low}").name
    two = circuit.wire("two", 1, f"({high} ^ {middle}) & ~{one}").name
    selected = [
        f"((({one} & {x.bit(lane, bit)}) | ({two} & {x.bit(lane, bit - 1)})) ^ {high})"
        for bit in reversed(range(bits))
    ]
    before = f"{bits}'d0" if total is None else circuit.extend(total, bits, signed=True)
    return circuit.add(
        before, f"{{{', '.join(selected)}}}", high, bits, part=Part.MULTIPLY, stem="row"
    )
