# SPDX-License-Identifier: Apache-2.0
"""Where long work stands, on stderr: a bar on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from lutwise.interrupts import check_interrupt
from lutwise.quant.progress import Tell
from lutwise.sweep import DONE, PointTell, silent_points

__all__ = ["Pace", "points_shown", "points_told", "steps_shown", "steps_told", "time_left"]

_WINDOW_S: Final = 30.0
"""What was done before says less about the pace: layers of an earlier run take no time."""

_LINE_S: Final = 5.0
"""Between two lines about one stage."""

Clock = Callable[[], float]
Write = Callable[[str], None]


class Pace:
    """How long a stage will go on, judged by its latest part.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._seen: list[tuple[float, float]] = []

    def left(self, share: float | None) -> float | None:
        """Return seconds until the end of a stage of which a share is done; None: not known yet.

        Args:
            share: As `lutwise.quant.progress.Tell` has it.
        """
        if share is None or (self._seen and share < self._seen[-1][1]):
            self._seen.clear()
        if share is None:
            return None
        now = self._clock()
        self._seen.append((now, share))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _WINDOW_S:
            del self._seen[0]
        start, before = self._seen[0]
        return (1 - share) * (now - start) / (share - before) if share > before else None


def time_left(seconds: float) -> str:
    """Return a duration as people say it, no more exact than an estimate is."""
    if seconds < 90:
        return f"about {max(1, round(seconds / 5)) * 5} s left"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"


class _Left(ProgressColumn):
    """Counts down between two steps."""

    def get_table_column(self) -> Column:
        """Never cut."""
        return Column(no_wrap=True, min_width=len(time_left(60.0)))

    def render(self, task: Task) -> Text:
        end: float | None = task.fields.get("end")
        return Text("" if end is None else time_left(max(0.0, end - time.monotonic())))


def _description() -> TextColumn:
    """Return the column that gives way where a line is too short."""
    column = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    return TextColumn("{task.description}", table_column=column)


def _log() -> Write:
    start = time.monotonic()

    def write(line: str) -> None:
        print(f"{time.monotonic() - start:7.1f} s  {line}", file=sys.stderr)  # noqa: T201

    return write


def _silent(step: str, share: float | None = None) -> None:
    check_interrupt()


@contextmanager
def steps_shown(quiet: bool) -> Iterator[Tell]:
    """Show the step that a run is at.

    Args:
        quiet: Show nothing.
    """
    console = Console(stderr=True)
    if quiet:
        yield _silent
    elif console.is_terminal:
        columns = (SpinnerColumn(), _description(), BarColumn(bar_width=20), _Left())
        with Progress(*columns, console=console, transient=True, expand=True) as bar:
            task, pace = bar.add_task("start", total=None), Pace()

            def tell(step: str, share: float | None = None) -> None:
                check_interrupt()
                left = pace.left(share)
                bar.update(
                    task,
                    description=step,
                    total=None if share is None else 1.0,
                    completed=share or 0.0,
                    end=None if left is None else time.monotonic() + left,
                )

            yield tell
    else:
        yield steps_told(_log())


def steps_told(write: Write, clock: Clock = time.monotonic) -> Tell:
    """Return what writes a line for each step; within a long stage every five seconds.

    Args:
        write: Takes a line.
        clock: Seconds.
    """
    pace, last, before = Pace(clock), float("-inf"), 1.0

    def tell(step: str, share: float | None = None) -> None:
        nonlocal last, before
        check_interrupt()
        left = pace.left(share)
        begins = share is None or share < before
        before = 1.0 if share is None else share
        if begins or clock() - last >= _LINE_S:
            last = clock()
            write(step if left is None else f"{step}, {time_left(left)}")

    return tell


@contextmanager
def points_shown(total: int, quiet: bool) -> Iterator[PointTell]:
    """Show how far a sweep is.

    Args:
        total: Points.
        quiet: Show nothing.
    """
    console = Console(stderr=True)
    if quiet:
        yield silent_points
    elif console.is_terminal:
        columns = (
            _description(), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(),
            _Left(),
        )  # fmt: skip
        with Progress(*columns, console=console, expand=True) as bar:
            task, pace = bar.add_task("points", total=total), Pace()

            def tell(point: str, step: str, share: float | None = None) -> None:
                left = pace.left(share)
                bar.update(
                    task,
                    description=f"{point}: {step}",
                    advance=step == DONE,
                    end=None if left is None else time.monotonic() + left,
                )

            yield tell
    else:
        yield points_told(total, _log())


def points_told(total: int, write: Write, clock: Clock = time.monotonic) -> PointTell:
    """Return what writes a line for each finished point, and for long stages every five seconds.

    Args:
        total: Points.
        write: Takes a line.
        clock: Seconds.
    """
    done, last, pace = 0, clock(), Pace(clock)

    def tell(point: str, step: str, share: float | None = None) -> None:
        nonlocal done, last
        left = pace.left(share)
        if step == DONE:
            done += 1
            write(f"{done}/{total}  {point}")
        elif left is not None and clock() - last >= _LINE_S:
            write(f"{point}: {step}, {time_left(left)}")
        else:
            return
        last = clock()

    return tell
