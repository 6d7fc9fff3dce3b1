# SPDX-License-Identifier: Apache-2.0
"""Workers stop with the process that started them, after cleaning up where they can."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lutwise.workers import worker_pool
from tests.app.processes import group_lives, seconds_until_gone

SCRIPT = """
import sys, time
from concurrent.futures import wait
from pathlib import Path
from lutwise.workers import busy, interrupts_held, worker_pool

def work(folder, nap):
    with busy():
        (folder / "started").touch()
        try:
            while True:
                time.sleep(nap)
        finally:
            (folder / "cleaned").touch()

if __name__ == "__main__":
    with worker_pool(1) as pool:
        with interrupts_held():
            future = pool.submit(work, Path(sys.argv[1]), float(sys.argv[2]))
        wait([future])
"""


@contextmanager
def started(folder: Path, nap: float) -> Iterator[subprocess.Popen[bytes]]:
    """Run a script whose one worker has begun to work; both are in a group of their own."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script, folder, str(nap)],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (folder / "started").exists():
            assert process.poll() is None, "ended before its worker began"
            time.sleep(0.01)
        yield process
    finally:
        if group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("to_all", [True, False], ids=["terminal", "parent"])
def test_an_interrupt_ends_the_workers(tmp_path: Path, to_all: bool) -> None:
    with started(tmp_path, nap=0.01) as process:
        (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)
        assert seconds_until_gone(process) < 3
    assert (tmp_path / "cleaned").exists()


def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    with started(tmp_path, nap=0.01) as process:
        process.kill()
        assert seconds_until_gone(process) < 3
    assert (tmp_path / "cleaned").exists()


def test_a_worker_that_does_not_react_is_ended(tmp_path: Path) -> None:
    with started(tmp_path, nap=60) as process:
        os.kill(process.pid, signal.SIGINT)
        assert seconds_until_gone(process) < 4
    assert not (tmp_path / "cleaned").exists()


def test_workers_give_results() -> None:
    with worker_pool(2) as pool:
        assert list(pool.map(abs, [-1, 2, -3])) == [1, 2, 3]
