# SPDX-License-Identifier: Apache-2.0
"""From the sum of a channel to its code, with constants.

A binary search compares the sum with one of ``2**k`` constants on level ``k``, chosen by the
comparisons before. A carry position compares some bits of the sum with all of them at once: its
two functions of five wires hold the bits of the constant for every choice, so a level of a sum
of ``W`` bits takes ``W / (5 - k)`` LUTs and no memory. From level five on the constants are in
tables, and two of their bits are compared per position.
"""

from collections.abc import Sequence
from typing import Final

from lutwise.hw.constant_heap import Position
from lutwise.hw.requantizer import Requantizer
from lutwise.quant.formats import IntFormat

__all__ = [
    "MOST_CHOICES",
    "level_positions",
    "pair_positions",
    "rounding_sites",
    "search_levels",
]

_WIRES: Final = 5

MOST_CHOICES: Final = _WIRES - 1
"""Wires that may choose the constants of ``level_positions``."""


def search_levels(thresholds: Sequence[int], highest: int) -> list[list[int]]:
    """Return the constants of each level of a binary search, by the choices before it.

    Args:
        thresholds: Least sum of every result but the first, ascending.
        highest: Greatest sum; sums are not negative.

    Returns:
        Per level ``2**level`` constants of ``0 .. highest + 1``.
    """
    levels = len(thresholds).bit_length()
    row = [min(max(threshold, 0), highest + 1) for threshold in thresholds]
    row += [highest + 1] * ((1 << levels) - 1 - len(row))
    return [
        [
            row[(prefix << (levels - level)) + (1 << (levels - 1 - level)) - 1]
            for prefix in range(1 << level)
        ]
        for level in range(levels)
    ]


def level_positions(
    sums: Sequence[str], choices: Sequence[str], constants: Sequence[int]
) -> list[Position]:
    """Return carry positions that tell whether a sum is at least a constant.

    The chain starts with a carry of one, and the bit of its last position is the answer.

    Args:
        sums: Wires of the sum, lowest first.
        choices: Wires that choose the constant, the highest first; ``MOST_CHOICES`` at most.
        constants: One per choice.
    """
    step = _WIRES - len(choices)
    bits = max(len(sums), *(constant.bit_length() for constant in constants))
    wires = [*sums, *["1'b0"] * (bits - len(sums))]
    found = []
    for start in range(0, bits, step):
        part = wires[start : start + step]
        width = len(part)
        mask = (1 << width) - 1
        select = data = 0
        for index in range(1 << (width + len(choices))):
            here = index & mask
            wanted = constants[_reversed(index >> width, len(choices))] >> start & mask
            select |= (here == wanted) << index
            data |= (here > wanted) << index
        found.append(Position(wires=(*part, *choices), select=select, data=data))
    return [*found, Position(wires=(), select=0, data=0)]


def pair_positions(sums: Sequence[str], others: Sequence[str]) -> list[Position]:
    """Return carry positions that tell whether a sum is at least another number.

    Args:
        sums: Wires of the sum, lowest first.
        others: Wires of the other number, as many.
    """
    select = data = 0
    for index in range(16):
        here, there = index & 3, index >> 2
        select |= (here == there) << index
        data |= (here > there) << index
    even = [*sums, "1'b0"], [*others, "1'b0"]
    found = [
        Position(
            wires=(*even[0][start : start + 2], *even[1][start : start + 2]),
            select=select,
            data=data,
        )
        for start in range(0, len(sums), 2)
    ]
    return [*found, Position(wires=(), select=0, data=0)]


def _reversed(number: int, bits: int) -> int:
    return sum((number >> bit & 1) << (bits - 1 - bit) for bit in range(bits))


def rounding_sites(unit: Requantizer) -> float:
    """Count the sites that round and saturate a product, about."""
    kept = max(1, unit.accumulator_bits - unit.shift)
    dropped = unit.accumulator_bits - kept
    if isinstance(unit.output, IntFormat):
        return kept + dropped / 5 + unit.output.bits
    return unit.accumulator_bits * (unit.output.signed + unit.output.exponent_bits / 2)
