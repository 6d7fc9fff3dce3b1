# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml

from lutwise.quant.advice import Cause, advise
from lutwise.quant.diagnose import LayerKind, LayerNoise, OwnQuantizer, diagnose
from lutwise.quant.quantize import collect_samples, prepare, quantize
from lutwise.quant.quantized import QuantizedModel, TensorQuantizer
from lutwise.quant.recipe import build_recipe
from tests.quant.nets import make

GOOD = LayerNoise(
    node="a", layer="a", kind=LayerKind.CONV, weights="int4", inputs="uint4", outputs="uint4",
    weight_count=1000, weight_scales=8, quantizer=OwnQuantizer.OUTPUT, weight_sqnr_db=20.0,
    output_sqnr_db=18.0, weights_at_ends=0.01, weights_at_zero=0.1, weight_codes_dead=0.0,
    inputs_clipped=0.001, input_codes_dead=0.0, input_rounding_db=20.0, outputs_clipped=0.001,
    output_codes_dead=0.0, output_rounding_db=20.0, error_share=0.05, error_without=0.95,
    sqnr_without_db=12.0, alone_share=0.05, error_alone=0.05, sqnr_alone_db=25.0,
)  # fmt: skip


def row(**changes: Any) -> LayerNoise:
    return replace(GOOD, **changes)


@pytest.mark.parametrize(
    ("changes", "cause", "override"),
    [
        ({}, Cause.SENSITIVE, "weights: int8, activations: uint8"),
        ({"kind": LayerKind.DEPTHWISE}, Cause.DEPTHWISE, "weights: int8"),
        ({"weight_sqnr_db": 12.0}, Cause.COARSE_WEIGHTS, "weights: int8"),
        ({"weight_sqnr_db": 12.0, "weight_codes_dead": 0.5}, Cause.DEAD_CODES, "weights: int8"),
        ({"weight_codes_dead": 0.5}, Cause.SENSITIVE, "weights: int8, activations: uint8"),
        (
            {"weight_sqnr_db": 9.0, "weight_codes_dead": 0.5, "weight_count": 30},
            Cause.COARSE_WEIGHTS,
            "weights: int8",
        ),
        ({"outputs_clipped": 0.05}, Cause.CLIPPED, "activations: uint8"),
        ({"output_rounding_db": 9.0}, Cause.COARSE_ACTIVATIONS, "activations: uint8"),
        (
            {"quantizer": OwnQuantizer.INPUT, "input_rounding_db": 9.0, "inputs": "e2m1"},
            Cause.COARSE_ACTIVATIONS,
            "activations: e2m5",
        ),
        # What the layer before clips belongs to the layer before.
        ({"inputs_clipped": 0.5}, Cause.SENSITIVE, "weights: int8, activations: uint8"),
        (
            {"weights": "e2m1", "outputs": "ue3m1"},
            Cause.SENSITIVE,
            "weights: e2m5, activations: ue3m5",
        ),
        (
            {
                "quantizer": OwnQuantizer.NONE, "outputs": "accumulator", "outputs_clipped": None,
                "output_rounding_db": None,
            },
            Cause.SENSITIVE,
            "weights: int8",
        ),
        ({"weights": "int8", "outputs": "fp8_e4m3"}, Cause.SENSITIVE, ""),
        ({"kind": LayerKind.DEPTHWISE, "weights": "int8"}, Cause.SENSITIVE, "activations: uint8"),
    ],
)  # fmt: skip
def test_causes_follow_the_numbers(changes: dict[str, Any], cause: Cause, override: str) -> None:
    worst = row(layer="worst", error_share=0.6, **changes)
    (advice,) = advise([GOOD, GOOD, worst, GOOD], logits_sqnr_db=10.0)
    assert (advice.layer, advice.share) == ("worst", 0.6)
    assert advice.causes == (cause,)
    assert advice.override == (f'- {{layers: "worst", {override}}}' if override else "")
    assert advice.text.startswith("worst (")
    assert "60 % of the final error, 12 times" in advice.text


def test_several_causes_are_all_told() -> None:
    worst = row(error_share=0.6, weight_sqnr_db=9.0, output_rounding_db=9.0)
    (advice,) = advise([GOOD, worst], logits_sqnr_db=10.0)
    assert advice.causes == (Cause.COARSE_WEIGHTS, Cause.COARSE_ACTIVATIONS)
    assert advice.override == '- {layers: "a", weights: int8, activations: uint8}'


@pytest.mark.parametrize(
    ("shares", "logits_sqnr_db", "named"),
    [
        ([0.25, 0.05, 0.05], 10.0, [0]),
        ([0.24, 0.05, 0.05], 10.0, []),
        ([0.30, 0.11, 0.11], 10.0, []),
        ([0.34, 0.11, 0.11], 10.0, [0]),
        ([0.3, 0.6, 0.05, 0.05, 0.05], 10.0, [1, 0]),
        ([0.9, -0.4, -0.3], 10.0, [0]),
        ([0.9, 0.0], 30.0, []),
        ([1.0], 10.0, [0]),
        ([], 10.0, []),
    ],
)
def test_thresholds(shares: list[float], logits_sqnr_db: float, named: list[int]) -> None:
    found = [row(layer=str(i), error_share=share) for i, share in enumerate(shares)]
    advice = advise(found, logits_sqnr_db=logits_sqnr_db)
    assert [int(a.layer) for a in advice] == named


