# SPDX-License-Identifier: Apache-2.0
"""Worker processes that stop soon after the process that started them stops or dies.

This module imports no torch, so that a worker can be told to stop before that import is done.
"""

import _thread
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Final

__all__ = ["busy", "interrupts_held", "worker_pool"]

_GRACE_S: Final = 1.0
"""How long a worker may take to leave what it is busy with."""

_IDLE: Final = threading.Event()
_IDLE.set()


@contextmanager
def worker_pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """Return a pool of processes; leaving the block early stops what they do.

    Args:
        count: Processes, at most. They start when work is submitted, which belongs in
            `interrupts_held`.
    """
    context = get_context("spawn")
    lifeline, end = context.Pipe(duplex=False)
    with ProcessPoolExecutor(
        count, mp_context=context, initializer=_start, initargs=(lifeline,)
    ) as pool:
        try:
            yield pool
            pool.shutdown()
        finally:
            end.close()
            lifeline.close()


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Put off SIGINT; processes started meanwhile never get it.

    A terminal sends Ctrl-C to all processes; the one that started the others decides.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def busy() -> Iterator[None]:
    """Mark work of a worker that must be interrupted, and then cleans up, before it may stop."""
    _IDLE.clear()
    try:
        yield
    finally:
        _IDLE.set()


def _start(lifeline: Connection) -> None:
    # A pool that lost one process ends the others with SIGTERM, in the middle of a file maybe.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_stop_with, args=(lifeline,), daemon=True).start()


def _stop_with(lifeline: Connection) -> None:
    try:
        lifeline.recv()
    except EOFError:
        if not _IDLE.is_set():
            _thread.interrupt_main()
            _IDLE.wait(_GRACE_S)
        os._exit(1)
