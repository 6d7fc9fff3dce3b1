# SPDX-License-Identifier: Apache-2.0
import csv
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutwise.errors import ConfigError
from lutwise.export.layer_row import LayerRow
from lutwise.export.points import (
    Estimate,
    Family,
    Point,
    RunSummary,
    SweepResult,
    fronts,
    pareto,
    write_csv,
)
from tests.export.samples import point, run, sweep

PAIRS = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), max_size=12)
"""Costs and accuracies from so small a range that ties are common."""


def cost(p: Point) -> float:
    return p.luts_folded


def cloud(pairs: list[tuple[int, int]]) -> list[Point]:
    return [point("int4", accuracy / 10, luts_folded=float(luts)) for luts, accuracy in pairs]


def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@pytest.mark.property
@given(PAIRS)
def test_pareto_keeps_exactly_the_unbeaten_points(pairs: list[tuple[int, int]]) -> None:
    wanted = {i for i, p in enumerate(pairs) if not any(beats(q, p) for q in pairs)}
    found = pareto(cloud(pairs), cost)
    assert set(found) == wanted
    assert len(found) == len(wanted)


@pytest.mark.property
@given(PAIRS)
def test_pareto_is_sorted_by_cost_and_accuracy(pairs: list[tuple[int, int]]) -> None:
    front = [pairs[i] for i in pareto(cloud(pairs), cost)]
    assert front == sorted(front)
    assert [accuracy for _, accuracy in front] == sorted(accuracy for _, accuracy in front)


@pytest.mark.property
@given(PAIRS, st.randoms())
def test_pareto_does_not_depend_on_order(pairs: list[tuple[int, int]], random: Any) -> None:
    front = [pairs[i] for i in pareto(cloud(pairs), cost)]
    random.shuffle(pairs)
    assert [pairs[i] for i in pareto(cloud(pairs), cost)] == front


@pytest.mark.parametrize(
    ("pairs", "front"),
    [
        pytest.param([], (), id="none"),
        pytest.param([(3, 3)], (0,), id="one"),
        pytest.param([(3, 3), (3, 3)], (0, 1), id="equal-points-both-stay"),
        pytest.param([(3, 2), (3, 3)], (1,), id="same-cost"),
        pytest.param([(4, 3), (3, 3)], (1,), id="same-accuracy"),
        pytest.param([(9, 5), (1, 1), (5, 1), (2, 4)], (1, 3, 0), id="cheapest-first"),
    ],
)
def test_pareto_front(pairs: list[tuple[int, int]], front: tuple[int, ...]) -> None:
    assert pareto(cloud(pairs), cost) == front


def test_pareto_takes_another_measure_of_accuracy() -> None:
    points = [point("int4", 0.9, agreement=0.5), point("int4", 0.8, agreement=0.6)]
    assert pareto(points, cost, lambda p: p.agreement) == (1,)


