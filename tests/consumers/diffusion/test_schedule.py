# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutwise.consumers.diffusion.schedule import CacheSchedule, Part
from lutwise.errors import ConfigError, DataError


@st.composite
def schedules(draw: st.DrawFn) -> CacheSchedule:
    steps, blocks = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    row = st.lists(st.booleans(), min_size=blocks, max_size=blocks).map(tuple)

    def table() -> tuple[tuple[bool, ...], ...]:
        rest = draw(st.lists(row, min_size=steps - 1, max_size=steps - 1))
        return ((True,) * blocks, *rest)

    return CacheSchedule(attention=table(), feed_forward=table())


@pytest.mark.property
@given(schedules())
def test_schedule_survives_json(schedule: CacheSchedule) -> None:
    assert CacheSchedule.from_json(json.loads(json.dumps(schedule.to_json()))) == schedule


def test_schedule_survives_a_file(tmp_path: Path) -> None:
    schedule = CacheSchedule.every(3, steps=7, blocks=2, parts=[Part.ATTENTION])
    schedule.save(tmp_path / "schedule.json")
    assert CacheSchedule.load(tmp_path / "schedule.json") == schedule


def test_every_computes_each_interval_th_step() -> None:
    schedule = CacheSchedule.every(3, steps=8, blocks=2)
    assert schedule.refreshes() == (0, 3, 6)
    assert [schedule.computes(step, 1, Part.FEED_FORWARD) for step in range(8)] == [
        True, False, False, True, False, False, True, False,
    ]  # fmt: skip
    assert schedule.share(Part.ATTENTION) == 3 / 8
    assert not schedule.computes_all


def test_every_can_keep_one_part_only() -> None:
    schedule = CacheSchedule.every(2, steps=4, blocks=3, parts=[Part.FEED_FORWARD])
    assert schedule.share(Part.ATTENTION) == 1
    assert schedule.share(Part.FEED_FORWARD) == 0.5
    assert schedule.refreshes() == (0, 2)


def test_none_computes_everything() -> None:
    schedule = CacheSchedule.none(steps=4, blocks=3)
    assert schedule.computes_all
    assert schedule == CacheSchedule.every(1, steps=4, blocks=3)


T, F = True, False


@pytest.mark.parametrize(
    ("attention", "feed_forward", "message"),
    [
        ((), (), "has steps and blocks, got 0 and 0"),
        (((),), ((),), "has steps and blocks, got 1 and 0"),
        (((T, T), (T, F)), ((T, T),), "begins with 2 steps of 2 blocks, feed_forward has 1 steps"),
        (((T, T), (T,)), ((T, T), (T, T)), r"attention has 2 steps of \[1, 2\] blocks"),
        (((T, T),), ((T, F),), "leaves out feed_forward of block 1"),
    ],
)
def test_bad_tables_are_refused(
    attention: tuple[tuple[bool, ...], ...],
    feed_forward: tuple[tuple[bool, ...], ...],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        CacheSchedule(attention=attention, feed_forward=feed_forward)


def test_interval_is_positive() -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0, 4, 3"):
        CacheSchedule.every(0, steps=4, blocks=3)


def test_check_names_both_lengths() -> None:
    schedule = CacheSchedule.every(2, steps=20, blocks=6)
    with pytest.raises(ConfigError, match="for 20 steps and sampling takes 50"):
        schedule.check(steps=50, blocks=6)
    with pytest.raises(ConfigError, match="for 6 blocks and the model has 28"):
        schedule.check(steps=20, blocks=28)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", DataError, "cannot read the schedule"),
        ("[]", ConfigError, "object with version 1"),
        ('{"version": 2}', ConfigError, "object with version 1"),
        (
            '{"version": 1, "attention": ["xx"], "feed_forward": ["xx"], "ff": []}',
            ConfigError,
            "nothing called 'ff'",
        ),
        (
            '{"version": 1, "attention": ["xx"]}',
            ConfigError,
            "feed_forward of a schedule is a list",
        ),
        (
            '{"version": 1, "attention": ["xy"], "feed_forward": ["xx"]}',
            ConfigError,
            "attention of a schedule is a list",
        ),
    ],
)
def test_bad_files_are_refused(
    tmp_path: Path, content: str, error: type[Exception], message: str
) -> None:
    path = tmp_path / "schedule.json"
    path.write_text(content)
    with pytest.raises(error, match=message):
        CacheSchedule.load(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the schedule"):
        CacheSchedule.load(tmp_path / "nothing.json")
