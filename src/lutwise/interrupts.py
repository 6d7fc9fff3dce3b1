# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C that is not lost: libraries may swallow the exception that it raises.

An interrupt inside a lazy import or a callback can vanish or turn into another error. So it is
remembered, and asked for between steps of the work.
"""

import signal
import threading
from types import FrameType
from typing import Final

__all__ = ["check_interrupt", "interrupted", "remember_interrupts"]

_SEEN: Final = threading.Event()


def remember_interrupts() -> None:
    """Note from now on that SIGINT came, and raise ``KeyboardInterrupt`` as ever.

    Where it is ignored (``nohup``), it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _note)


def _note(number: int, frame: FrameType | None) -> None:
    _SEEN.set()
    signal.default_int_handler(number, frame)


def interrupted() -> bool:
    """Return whether SIGINT came."""
    return _SEEN.is_set()


def check_interrupt() -> None:
    """Stop if SIGINT came and something swallowed it.

    Raises:
        KeyboardInterrupt: It did.
    """
    if interrupted():
        raise KeyboardInterrupt
