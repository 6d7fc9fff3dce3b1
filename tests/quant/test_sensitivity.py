# SPDX-License-Identifier: Apache-2.0
"""Leave-one-out errors against full forward passes."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lutwise.quant.advice import advise
from lutwise.quant.diagnose import diagnose
from lutwise.quant.formats import parse_element
from lutwise.quant.graph import layer_nodes
from lutwise.quant.quantize import collect_samples, prepare, quantize
from lutwise.quant.quantized import QuantizedModel, QuantizedWeight, TensorQuantizer
from lutwise.quant.recipe import Recipe, build_recipe
from lutwise.quant.sensitivity import (
    affordable_images,
    has_corrected_biases,
    list_parts,
    measure,
)
from tests.quant.nets import NETS, make


def recipe(**settings: Any) -> Recipe:
    given = {"weights": "int4", "activations": "uint4", "algorithms": [], **settings}
    return build_recipe(given, changes={}, where="test")


def quantized(name: str, **settings: Any) -> tuple[QuantizedModel, torch.Tensor]:
    net, images = make(name)
    return quantized_net(net, images, name=name, **settings), images


def quantized_net(
    net: nn.Module, images: torch.Tensor, *, name: str = "net", **settings: Any
) -> QuantizedModel:
    todo = recipe(**settings)
    prepared = prepare(net, tuple(images.shape[1:]), todo, name=name)
    samples = collect_samples(prepared, images, batch=8, seed=0)
    return quantize(prepared, samples, images, todo)


def two_linears() -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(40, 6)


@pytest.mark.parametrize("mode", ["dataflow", "layerwise"])
def test_two_linear_layers_by_hand(mode: str) -> None:
    net, x = two_linears()
    model = quantized_net(net, x, mode=mode)
    first, second = layer_nodes(model.prepared)

    def run(*, one: bool, two: bool, image: bool) -> torch.Tensor:
        """Forward pass in which the first, the second layer and the image are quantized or not."""

        def apply(node: Any, y: torch.Tensor, on: bool) -> torch.Tensor:
            layer = model.layer(node) if on else model.prepared.module(node)
            assert isinstance(layer, nn.Linear)
            return nn.functional.linear(y, layer.weight, layer.bias)

        before = model.layer_inputs
        if mode == "layerwise":
            y = apply(first, before[first.name](x) if one else x, one).relu()
            return apply(second, before[second.name](y) if two else y, two)
        at_image, at_relu = model.outputs.values()
        y = apply(first, at_image(x) if image else x, one).relu()
        return apply(second, at_relu(y) if one else y, two)

    with torch.no_grad():
        real = run(one=False, two=False, image=False)

        def error(**on: bool) -> float:
            return float((run(**on) - real).double().square().mean())

        found = measure(model, x, batch=16)
        total = error(one=True, two=True, image=True)
        without = [error(one=False, two=True, image=True), error(one=True, two=False, image=True)]
        alone = [error(one=True, two=False, image=False), error(one=False, two=True, image=False)]
    assert found.error == pytest.approx(total, rel=1e-5)
    assert found.signal == pytest.approx(float(real.double().square().mean()), rel=1e-5)
    for node, left, only in zip((first, second), without, alone, strict=True):
        assert found.parts[node.name].without == pytest.approx(left, rel=1e-5)
        assert found.parts[node.name].alone == pytest.approx(only, rel=1e-5)
        assert found.share(node.name) == pytest.approx((total - left) / total, rel=1e-4)
        assert found.alone_share(node.name) == pytest.approx(only / total, rel=1e-4)


def without(model: QuantizedModel, part: frozenset[str]) -> QuantizedModel:
    """Return a copy in which the nodes of a part have float modules and no quantizers."""
    changed = QuantizedModel(
        model.prepared,
        copy.deepcopy(model.graph),
        weights={},
        outputs={k: q for k, q in model.outputs.items() if k not in part},
        layer_inputs={k: q for k, q in model.layer_inputs.items() if k not in part},
    )
    for node in layer_nodes(model.prepared):
        if node.name in part:
            layer, real = changed.layer(node), model.prepared.module(node)
            layer.load_state_dict(real.state_dict())
    return changed


@pytest.mark.parametrize("mode", ["dataflow", "layerwise"])
@pytest.mark.parametrize("name", NETS)
def test_every_part_matches_a_full_pass(name: str, mode: str) -> None:
    model, images = quantized(name, mode=mode)
    everything = frozenset(node.name for node in model.graph.graph.nodes)
    found = measure(model, images, batch=10)
    with torch.no_grad():
        real = model.prepared.graph(images)

        def error(part: frozenset[str]) -> float:
            return float((without(model, part)(images) - real).double().square().mean())

        assert found.error == pytest.approx(error(frozenset()), rel=1e-4)
        for part in list_parts(model):
            measured = found.parts[part.start]
            assert measured.without == pytest.approx(error(part.nodes), rel=1e-4)
            assert measured.alone == pytest.approx(error(everything - part.nodes), rel=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_every_quantizer_is_in_one_part(name: str) -> None:
    model, _ = quantized(name)
    points = [n for part in list_parts(model) for n in part.nodes if n in model.outputs]
    assert sorted(points) == sorted(model.outputs)
    layers = [part.start for part in list_parts(model) if part.is_layer]
    assert layers == [node.name for node in layer_nodes(model.prepared)]


def test_corrected_biases_are_seen() -> None:
    for algorithms, corrected in (([], False), (["bias_correction"], True)):
        model, _ = quantized("chain", weights="int3", algorithms=algorithms)
        assert has_corrected_biases(model) is corrected


def test_biases_are_corrected_anew_in_every_run() -> None:
    net, x = two_linears()
    model = quantized_net(net, x, weights="int3", mode="layerwise", algorithms=["bias_correction"])
    first, second = layer_nodes(model.prepared)
    one, two = model.prepared.module(first), model.prepared.module(second)
    with torch.no_grad():
        hidden = one(x)
        real = two(hidden.relu())
        # The first layer in float: the second one's mean is moved to the float model's.
        y = model.layer(second)(model.layer_inputs[second.name](hidden.relu()))
        y = y - y.mean(0) + real.mean(0)
        expected = float((y - real).double().square().mean())
    found = measure(model, x)
    assert found.parts[first.name].without == pytest.approx(expected, rel=1e-4)


@pytest.mark.property
@settings(deadline=None, max_examples=15)
@given(
    weights=st.lists(st.integers(-3, 3), min_size=12, max_size=12),
    images=st.lists(st.integers(-4, 3), min_size=12, max_size=12),
)
def test_without_quantization_error_nothing_is_blamed(
    weights: list[int], images: list[int]
) -> None:
    net = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 2, bias=False))
    for layer, numbers in zip(net, (weights[:8], weights[8:]), strict=True):
        assert isinstance(layer, nn.Linear)
        layer.weight.data = torch.tensor(numbers, dtype=torch.float32).reshape(layer.weight.shape)
    prepared = prepare(net, (4,), recipe(), name="exact")
    nodes = layer_nodes(prepared)
    weight = QuantizedWeight(
        format=parse_element("int3"), values=torch.zeros(()), scales=torch.ones(1)
    )
    model = QuantizedModel(
        prepared,
        copy.deepcopy(prepared.graph),
        weights={
            node.name: replace(
                weight, values=prepared.module(node).get_parameter("weight").double()
            )
            for node in nodes
        },
        outputs={},
        # What the second layer reads are whole numbers of at most 4 * 3 * 4.
        layer_inputs={
            nodes[0].name: TensorQuantizer(format=parse_element("int3"), scale=1.0),
            nodes[1].name: TensorQuantizer(format=parse_element("int8"), scale=1.0),
        },
    )
    found = diagnose(model, torch.tensor(images, dtype=torch.float32).reshape(3, 4))
    assert found.logits_error == 0
    assert [row.error_share for row in found.layers] == [0, 0]
    assert [row.alone_share for row in found.layers] == [0, 0]
    assert advise(found.layers, logits_sqnr_db=found.logits_sqnr_db) == []


def test_large_networks_get_fewer_images() -> None:
    model, _ = quantized("residual")
    assert affordable_images(model, 64) == 64
    shapes = model.prepared.shapes
    counts = []
    for factor in (1, 30, 100, 1000):
        wide = {
            n: (s[0], *(factor * side for side in s[1:])) if s else () for n, s in shapes.items()
        }
        model.prepared = replace(model.prepared, shapes=wide)
        counts.append(affordable_images(model, 10**6))
    assert counts[0] > counts[1] > counts[2] > counts[3] == 4
    assert affordable_images(model, 2) == 2
