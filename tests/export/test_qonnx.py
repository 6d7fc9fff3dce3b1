# SPDX-License-Identifier: Apache-2.0
"""Graph shapes: every node of `Network`, in both graph modes."""

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import pytest
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.infer_datatypes import InferDataTypes
from qonnx.util.cleanup import cleanup_model

from lutwise.errors import ExportError
from lutwise.export.qonnx import METADATA_KEY, ConvolutionForm, to_qonnx
from lutwise.export.run import compare, run_onnxruntime, run_qonnx, with_batch
from lutwise.quant.accumulator import accumulator_for
from lutwise.quant.formats import parse_element, parse_weight
from lutwise.quant.network import Linear, Network, Pool, Quantize, Requantizer, Tensor
from lutwise.quant.numerics import decode, encode

INT8 = parse_element("int8")
UINT4 = parse_element("uint4")
W4 = parse_weight("int4")
E4M3 = parse_element("e4m3")
E2M1 = parse_element("e2m1")
UE2M2 = parse_element("ue2m2")
UE5M3 = parse_element("ue5m3")


def chain(s: Any) -> str:
    x = s.conv(s.quantize(INT8), 8, 3, W4, UINT4)
    x = s.conv(x, 8, 3, W4, UINT4, stride=2, padding=(0, 1, 1, 2))
    return s.linear(s.flatten(x), 10, parse_weight("int6"))  # type: ignore[no-any-return]


def quantized_output(s: Any) -> str:
    return s.linear(s.flatten(s.quantize(E2M1)), 7, E2M1, INT8)  # type: ignore[no-any-return]


def residual(s: Any) -> str:
    x = s.conv(s.quantize(INT8), 6, 3, W4, INT8)
    y = s.conv(x, 6, 3, W4, parse_element("int4"))
    x = s.add(x, y, UINT4, shifts=(0, 3))
    y = s.conv(x, 6, 3, E2M1, E4M3)
    return s.add(y, x, E4M3, shifts=(-2, 1))  # type: ignore[no-any-return]


def depthwise(s: Any) -> str:
    x = s.conv(s.quantize(INT8), 6, 1, W4, UE2M2, padding=(0, 0, 0, 0))
    x = s.conv(x, 6, 3, W4, UE2M2, groups=6, dilation=2, padding=(2, 2, 2, 2))
    x = s.conv(x, 12, 3, W4, UINT4, groups=3, stride=2)
    return s.linear(s.flatten(x), 5, W4)  # type: ignore[no-any-return]


def wide_convolutions(s: Any) -> str:
    x = s.conv(s.quantize(INT8), 6, 1, W4, UE2M2, padding=(0, 0, 0, 0), wide=True)
    x = s.conv(x, 6, 3, W4, UE2M2, groups=6, dilation=2, padding=(2, 2, 2, 2), wide=True)
    x = s.conv(x, 12, 3, W4, UINT4, groups=3, stride=2, wide=True)
    x = s.conv(x, 4, 1, W4, UINT4, stride=2, padding=(0, 0, 0, 0), wide=True)
    x = s.conv(x, 4, 2, W4, UE5M3, padding=(1, 0, 0, 1), wide=True)
    return s.conv(x, 5, 2, E4M3, None, padding=(0, 0, 0, 0))  # type: ignore[no-any-return]


def without_bias(s: Any) -> str:
    x = s.conv(s.quantize(E4M3), 6, 3, E4M3, INT8, bias=False)
    x = s.conv(x, 6, 3, W4, UINT4, bias=False)
    return s.linear(s.flatten(x), 5, W4, bias=False)  # type: ignore[no-any-return]


def concat_and_pads(s: Any) -> str:
    x = s.conv(s.quantize(INT8), 6, 3, W4, UINT4)
    y = s.conv(x, 3, 3, W4, UINT4)
    x = s.pad(s.concat(x, y, y), (1, 0, 0, 2))
    return s.linear(s.flatten(x), 5, W4)  # type: ignore[no-any-return]


