# SPDX-License-Identifier: Apache-2.0
import gzip
from pathlib import Path

import pytest

from lutwise.hw.store import Store, content_key, default_folder


def test_documents_come_back(store: Store) -> None:
    key = content_key("a", "b")
    assert store.get(key) is None
    store.put(key, {"luts": 3})
    assert store.get(key) == {"luts": 3}
    assert [path.name for path in store.path(key).parent.iterdir()] == [f"{key}.json.gz"]


def test_keys_keep_parts_apart() -> None:
    assert content_key("ab", "c") != content_key("a", "bc")


@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip", gzip.compress(b"{"), gzip.compress(b"[1]"), gzip.compress(b'{"key": 1}')],
    ids=["empty", "foreign", "cut", "list", "other key"],
)
def test_corrupt_documents_are_ignored(content: bytes, store: Store) -> None:
    key = content_key("x")
    store.put(key, {"luts": 3})
    store.path(key).write_bytes(content)
    assert store.get(key) is None
    store.put(key, {"luts": 4})
    assert store.get(key) == {"luts": 4}


def test_truncated_document_is_ignored(store: Store) -> None:
    key = content_key("x")
    store.put(key, {"luts": list(range(1000))})
    data = store.path(key).read_bytes()
    store.path(key).write_bytes(data[: len(data) // 2])
    assert store.get(key) is None


def test_unwritable_folder_keeps_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    store = Store(file)
    store.put("ab" * 32, {"luts": 3})
    assert store.get("ab" * 32) is None


def test_environment_chooses_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LUTWISE_CACHE", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("LUTWISE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "lutwise"
