# SPDX-License-Identifier: Apache-2.0
"""How a process uses the machine: threads and memory."""

import ctypes
from typing import Final

import torch

__all__ = ["reuse_memory", "use_threads"]

_TRIM_THRESHOLD: Final = -1
_MMAP_MAX: Final = -4
_ARENA_MAX: Final = -8
"""Numbers of settings in glibc's ``malloc.h``."""


def use_threads(threads: int) -> None:
    """Let torch work with so many threads, and reuse memory, in this process."""
    torch.set_num_threads(threads)
    reuse_memory()


def reuse_memory() -> bool:
    """Keep memory that is freed for what comes next.

    glibc gives every large block back to the system, which clears its pages again for the next
    one: on images of 224x224 a third of the time goes there. The process holds what its largest
    moment took until it ends.

    Returns:
        Whether it worked; a C library other than glibc stays as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # No blocks outside the heap, one heap for the threads of autograd too, and it never shrinks.
    settings = ((_MMAP_MAX, 0), (_ARENA_MAX, 1), (_TRIM_THRESHOLD, -1))
    return all(bool(mallopt(*setting)) for setting in settings)