def pools(s: Any) -> str:
    x = s.conv(s.quantize(INT8), 6, 3, W4, UINT4)
    x = s.pool(x, (3, 2), (1, 2), maximum=True, padding=(1, 0, 1, 1))
    x = s.pool(x, (2, 2), (1, 1), padding=(1, 0, 0, 1), out=UE2M2)
    x = s.pool(x, s.tensors[x].shape[1:], (1, 1), out=INT8)
    return s.linear(s.flatten(x), 5, W4)  # type: ignore[no-any-return]


def clamps(s: Any) -> str:
    x = s.quantize(UE2M2)
    x = s.conv(x, 6, 3, W4, INT8, low=0.0)
    x = s.conv(x, 6, 3, W4, UINT4, low=0.0, high=6.0)
    x = s.conv(x, 6, 3, W4, E4M3, low=-3.0, high=2.5)
    x = s.conv(x, 6, 3, W4, E4M3, low=-3.0)
    return s.conv(x, 6, 3, W4, E4M3, high=1.5)  # type: ignore[no-any-return]


def layerwise(s: Any) -> str:
    scales = tuple(Fraction(1, 90 + i) for i in range(6))
    x = s.clamp(s.conv(s.quantize(INT8), 6, 3, W4, None, scales=scales), 0.0, np.inf)
    y = s.conv(s.quantize(UE2M2, x), 6, 3, W4, None, scales=(Fraction(1, 77),))
    x = s.clamp(s.add(x, y, None), -np.inf, 3.1)
    x = s.pool(s.pad(x, (1, 1, 0, 0)), (3, 3), (2, 2), padding=(1, 1, 1, 1))
    y = s.clamp(s.conv(s.quantize(E4M3, x), 6, 3, E4M3, None), -1.0, np.inf)
    x = s.pool(s.concat(s.clamp(x, 0.1, 0.9), y), (2, 2), (1, 1), maximum=True)
    x = s.pool(x, s.tensors[x].shape[1:], (1, 1))
    return s.linear(s.quantize(INT8, s.flatten(x)), 5, W4)  # type: ignore[no-any-return]


def tokens(s: Any) -> str:
    x = s.linear(s.quantize(INT8), 12, W4, UINT4)
    x = s.linear(x, 6, E4M3, E4M3)
    return s.linear(s.flatten(x), 5, W4)  # type: ignore[no-any-return]


IMAGES: tuple[Callable[[Any], str], ...] = (
    chain,
    quantized_output,
    residual,
    depthwise,
    wide_convolutions,
    without_bias,
    concat_and_pads,
    pools,
    clamps,
    layerwise,
)
NETS: list[tuple[Callable[[Any], str], tuple[int, ...]]] = [
    *((net, (3, 8, 8)) for net in IMAGES),
    (tokens, (7, 8)),
]


@pytest.mark.parametrize(("net", "shape"), NETS, ids=[net.__name__ for net, _ in NETS])
def test_network_agrees(sketch: Any, net: Callable[[Any], str], shape: tuple[int, ...]) -> None:
    s = sketch(seed=5, shape=shape)
    network = s.network(net(s))
    model = to_qonnx(network)

    onnx.checker.check_model(model, full_check=True)
    report = compare(network, model, s.images(100))

    report.raise_if_differs()
    assert report.outputs == 100 * int(np.prod(network.tensors[network.output].shape))


def test_wide_convolutions_have_no_conv(sketch: Any) -> None:
    s = sketch(seed=5)
    network = s.network(wide_convolutions(s))

    wide = {n.op_type for n in to_qonnx(network).graph.node}
    plain = {n.op_type for n in to_qonnx(network, convolution=ConvolutionForm.FLOAT32).graph.node}

    assert "Conv" not in wide
    assert "Conv" in plain
    assert "MatMul" not in plain


