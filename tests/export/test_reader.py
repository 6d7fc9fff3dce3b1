# SPDX-License-Identifier: Apache-2.0
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from lutwise.cost_models.estimate import estimate
from lutwise.cost_models.folding import Folding
from lutwise.cost_models.from_network import layer_shapes
from lutwise.errors import LutwiseError, ModelError, ToolError, UnsupportedLayerError
from lutwise.export.check import check
from lutwise.export.graph import DOMAIN
from lutwise.export.qcdq import to_qcdq
from lutwise.export.qonnx import METADATA_KEY, to_qonnx
from lutwise.export.reader import load_qonnx, read_layers
from lutwise.export.run import run_qonnx
from lutwise.export.runnable import Runner, runnable
from lutwise.quant.formats import Format, parse_element
from lutwise.quant.network import Network
from tests.quant.nets import NETS, make, network_of


def quantized(name: str, fmt: str, mode: str = "dataflow") -> Network:
    return network_of(*make(name), fmt, fmt, mode)


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
    "activations", "accumulator_bits", "output", "groups",
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
        (
            {"nodes": [quant("x", "xq", "x_scale", 8),
                       quant("w", "wq", "w_scale", rounding_mode="FLOOR"),
                       helper.make_node("Gemm", ["xq", "wq"], ["y"], name="fc", transB=1)],
             "constants": {"w": np.full((3, 5), 0.3, np.float32)}},
            ModelError, r"Gemm 'fc': 15 of 15 weights are not on the grid of int4 that their "
            r"quantizer declares, and it rounds by 'FLOOR', .*the first at \(0, 0\): 0.6 times the "
            "scale; write quantized weights",
        ),
        ({"constants": {"w": np.array([[1, 2, 3, 4, np.nan]] * 3, np.float32)}},
         ModelError, r"Gemm 'fc': 3 of 15 weights are not finite, the first at \(0, 4\): nan; "
         "export it from a checkpoint without"),
        ({"constants": {"bias": np.array([1, np.inf, 0], np.float32)}},
         ModelError, "Gemm 'fc': its bias 'bias' is not finite at 1; export it from a checkpoint"),
        ({"constants": {"w_scale": np.array([[1], [0], [1]], np.float32)}},
         ModelError, "Quant 'wq': its scale is 0.0; wanted positive float32 numbers; export"),
        ({"constants": {"x_scale": np.float32(np.nan)}}, ModelError, "its scale is nan"),
        ({"constants": {"w_scale": np.ones((2, 5), np.float32)}},
         ModelError, r"its weights have the shape \(2, 5\), which does not go with"),
        ({"constants": {"w_scale": np.array([[1, 1, 1, 1, 2]], np.float32)}},
         UnsupportedLayerError, "several scales within one output"),
        ({"constants": {"x_scale": np.array([[1, 1, 1, 1, 2]], np.float32)}},
         UnsupportedLayerError, "its input has 5 scales, so that its products have no common unit"),
        ({"constants": {"bits8": np.array([7, 8], np.float32)}},
         UnsupportedLayerError, r"Quant 'xq': its bits are \[7.0, 8.0\]; wanted one number"),
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
            UnsupportedLayerError, "Gemm 'fc': its input has no quantizer.*comes from the input of",
        ),
        (
            {"nodes": [quant("x", "xq", "x_scale", 8), quant("w", "wq", "w_scale"),
                       helper.make_node("Strange", ["xq"], ["xs"], name="s"),
                       helper.make_node("Gemm", ["xs", "wq"], ["y"], name="fc", transB=1)]},
            UnsupportedLayerError, "Gemm 'fc': its input has no quantizer.*comes from Strange 's', "
            "which does not keep the values of a format: quantize it behind that",
        ),
        (
            {"nodes": [quant("x", "xq", "x_scale", 8), quant("w", "wq", "w_scale"),
                       helper.make_node("Einsum", ["xq", "wq"], ["y"], name="e",
                                        equation="nc,oc->no")]},
            UnsupportedLayerError, "Einsum 'e' has weights and is not priced; wanted Conv, MatM",
        ),
        (
            {"nodes": [quant("x", "xq", "x_scale", 8), quant("w", "wq", "w_scale"),
                       helper.make_node("Relu", ["x"], ["b"]),
                       helper.make_node("Gemm", ["xq", "wq", "b"], ["y"], name="fc", transB=1)]},
            UnsupportedLayerError, "Gemm 'fc': its bias 'b' is computed; wanted a constant",
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


def test_weights_off_the_grid_become_what_their_quantizer_makes_of_them(tmp_path: Path) -> None:
    """As qonnx and ONNX Runtime compute them; Brevitas leaves the rounding to the file."""
    (layer,) = read(foreign(constants={"w": np.full((3, 5), 0.3, np.float32)}), tmp_path)
    # by row: 0.6, 1.2 and 0.2 times the scale are 1, 1 and 0
    high = max(5 * 255 + 8, 5 * 255 + -32, 8)
    assert layer.accumulator_bits == high.bit_length() + 1


def test_own_weights_off_their_grid_are_refused(tmp_path: Path) -> None:
    """lutwise writes quantized weights, so other ones mean that the file was changed."""
    model = to_qonnx(quantized("chain", "int4"))
    (held,) = (i for i in model.graph.initializer if i.name.endswith("0/weight"))
    weights = onnx.numpy_helper.to_array(held).copy()
    weights.reshape(-1)[3] += 0.25
    held.CopyFrom(onnx.numpy_helper.from_array(weights, held.name))
    with pytest.raises(ModelError, match=r"1 of .* weights are not on the grid of int4n .*; write"):
        read(model, tmp_path)


@pytest.mark.parametrize("notes", ["{", "[]", '{"tensors": {"x": {}}}', '{"layers": [{}]}'])
def test_damaged_notes_are_refused(notes: str, tmp_path: Path) -> None:
    model = foreign()
    helper.set_model_props(model, {METADATA_KEY: notes})
    with pytest.raises(ModelError, match=r"metadata 'lutwise\.network' is not what lutwise writes"):
        read(model, tmp_path)


@pytest.mark.parametrize("axis", [0, -2])
def test_stored_codes_of_weights_are_read(axis: int, tmp_path: Path) -> None:
    """``DequantizeLinear`` on integers: scales along an axis, no rounding."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "zero8"], ["xc"]),
        helper.make_node("DequantizeLinear", ["xc", "x_scale", "zero8"], ["xq"]),
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["wq"], axis=axis),
        helper.make_node("Gemm", ["xq", "wq"], ["y"], name="fc", transB=1),
    ]
    codes = np.random.default_rng(0).integers(-100, 100, (3, 5)).astype(np.int8)
    constants = {
        "codes": codes, "scales": np.array([0.5, 0.25, 1.5], np.float32), "zero8": np.uint8(0),
    }  # fmt: skip
    (layer,) = read(foreign(nodes=nodes, constants=constants), tmp_path)
    assert (str(layer.weights), str(layer.activations)) == ("int8", "uint8")
    wide = codes.astype(int)
    low = (np.minimum(wide, 0).sum(1) * 255).min()
    high = (np.maximum(wide, 0).sum(1) * 255).max()
    assert layer.accumulator_bits == max(int(high), ~int(low)).bit_length() + 1


@pytest.mark.parametrize(("fmt", "mode"), [("int8", "dataflow"), ("fp8_e4m3", "layerwise")])
def test_standard_operators_cost_what_the_net_costs(fmt: str, mode: str, tmp_path: Path) -> None:
    network = quantized("residual", fmt, mode)
    found = read(to_qcdq(to_qonnx(network)), tmp_path)
    for ours, theirs in zip(found, layer_shapes(network), strict=True):
        assert (ours.macs, ours.accumulator_bits) == (theirs.macs, theirs.accumulator_bits)
        assert ours.activations == theirs.activations


def stored_beside(folder: Path, location: str = "weights.bin") -> Path:
    path = folder / "net.onnx"
    folder.mkdir(exist_ok=True)
    onnx.save_model(
        foreign(), path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    if location != "weights.bin":
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        path.write_bytes(model.SerializeToString())
    return path


def test_weights_beside_the_file_are_loaded(tmp_path: Path) -> None:
    expected = read(foreign(), tmp_path)
    path = stored_beside(tmp_path)
    assert read_layers(load_qonnx(path)) == expected
    data = tmp_path / "weights.bin"
    whole = data.read_bytes()
    for content in (whole[:-1], b"", None):
        data.unlink()
        if content is not None:
            data.write_bytes(content)
        with pytest.raises(ModelError, match=r"net.onnx is no valid .* or weights beside it are m"):
            load_qonnx(path)


def test_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside.bin"
    outside.write_bytes(stored_beside(tmp_path / "in").with_name("weights.bin").read_bytes())
    (tmp_path / "in" / "link.bin").symlink_to(outside)
    for location in ("../outside.bin", str(outside), "link.bin"):
        path = stored_beside(tmp_path / "in", location)
        with pytest.raises(ModelError, match=r"no valid QONNX file, or weights beside it are miss"):
            load_qonnx(path)


def test_files_with_wrong_bytes_are_read_or_refused(tmp_path: Path) -> None:
    """Cut, changed or shortened anywhere: no other error than ours, and no warning."""
    draw = random.Random(0)
    whole = foreign().SerializeToString()
    path = tmp_path / "net.onnx"
    refused = 0
    for turn in range(300):
        content = bytearray(whole)
        at = draw.randrange(len(whole))
        if turn % 3 == 0:
            del content[at:]
        elif turn % 3 == 1:
            del content[at : at + draw.randrange(1, 9)]
        else:
            content[at] ^= draw.randrange(1, 256)
        path.write_bytes(content)
        for use in (read_layers, to_qcdq):
            try:
                use(load_qonnx(path))
            except LutwiseError:
                refused += 1
    assert 300 < refused < 600


@pytest.mark.parametrize("content", [b"", b"nonsense", None], ids=["empty", "nonsense", "cut"])
def test_damaged_files_are_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    whole = foreign().SerializeToString()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ModelError, match="no valid QONNX file"):
        load_qonnx(path)
    with pytest.raises(ModelError, match="does not exist"):
        load_qonnx(tmp_path / "missing.onnx")


def test_what_no_runtime_can_run_is_refused(tmp_path: Path) -> None:
    for nodes, words in (
        ([helper.make_node("Relu", ["nowhere"], ["y"])], "nowhere"),
        ([helper.make_node("Relu", ["b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])], "b"),
        ([helper.make_node("Relu", [], ["y"])], "Relu"),
    ):
        path = tmp_path / "net.onnx"
        path.write_bytes(foreign(nodes=nodes).SerializeToString())
        with pytest.raises(ModelError, match=rf"no valid QONNX file.*{words}"):
            load_qonnx(path)


def test_the_check_names_what_it_cannot_run(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model = foreign()
    model.graph.node[1].op_type = "Strange"
    path.write_bytes(model.SerializeToString())
    images = np.zeros((2, 5), np.float32)
    for runner in (Runner.QONNX, Runner.ONNXRUNTIME):
        one = runnable(str(path), runner)
        with pytest.raises(ToolError, match=f"{runner.value} .*failed"):
            check(one, one, images)


def brevitas_net(weights: str) -> Any:
    """Return a calibrated net of Brevitas: int8 in, 4-bit weights per channel, uint4 between."""
    with warnings.catch_warnings():
        # of an optional package, on import
        warnings.filterwarnings("ignore", message="fast_hadamard_transform package not found")
        import brevitas.nn as qnn
        from brevitas.quant import (
            Int8ActPerTensorFloat,
            Int8WeightPerChannelFloat,
            Uint8ActPerTensorFloat,
        )
        from brevitas.quant.float_quant_ocp import FpOCPWeightPerChannelFloat
    quantizer = (
        Int8WeightPerChannelFloat.let(bit_width=4)
        if weights == "int4n"
        else FpOCPWeightPerChannelFloat.let(bit_width=4, exponent_bit_width=2, mantissa_bit_width=1)
    )
    torch.manual_seed(0)
    net = nn.Sequential(
        qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, return_quant_tensor=True),
        qnn.QuantConv2d(3, 6, 3, stride=2, padding=1, bias=True, weight_quant=quantizer),
        qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=4, return_quant_tensor=True),
        nn.Flatten(),
        qnn.QuantLinear(6 * 4 * 4, 10, bias=True, weight_quant=quantizer),
    )
    net.train()
    for _ in range(3):  # the ranges of activations are averages over batches
        net(torch.randn(16, 3, 8, 8))
    return net.eval()


def accumulator_bits(layer: Any, step: float, low: int, high: int, unit: float) -> int:
    """Return the width of a layer's sums, by the weights that Brevitas itself makes."""
    weight = layer.quant_weight()
    scale = weight.scale.detach().numpy().astype(np.float64).reshape(-1)
    real = weight.value.detach().numpy().astype(np.float64).reshape(len(layer.bias), -1)
    codes = np.round(real / scale[:, None] / unit).astype(int)
    bias = np.round(layer.bias.detach().numpy() / (scale * step * unit)).astype(int)
    up, down = np.maximum(codes, 0).sum(1), np.minimum(codes, 0).sum(1)
    largest = (up * high + down * low + np.maximum(bias, 0)).max()
    smallest = (up * low + down * high + np.minimum(bias, 0)).min()
    return max(int(largest), ~int(smallest)).bit_length() + 1


@pytest.mark.parametrize(("weights", "unit"), [("int4n", 1.0), ("e2m1", 0.5)])
def test_files_of_brevitas_are_read_and_run(weights: str, unit: float, tmp_path: Path) -> None:
    pytest.importorskip("onnxoptimizer", reason="Brevitas exports with it")
    from brevitas.export import export_qonnx

    net = brevitas_net(weights)
    path = tmp_path / "brevitas.onnx"
    export_qonnx(net, args=torch.zeros(1, 3, 8, 8), export_path=str(path), dynamo=False)
    layers = read_layers(load_qonnx(path))

    found = [
        (s.kind, s.dot_length, s.outputs, s.output_pixels, s.macs, s.weight_count) for s in layers
    ]
    assert found == [("conv", 27, 6, 16, 2592, 162), ("linear", 96, 10, 1, 960, 960)]
    formats: list[tuple[Format, Format, Format | None]] = [
        (s.weights, s.activations, s.output) for s in layers
    ]
    held, eight, four = (parse_element(name) for name in (weights, "int8", "uint4"))
    assert formats == [(held, eight, four), (held, four, None)]
    steps = [float(net[i].act_quant.scale()) for i in (0, 2)]
    assert [s.accumulator_bits for s in layers] == [
        accumulator_bits(net[1], steps[0], -128, 127, unit),
        accumulator_bits(net[4], steps[1], 0, 15, unit),
    ]

    images = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)
    # Scales are real numbers here, so that sums round; a code of four bits is 0.1 and more.
    compared = check(
        runnable(str(path), Runner.QONNX),
        runnable(str(path), Runner.ONNXRUNTIME),
        images,
        tolerance=1e-5,
    )
    assert compared.differences == ()
    assert (compared.images, compared.outputs) == (40, 400)
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    got = run_qonnx(load_qonnx(path), images, batch=1)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
