# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lutwise.cost_models.estimate import Folding, estimate
from lutwise.cost_models.from_network import layer_shapes
from lutwise.errors import LutwiseError, ModelError, UnsupportedLayerError
from lutwise.export.graph import DOMAIN
from lutwise.export.qonnx import METADATA_KEY, to_qonnx
from lutwise.export.reader import load_qonnx, read_layers
from lutwise.quant.lower import lower
from lutwise.quant.network import Network
from lutwise.quant.quantize import collect_samples, prepare, quantize
from lutwise.quant.recipe import build_recipe
from tests.quant.nets import NETS, make


def quantized(name: str, fmt: str, mode: str = "dataflow") -> Network:
    net, images = make(name)
    settings = build_recipe(
        {"weights": fmt, "activations": fmt, "mode": mode, "preset": "fast"}, changes={}, where="x"
    )
    prepared = prepare(net, tuple(images.shape[1:]), settings, name=name, images=images)
    samples = collect_samples(prepared, images, batch=8, seed=0)
    return lower(quantize(prepared, samples, images, settings))


@pytest.mark.parametrize("mode", ["dataflow", "layerwise"])
@pytest.mark.parametrize("fmt", ["int4", "e2m1", "e3m2", "e5m0"])
@pytest.mark.parametrize("name", NETS)
def test_a_file_costs_what_the_net_costs(name: str, fmt: str, mode: str, tmp_path: Path) -> None:
    network = quantized(name, fmt, mode)
    path = tmp_path / "net.onnx"
    path.write_bytes(to_qonnx(network).SerializeToString())

    expected = layer_shapes(network)
    found = read_layers(load_qonnx(path))
    assert [s.name for s in found] == [s.name for s in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for key in LAYER_KEYS:
            assert getattr(ours, key) == getattr(theirs, key), (ours.name, key)
    folding = Folding(pe=2, simd=4)
    assert estimate(found, folding).folded == estimate(expected, folding).folded


LAYER_KEYS = (
    "kind", "macs", "weight_count", "dot_length", "outputs", "output_pixels", "weights",
    "activations", "accumulator_bits", "output",
)  # fmt: skip


def tensor(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def quant(x: str, y: str, scale: str, bits: int = 4, **attributes: Any) -> onnx.NodeProto:
    chosen: dict[str, Any] = {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"} | attributes
    return helper.make_node(
        "Quant", [x, scale, "zero", f"bits{bits}"], [y], name=y, domain=DOMAIN, **chosen
    )


def foreign(**changes: Any) -> onnx.ModelProto:
    """Return a linear layer as other tools write it: real scales, bias in the node."""
    rng = np.random.default_rng(0)
    scales = np.array([[0.5], [0.25], [1.5]], np.float32)
    codes = rng.integers(-7, 8, (3, 5)).astype(np.float32)
    constants = {
        "w": codes * scales, "w_scale": scales, "x_scale": np.float32(0.125),
        "bias": np.array([1.0, -2.0, 3.0], np.float32), "zero": np.float32(0),
        "bits4": np.float32(4), "bits8": np.float32(8), "bits9": np.float32(9),
        "two": np.float32(2), "seven": np.float32(7),
    }  # fmt: skip
    constants |= changes.pop("constants", {})
    nodes = changes.pop("nodes", None) or [
        quant("x", "xq", "x_scale", 8, signed=0),
        helper.make_node("Mul", ["xq", "two"], ["x2"]),
        helper.make_node("Flatten", ["x2"], ["xf"]),
        quant("w", "wq", "w_scale", narrow=1),
        helper.make_node("Gemm", ["xf", "wq", "bias"], ["s"], name="fc", transB=1),
        helper.make_node("Relu", ["s"], ["r"]),
        quant("r", "y", "x_scale", 4, signed=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [tensor("x", *changes.pop("shape", (1, 5)))],
        [tensor("y", 1, 3)],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def read(model: onnx.ModelProto, folder: Path) -> Any:
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return read_layers(load_qonnx(path))


def test_files_of_other_tools_are_read(tmp_path: Path) -> None:
    (layer,) = read(foreign(), tmp_path)
    assert (layer.name, layer.dot_length, layer.outputs, layer.output_pixels) == ("fc", 5, 3, 1)
    assert [str(f) for f in (layer.weights, layer.activations, layer.output)] == [
        "int4n", "uint8", "uint4",
    ]  # fmt: skip
    codes = np.random.default_rng(0).integers(-7, 8, (3, 5))
    # an input value means 0.25, so the biases are 8, -32 and 8 units
    low = (np.minimum(codes, 0).sum(1) * 255 + np.minimum([8, -32, 8], 0)).min()
    high = (np.maximum(codes, 0).sum(1) * 255 + np.maximum([8, -32, 8], 0)).max()
    assert layer.accumulator_bits == max(int(high), ~int(low)).bit_length() + 1


def test_own_files_are_read_without_their_notes(tmp_path: Path) -> None:
    network = quantized("residual", "e2m1")
    model = to_qonnx(network)
    kept = [p for p in model.metadata_props if p.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    found = read(model, tmp_path)
    for ours, theirs in zip(found, layer_shapes(network), strict=True):
        assert (ours.macs, ours.accumulator_bits) == (theirs.macs, theirs.accumulator_bits)
        assert (ours.weights, ours.activations, ours.output) == (
            theirs.weights, theirs.activations, theirs.output,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"constants": {"w": np.full((3, 5), 0.3, np.float32)}}, ModelError, "not on the grid of"),
        ({"constants": {"zero": np.float32(1)}}, UnsupportedLayerError, "zero point of 1"),
        ({"constants": {"bits8": np.float32(9)}}, UnsupportedLayerError, "has 9 bits; wanted 2 to"),
        ({"constants": {"bits8": np.float32(3.5)}}, UnsupportedLayerError, "has 3.5 bits"),
        ({"nodes": [helper.make_node("Relu", ["x"], ["y"])]}, ModelError, "has no Conv, MatMul"),
        (
            {"nodes": [quant("x", "xq", "x_scale", 8),
                       helper.make_node("Gemm", ["xq", "w"], ["y"], name="fc", transB=1)]},
            UnsupportedLayerError, "its weights have no quantizer",
        ),
        (
            {"nodes": [quant("w", "wq", "w_scale"),
                       helper.make_node("Gemm", ["x", "wq"], ["y"], name="fc", transB=1)]},
            UnsupportedLayerError, "Gemm 'fc': its input has no quantizer",
        ),
        (
            {"nodes": [quant("x", "xq", "x_scale", 8), quant("w", "wq", "w_scale"),
                       helper.make_node("Exp", ["wq"], ["we"], name="e"),
                       helper.make_node("Gemm", ["xq", "we"], ["y"], name="fc", transB=1)]},
            UnsupportedLayerError, "its weights pass through Exp 'e'",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_priced_is_named(
    changes: dict[str, Any], error: type[LutwiseError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        read(foreign(**changes), tmp_path)


def test_open_sizes_are_named(tmp_path: Path) -> None:
    weights = np.zeros((2, 3, 3, 3), np.float32)
    nodes = [
        quant("x", "xq", "x_scale", 8),
        quant("w", "wq", "x_scale"),
        helper.make_node("Conv", ["xq", "wq"], ["y"], name="c"),
    ]
    model = foreign(nodes=nodes, constants={"w": weights}, shape=("N", 3, "H", "W"))
    del model.graph.output[:]
    model.graph.output.append(tensor("y", "N", 2, "A", "B"))
    with pytest.raises(ModelError, match=r"Conv 'c': .*sizes are open"):
        read(model, tmp_path)


@pytest.mark.parametrize("content", [b"", b"nonsense", None], ids=["empty", "nonsense", "cut"])
def test_damaged_files_are_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    whole = foreign().SerializeToString()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ModelError, match="no valid QONNX file"):
        load_qonnx(path)
    with pytest.raises(ModelError, match="does not exist"):
        load_qonnx(tmp_path / "missing.onnx")
