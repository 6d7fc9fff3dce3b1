# SPDX-License-Identifier: Apache-2.0
"""A place for many tensors: memory up to a bound, files beyond."""

import os
import tempfile
import weakref
from typing import Any, Final

import torch

from lutwise.errors import OutputError

__all__ = ["SMALL", "Shelf"]

SMALL: Final = 1 << 16
"""Bytes below which a tensor is not worth a file."""


class Shelf:
    """Holds tensors; those that do not fit into the bound live in mapped files.

    A tensor counts as long as someone refers to it. The files have no name any more by the time
    they are used, so nothing is left behind, whatever happens to the process.

    Args:
        limit: Bytes in memory; None for no limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self.held = 0
        """Bytes in memory now."""
        self.largest = 0
        """Most bytes that were in memory at a time."""
        self.filed = 0
        """Bytes that were put into files so far."""

    def place(self, value: Any) -> Any:
        """Return a tensor that the shelf accounts for; anything else as it is.

        Raises:
            OutputError: The disk is full.
        """
        if not isinstance(value, torch.Tensor):
            return value
        size = value.numel() * value.element_size()
        if self._limit is not None and size > SMALL and self.held + size > self._limit:
            self.filed += size
            return _mapped(value, size)
        self.held += size
        self.largest = max(self.largest, self.held)
        weakref.finalize(value, self._leave, size)
        return value

    def _leave(self, size: int) -> None:
        self.held -= size


def _mapped(value: torch.Tensor, size: int) -> torch.Tensor:
    descriptor, path = tempfile.mkstemp(prefix="lutwise-", suffix=".activations")
    try:
        # Reserved first: a mapped file that meets a full disk kills the process without a word.
        os.posix_fallocate(descriptor, 0, size)
        flat = torch.from_file(path, shared=True, size=value.numel(), dtype=value.dtype)
    except OSError as error:
        raise OutputError(
            f"activations take another {size} bytes in {os.path.dirname(path)}, which failed: "
            f"{error.strerror}; free some space, set TMPDIR, or use fewer calibration images"
        ) from error
    finally:
        os.close(descriptor)
        os.unlink(path)
    flat.copy_(value.reshape(-1))
    return flat.reshape(value.shape)
