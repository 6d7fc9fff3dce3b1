# SPDX-License-Identifier: Apache-2.0
"""What is said about long work, and when."""

import pytest

from lutwise.shown import Pace, points_told, steps_told, time_left


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_pace_tells_the_time_left() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.left(0.0) is None
    clock.now += 10
    assert pace.left(0.25) == pytest.approx(30)
    clock.now += 10
    assert pace.left(0.5) == pytest.approx(20)


def test_layers_of_an_earlier_run_do_not_spoil_the_pace() -> None:
    clock = Clock()
    pace = Pace(clock)
    for done in range(50):  # found again, a hundredth of a second each
        pace.left(done / 100)
        clock.now += 0.01
    left = [0.0]
    for done in range(50, 60):
        found = pace.left(done / 100)
        assert found is not None
        left.append(found)
        clock.now += 10
    assert left[-1] == pytest.approx(410, rel=0.01)


def test_a_stage_ends_where_the_share_falls_or_is_gone() -> None:
    clock = Clock()
    pace = Pace(clock)
    for share in (0.0, 0.9):
        pace.left(share)
        clock.now += 100
    assert pace.left(0.1) is None
    clock.now += 1
    assert pace.left(0.2) == pytest.approx(8)
    assert pace.left(None) is None
    assert pace.left(0.3) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "about 5 s left"),
        (41, "about 40 s left"),
        (89, "about 90 s left"),
        (95, "about 2 min left"),
        (3600, "about 60 min left"),
        (6000, "about 1.7 h left"),
    ],
)
def test_durations_are_rounded(seconds: float, text: str) -> None:
    assert time_left(seconds) == text


def test_steps_get_a_line_each_and_long_stages_one_in_five_seconds() -> None:
    clock, lines = Clock(), list[str]()
    tell = steps_told(lines.append, clock)
    tell("calibrate")
    tell("find ranges")
    for layer in range(21):
        tell(f"layer {layer + 1} of 21", layer / 21)
        clock.now += 2
    tell("report")
    assert lines[:3] == ["calibrate", "find ranges", "layer 1 of 21"]
    assert lines[3] == "layer 4 of 21, about 35 s left"
    assert lines[4:-1] == [
        f"layer {n} of 21, {time_left(2 * (22 - n))}" for n in (7, 10, 13, 16, 19)
    ]
    assert lines[-1] == "report"


def test_points_are_counted_and_long_stages_say_whose() -> None:
    clock, lines = Clock(), list[str]()
    tell = points_told(2, lines.append, clock)
    for point in ("a", "b"):
        tell(point, "calibrate")
        for layer in range(3):
            tell(point, f"layer {layer + 1} of 3", layer / 3)
            clock.now += 6
        tell(point, "done")
    assert lines == [
        "a: layer 2 of 3, about 10 s left", "a: layer 3 of 3, about 5 s left", "1/2  a",
        "b: layer 2 of 3, about 10 s left", "b: layer 3 of 3, about 5 s left", "2/2  b",
    ]  # fmt: skip
