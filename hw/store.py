# SPDX-License-Identifier: Apache-2.0
"""Results kept by content: a folder of compressed JSON files that may vanish at any time."""

import contextlib
import gzip
import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

from lutwise.errors import OutputError
from lutwise.files import write_atomic

__all__ = ["Store", "content_key", "default_folder"]


def default_folder() -> Path:
    """Return ``$LUTWISE_CACHE``, or ``lutwise`` in the user's cache folder."""
    if chosen := os.environ.get("LUTWISE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lutwise"


def content_key(*parts: str) -> str:
    """Return one name for a list of texts (SHA-256 of all of them)."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


class Store:
    """A folder of JSON documents, each under the key of what it was made from.

    A document that cannot be read is as good as absent, and a folder that cannot be written
    keeps nothing: a store changes how long things take, never what comes out.

    Args:
        folder: Where to keep documents; ``None`` means ``default_folder()``.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    def path(self, key: str) -> Path:
        """Return the file of a key."""
        return self.folder / key[:2] / f"{key}.json.gz"

    def get(self, key: str) -> dict[str, Any] | None:
        """Return a kept document, or ``None``."""
        try:
            with gzip.open(self.path(key), "rt", encoding="utf-8") as stream:
                document = json.load(stream)
        except (OSError, EOFError, ValueError, zlib.error):
            return None
        if not isinstance(document, dict) or document.get("key") != key:
            return None
        kept = document.get("document")
        return kept if isinstance(kept, dict) else None

    def put(self, key: str, document: dict[str, Any]) -> None:
        """Keep a document: written beside its place, then moved there in one step."""
        text = json.dumps({"key": key, "document": document}, separators=(",", ":"))
        with contextlib.suppress(OutputError):  # without a place to keep it, it is made again
            write_atomic(self.path(key), gzip.compress(text.encode(), 3))