def test_sweep_survives_json() -> None:
    result = sweep(assumptions={"luts": "estimated"}, calibration="train, 256 images")
    assert SweepResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_run_survives_json() -> None:
    for summary in (run(), run(exact_accuracy=None, layers=(LayerRow(layer="x"),), checks=())):
        assert RunSummary.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"unknown": 1}, "unknown", id="unknown-key"),
        pytest.param({"images": "2000"}, "images.*valid integer", id="wrong-type"),
        pytest.param({"images": 0}, "images must be a finite number >= 1", id="no-images"),
        pytest.param({"points": [{}]}, "points.0.name: Field required", id="missing-key"),
        pytest.param({"seed": {1}}, "plain values", id="no-json"),
        pytest.param({"seed": None}, "seed", id="none"),
    ],
)
def test_from_dict_refuses(change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SweepResult.from_dict({**sweep().to_dict(), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"name": ""}, "needs a name", id="name"),
        pytest.param({"agreement": 1.5}, "agreement must be 0..1, got 1.5", id="agreement"),
        pytest.param({"luts_folded": float("nan")}, "luts_folded must be", id="nan"),
        pytest.param({"bops": -1.0}, "bops must be", id="negative"),
        pytest.param({"accuracy": Estimate(value=0.5, low=-0.1, high=0.6)}, "accuracy", id="low"),
        pytest.param({"accuracy": Estimate(value=0.5, low=0.1, high=1.6)}, "accuracy", id="high"),
    ],
)
def test_point_refuses(change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        point(**change)


@pytest.mark.parametrize(
    ("value", "low", "high"), [(0.5, 0.6, 0.7), (0.5, 0.4, 0.45), (float("nan"), 0.1, 0.9)]
)
def test_estimate_refuses(value: float, low: float, high: float) -> None:
    with pytest.raises(ConfigError, match="low <= value <= high"):
        Estimate(value=value, low=low, high=high)


def test_run_refuses_an_accuracy_over_one() -> None:
    with pytest.raises(ConfigError, match="exact_accuracy"):
        run(exact_accuracy=Estimate(value=1.5, low=1.5, high=1.5))


def test_sweep_refuses_a_name_twice() -> None:
    with pytest.raises(ConfigError, match="int4-uint4"):
        sweep((point("int4"), point("int4")))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_all_of_every_point(tmp_path: Path) -> None:
    result = sweep()
    write_csv(result, tmp_path / "pareto.csv")
    rows = read(tmp_path / "pareto.csv")
    assert [row["name"] for row in rows] == [p.name for p in result.points]
    for row, p in zip(rows, result.points, strict=True):
        assert row["family"] == p.family.value
        assert float(row["accuracy"]) == p.accuracy.value
        assert (float(row["accuracy_low"]), float(row["accuracy_high"])) == (
            p.accuracy.low,
            p.accuracy.high,
        )
        for name in ("weight_bits", "bits_per_mac", "luts_folded", "bops", "cost_error"):
            assert float(row[name]) == getattr(p, name)


def test_csv_marks_the_fronts(tmp_path: Path) -> None:
    result = sweep()
    write_csv(result, tmp_path / "pareto.csv")
    rows = read(tmp_path / "pareto.csv")
    for name, front in fronts(result.points).items():
        marked = {i for i, row in enumerate(rows) if row[f"pareto_{name}"] == "true"}
        assert marked == front
        assert front
        assert {row[f"pareto_{name}"] for row in rows} == {"true", "false"}


def test_csv_is_the_same_for_the_same_input(tmp_path: Path) -> None:
    result = sweep((point(sqnr_db=None, luts_per_mac=1 / 3, bops=1.5e9),))
    copy = SweepResult.from_dict(json.loads(json.dumps(result.to_dict())))
    write_csv(result, tmp_path / "a.csv")
    write_csv(copy, tmp_path / "b.csv")
    content = (tmp_path / "a.csv").read_bytes()
    assert content == (tmp_path / "b.csv").read_bytes()
    row = dict(zip(*(line.split(",") for line in content.decode().splitlines()), strict=True))
    assert (row["sqnr_db"], row["luts_per_mac"], row["bops"]) == (
        "", "0.3333333333333333", "1500000000",
    )  # fmt: skip


def test_csv_quotes_names(tmp_path: Path) -> None:
    name = 'a,"b"\nc'
    write_csv(sweep((point("int4"), point("int5"))), tmp_path / "x.csv")
    odd = sweep((Point.from_dict({**point().to_dict(), "name": name}),))
    write_csv(odd, tmp_path / "pareto.csv")
    assert read(tmp_path / "pareto.csv")[0]["name"] == name


def test_csv_of_no_points_is_the_header(tmp_path: Path) -> None:
    write_csv(sweep(()), tmp_path / "pareto.csv")
    assert (tmp_path / "pareto.csv").read_text().count("\n") == 1


def test_families_have_names_of_their_own() -> None:
    assert {Family(text) for text in ("integer", "minifloat", "mixed")} == set(Family)


def test_plots_and_reports_load_no_torch() -> None:
    code = (
        "import sys, lutwise.export.points, lutwise.export.plots, lutwise.export.report; "
        "sys.exit(bool({'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
