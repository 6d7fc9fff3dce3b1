# SPDX-License-Identifier: Apache-2.0
"""Models of layer units against the exact executor, on networks of every topology."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from lutwise.errors import ConfigError
from lutwise.hw.layer_unit import LayerUnit
from lutwise.hw.layers import differing, layer_results, layer_unit, layer_vectors
from lutwise.hw.output_stage import Form
from lutwise.quant.executor import trace
from lutwise.quant.network import Conv, Linear, Network
from tests.quant.nets import make, network_of


class Odd(nn.Module):
    """Strides, paddings and kernels that differ by axis, dilation, groups; a signed output."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, (3, 2), stride=(2, 1), padding=(1, 2)), nn.ReLU(),
            nn.Conv2d(8, 12, (3, 1), dilation=(2, 1), groups=4), nn.ReLU6(),
            nn.Conv2d(12, 6, 2, stride=2, dilation=2, padding=1, bias=False),
            nn.Flatten(), nn.Linear(6 * 7, 5),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """Linear layers over the last of three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(11, 6)
        self.second = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))  # type: ignore[no-any-return]


def _network(name: str, weights: str, activations: str, mode: str = "dataflow") -> Network:
    if name in {"odd", "tokens"}:
        torch.manual_seed(0)
        net = (Odd() if name == "odd" else Tokens()).eval()
        shape = (24, 3, 11, 11) if name == "odd" else (24, 7, 11)
        return network_of(net, torch.randn(shape), weights, activations, mode)
    return network_of(*make(name), weights, activations, mode)


def _images(network: Network, count: int) -> npt.NDArray[Any]:
    shape = (count, *network.tensors[network.input].shape)
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def _differences(
    network: Network,
    node: Conv | Linear,
    tensors: dict[str, npt.NDArray[Any]],
    **sizes: int,
) -> tuple[LayerUnit, npt.NDArray[Any]]:
    unit = layer_unit(network, node, name="unit", pe=3, simd=5, **sizes)  # type: ignore[arg-type]
    vectors = layer_vectors(network, node, tensors[node.input])
    wanted = layer_results(node, tensors[node.output])
    return unit, differing(network, node, unit.model(vectors), wanted)


@pytest.mark.parametrize(
    ("name", "weights", "activations", "mode"),
    [
        ("chain", "int4", "uint4", "dataflow"),
        ("residual", "e2m1", "ue2m2", "dataflow"),
        ("depthwise", "int8", "uint8", "dataflow"),
        ("branches", "e3m2", "ue4m3", "dataflow"),
        ("odd", "int3", "int5", "dataflow"),
        ("odd", "fp8_e4m3", "fp8_e4m3", "layerwise"),
        ("tokens", "int8", "int8", "layerwise"),
    ],
)
def test_models_are_the_exact_executor(
    name: str, weights: str, activations: str, mode: str
) -> None:
    network = _network(name, weights, activations, mode)
    (tensors,) = trace(network, _images(network, 3), batch=3, keep=True)
    layers = list(network.layers())
    assert len(layers) >= 2
    assert (layers[-1].requantizer is None) == (name != "branches"), "float32 output"
    for node in layers:
        unit, bad = _differences(network, node, tensors)
        assert bad.shape == (len(tensors[node.output].reshape(-1)) // unit.channels, unit.channels)
        assert not bad.any(), node.name


def test_layers_become_units() -> None:
    network = _network("depthwise", "int8", "uint8")
    units = {
        node.name: layer_unit(network, node, name="unit", pe=3, simd=5, pipeline=True)
        for node in network.layers()
    }
    depthwise, grouped, head = (units[name] for name in ("depthwise", "grouped", "head"))
    assert (depthwise.groups, depthwise.outputs, depthwise.products) == (8, 1, 9)
    assert (depthwise.pe, depthwise.simd) == (1, 5), "clipped to what there is"
    assert (grouped.groups, grouped.outputs, grouped.pe, grouped.simd) == (2, 4, 3, 4)
    assert grouped.dot.pipeline
    assert grouped.stage is not None
    assert grouped.stage.form is Form.MULTIPLY
    assert head.stage is None
    assert head.output_bits == head.accumulator_bits


def test_results_that_differ_are_found() -> None:
    network = _network("branches", "e2m1", "e2m1")
    (tensors,) = trace(network, _images(network, 2), batch=2, keep=True)
    node = next(node for node in network.layers() if node.name == "left")
    unit, bad = _differences(network, node, tensors)
    assert not bad.any()
    wanted = layer_results(node, tensors[node.output])
    results = unit.model(layer_vectors(network, node, tensors[node.input]))
    results[3, 2] ^= 1
    assert np.argwhere(differing(network, node, results, wanted)).tolist() == [[3, 2]]


def test_zeros_are_one_number_and_codes_that_are_none_differ() -> None:
    network = _network("odd", "e2m1", "fp8_e4m3")
    node = next(network.layers())
    output = network.tensors[node.output].format
    assert output is not None
    wanted = np.zeros((1, 3))
    minus_zero, nan = 0x80, 0x7F
    if not output.signed:
        minus_zero = 0
    found = differing(network, node, np.array([[0, minus_zero, nan]]), wanted)
    assert found.tolist() == [[False, False, True]]


def test_sums_of_a_last_layer_that_differ_by_one_are_found() -> None:
    network = _network("chain", "int4", "uint4")
    (tensors,) = trace(network, _images(network, 2), batch=2, keep=True)
    *_, node = network.layers()
    unit, bad = _differences(network, node, tensors)
    assert not bad.any()
    results = unit.model(layer_vectors(network, node, tensors[node.input]))
    results[1, 4] += 1
    wanted = layer_results(node, tensors[node.output])
    assert np.argwhere(differing(network, node, results, wanted)).tolist() == [[1, 4]]


@pytest.mark.parametrize(
    ("low", "high", "forms"),
    [(-3.0, 60.0, [Form.THRESHOLDS]), (0.0, 60.0, [*Form]), (-128.0, 60.0, [*Form])],
)
def test_any_clamp_is_exact(low: float, high: float, forms: list[Form]) -> None:
    network = _network("odd", "int8", "int8")
    node = [node for node in network.layers() if node.requantizer][-1]
    assert network.tensors[node.output].format is not None
    assert network.tensors[node.output].format.signed  # type: ignore[union-attr]
    changed = replace(node, requantizer=replace(node.requantizer, low=low, high=high))  # type: ignore[type-var]
    nodes = tuple(changed if other is node else other for other in network.nodes)
    network = replace(network, nodes=nodes)
    (tensors,) = trace(network, _images(network, 2), batch=2, keep=True)
    assert tensors[node.output].max() == high
    assert tensors[node.output].min() == max(low, -75), "it would be -75"
    unit, bad = _differences(network, changed, tensors)
    assert not bad.any()
    assert unit.stage is not None
    assert unit.stage.form is Form.THRESHOLDS
    vectors = layer_vectors(network, changed, tensors[changed.input])
    wanted = layer_results(changed, tensors[changed.output])
    for form in forms:
        other = replace(unit, stage=replace(unit.stage, wanted=form))
        assert other.emit()
        assert not differing(network, changed, other.model(vectors), wanted).any()


@pytest.mark.parametrize(
    ("name", "mode", "most"), [("chain", "dataflow", 62), ("tokens", "layerwise", 53)]
)
def test_sums_wider_than_a_unit_are_refused(name: str, mode: str, most: int) -> None:
    network = _network(name, "e6m1", "e6m1", mode)
    node = next(network.layers())
    assert node.accumulator.bits > most
    with pytest.raises(ConfigError, match=rf"layer '.*': .* take \d+ bits, .* has {most} at most"):
        layer_unit(network, node, name="unit", pe=1, simd=1)