def test_plain_convolution_of_wide_sums_is_close(sketch: Any) -> None:
    s = sketch(seed=5)
    network = s.network(s.conv(s.quantize(E4M3), 8, 3, E4M3, INT8))
    assert network.nodes[1].accumulator.magnitude_bits > 24

    report = compare(network, to_qonnx(network, convolution=ConvolutionForm.FLOAT32), s.images(50))

    assert all(a.mismatches < report.outputs // 100 for a in report.agreements)


def test_same_network_gives_same_bytes(sketch: Any) -> None:
    def serialized() -> bytes:
        s = sketch(seed=3)
        return bytes(to_qonnx(s.network(residual(s))).SerializeToString())

    assert serialized() == serialized()


def test_batch_is_free_and_shapes_are_stated(sketch: Any) -> None:
    s = sketch(seed=3)
    model = to_qonnx(s.network(pools(s)))

    infos = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    stated = {i.name: i.type.tensor_type.shape.dim for i in infos}

    assert {name for n in model.graph.node for name in n.output} <= stated.keys()
    for dims in stated.values():
        assert all(d.dim_value > 0 or d.dim_param == "N" for d in dims)
    assert stated["image"][0].dim_param == "N"


def test_stated_shapes_equal_inferred_ones(sketch: Any) -> None:
    s = sketch(seed=3)
    model = to_qonnx(s.network(wide_convolutions(s)))
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]

    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True)
    stated = {i.name: i for i in model.graph.value_info}

    for info in inferred.graph.value_info:
        mine, theirs = stated[info.name].type.tensor_type, info.type.tensor_type
        assert mine.elem_type == theirs.elem_type, info.name
        if theirs.HasField("shape"):
            known = [
                (a, b) for a, b in zip(mine.shape.dim, theirs.shape.dim, strict=True) if b.dim_value
            ]
            assert all(a.dim_value == b.dim_value for a, b in known), info.name


def test_qonnx_infers_true_types(sketch: Any) -> None:
    s = sketch(seed=3)
    x = s.conv(s.quantize(INT8), 4, 3, W4, UINT4)
    network = s.network(s.conv(x, 4, 3, E2M1, E4M3))

    model = ModelWrapper(to_qonnx(network)).transform(InferDataTypes())

    found = {
        name: model.get_tensor_datatype(name).name
        for name in ("quantize0:out", "conv1/weight_values", "conv1:out", "conv2:out")
    }
    assert found == {
        "quantize0:out": "INT8",
        "conv1/weight_values": "INT4",
        "conv1:out": "UINT4",
        "conv2:out": "FLOAT<4,3,7>",
    }
    assert model.get_tensor_datatype("conv2/weight_values").name == "FLOAT<2,1,1>"


def test_weights_are_kept_as_values_under_their_quantizer(sketch: Any) -> None:
    s = sketch(seed=3)
    network = s.network(chain(s))
    model = to_qonnx(network)
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}

    for layer in network.layers():
        kept = constants[f"{layer.name}/weight"]
        if layer.weight_codes.ndim == 2:
            kept = kept.T
        np.testing.assert_array_equal(kept, layer.weight_values)
        readers = [n for n in model.graph.node if f"{layer.name}/weight" in n.input]
        assert [n.op_type for n in readers] == ["Quant"]


@pytest.mark.parametrize("net", [chain, residual])
def test_weight_codes_lie_beside_the_weights(sketch: Any, net: Callable[[Any], str]) -> None:
    s = sketch(seed=3)
    network = s.network(net(s))
    model = to_qonnx(network)
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    read = {name for node in model.graph.node for name in node.input}

    for layer in network.layers():
        codes = constants[f"{layer.name}/weight_codes"]
        assert codes.dtype == np.uint8
        assert f"{layer.name}/weight_codes" not in read
        np.testing.assert_array_equal(
            decode(layer.weight_format, codes), constants[f"{layer.name}/weight"]
        )


def bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a file without what no runtime needs: codes of weights and annotations."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kept = [i for i in model.graph.initializer if not i.name.endswith("/weight_codes")]
    del result.graph.initializer[:], result.graph.quantization_annotation[:]
    result.graph.initializer.extend(kept)
    return result


