# SPDX-License-Identifier: Apache-2.0
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lutwise.errors import ConfigError, DataError, FormatError, UnsupportedLayerError
from lutwise.quant.evaluate import sqnr_db
from lutwise.quant.formats import parse_element, values
from tests.quant.nets import NETS, make

pytest.importorskip("tqdm", reason="brevitas_examples needs it")

from benchmarks import brevitas_flow
from benchmarks.brevitas_flow import (
    ActEqualization,
    Backend,
    BrevitasSettings,
    build,
    evaluate,
)


def settings(**changes: Any) -> BrevitasSettings:
    chosen: dict[str, Any] = {"weights": "int4", "activations": "uint4", "batch": 8} | changes
    return BrevitasSettings(**chosen)


def layers(model: nn.Module) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if hasattr(m, "weight_quant")}


def quality(net: nn.Module, model: nn.Module, images: torch.Tensor) -> float:
    return sqnr_db(evaluate(net, images).numpy(), evaluate(model, images).numpy())


@pytest.mark.parametrize("fmt", ["int4", "e2m1", "e3m0", "e4m3"])
@pytest.mark.parametrize("name", NETS)
def test_weights_lie_on_the_grid_of_their_format(name: str, fmt: str) -> None:
    net, images = make(name)
    acts = "uint4" if fmt == "int4" else fmt
    model, _ = build(net, images, settings(weights=fmt, activations=acts, gptq=True))
    grid = values(parse_element(fmt))
    found = layers(model)
    assert len(found) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules())
    for layer in found.values():
        weight = layer.quant_weight()
        scale = weight.scale.detach()
        assert scale.numel() == len(layer.weight)  # one per channel
        codes = (weight.value / scale).detach().numpy().astype(np.float64).reshape(-1)
        nearest = grid[np.abs(codes[:, None] - grid).argmin(1)]
        np.testing.assert_allclose(codes, nearest, rtol=1e-6, atol=1e-7)
        assert len(np.unique(nearest)) > 2


@pytest.mark.parametrize(("fmt", "acts"), [("int4", "uint4"), ("e2m1", "e2m1")])
def test_gptq_and_bias_correction_keep_the_outputs(fmt: str, acts: str) -> None:
    net, images = make("residual")
    chosen = settings(weights=fmt, activations=acts, gptq=True)
    before = copy.deepcopy(net.state_dict())
    model, seconds = build(net, images, chosen)
    assert quality(net, model, images) > 20
    assert not model.training
    assert 0 < seconds["gptq.columns"] < seconds["gptq"]
    assert seconds["bias_correction"] > 0
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    "changes",
    [
        {"gpfq": True},
        {"qronos": True, "act_order": True},
        {"gptq": True, "gptq_quantized_activations": True},
        {"act_equalization": ActEqualization.LAYERWISE},
        {"act_equalization": ActEqualization.FX},
        {"backend": Backend.FX},
    ],
    ids=lambda changes: "-".join(changes),
)
@pytest.mark.parametrize("name", NETS)
def test_every_step_runs_on_every_topology(name: str, changes: dict[str, Any]) -> None:
    net, images = make(name)
    model, _ = build(net, images, settings(weights="int6", activations="uint6", **changes))
    assert quality(net, model, images) > 20


@pytest.mark.parametrize(
    "changes",
    [
        {"gpfq": True},
        {"qronos": True},
        {"gptq": True},
        {"gptq": True, "gptq_quantized_activations": True},
    ],
    ids=lambda changes: "-".join(changes),
)
@pytest.mark.parametrize("name", NETS)
def test_one_pass_gives_the_weights_of_brevitas_own_loop(
    name: str, changes: dict[str, Any]
) -> None:
    net, images = make(name)
    chosen = {"weights": "e2m1", "activations": "e2m1", "act_order": True} | changes
    loop, _ = build(net, images, settings(**chosen))
    once, _ = build(net, images, settings(**chosen, one_pass=True))
    expected = loop.state_dict()
    assert once.state_dict().keys() == expected.keys()
    for key, tensor in once.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
    assert torch.equal(evaluate(once, images), evaluate(loop, images))


