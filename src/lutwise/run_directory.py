# SPDX-License-Identifier: Apache-2.0
"""What a finished run says of itself: how its model and images are loaded again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from lutwise.files import read_json
from lutwise.quant.preprocessing import Preprocessing

__all__ = ["MANIFEST", "Origin", "preprocessing_near", "read_origin", "written_preprocessing"]

MANIFEST: Final = "manifest.json"
_PREPROCESSING: Final = TypeAdapter(Preprocessing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a run came from.

    Args:
        command: Options that loaded the model and the images; empty where it was no command.
        model_sha256: Of the weights.
        preprocessing: Of the model's images, None where unknown.
        threads: Of the run.
    """

    command: Mapping[str, Any]
    model_sha256: str
    preprocessing: Preprocessing | None
    threads: int


def written_preprocessing(preprocessing: Preprocessing | None) -> Any:
    """Return preprocessing as plain values."""
    return _PREPROCESSING.dump_python(preprocessing, mode="json") if preprocessing else None


def read_origin(folder: Path) -> Origin:
    """Read the manifest of a run.

    Raises:
        DataError: It is missing or damaged.
    """
    return read_json(folder / MANIFEST, _origin, command="run")


def preprocessing_near(path: Path) -> Preprocessing | None:
    """Return the preprocessing of the run that a path is, or lies in; None for other paths."""
    folder = path if path.is_dir() else path.parent
    return read_origin(folder).preprocessing if (folder / MANIFEST).is_file() else None


def _origin(plain: Any) -> Origin:
    model = plain["inputs"]["model"]
    found = model.get("preprocessing")
    return Origin(
        command=plain.get("command", {}),
        model_sha256=model["sha256"],
        preprocessing=_PREPROCESSING.validate_python(found) if found else None,
        threads=plain["threads"],
    )
