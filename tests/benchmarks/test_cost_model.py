# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from benchmarks import cost_model
from benchmarks.cost_model import groups, models, summary
from lutwise.cost_models.units import UnitKey


def test_summary_is_of_sizes_and_keeps_the_bias() -> None:
    found = summary([-0.2, 0.1, 0.0, 0.1])
    assert found == {
        "units": 4, "bias": 0.0, "mean": 0.1, "median": 0.1, "p90": 0.17, "worst": 0.2
    }  # fmt: skip


def test_groups_keep_apart_what_the_formula_is_fitted_on() -> None:
    def unit(weights: str, activations: str, lanes: int) -> UnitKey:
        return UnitKey(weights=weights, activations=activations, lanes=lanes)

    fitted = [unit("int4", "int4", 8), unit("e2m1", "ue2m2", 1), unit("int8", "uint8", 8)]
    odd, many, mixed = unit("e2m2", "e2m2", 8), unit("int4", "uint4", 32), unit("int4", "e2m1", 8)
    found = groups([*fitted, odd, many, mixed])
    assert found["fitted"] == fitted
    assert found["held out"] == [odd, many, mixed]
    assert found["held out, one format"] == [odd, many]
    assert found["held out, two formats"] == [mixed]
    assert found["held out, integers"] == [many]
    assert found["held out, 32 lanes"] == [many]
    assert "held out, 1 lanes" not in found


def test_models_know_where_they_end() -> None:
    integers = UnitKey(weights="int4", activations="uint4", lanes=8)
    mixed = UnitKey(weights="int4", activations="e2m1", lanes=8)
    prices = {name: (price(integers), price(mixed)) for name, price in models().items()}
    assert prices["FINN"][1] is None
    assert prices["formula, accumulators of the paper"][1] is None
    with_constant, without = prices["FINN"][0], prices["FINN without its constant"][0]
    assert with_constant is not None
    assert with_constant - 300 == without
    for name in ("formula", "counted sites"):
        assert None not in prices[name]


def test_record_of_a_few_units(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "record.json"
    cost_model.main(["--every", "97", "--json", str(path)])
    record = json.loads(path.read_text())
    (row,) = (r for r in record["rows"] if (r["model"], r["on"]) == ("formula", "held out"))
    assert row["units"] > 20
    assert row["median"] < row["p90"] < row["worst"]
    assert record["worst"][0]["error"] in {row["worst"], -row["worst"]}
    assert "held out" in capsys.readouterr().out


def test_bad_arguments_exit_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cost_model.main(["--every", "0"])
    assert caught.value.code == 2
    assert "positive number" in capsys.readouterr().err
