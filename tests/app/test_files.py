# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lutwise.errors import ConfigError, DataError, OutputError
from lutwise.files import locked, read_json, write_atomic


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


HOLD = """
import sys
from pathlib import Path
from lutwise.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    out = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match=r"another process is writing '.*run'"), locked(out):
            pass
        with locked(tmp_path / "other"):
            pass
        holder.kill()
    with locked(out):  # the dead process holds nothing
        pass


def test_a_lock_is_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path):
            raise ZeroDivisionError


def test_a_new_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    other = tmp_path / "runs" / "other"
    with locked(other):
        parts = [tmp_path / ".a.json.x1.part", tmp_path / "points" / ".b.x2.part"]
        foreign = other / ".c.x3.part"
        kept = [tmp_path / "a.part", tmp_path / "points" / ".hidden", foreign]
        parts[1].parent.mkdir()
        for path in (*parts, *kept):
            path.write_bytes(b"half")
        with locked(tmp_path):
            assert not any(path.exists() for path in parts)
            assert all(path.exists() for path in kept)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(OutputError, match=r"cannot write '.*file'.*of the right kind"),
        locked(tmp_path / "file"),
    ):
        pass


def first(data: list[int]) -> int:
    if data[0] < 0:
        raise ConfigError("a positive number is wanted")
    return 6 // data[0]


def test_json_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[2]")
    assert read_json(path, first, command="run") == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "JSONDecodeError"),
        (b"[1", "JSONDecodeError"),
        (b"\xff\xfe\x00", "UnicodeDecodeError"),
        (b"[" * 100_000, "RecursionError"),
        (b"[]", "IndexError"),
        (b"{}", "KeyError: 0"),
        (b"3", "TypeError"),
        (b'["x"]', "TypeError"),
        (b"[0]", "ZeroDivisionError"),
        (b"[-1]", "ConfigError: a positive number is wanted"),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else "",
)
def test_damaged_json_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_json(path, first, command="sweep")
    assert str(caught.value).startswith(f"{path} is damaged: {reason}")
    assert "the same `quantize sweep` command writes it again" in str(caught.value)


def test_missing_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*x\.json.*directory of a finished run"):
        read_json(tmp_path / "x.json", first, command="run")
