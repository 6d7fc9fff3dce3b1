# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch
from torch import nn

from lutwise.quant.diagnose import Diagnosis, LayerKind, LayerNoise, OwnQuantizer, diagnose
from lutwise.quant.graph import layer_nodes
from lutwise.quant.quantize import collect_samples, prepare, quantize
from lutwise.quant.quantized import QuantizedModel, predict
from lutwise.quant.recipe import build_recipe
from tests.quant.nets import make


def quantized(name: str, **settings: Any) -> tuple[QuantizedModel, torch.Tensor]:
    net, images = make(name)
    given = {"weights": "int4", "activations": "uint4", "algorithms": [], **settings}
    todo = build_recipe(given, changes={}, where="test")
    prepared = prepare(net, tuple(images.shape[1:]), todo, name=name)
    samples = collect_samples(prepared, images, batch=8, seed=0)
    return quantize(prepared, samples, images, todo), images


def found(name: str, **settings: Any) -> Diagnosis:
    return diagnose(*quantized(name, **settings))


def rows(diagnosis: Diagnosis) -> dict[str, LayerNoise]:
    return {row.layer: row for row in diagnosis.layers}


def test_formats_kinds_and_quantizers_are_named() -> None:
    dataflow, layerwise = found("depthwise"), found("depthwise", mode="layerwise")
    kinds = {name: row.kind for name, row in rows(dataflow).items()}
    assert kinds == {
        "stem": LayerKind.CONV, "depthwise": LayerKind.DEPTHWISE, "grouped": LayerKind.CONV,
        "norm": LayerKind.DEPTHWISE, "head": LayerKind.LINEAR,
    }  # fmt: skip
    head, stem = rows(dataflow)["head"], rows(dataflow)["stem"]
    assert (stem.inputs, stem.outputs, stem.quantizer) == ("int8", "uint4", OwnQuantizer.OUTPUT)
    assert (head.inputs, head.outputs, head.quantizer) == (
        "uint4", "accumulator", OwnQuantizer.NONE,
    )  # fmt: skip
    assert head.outputs_clipped is None
    assert (stem.weight_count, stem.weight_scales) == (8 * 27, 8)
    assert {row.outputs for row in layerwise.layers} == {"float32"}
    assert {row.quantizer for row in layerwise.layers} == {OwnQuantizer.INPUT}
    assert layerwise.points == ()
    assert [point.node for point in dataflow.points] == ["x", "add", "adaptive_avg_pool2d"]


def test_the_error_is_that_of_the_logits() -> None:
    model, images = quantized("residual")
    diagnosis = diagnose(model, images)
    error = predict(model, images) - model.prepared.graph(images).detach()
    assert diagnosis.images == 24
    assert diagnosis.logits_error == pytest.approx(float(error.square().mean()), rel=1e-4)


def clipped_share(model: QuantizedModel, node: str, tensor: torch.Tensor) -> float:
    quantizer = model.outputs[node]
    scaled = tensor.double() / quantizer.scale
    beyond = (scaled > quantizer.format.max_value) | (scaled < quantizer.format.min_value)
    return float(beyond.double().mean())


def test_clipping_is_that_of_the_quantized_model() -> None:
    model, images = quantized("chain", **{"activations.range": "percentile"})
    (first, *_), graph = layer_nodes(model.prepared), model.graph
    with torch.no_grad():
        image = model.outputs["x"](images)
        output = graph.get_submodule(str(first.target))(image).relu()
    row = diagnose(model, images).layers[0]
    assert row.inputs_clipped == clipped_share(model, "x", images)
    assert row.outputs_clipped == pytest.approx(
        clipped_share(model, next(iter(first.users)).name, output)
    )
    assert row.outputs_clipped


def test_a_concatenation_joins_what_its_operands_use() -> None:
    diagnosis = rows(found("branches", **{"activations.range": "percentile"}))
    left, right, last = (diagnosis[name] for name in ("left", "right", "last"))
    assert left.outputs_clipped is not None
    assert right.outputs_clipped is not None
    assert left.outputs_clipped + right.outputs_clipped > 0
    # Both branches have six channels of the same size.
    joined = (left.outputs_clipped + right.outputs_clipped) / 2
    assert last.inputs_clipped == pytest.approx(joined)


def test_weights_are_described() -> None:
    net = nn.Sequential(nn.Linear(4, 2, bias=False))
    layer = net[0]
    assert isinstance(layer, nn.Linear)
    layer.weight.data = torch.tensor([[7.0, 0.3, -7.0, 1.0], [7.0, 7.0, 0.0, 0.4]])
    todo = build_recipe(
        {"weights": {"format": "int4", "range": "max"}, "algorithms": []}, changes={}, where="test"
    )
    images = torch.randn(16, 4)
    prepared = prepare(net, (4,), todo, name="one")
    samples = collect_samples(prepared, images, batch=8, seed=0)
    (row,) = diagnose(quantize(prepared, samples, images, todo), images).layers
    assert row.weights_at_ends == 4 / 8
    assert row.weights_at_zero == 2 / 8
    assert row.weight_codes_dead == pytest.approx(11 / 15)  # 7, -7, 0 and 1 are taken
    assert row.weight_sqnr_db == pytest.approx(
        10 * torch.log10(torch.tensor((4 * 49 + 1.25) / 0.25)).item(), abs=1e-4
    )