@pytest.mark.parametrize("net", [chain, residual, wide_convolutions, layerwise])
def test_codes_and_annotations_change_no_bit(sketch: Any, net: Callable[[Any], str]) -> None:
    s = sketch(seed=5)
    model, images = to_qonnx(s.network(net(s))), s.images(20)

    found = run_qonnx(model, images)
    assert found.tobytes() == run_qonnx(bare(model), images).tobytes()
    assert found.tobytes() == run_onnxruntime(model, images).tobytes()

    cleaned = cleanup_model(ModelWrapper(with_batch(model, 20))).model
    assert not any("weight_codes" in i.name for i in cleaned.graph.initializer)
    np.testing.assert_array_equal(run_qonnx(cleaned, images, batch=20), found)


@pytest.mark.parametrize("net", [chain, depthwise, wide_convolutions, clamps])
def test_sums_and_biases_have_the_types_of_their_widths(
    sketch: Any, net: Callable[[Any], str]
) -> None:
    s = sketch(seed=5)
    network = s.network(net(s))
    model = ModelWrapper(to_qonnx(network))

    fractions = 0
    for layer in network.layers():
        unit = Fraction(2) ** layer.accumulator.unit_exponent
        for tensor in ("sum", "biased"):
            found = model.get_tensor_datatype(f"{layer.name}/{tensor}")
            assert found.bitwidth() == layer.accumulator.bits
            assert Fraction(found.min()) == -(2 ** (layer.accumulator.bits - 1)) * unit
            assert found.is_integer() == (unit == 1)
            fractions += not found.is_integer()
        bias = f"{layer.name}/bias"
        found = model.get_tensor_datatype(bias)
        assert found.allowed(model.get_initializer(bias)).all()
        # One bit less would not do.
        largest = max(max(codes := layer.bias_codes.tolist()), -min(codes) - 1)
        assert found.bitwidth() == largest.bit_length() + 1
    assert (fractions == 0) == (net is chain)
    annotated = {a.tensor_name for a in model.graph.quantization_annotation}
    assert not any("weight" in name for name in annotated)


def test_units_above_one_are_left_to_the_metadata(sketch: Any) -> None:
    # Its values are -2, 0 and 2.
    s = sketch(seed=5)
    coarse = parse_element("e1m0")
    assert coarse.unit_exponent > 0
    network = s.network(s.conv(s.quantize(coarse), 4, 3, W4, UINT4))
    model = to_qonnx(network)

    assert network.nodes[1].accumulator.unit_exponent > 0
    assert not model.graph.quantization_annotation
    compare(network, model, s.images(20)).raise_if_differs()


