# SPDX-License-Identifier: Apache-2.0
import csv
from dataclasses import replace
from pathlib import Path

import pytest

from lutwise.cost_models import characterize
from lutwise.cost_models.characterize import candidates, rebuild
from lutwise.cost_models.requantizer_units import RequantizerKey
from lutwise.cost_models.units import UnitKey, atlas_units, diagonal_units
from lutwise.errors import MismatchError
from lutwise.hw.synthesis import Synthesizer
from lutwise.hw.verify import Verification

_COLUMNS = ["weights", "activations", "lanes", "luts", "carry8", "ffs", "depth"]
_COLUMNS += ["style", "tool", "delay_ns"]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, synthesizer: Synthesizer) -> None:
    """Leave two units and one requantizer, built by the test's own worker."""
    units = [UnitKey(weights=name, activations=name, lanes=1) for name in ("int2", "e1m1")]
    keys = [RequantizerKey(accumulator_bits=12, output="int4")]
    monkeypatch.setattr(characterize, "atlas_units", lambda: units)
    monkeypatch.setattr(characterize, "requantizer_units", lambda: keys)
    monkeypatch.setattr(characterize, "_synthesizer", lambda: synthesizer)


@pytest.mark.rtl
@pytest.mark.usefixtures("few")
def test_run_writes_verified_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synthesizer: Synthesizer
) -> None:
    written = rebuild(tmp_path, quiet=True)
    with (tmp_path / "dot_products.csv").open() as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    assert list(reader.fieldnames or []) == _COLUMNS
    assert [row["weights"] for row in rows] == ["int2", "e1m1"]
    with (tmp_path / "dot_products_proofs.csv").open() as stream:
        assert [row["exhaustive"] for row in csv.DictReader(stream)] == ["1", "1"]
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {
        "dot_products.csv",
        "dot_products_proofs.csv",
        "requantizers.csv",
    }

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished unit is kept")

    monkeypatch.setattr(synthesizer, "map", refuse)
    assert rebuild(tmp_path, quiet=True) == written
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.rtl
@pytest.mark.usefixtures("few")
def test_unit_that_fails_its_check_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = Verification(vectors=1, exhaustive=False, mismatches=1, first_mismatch="vector 0")
    monkeypatch.setattr(characterize, "verify_dot_product", lambda *_, **__: bad)
    unit = UnitKey(weights="uint2", activations="uint2", lanes=1)
    with pytest.raises(MismatchError, match=r"uint2xuint2 .* 1 mismatches, vector 0"):
        characterize.characterize_dot_product(unit)
    monkeypatch.setattr(characterize, "atlas_units", lambda: [unit])
    with pytest.raises(MismatchError, match="1 mismatches"):
        rebuild(tmp_path, only="dot_products", quiet=True)
    assert not list(tmp_path.iterdir())


def test_units_are_listed_once() -> None:
    units = list(atlas_units())
    assert len(units) == len(set(units))
    assert UnitKey(weights="e2m1", activations="ue2m2", lanes=32) in units
    assert UnitKey(weights="e2m1", activations="ue3m1", lanes=32) in units
    assert UnitKey(weights="int4", activations="uint8", lanes=8) in units
    assert UnitKey(weights="e5m2", activations="e5m2", lanes=8) not in units, "77 bits of sum"
    assert set(diagonal_units()) < set(units)


def test_few_architectures_are_worth_building() -> None:
    unit = UnitKey(weights="e2m2", activations="e2m2", lanes=8)
    found = candidates(unit)
    assert 1 <= len(found) <= 3
    sites = [sum(dot.counted_sites().values()) for dot in found]
    assert sites == sorted(sites)
    assert len(candidates(replace(unit, lanes=32))) == 1