def test_learned_rounding_moves_weights_by_one_step_at_most() -> None:
    pytest.importorskip("accelerate", reason="Brevitas's learned rounding needs it")
    net, images = make("chain")
    plain, _ = build(net, images, settings(bias_correction=False))
    learned, seconds = build(
        net, images, settings(bias_correction=False, learned_round=60, learned_round_rate=1e-2)
    )
    assert seconds["learned_round"] > 0
    moved = 0
    for before, after in zip(layers(plain).values(), layers(learned).values(), strict=True):
        steps = (after.quant_weight().value - before.quant_weight().value).abs()
        steps = (steps / before.quant_weight().scale).detach()
        assert steps.max() < 1.001
        moved += int((steps > 0.5).sum())
    assert moved > 0


def test_first_layer_reads_int8_and_relu_outputs_are_unsigned() -> None:
    net, images = make("chain")
    model, _ = build(net, images, settings())
    found = {
        name: (int(layer.input_quant.bit_width()), bool(layer.input_quant.is_signed))
        for name, layer in layers(model).items()
    }
    # behind a ReLU with maximum pooling, and one with average pooling and flattening
    assert found == {"body.0": (8, True), "body.4": (4, False), "body.9": (4, False)}
    signed, _ = build(net, images, settings(activations="int4"))
    assert all(layer.input_quant.is_signed for layer in layers(signed).values())
    positive, _ = build(net, images.abs(), settings())
    assert not layers(positive)["body.0"].input_quant.is_signed


def test_equalized_layers_keep_their_input_formats() -> None:
    net, images = make("residual")
    model, _ = build(net, images, settings(act_equalization=ActEqualization.LAYERWISE))
    widths = [int(layer.input_quant.bit_width()) for layer in layers(model).values()]
    assert widths == [8, 4, 4, 4]


def test_fx_backend_quantizes_the_image_to_the_input_format() -> None:
    net, images = make("chain")
    model, _ = build(net, images, settings(backend=Backend.FX, input_format="int3"))
    assert len(model.get_submodule("x_quant")(images).value.unique()) == 8


@pytest.mark.parametrize("name", ["residual", "branches"])
def test_fx_backend_refuses_minifloats_that_meet(name: str) -> None:
    net, images = make(name)
    with pytest.raises(UnsupportedLayerError, match=r"cannot add or concatenate .* layerwise"):
        build(net, images, settings(weights="e2m1", activations="e2m1", backend=Backend.FX))


def test_inference_mode_changes_no_bit() -> None:
    net, images = make("branches")
    model, _ = build(net, images, settings(weights="e2m1", activations="e2m1"))
    with torch.no_grad():
        slow = model(images)
    assert torch.equal(evaluate(model, images, batch=len(images)), slow)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "uint4"}, "weights: wanted a signed"),
        ({"weights": "int4n"}, "weights: wanted a signed"),
        ({"activations": "ue2m2"}, "got ue2m2"),
        ({"input_format": "fp8_e4m3"}, "input_format: .* without Inf and NaN"),
    ],
    ids=lambda value: str(value),
)
def test_formats_that_brevitas_has_not_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch: wanted at least 1, got 0"),
        ({"equalize_iterations": -1}, "equalize_iterations: wanted at least 0"),
        ({"percentile": 50.0}, "percentile: wanted"),
        ({"backend": Backend.FX, "learned_round": 1}, "layerwise backend only"),
        (
            {"backend": Backend.FX, "act_equalization": ActEqualization.LAYERWISE},
            "needs the layerwise backend",
        ),
    ],
    ids=lambda value: str(value),
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


def test_no_images_are_refused() -> None:
    net, images = make("chain")
    with pytest.raises(DataError, match="at least one image"):
        build(net, images[:0], settings())


def test_command_line_writes_what_it_measured(tmp_path: Path) -> None:
    file = tmp_path / "flow.json"
    brevitas_flow.main(
        ["--model", "zoo/resnet8", "--weights", "int8", "--activations", "uint8",
         "--steps", "equalize,bias_correction", "--calib-images", "32", "--eval-images", "50",
         "--json", str(file)]
    )  # fmt: skip
    record = json.loads(file.read_text())
    assert record["evaluation"]["images"] == record["quantized"]["images"] == 50
    assert record["against_float"]["sqnr_db"] > 25
    assert record["settings"]["equalize_iterations"] == 20
    assert not record["settings"]["gptq"]


def test_command_line_refuses_unknown_steps() -> None:
    with pytest.raises(ConfigError, match=r"wanted some of equalize, .*, got 'gtpq'"):
        brevitas_flow.main(["--model", "zoo/resnet8", "--steps", "equalize,gtpq"])
