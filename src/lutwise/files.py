# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, and folders with one writer at a time."""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from lutwise.errors import DataError, LutwiseError, OutputError

__all__ = ["locked", "read_json", "write_atomic"]

_LOCK: Final = ".lock"
_PART: Final = ".part"

_T = TypeVar("_T")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; it is made where it is missing.

    The system ends the lock with the process, however that ends; the empty file ``.lock`` stays.
    Parts of files that a killed process left are removed.

    Args:
        folder: The folder; folders in it that have a lock of their own are not part of it.

    Raises:
        OutputError: Another process holds it, or it cannot be written.
    """
    descriptor = _open_lock(folder)
    try:
        for place, below, files in os.walk(folder):
            below[:] = [name for name in below if not Path(place, name, _LOCK).exists()]
            for name in files:
                if name.startswith(".") and name.endswith(_PART):
                    Path(place, name).unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def _open_lock(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _not_writable(folder, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise OutputError(
                f"another process is writing {str(folder)!r}; wait until it ends, or give another "
                "folder"
            ) from error
        raise OutputError(f"cannot lock {str(folder)!r}: {error.strerror}") from error
    return descriptor


def read_json(path: Path, parse: Callable[[Any], _T], *, command: str) -> _T:
    """Read a JSON file of a run or sweep.

    Args:
        path: The file.
        parse: Makes the result of plain values.
        command: That writes the file: ``run`` or ``sweep``.

    Raises:
        DataError: The file is missing, no JSON, or not what ``parse`` wants.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; wanted the directory of a finished {command}"
        ) from error
    try:
        return parse(json.loads(content))
    except (
        ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError,
        LutwiseError,
    ) as error:  # fmt: skip
        raise DataError(
            f"{path} is damaged: {type(error).__name__}: {error}; the same `quantize {command}` "
            "command writes it again and keeps finished steps"
        ) from error


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
        descriptor, name = tempfile.mkstemp(_PART, prefix=f".{path.name}.", dir=path.parent)
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
        raise _not_writable(path, error) from error


def _not_writable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {str(path)!r}: {error.strerror or error}; check that the place exists, "
        "is of the right kind (file or folder), can be written and has room"
    )


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