def test_granularity_is_advised_where_it_can_help() -> None:
    for scales, expected in ((1, True), (8, False)):
        worst = row(
            error_share=0.9, weight_sqnr_db=5.0, weight_codes_dead=0.6, weight_scales=scales
        )
        (advice,) = advise([GOOD, worst], logits_sqnr_db=5.0)
        assert ("weights.granularity: channel" in advice.text) is expected


def test_globs_in_names_stand_for_themselves() -> None:
    (advice,) = advise([row(layer='blocks[0]"x', error_share=0.9), GOOD], logits_sqnr_db=5.0)
    (override,) = build_recipe(
        {"overrides": yaml.safe_load(advice.override)}, changes={}, where="test"
    ).overrides
    assert override.layers == 'blocks[[]0]"x'
    assert override.weights == "int8"


def test_the_format_of_the_logits_is_no_matter_of_overrides() -> None:
    found = diagnose(*diagnosed("chain", output="int2", last_layer="int2"))
    advice, *_ = advise(found.layers, found.points, logits_sqnr_db=found.logits_sqnr_db)
    assert advice.layer == "body.9"
    assert "activations" not in advice.override
    diagnosed("chain", output="int2", overrides=yaml.safe_load(advice.override))


def diagnosed(name: str, **settings: Any) -> tuple[QuantizedModel, torch.Tensor]:
    net, images = make(name)
    given = {"weights": "int8", "activations": "uint8", "algorithms": [], **settings}
    todo = build_recipe(given, changes={}, where="test")
    prepared = prepare(net, tuple(images.shape[1:]), todo, name=name)
    samples = collect_samples(prepared, images, batch=8, seed=0)
    return quantize(prepared, samples, images, todo), images


@pytest.mark.parametrize(
    ("name", "layer", "causes"),
    [
        ("residual", "conv2", (Cause.COARSE_WEIGHTS,)),
        ("chain", "body.4", (Cause.COARSE_WEIGHTS,)),
        ("branches", "last", (Cause.COARSE_WEIGHTS,)),
    ],
)
def test_a_ruined_layer_is_named_and_its_override_heals(
    name: str, layer: str, causes: tuple[Cause, ...]
) -> None:
    ruin = {"layers": layer, "weights": "int2"}
    model, images = diagnosed(name, overrides=[ruin])
    found = diagnose(model, images)
    (advice,) = advise(found.layers, logits_sqnr_db=found.logits_sqnr_db)
    assert advice.layer == layer
    assert advice.causes == causes
    healed = diagnose(*diagnosed(name, overrides=[ruin, *yaml.safe_load(advice.override)]))
    assert healed.logits_error < 0.1 * found.logits_error
    assert advise(healed.layers, logits_sqnr_db=healed.logits_sqnr_db) == []


@pytest.mark.parametrize(("point", "named"), [("conv1", "conv1"), ("add_1", "add_1")])
def test_a_ruined_range_is_told_from_ruined_weights(point: str, named: str) -> None:
    model, images = diagnosed("residual")
    good = model.outputs[point]
    small = TensorQuantizer(format=good.format, scale=good.scale / 8)
    model.outputs = {**model.outputs, point: small}
    found = diagnose(model, images)
    (advice,) = advise(found.layers, found.points, logits_sqnr_db=found.logits_sqnr_db)
    assert advice.layer == named
    assert advice.causes == (Cause.CLIPPED,)
    assert "are beyond the range" in advice.text


def test_a_coarse_image_is_named() -> None:
    found = diagnose(*diagnosed("residual", input="int2"))
    (advice,) = advise(found.layers, found.points, logits_sqnr_db=found.logits_sqnr_db)
    assert (advice.layer, advice.override) == ("x", "")
    assert advice.text.startswith("x (int2), a quantizer that belongs to no layer, makes ")
    assert "is `input` for the image" in advice.text


def test_a_ruined_scale_is_told_from_too_few_bits() -> None:
    net, images = make("residual")
    conv = net.get_submodule("conv2")
    assert isinstance(conv.weight, torch.Tensor)
    conv.weight.data[0, 0] = 60 * conv.weight.abs().max()
    todo = build_recipe(
        {
            "weights": {"format": "int8", "range": "max", "granularity": "tensor"},
            "overrides": [{"layers": "conv2", "weights": "int3"}], "algorithms": [],
        },
        changes={}, where="test",
    )  # fmt: skip
    prepared = prepare(net, tuple(images.shape[1:]), todo, name="outlier")
    samples = collect_samples(prepared, images, batch=8, seed=0)
    found = diagnose(quantize(prepared, samples, images, todo), images)
    by_name = {r.layer: r for r in found.layers}
    assert by_name["conv2"].weights_at_zero > 0.9
    assert by_name["conv2"].weight_codes_dead >= 0.5