def test_constants_beyond_one_file_are_refused(
    sketch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = sketch(seed=3)
    network = s.network(chain(s))
    size = sum(len(i.raw_data) for i in to_qonnx(network).graph.initializer)

    monkeypatch.setattr("lutwise.export.graph._MOST_BYTES", size)
    to_qonnx(network)
    monkeypatch.setattr("lutwise.export.graph._MOST_BYTES", size - 1)
    with pytest.raises(
        ExportError,
        match=rf"up to {size - 1} bytes of constants, those of 'sketch' are {size}, the largest "
        r"'linear4/weight' with \d+; export the network in parts",
    ):
        to_qonnx(network)


def test_metadata_describes_the_network(sketch: Any) -> None:
    s = sketch(seed=3)
    network = s.network(residual(s))
    properties = {p.key: p.value for p in to_qonnx(network).metadata_props}

    described = json.loads(properties[METADATA_KEY])

    assert properties["lutwise.version"]
    for name, tensor in network.tensors.items():
        kept = described["tensors"][name]
        assert kept["format"] == (None if tensor.format is None else str(tensor.format))
        assert Fraction(kept["scale"]) == tensor.scale
    for layer, kept in zip(network.layers(), described["layers"], strict=True):
        assert kept["weight_format"] == str(layer.weight_format)
        assert kept["accumulator"]["bits"] == layer.accumulator.bits
        assert kept["exact"]


def test_format_beyond_float32_is_refused(sketch: Any) -> None:
    s = sketch(seed=3)
    network = s.network(s.quantize(parse_element("ue8m0")))

    with pytest.raises(ExportError, match=r"output of Quantize 'quantize0' has the format ue8m0"):
        to_qonnx(network)


def test_weight_format_beyond_float32_is_refused(sketch: Any) -> None:
    s = sketch(seed=3)
    network = s.network(chain(s))
    layer = replace(network.nodes[1], weight_format=parse_element("ue8m0"))
    broken = replace(network, nodes=(network.nodes[0], layer, *network.nodes[2:]))

    with pytest.raises(ExportError, match=r"the weight of Conv 'conv1' has the format ue8m0"):
        to_qonnx(broken)


def test_pool_with_too_much_padding_is_refused() -> None:
    image = Tensor(name="image", shape=(1, 4, 4))
    out = Tensor(name="out", shape=(1, 7, 7))
    pool = Pool(
        name="pool",
        input="image",
        output="out",
        maximum=True,
        kernel=(2, 2),
        stride=(1, 1),
        padding=(2, 2, 2, 2),
        requantizer=None,
    )
    network = Network(
        name="n", input="image", output="out", nodes=(pool,), tensors={"image": image, "out": out}
    )

    with pytest.raises(ExportError, match="Pool 'pool' pads by"):
        to_qonnx(network)


def test_ties_round_to_even_behind_the_multiplier(sketch: Any) -> None:
    """Half the sums of a 1x1 convolution by one, halved, are ties."""
    s = sketch(seed=3, shape=(1, 4, 4))
    x = s.quantize(INT8)
    x = s.conv(x, 1, 1, W4, INT8, padding=(0, 0, 0, 0), bias=False)
    network = s.network(x)
    halve = Requantizer(
        multiplier=np.array([1 << 15]), shift=np.array([16]), low=-128.0, high=127.0
    )
    layer = replace(
        network.nodes[1],
        weight_codes=np.ones((1, 1, 1, 1), dtype=np.uint8),
        requantizer=halve,
    )
    network = replace(network, nodes=(network.nodes[0], layer))

    compare(network, to_qonnx(network), s.images(200)).raise_if_differs()


@pytest.mark.parametrize("tokens", [(), (2,)], ids=["features", "tokens"])
def test_sums_beyond_float64_round_and_say_so(tokens: tuple[int, ...]) -> None:
    """1.25 + 2**-56 lies above a tie of e6m1; float64 holds no such sum."""
    fmt = parse_element("e6m1")
    weights = np.array([[1, 0.25, 2.0**-28], [1, 0.25, -(2.0**-28)]])
    bias = np.array([0, 0], dtype=object)
    layer = Linear(
        name="layer",
        input="values",
        output="out",
        weight_format=fmt,
        weight_codes=encode(fmt, weights),
        weight_scales=(Fraction(1),),
        bias_codes=bias,
        accumulator=accumulator_for(weights, fmt, fmt, bias),
        requantizer=Requantizer(
            multiplier=np.array([1 << 15] * 2),
            shift=np.array([15] * 2),
            low=fmt.min_value,
            high=fmt.max_value,
        ),
    )
    tensors = (
        Tensor(name="image", shape=(*tokens, 3)),
        Tensor(name="values", shape=(*tokens, 3), format=fmt),
        Tensor(name="out", shape=(*tokens, 2), format=fmt),
    )
    network = Network(
        name="tie",
        input="image",
        output="out",
        nodes=(Quantize(name="quantize", input="image", output="values"), layer),
        tensors={t.name: t for t in tensors},
    )
    images = np.full((1, *tokens, 3), [1, 1, 2.0**-28], dtype=np.float32)
    model = to_qonnx(network)

    report = compare(network, model, images)
    described = json.loads({p.key: p.value for p in model.metadata_props}[METADATA_KEY])

    assert not described["layers"][0]["exact"]
    assert [(a.expected, a.got) for a in report.agreements] == [(1.5, 1.0)] * 2
    assert all(a.mismatches == report.outputs // 2 for a in report.agreements)
