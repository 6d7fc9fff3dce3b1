# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all."""

import contextlib
import os
import tempfile
from pathlib import Path

from lutwise.errors import OutputError

__all__ = ["write_atomic"]


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old content or the new, never a part.

    The folder is made where it is missing.

    Args:
        path: The file.
        content: All of it.

    Raises:
        OutputError: The place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                # mkstemp makes files private; give the permissions that open() would have.
                os.fchmod(file.fileno(), 0o666 & ~_umask())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            f"cannot write {str(path)!r}: {error.strerror or error}; check that the place exists, "
            "is not a folder, can be written and has room"
        ) from error


def _umask() -> int:
    # POSIX tells the mask only by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the new name durable, not only the content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
