# SPDX-License-Identifier: Apache-2.0
"""Worker processes that stop soon after the process that started them stops or dies.

This module imports no torch, so that a worker can be told to stop before that import is done.
"""

import _thread
import atexit
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Final

__all__ = ["busy", "interrupts_held", "worker_pool"]

_GRACE_S: Final = 1.0
"""How long a worker may take to end by itself."""

_BUSY: Final = threading.Event()
_STOPPING: Final = threading.Event()


@contextmanager
def worker_pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """Return a pool of processes; leaving the block early stops what they do.

    Args:
        count: Processes, at most. They start when work is submitted, which belongs in
            `interrupts_held`.
    """
    context = get_context("spawn")
    lifeline, end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=(lifeline,))
    try:
        yield pool
        pool.shutdown()
    finally:
        end.close()
        pool.shutdown(cancel_futures=True)
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
    """Mark work in a worker that is to be interrupted, and then cleans up, when it has to stop.

    Raises:
        KeyboardInterrupt: It has to stop.
    """
    _BUSY.set()
    try:
        if _STOPPING.is_set():
            raise KeyboardInterrupt
        yield
    finally:
        _BUSY.clear()


def _start(lifeline: Connection) -> None:
    # A pool that lost one process ends the others with SIGTERM, in the middle of a file maybe.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Registered first, so run last: Python needs a second to take torch down, for nothing.
    atexit.register(os._exit, 0)
    threading.Thread(target=_stop_with, args=(lifeline,), daemon=True).start()


def _stop_with(lifeline: Connection) -> None:
    try:
        lifeline.recv()
    except EOFError:
        _STOPPING.set()
        if _BUSY.is_set():
            _thread.interrupt_main()
        time.sleep(_GRACE_S)
        os._exit(1)
