# SPDX-License-Identifier: Apache-2.0
"""Where results are kept: run directories, and finished steps under a hash of their inputs."""

import hashlib
import io
import json
import os
import platform
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lutwise.errors import OutputError
from lutwise.files import write_atomic

__all__ = ["Steps", "code_digest", "digest", "sha256_of", "to_json", "tool_versions"]

Arrays = dict[str, npt.NDArray[Any]]


def to_json(data: Any) -> bytes:
    """Return JSON as it is written everywhere: indented, in the given order, ending in newline."""
    return (json.dumps(data, indent=2, allow_nan=False) + "\n").encode()


def digest(data: Any) -> str:
    """Return a hash of plain values, the same whatever the order of keys."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def code_digest(*packages: str, without: frozenset[str] = frozenset()) -> str:
    """Return a hash of the package's own sources that decide results.

    Args:
        packages: Folders of the sources; those that decide quantized networks if there are none.
        without: Names of files that decide no results.
    """
    total = hashlib.sha256()
    for package in packages or ("quant", "export"):
        folder = Path(__file__).parent / package
        for path in sorted(folder.rglob("*.py")):
            if path.name in without:
                continue
            total.update(str(path.relative_to(folder)).encode())
            total.update(path.read_bytes())
    return total.hexdigest()


def tool_versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    found = {"python": platform.python_version()}
    for package in (
        "lutwise", "brevitas", "numpy", "onnx", "onnxruntime", "qonnx", "torch",
    ):  # fmt: skip
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


class Steps:
    """Finished steps, each under its name and a hash of all that its result depends on.

    A killed run starts again and finds what it had finished. Damaged files count as missing.

    Args:
        root: Folder of the kept results.
        events: File that gets a line per finished step.
    """

    def __init__(self, root: Path, events: Path) -> None:
        self._root = root
        self._events = events

    def json(self, step: str, key: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """Return the kept result of a step, or compute and keep it; plain values."""
        path = self._path(step, key, "json")
        try:
            return json.loads(path.read_bytes())
        except (OSError, ValueError):
            pass
        start = time.monotonic()
        result = compute()
        write_atomic(path, to_json(result))
        self._finished(step, path, start)
        return result

    def arrays(self, step: str, key: Mapping[str, Any], compute: Callable[[], Arrays]) -> Arrays:
        """Return the kept result of a step, or compute and keep it; arrays by name."""
        path = self._path(step, key, "npz")
        try:
            # From memory: numpy leaves the file open when its content is damaged.
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
                return dict(kept)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
            pass
        start = time.monotonic()
        result = compute()
        buffer = io.BytesIO()
        np.savez(buffer, **result)  # type: ignore[arg-type]
        write_atomic(path, buffer.getvalue())
        self._finished(step, path, start)
        return result

    def forget(self, step: str, key: Mapping[str, Any]) -> None:
        """Drop the kept arrays of a step whose result is part of a later one's."""
        self._path(step, key, "npz").unlink(missing_ok=True)

    def _path(self, step: str, key: Mapping[str, Any], suffix: str) -> Path:
        return self._root / f"{step}-{digest(key)[:20]}.{suffix}"

    def _finished(self, step: str, path: Path, start: float) -> None:
        line = {
            "step": step,
            "result": path.name,
            "seconds": round(time.monotonic() - start, 3),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        try:
            descriptor = os.open(self._events, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            with os.fdopen(descriptor, "a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self._events}: {error.strerror}") from error
