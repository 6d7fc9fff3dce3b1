# SPDX-License-Identifier: Apache-2.0
"""Heaps against integers: chains are evaluated position by position, as the carry cells do."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutwise.hw.constant_heap import Chain, Columns, HeapBit, compress


class _Circuit:
    """Evaluates chains as they are written."""

    def __init__(self, bits: Sequence[int]) -> None:
        self.values = {"1'b0": 0, "1'b1": 1} | {f"w{at}": bit for at, bit in enumerate(bits)}
        self.sites = 0

    def write(self, chain: Chain) -> list[str]:
        carry = self.values[chain.carry]
        wires = []
        for position in chain.positions:
            assert len(position.wires) <= 6
            inputs = [self.values[wire] for wire in position.wires]
            index = sum(bit << at for at, bit in enumerate(inputs))
            select = position.select >> index & 1
            data = inputs[5] if position.bypass else position.data >> (index & 31) & 1
            if not position.bypass:
                assert position.data == 0 or len(inputs) <= 5, "data is a function of five wires"
            wires.append(f"s{len(self.values)}")
            self.values[wires[-1]] = select ^ carry
            carry = carry if select else data
        self.sites += len(chain.positions)
        return wires


def _heap(heights: Sequence[int], inverted: Sequence[bool]) -> Columns:
    columns: Columns = []
    at = 0
    for height in heights:
        columns.append(
            [HeapBit(f"w{at + row}", inverted[(at + row) % len(inverted)]) for row in range(height)]
        )
        at += height
    return columns


def _sum(columns: Columns, values: dict[str, int]) -> int:
    return sum(
        (values[b.wire] ^ b.inverted) << at for at, column in enumerate(columns) for b in column
    )


@pytest.mark.property
@given(st.data())
def test_a_heap_is_added_exactly(data: st.DataObject) -> None:
    heights = data.draw(st.lists(st.integers(0, 14), min_size=1, max_size=9))
    inverted = data.draw(st.lists(st.booleans(), min_size=1, max_size=17))
    count = sum(heights)
    bits = data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    columns = _heap(heights, inverted)
    circuit = _Circuit(bits)
    found = compress(columns, circuit.write)
    got = sum(
        (circuit.values[bit.wire] ^ bit.inverted) << at for at, bit in enumerate(found) if bit
    )
    assert got == _sum(columns, circuit.values) % (1 << len(heights))


@pytest.mark.parametrize(
    ("heights", "sites"),
    [
        ([0, 0], 0),
        ([1, 1, 1], 0),
        ([2, 0], 2),
        ([7, 0, 0], 3),
        ([2, 2, 2, 2], 4),
        ([6, 0, 6, 0, 6, 0], 6),
        ([4, 1, 4, 1], 4),
        ([36, 0, 0, 0, 0, 0], 28),
    ],
)
def test_sites_of_small_heaps(heights: list[int], sites: int) -> None:
    circuit = _Circuit([1] * sum(heights))
    compress(_heap(heights, [False]), circuit.write)
    assert circuit.sites <= sites


def test_heaps_are_settled_between_stages() -> None:
    circuit = _Circuit([1] * 60)
    seen: list[Columns] = []

    def settle(columns: Columns) -> Columns:
        seen.append(columns)
        return columns

    compress(_heap([20, 20, 20, 0, 0, 0, 0], [False]), circuit.write, settle)
    heights = [max(map(len, columns)) for columns in seen]
    assert heights == sorted(heights, reverse=True)
    assert 1 < len(heights) < 10


def test_the_heap_that_is_given_is_kept() -> None:
    columns = _heap([5, 3], [False])
    before = [list(column) for column in columns]
    compress(columns, _Circuit([0] * 8).write)
    assert columns == before
