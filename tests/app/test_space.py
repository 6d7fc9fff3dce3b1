# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from lutwise.errors import ConfigError
from lutwise.quant.recipe import GraphMode
from lutwise.space import BUILT_IN, load_space


def space(tmp_path: Path, text: str) -> str:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return str(path)


def test_built_in_spaces_have_both_families() -> None:
    for name in BUILT_IN:
        points = load_space(name)
        assert len(points) >= 12
        assert {p.recipe.weights.format[0] for p in points} == {"i", "e"}


def test_diagonal_has_every_split_of_three_to_eight_bits() -> None:
    names = {p.recipe.weights.format for p in load_space("diagonal")}
    expected = {f"int{b}" for b in range(3, 9)}
    expected |= {f"e{e}m{b - 1 - e}" for b in range(3, 9) for e in range(1, b)}
    assert names == expected
    assert {p.recipe.activations.format for p in load_space("diagonal")} >= {"uint3", "ue7m1"}


def test_points_inherit_the_shared_recipe(tmp_path: Path) -> None:
    text = """
recipe: {mode: layerwise, weights: {range: max}}
points:
  - {name: a, weights: int4, activations: uint8}
  - {weights: {format: e2m1, range: mse}}
weights: [int2, int3]
activations: [uint4]
"""
    points = load_space(space(tmp_path, text), {"seed": 7})
    assert [p.name for p in points] == ["a", "e2m1-uint8", "int2-uint4", "int3-uint4"]
    assert {p.recipe.mode for p in points} == {GraphMode.LAYERWISE}
    assert [p.recipe.weights.range for p in points] == ["max", "mse", "max", "max"]
    assert {p.recipe.seed for p in points} == {7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pionts: []", "pionts: Extra inputs"),
        ("points: []", "no points"),
        ("points: [{weights: int9}]", "no format 'int9'"),
        ("points: [{weights: int4, name: ../x}]", "a folder's name"),
        ("points: [{weights: int4}, {weights: int4}]", "several points are named int4-uint8"),
        ("points: [{weight: int4}]", "unknown key"),
        ("a: [", "is no YAML"),
        ("diagonal: 3", "diagonal"),
    ],
)
def test_invalid_spaces_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_space(space(tmp_path, text))
    assert message in str(caught.value)


def test_missing_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="built in are demo, diagonal"):
        load_space("nowhere.yaml")
