# SPDX-License-Identifier: Apache-2.0
"""Processes that were started with ``start_new_session=True``, and all that they started."""

import os
import subprocess
import time
from typing import Any


def group_lives(group: int) -> bool:
    """Return whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def seconds_until_gone(process: subprocess.Popen[Any]) -> float:
    """Wait, ten seconds at most, until a process and all that it started have ended."""
    start = time.monotonic()
    process.wait(10)
    while group_lives(process.pid) and time.monotonic() < start + 10:
        time.sleep(0.01)
    return time.monotonic() - start
