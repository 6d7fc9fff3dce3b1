# SPDX-License-Identifier: Apache-2.0
from bisect import bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutwise.hw.constant_heap import Position
from lutwise.hw.constant_output import level_positions, pair_positions, search_levels


def _carry(positions: list[Position], values: dict[str, int]) -> int:
    """Return the last bit of a chain that starts with a carry of one."""
    carry = last = 1
    for position in positions:
        index = sum(values[wire] << at for at, wire in enumerate(position.wires))
        select = position.select >> index & 1
        last = select ^ carry
        carry = carry if select else position.data >> index & 1
    return last


@pytest.mark.property
@given(st.lists(st.integers(-20, 300), min_size=1, max_size=15), st.integers(1, 255))
def test_a_search_finds_the_place_among_thresholds(thresholds: list[int], highest: int) -> None:
    thresholds = sorted(thresholds)
    bits = highest.bit_length()
    wires = [f"s{at}" for at in range(bits)]
    levels = search_levels(thresholds, highest)
    for total in {0, highest, highest // 2, *(t for t in thresholds if 0 <= t <= highest)}:
        values = {"1'b0": 0} | {wire: total >> at & 1 for at, wire in enumerate(wires)}
        place = 0
        reached: list[str] = []
        for level, constants in enumerate(levels):
            found = _carry(level_positions(wires, reached, constants), values)
            values[f"r{level}"] = found
            reached.append(f"r{level}")
            place = place << 1 | found
        assert min(place, len(thresholds)) == bisect_right(thresholds, total)


@given(st.integers(0, 511), st.integers(0, 511), st.integers(9, 10))
def test_pairs_of_bits_are_compared(one: int, other: int, bits: int) -> None:
    names = [[f"{name}{at}" for at in range(bits)] for name in "ab"]
    values = {"1'b0": 0}
    for wires, number in zip(names, (one, other), strict=True):
        values |= {wire: number >> at & 1 for at, wire in enumerate(wires)}
    assert _carry(pair_positions(*names), values) == (one >= other)


def test_a_level_takes_fewer_positions_than_bits() -> None:
    wires = [f"s{at}" for at in range(15)]
    sizes = [len(level_positions(wires, ["r"] * level, [77] * (1 << level))) for level in range(4)]
    assert sizes == [3 + 1, 4 + 1, 5 + 1, 8 + 1]
