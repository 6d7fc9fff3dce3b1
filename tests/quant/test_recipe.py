# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import pytest
import yaml

from lutwise.errors import ConfigError
from lutwise.quant.algorithms import list_algorithms, resolve
from lutwise.quant.algorithms.registry import Stage, register
from lutwise.quant.recipe import GraphMode, Recipe, build_recipe, load_recipe


def test_written_recipe_reads_back(tmp_path: Path) -> None:
    recipe = load_recipe(
        None, {"weights.format": "e2m1", "mode": "layerwise", "algorithms": ["equalize"]}
    )
    path = tmp_path / "r.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe
    assert recipe.mode is GraphMode.LAYERWISE
    assert yaml.safe_load(recipe.to_yaml())["algorithms"]["equalize"]["iterations"] == 20


def test_later_settings_win(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("weights: int3\nactivations: {format: uint3, range: max}\n")
    recipe = load_recipe(path, {"weights.range": "percentile", "activations.format": "ue2m1"})
    assert recipe.weights.format == "int3"
    assert recipe.weights.range == "percentile"
    assert recipe.activations.range == "max"
    assert recipe.activations.format == "ue2m1"
    merged = build_recipe({"weights": {"range": "max"}}, {"weights": "e3m0"}, changes={}, where="")
    assert (merged.weights.format, merged.weights.range) == ("e3m0", "max")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weigths: int4", "weigths: unknown key; known are weights, activations"),
        ("weights: {formt: int4}", "weights.formt: unknown key"),
        ("weights: e0m3", "no format 'e0m3'"),
        ("activations: mxfp4", "shares scales"),
        ("activations: ue8m0", "no float32 tensor holds"),
        ("mode: flow", "mode: Input should be 'dataflow' or 'layerwise'"),
        ("algorithms: [gptqq]", "no algorithm 'gptqq'; known are"),
        ("algorithms: {equalize: {iters: 3}}", "has no setting 'iters'"),
        ("algorithms: {equalize: {iterations: many}}", "equalize.iterations is int, got 'many'"),
        ("algorithms: {gptq: {damping: .inf}}", "gptq.damping is a finite float, got inf"),
        ("algorithms: {gptq: {damping: much}}", "gptq.damping is a finite float, got 'much'"),
        ("algorithms: {gptq: {damping: 1" + 320 * "0" + "}}", "gptq.damping is a finite float"),
        ("algorithms: {norm_reestimation: {largest_gain: .inf}}", "is a finite float"),
        ("algorithms: [gptq, gptq]", "a list of names, each once"),
        ("calibration: {memory_gib: .inf}", "calibration.memory_gib"),
        ("calibration: {batch: 100000000000000000000000}", "calibration.batch"),
        ("overrides: [{layers: stem}]", "gives a format for `weights`, `activations`, or both"),
        (
            "{weights: {scale: power_of_two}, algorithms: [norm_reestimation]}",
            "norm_reestimation multiplies the scales",
        ),
        ("algorithms: 3", "algorithms: wanted a name, a list of names"),
        ("algorithms: [equalize, {bias_correction: {}}]", "algorithms: wanted a name, a list"),
        ("algorithms: {equalize: 3}", "a mapping of names to their settings"),
        ("algorithms:", "[] for none"),
        ("calibration: {images: 0}", "calibration.images"),
        ("algorithms: {gptq: {block: 0}}", "at least one column"),
        ("algorithms: {equalize: {iterations: 0}}", "at least one iteration"),
        ("[1, 2]", "a recipe is a mapping, got list"),
        ("[]", "a recipe is a mapping, got list"),
        ("1: 2", "1: unknown key"),
        ("seed: -1", "seed: Input should be greater than or equal to 0"),
        ("seed: 99999999999999999999", "seed: Input should be less than"),
        ("a: [", "is no YAML"),
        ("weights: {percentile: 101}", "weights.percentile"),
    ],
)
def test_invalid_recipes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_numbers_that_yaml_takes_for_words_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("algorithms: {gptq: {damping: 1e-3}}")
    assert load_recipe(path).algorithms["gptq"]["damping"] == 1e-3


def test_ocp_formats_keep_their_sign() -> None:
    recipe = load_recipe(None, {"activations.format": "fp8_e4m3"})
    assert recipe.activation_format(("layer",), nonnegative=True).name == "fp8_e4m3"
    assert recipe.activation_format(("layer",), nonnegative=False).name == "fp8_e4m3"


def test_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "given", ["equalize", ["equalize"], {"equalize": {}}, {"equalize": None}], ids=str
)
def test_one_algorithm_may_stand_alone(given: object) -> None:
    recipe = build_recipe({"algorithms": given}, changes={}, where="test")
    assert list(recipe.algorithms) == ["equalize"]


def test_algorithms_run_in_the_order_of_the_registry() -> None:
    names = [a.name for a in list_algorithms()]
    assert list(resolve({"bias_correction": {}, "equalize": {}})) == ["equalize", "bias_correction"]
    assert sorted(names, key=names.index) == names
    assert all(a.summary for a in list_algorithms())


def test_a_name_cannot_be_registered_twice() -> None:
    with pytest.raises(ConfigError, match="registered already"):
        register("equalize", Stage.PREPARE, Recipe)(lambda: None)


@pytest.mark.parametrize(
    ("given", "algorithms"),
    [
        ({"preset": "fast"}, {"bias_correction": {}}),
        ({}, {"qronos": {"centered": True}, "bias_correction": {}}),
        ({"algorithms": "gptq"}, {"gptq": {}}),
        ({"algorithms": {"gptq": {"sweeps": 1}}}, {"gptq": {"sweeps": 1}}),
    ],
)
def test_a_dotted_key_reaches_one_setting_of_one_algorithm(
    given: dict[str, Any], algorithms: dict[str, dict[str, Any]]
) -> None:
    changes: dict[str, Any] = {"algorithms.equalize.iterations": 7}
    found = build_recipe(given, changes=changes, where="test").algorithms
    wanted = {"equalize": {"iterations": 7}, **algorithms}
    assert found == build_recipe({"algorithms": wanted}, changes={}, where="test").algorithms
    found = build_recipe(
        given, changes={**changes, "algorithms": ["gptq"]}, where="test"
    ).algorithms
    assert list(found) == ["equalize", "gptq"]


def test_a_dotted_key_does_not_hide_malformed_algorithms() -> None:
    with pytest.raises(ConfigError, match="algorithms: wanted a name, a list"):
        build_recipe(
            {"algorithms": ["equalize", {"gptq": {}}]},
            changes={"algorithms.gptq.sweeps": 1},
            where="test",
        )


def test_a_factor_leaves_no_powers_of_two() -> None:
    with pytest.raises(ConfigError, match="a factor leaves no powers of two"):
        build_recipe(
            {"activations": {"scale": "power_of_two", "factor": 0.9}}, changes={}, where="test"
        )
