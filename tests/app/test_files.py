# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest

from lutwise.errors import OutputError
from lutwise.files import write_atomic


def test_content_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"

    write_atomic(path, b"one")
    write_atomic(path, b"two")

    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_permissions_are_those_of_open(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")

    write_atomic(tmp_path / "file", b"x")

    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match=r"cannot write .*file': No space left on device"):
        write_atomic(path, b"new")

    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_place_that_is_no_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(OutputError, match="cannot write"):
        write_atomic(tmp_path / "file" / "below", b"x")
