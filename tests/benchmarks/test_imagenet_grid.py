# SPDX-License-Identifier: Apache-2.0
import io
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

pytest.importorskip("tqdm", reason="brevitas_examples needs it")

from benchmarks.grid_plot import grid_png
from benchmarks.grid_rows import bootstrap, packed, unpacked
from benchmarks.imagenet_grid import Point, collected, row_file, unpack
from benchmarks.write_results import grid_section
from lutwise.files import write_atomic
from lutwise.quant.evaluate import accuracy
from lutwise.workspace import to_json

IMAGES = 750


def row(tool: str, share: float, fmt: str = "int4", net: str = "squeezenet1_1") -> dict[str, Any]:
    right = np.random.default_rng(len(tool)).random(IMAGES) < share
    found = accuracy(np.stack([~right, right], 1).astype(np.float32), np.ones(IMAGES, np.int64))
    entry = {name: getattr(found, name) for name in ("value", "low", "high", "correct", "images")}
    return {
        "net": net,
        "tool": tool,
        "weights": fmt,
        "activations": fmt,
        "images": IMAGES,
        "calibration_images": 250,
        "seconds": 60.0,
        "accuracy": entry,
        "float_accuracy": entry,
        "against_float": {"agreement": 0.5, "sqnr_db": 12.0},
        "right": packed(right),
    }


def test_right_answers_survive_packing() -> None:
    right = np.random.default_rng(0).random(IMAGES) < 0.5
    assert np.array_equal(unpacked({"right": packed(right), "images": IMAGES}), right)


def test_the_bootstrap_finds_the_interval_of_a_known_difference() -> None:
    first, second = np.zeros(1000, bool), np.zeros(1000, bool)
    first[:300], second[:200] = True, True
    low, high = bootstrap(first, second)
    deviation = np.sqrt(0.1 * 0.9 / 1000)  # 100 of 1000 images differ, all one way
    assert low == pytest.approx(0.1 - 1.96 * deviation, abs=1.5e-3)
    assert high == pytest.approx(0.1 + 1.96 * deviation, abs=1.5e-3)
    assert bootstrap(first, first) == (0, 0)


def test_ours_is_compared_with_the_best_of_theirs(tmp_path: Path) -> None:
    measured = [
        row("best", 0.5),
        row("brevitas_plain", 0.3),
        row("brevitas_qronos", 0.4),
        row("balanced", 0.45, "e2m1"),
    ]
    for entry in measured:
        point = Point(**{k: entry[k] for k in ("net", "tool", "weights", "activations")})
        write_atomic(row_file(tmp_path, point), to_json(entry))
    rows = {(r["tool"], r["weights"]): r for r in collected(tmp_path)}
    assert len(rows) == 4
    against = rows["best", "int4"]["against_brevitas"]
    assert against["tool"] == "brevitas_qronos"
    assert against["low"] < against["difference"] < against["high"]
    assert "against_brevitas" not in rows["balanced", "e2m1"]

    record, again = tmp_path / "grid" / "record.json", tmp_path / "again"
    record.parent.mkdir()
    again.mkdir()
    write_atomic(record, to_json({"rows": list(rows.values())}))
    unpack(record, again)
    assert collected(again) == list(rows.values())

    page = grid_section({"rows": list(rows.values())})
    (line,) = (line for line in page.splitlines() if "`int4`" in line)
    assert "· 12.0 (q)" in line
    assert f"{100 * against['difference']:+.2f}" in line
    picture = matplotlib.image.imread(io.BytesIO(grid_png(list(rows.values()))))
    assert picture.shape[1] > 800
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 20
