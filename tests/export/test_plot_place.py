# SPDX-License-Identifier: Apache-2.0
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutwise.export.plot_place import Box, place_labels, spread, swarm

PIXELS = st.floats(0, 300)


@pytest.mark.property
@given(st.lists(st.tuples(st.sampled_from([50.0, 100.0]), PIXELS), max_size=20))
def test_swarm_keeps_marks_of_a_column_apart(places: list[tuple[float, float]]) -> None:
    moves = swarm(places, 8.0)
    for (i, (x, y)), (j, (u, v)) in combinations(enumerate(places), 2):
        if x == u:
            assert (moves[i] - moves[j]) ** 2 + (y - v) ** 2 >= (0.97 * 8.0) ** 2


def test_swarm_leaves_marks_that_are_alone() -> None:
    assert swarm([(10.0, 5.0), (50.0, 5.0), (10.0, 90.0)], 8.0) == [0.0, 0.0, 0.0]


@pytest.mark.property
@given(st.lists(PIXELS, max_size=20))
def test_spread_keeps_order_gap_and_ends(centres: list[float]) -> None:
    found = spread(centres, 10.0, 0.0, 300.0)
    order = sorted(range(len(centres)), key=lambda i: (centres[i], i))
    moved = [found[i] for i in order]
    assert all(b - a >= 10.0 - 1e-6 for a, b in pairwise(moved))
    assert all(-1e-6 <= x <= 300.0 + 1e-6 for x in moved)


@pytest.mark.parametrize(
    ("centres", "wanted"),
    [
        pytest.param([], [], id="none"),
        pytest.param([30.0], [30.0], id="alone"),
        pytest.param([30.0, 30.0], [25.0, 35.0], id="around-their-place"),
        pytest.param([35.0, 30.0], [37.5, 27.5], id="in-order"),
        pytest.param([100.0, 100.0], [90.0, 100.0], id="at-the-end"),
        pytest.param([50.0] * 21, [5.0 * k for k in range(21)], id="too-many"),
    ],
)
def test_spread_places(centres: list[float], wanted: list[float]) -> None:
    assert spread(centres, 10.0, 0.0, 100.0) == pytest.approx(wanted)


def test_labels_of_close_marks_do_not_overlap() -> None:
    anchors = [(100.0 + 4 * k, 100.0 + 3 * (k % 3)) for k in range(8)]
    sizes = [(30.0, 9.0)] * len(anchors)
    marks = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in anchors]
    frame = Box(0, 0, 300, 200)
    centres = place_labels(anchors, sizes, marks, [], frame, distance=6.0)
    boxes = [Box(x - 15, y - 4.5, x + 15, y + 4.5) for x, y in centres]
    assert all(a.overlap(b) == 0 for a, b in combinations(boxes, 2))
    assert all(a.overlap(mark) == 0 for a in boxes for mark in marks)
    assert all(box.outside(frame) == 0 for box in boxes)
