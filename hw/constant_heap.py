# SPDX-License-Identifier: Apache-2.0
"""Sums of many bits of known weight, on carry chains that take in six bits per position pair.

A *heap* holds, per power of two, the bits that are to be added. A carry position is one LUT: it
sends ``s ^ c`` out and ``s ? c : d`` on, with ``s`` a function of six wires and ``d`` one of them
or a function of five. Two positions add up to six bits of one column, and the carry ``c`` from
below:

- With ``s`` the parity of the six and ``d`` the sixth, what leaves the first position is the sum's
  lowest bit, and what is left is ``r = (x0 + ... + x4) // 2`` and the carry, of twice the weight.
- ``r`` is 0, 1 or 2 and a function of five wires, so the second position with ``s = r % 2`` and
  ``d = r // 2`` adds it to the carry.

Six bits become two for two LUTs, in front of anything, not only registers; a ternary adder does
no better. Every second column is summed along one chain. The same two positions take four bits of
a column and one of the next, and one position takes two bits, as any adder does.

Reference: compressors of six bits on carry chains are known from M. Kumm and P. Zipf, "Pipelined
compressor tree optimization using integer linear programming", FPL 2014, and T. B. Preusser,
"Generic and universal parallel matrix summation with a flexible compression goal for Xilinx
FPGAs", FPL 2017. Which bits a chain takes is decided here by dynamic programming over columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

__all__ = ["Chain", "Columns", "HeapBit", "Position", "compress"]

_EFFICIENCY: Final = 1.2
"""Bits that a chain removes per site; worse ones wait for the next stage. Greater numbers give
no fewer sites, but more stages."""

_STEP: Final = 0.15
_LEAST: Final = 0.01


@dataclass(frozen=True, slots=True)
class HeapBit:
    """A wire, or its complement, that counts once."""

    wire: str
    inverted: bool = False


Columns = list[list[HeapBit]]
"""Bits per power of two, lowest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A position of a carry chain.

    Args:
        wires: At most six.
        select: Truth table of ``s``; the first wire is the lowest bit of the index.
        data: Truth table of ``d``; of the first five wires.
        bypass: Whether ``d`` is the sixth wire instead.
    """

    wires: tuple[str, ...]
    select: int
    data: int
    bypass: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A carry chain.

    Args:
        column: Of its first position; every further one is of the next power of two.
        carry: Wire that is added at the first position.
        positions: Lowest first; each is a LUT site.
    """

    column: int
    carry: str
    positions: tuple[Position, ...]


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a piece of a chain takes: bits of its column and of the next, in how many positions."""

    here: int
    above: int
    positions: int

    @property
    def removed(self) -> int:
        return self.here + self.above - self.positions


_SHAPES: Final = (
    _Shape(6, 0, 2),
    _Shape(5, 0, 2),
    _Shape(4, 1, 2),
    _Shape(4, 0, 2),
    _Shape(3, 1, 2),
    _Shape(2, 0, 1),
    _Shape(1, 0, 1),
)


@dataclass(slots=True)
class _Column:
    """Bits of a column that a stage may still take."""

    plain: list[str]
    inverted: list[str]

    @property
    def height(self) -> int:
        return len(self.plain) + len(self.inverted)

    def take(self, count: int) -> list[HeapBit]:
        """Take bits, inverted ones first but for the last one if there is another kind."""
        few = min(len(self.inverted), count - bool(self.plain))
        found = [HeapBit(self.inverted.pop(), inverted=True) for _ in range(few)]
        return found + [HeapBit(self.plain.pop()) for _ in range(count - few)]


def compress(
    columns: Columns,
    write: Callable[[Chain], Sequence[str]],
    settle: Callable[[Columns], Columns] = lambda columns: columns,
) -> list[HeapBit | None]:
    """Add all bits of a heap, modulo two to the number of its columns.

    Args:
        columns: The heap; it is not changed.
        write: Writes a chain and returns the wires of its sum, one per position.
        settle: Called with the heap between two stages; what it returns is worked on from there
            on. A pipelined circuit puts registers there.

    Returns:
        The bits of the sum, lowest first; ``None`` for a zero.
    """
    columns = [list(column) for column in columns]
    stages = 0
    while max(map(len, columns)) > 1:
        if stages:
            columns = settle(columns)
        columns = _stage(columns, write)
        stages += 1
    return [column[0] if column else None for column in columns]


def _stage(columns: Columns, write: Callable[[Chain], Sequence[str]]) -> Columns:
    """Write chains for the bits that are there; sums are not taken up again."""
    left = [
        _Column(
            plain=[bit.wire for bit in column if not bit.inverted],
            inverted=[bit.wire for bit in column if bit.inverted],
        )
        for column in columns
    ]
    sums: Columns = [[] for _ in columns]
    worth = _EFFICIENCY if max(column.height for column in left) > 2 else _LEAST
    written = False
    while True:
        plan = _best_chain(left, worth)
        if plan is not None:
            chain = _taken(left, plan)
            wires = write(chain)
            for column, wire in enumerate(wires, start=chain.column):
                sums[column].append(HeapBit(wire))
            written = True
        elif written:
            break
        else:
            worth = max(_LEAST, worth - _STEP)
    return [
        [HeapBit(wire) for wire in column.plain]
        + [HeapBit(wire, inverted=True) for wire in column.inverted]
        + added
        for column, added in zip(left, sums, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Plan:
    """A chain to be: where it starts, with a carry or not, and its pieces."""

    column: int
    carry: bool
    shapes: tuple[_Shape, ...]


def _best_chain(left: Sequence[_Column], worth: float) -> _Plan | None:
    """Return the chain that removes most bits, less ``worth`` per site, if any is above zero."""
    top = len(left)
    values = [0.0] * (top + 1)
    choices: list[_Shape | None] = [None] * top
    # A chain that ends below the top takes one more site, and its carry is a bit again. Where two
    # bits have nothing above them that removes none, but has to be done in the end.
    end = -worth - (1.0 if worth > _LEAST else 0.5)
    for at in range(top - 1, -1, -1):
        here = left[at]
        height = here.height
        above = left[at + 1].height if at + 1 < top else 0
        best = end
        choice: _Shape | None = None
        for shape in _SHAPES:
            if shape.here > height or shape.above > above or (shape.here == 6 and not here.plain):
                continue
            width = min(shape.positions, top - at)
            value = shape.here + shape.above - width - worth * width + values[at + width]
            if value > best:
                best, choice = value, shape
        values[at], choices[at] = best, choice
    found: tuple[float, int, bool] | None = None
    for at, chosen in enumerate(choices):
        if chosen is None:
            continue
        carry = left[at].height > chosen.here and len(left[at].plain) > (chosen.here == 6)
        value = values[at] + carry
        if value > _LEAST and (found is None or value > found[0]):
            found = value, at, carry
    if found is None:
        return None
    _, start, carry = found
    shapes: list[_Shape] = []
    at = start
    while at < top and (chosen := choices[at]) is not None:
        shapes.append(chosen)
        at += chosen.positions
    return _Plan(start, carry, tuple(shapes))


def _taken(left: Sequence[_Column], plan: _Plan) -> Chain:
    """Take the bits of a plan."""
    carry = left[plan.column].plain.pop() if plan.carry else "1'b0"
    positions: list[Position] = []
    at = plan.column
    for shape in plan.shapes:
        here = left[at].take(shape.here)
        above = left[at + 1].take(shape.above) if shape.above else []
        positions += _positions(here, above, shape.positions)[: len(left) - at]
        at += shape.positions
    if at < len(left):
        positions.append(Position(wires=(), select=0, data=0))
    return Chain(column=plan.column, carry=carry, positions=tuple(positions))


def _positions(here: list[HeapBit], above: list[HeapBit], count: int) -> list[Position]:
    """Return one or two positions that add bits of a column and of the next."""
    first = Position(
        wires=tuple(bit.wire for bit in here),
        select=_parity(_mask(here), len(here)),
        data=0 if len(here) > 5 else _last(len(here), inverted=here[-1].inverted),
        bypass=len(here) > 5,
    )
    if count == 1:
        return [first]
    rest = [*here[:-1], *above]
    select, data = _halves(_mask(rest), len(here) - 1, len(above))
    return [first, Position(wires=tuple(bit.wire for bit in rest), select=select, data=data)]


def _mask(bits: Sequence[HeapBit]) -> int:
    return sum(bit.inverted << at for at, bit in enumerate(bits))


def _table(function: Callable[[int], int], inputs: int) -> int:
    return sum(function(index) << index for index in range(1 << inputs))


@cache
def _parity(mask: int, inputs: int) -> int:
    return _table(lambda index: (index ^ mask).bit_count() & 1, inputs)


@cache
def _last(inputs: int, *, inverted: bool) -> int:
    return _table(lambda index: (index >> (inputs - 1)) ^ inverted, inputs)


@cache
def _halves(mask: int, low: int, high: int) -> tuple[int, int]:
    """Return the bits of half of the sum of ``low`` bits, rounded down, plus ``high`` bits."""

    def total(index: int) -> int:
        bits = index ^ mask
        return (bits & ((1 << low) - 1)).bit_count() // 2 + (bits >> low).bit_count()

    inputs = low + high
    return _table(lambda index: total(index) & 1, inputs), _table(
        lambda index: total(index) >> 1, inputs
    )
