# SPDX-License-Identifier: Apache-2.0
"""Constant units of networks against the exact executor, on activations of real layers."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lutwise.errors import ConfigError
from lutwise.hw.constant_unit import ConstantUnit
from lutwise.hw.layers import constant_unit, differing, layer_results, layer_vectors
from lutwise.hw.netlist import Netlist, bits_of, from_bits
from lutwise.hw.synthesis import Flow, Synthesizer
from lutwise.quant.executor import trace
from lutwise.quant.network import Network
from tests.quant.nets import make, network_of


def _traced(network: Network) -> dict[str, npt.NDArray[Any]]:
    shape = (2, *network.tensors[network.input].shape)
    images = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    (tensors,) = trace(network, images, batch=2, keep=True)
    return tensors


@pytest.mark.parametrize(
    ("name", "weights", "activations"),
    [("chain", "int4", "int4"), ("depthwise", "e2m1", "e2m1"), ("residual", "int8", "e3m2")],
)
def test_models_are_the_executor(name: str, weights: str, activations: str) -> None:
    network = network_of(*make(name), weights, activations, "dataflow")
    tensors = _traced(network)
    for node in network.layers():
        unit = constant_unit(network, node, name="unit")
        found = unit.model(layer_vectors(network, node, tensors[node.input]))
        wanted = layer_results(node, tensors[node.output])
        assert not differing(network, node, found, wanted).any()


def _run(unit: ConstantUnit, netlist: Netlist, vectors: npt.NDArray[np.int64]) -> Any:
    lanes = vectors.reshape(len(vectors), -1).T
    bits = np.concatenate([bits_of(lane, unit.activations.bits) for lane in lanes])
    outputs, _ = netlist.simulate({"a": bits})
    width = unit.output_bits
    channels = [
        from_bits(outputs["y"][at * width : (at + 1) * width], signed=unit.stage is None)
        for at in range(unit.channels)
    ]
    return np.stack(channels, axis=1)


@pytest.mark.rtl
def test_a_netlist_is_the_executor(synthesizer: Synthesizer) -> None:
    network = network_of(*make("chain"), "int4", "int4", "dataflow")
    tensors = _traced(network)
    node = min(network.layers(), key=lambda node: node.weight_codes.size)
    unit = constant_unit(network, node, name="unit")
    netlist = synthesizer.map(unit.emit(), "unit", flow=Flow.AREA)
    vectors = layer_vectors(network, node, tensors[node.input])
    wanted = layer_results(node, tensors[node.output])
    assert not differing(network, node, _run(unit, netlist, vectors), wanted).any()


def test_sums_wider_than_a_unit_are_refused() -> None:
    network = network_of(*make("chain"), "e6m1", "e6m1", "dataflow")
    with pytest.raises(ConfigError, match=r"layer '.*': .* take \d+ bits, .* has 62 at most"):
        constant_unit(network, next(network.layers()), name="unit")
