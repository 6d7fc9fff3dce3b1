# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import numpy as np
import pytest

from lutwise.workspace import Steps, digest, to_json


def steps(folder: Path) -> Steps:
    return Steps(folder / ".steps", folder / "events.jsonl")


def test_a_finished_step_is_not_done_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> dict[str, int]:
        calls.append(1)
        return {"answer": 42}

    for _ in range(2):
        assert steps(tmp_path).json("think", {"a": 1}, compute) == {"answer": 42}
    assert len(calls) == 1
    steps(tmp_path).json("think", {"a": 2}, compute)
    assert len(calls) == 2
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == ["think", "think"]


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    arrays = {"x": np.arange(6.0).reshape(2, 3), "flag": np.array(True)}
    steps(tmp_path).arrays("make", {}, lambda: arrays)
    kept = steps(tmp_path).arrays("make", {}, dict)
    assert np.array_equal(kept["x"], arrays["x"])
    assert bool(kept["flag"])


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", b"{"])
def test_damaged_results_count_as_missing(tmp_path: Path, damage: bytes) -> None:
    steps(tmp_path).arrays("make", {}, lambda: {"x": np.ones(100)})
    steps(tmp_path).json("say", {}, lambda: [1])
    for path in (tmp_path / ".steps").iterdir():
        path.write_bytes(damage)
    again = steps(tmp_path)
    assert again.arrays("make", {}, lambda: {"x": np.zeros(1)})["x"].tolist() == [0.0]
    assert again.json("say", {}, lambda: [2]) == [2]


def test_a_cut_result_counts_as_missing(tmp_path: Path) -> None:
    steps(tmp_path).arrays("make", {}, lambda: {"x": np.random.default_rng(0).random(5000)})
    (path,) = (tmp_path / ".steps").iterdir()
    path.write_bytes(path.read_bytes()[:20000])
    assert steps(tmp_path).arrays("make", {}, lambda: {"x": np.zeros(1)})["x"].size == 1


def test_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"x": float("nan")})
