# SPDX-License-Identifier: Apache-2.0
"""From the sum of a channel to its code, where thresholds are constants.

A binary search compares the sum with one of ``2**k`` constants on level ``k``, chosen by the
comparisons before. A carry position compares some bits of the sum with all of them at once: its
two functions of five wires hold the bits of the constant for every choice, so a level of a sum
of ``W`` bits takes ``W / (5 - k)`` LUTs and no memory.
"""

from collections.abc import Sequence

from lutwise.hw.constant_heap import Position

__all__ = ["level_positions", "search_levels"]

_WIRES = 5


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
        choices: Wires that choose the constant, the highest one first; four at most.
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


def _reversed(number: int, bits: int) -> int:
    return sum((number >> bit & 1) << (bits - 1 - bit) for bit in range(bits))
