# SPDX-License-Identifier: Apache-2.0
"""Files for FINN: qonnx runs them to the exact executor's numbers, tensor by tensor."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx

from lutwise.errors import ExportError
from lutwise.export.finn import MAX_STEPS, image_thresholds, to_finn
from lutwise.export.integer_graph import FLAVOUR_KEY
from lutwise.export.integers import units
from lutwise.export.run import run_qonnx
from lutwise.quant.executor import execute, trace
from lutwise.quant.formats import Format, parse_element, parse_weight
from lutwise.quant.network import Conv, Network, Operator, Requantizer
from lutwise.quant.numerics import quantize
from lutwise.quant.operation import Operation
from tests.export.topologies import (
    Formats,
    Topology,
    concat_and_pad,
    flat_image,
    formats,
    pools,
)

INT8 = parse_element("int8")
INT4 = parse_element("int4")
UINT4 = parse_element("uint4")
W4 = parse_weight("int4")
E2M1 = parse_element("e2m1")
UE2M2 = parse_element("ue2m2")


def chain(s: Any, f: Formats) -> str:
    weights, signed, unsigned = f
    x = s.conv(s.quantize(signed), 6, 3, weights, unsigned)
    x = s.conv(x, 4, 3, weights, unsigned, stride=2, padding=(0, 1, 1, 2), high=top(unsigned))
    return s.linear(s.flatten(x), 5, weights)  # type: ignore[no-any-return]


def residual(s: Any, f: Formats) -> str:
    weights, signed, unsigned = f
    x = s.conv(s.quantize(signed), 4, 3, weights, signed)
    y = s.conv(x, 4, 3, weights, signed, bias=False)
    y = s.add(x, y, unsigned, shifts=(-1, 2))
    x = s.conv(y, 4, 1, weights, signed, padding=(0, 0, 0, 0), low=0.0)
    return s.add(x, y, signed, shifts=(3, 0))  # type: ignore[no-any-return]


def depthwise(s: Any, f: Formats) -> str:
    weights, signed, unsigned = f
    x = s.conv(s.quantize(signed), 6, 1, weights, unsigned, padding=(0, 0, 0, 0))
    x = s.conv(x, 6, 3, weights, unsigned, groups=6, dilation=2, padding=(2, 2, 2, 2))
    x = s.conv(x, 6, 3, weights, signed, groups=3, stride=2)
    return s.conv(x, 3, 2, weights, None, padding=(0, 0, 0, 0))  # type: ignore[no-any-return]


def top(fmt: Format) -> float:
    """Return a bound inside the range, as of a ReLU6."""
    return float(quantize(fmt, np.array([fmt.max_value * 0.6]))[0])


TOPOLOGIES: tuple[Topology, ...] = (chain, residual, depthwise, pools, concat_and_pad, flat_image)
FORMATS = (
    ("int4", "int4", "uint4"),
    ("int8", "int8", "uint8"),
    ("e2m1", "e2m1", "ue2m2"),
    ("e3m0", "e2m1", "ue2m1"),  # its ties go up between powers of two
    ("int3", "e3m0", "ue3m0"),
    ("e2m2", "int4", "ue3m1"),
)


def context(
    model: onnx.ModelProto, image: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return every tensor that qonnx computes for one image."""
    found: dict[str, npt.NDArray[np.float32]] = execute_onnx(
        ModelWrapper(model), {model.graph.input[0].name: image[None]}, return_full_exec_context=True
    )
    return found


@pytest.mark.parametrize("names", FORMATS, ids="-".join)
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: t.__name__)
def test_qonnx_runs_the_file_exactly(sketch: Any, topology: Topology, names: Any) -> None:
    s = sketch(seed=11, shape=(3, 6, 6))
    network = s.network(topology(s, formats(*names)))
    model = to_finn(network)
    images = s.images(8)

    onnx.checker.check_model(model, full_check=True)
    found = run_qonnx(model, images, batch=1)

    wanted = execute(network, images)
    if network.tensors[network.output].format is None:
        # A float output rounds once more: at the product.
        np.testing.assert_allclose(found, wanted, rtol=2.0**-22, atol=1e-30)
    else:
        np.testing.assert_array_equal(found, wanted)
    assert len(np.unique(wanted)) > 5  # else this compares little


@pytest.mark.parametrize("names", FORMATS, ids="-".join)
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: t.__name__)
def test_tensors_keep_their_names_and_hold_units(
    sketch: Any, topology: Topology, names: Any
) -> None:
    s = sketch(seed=12, shape=(3, 6, 6))
    network = s.network(topology(s, formats(*names)))
    model = to_finn(network)
    image = s.images(1)
    (wanted,) = trace(network, image, keep=True)

    found = context(model, image[0])

    # A pad is folded into the convolutions that read it.
    folded = {n.output for n in network.nodes if type(n).__name__ == "Pad"}
    compared = [t for t in network.tensors.values() if t.format and t.name not in folded]
    assert len(compared) >= 2
    for spec in compared:
        assert spec.format is not None
        counted = units(spec.format, wanted[spec.name].astype(np.float64))
        np.testing.assert_array_equal(found[spec.name], counted, err_msg=spec.name)


STEPS = [1.0, 0.25, 2.0**-9, 0.1, 0.7310585, 3.3333333, 1.7e-5]


@pytest.mark.exhaustive
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "name", ["int2", "int8", "uint8", "e2m1", "ue2m2", "e3m0", "e1m3", "ue2m1", "e3m2", "ue3m3"]
)
def test_image_thresholds_are_where_rounding_rises(name: str, step: float) -> None:
    """Powers of two as scales make middles that are exact ties."""
    fmt, scale = parse_element(name), np.float32(step)
    random = np.random.default_rng(7)

    points = image_thresholds(fmt, scale)

    spread = np.float32(fmt.max_value * 1.2)
    x = np.concatenate(
        [
            points,
            np.nextafter(points, np.float32(-np.inf)),
            np.nextafter(points, np.float32(np.inf)),
            (random.uniform(-1, 1, 300).astype(np.float32) * spread) * scale,
            np.array([0.0, -0.0, 1e30, -1e30, 1e-38], dtype=np.float32),
        ]
    )
    assert points.dtype == x.dtype == np.float32
    assert (np.diff(points) >= 0).all()
    reached = (x[:, None] >= points).sum(1) + units(fmt, np.array([fmt.min_value]))[0]
    # The network's own definition: the quotient is rounded to float32 first.
    np.testing.assert_array_equal(reached, units(fmt, quantize(fmt, x / scale).astype(np.float64)))


def test_weights_and_thresholds_have_the_types_of_the_formats(sketch: Any) -> None:
    s = sketch(seed=3)
    e3m0, uint8 = parse_element("e3m0"), parse_element("uint8")
    x = s.conv(s.quantize(INT8), 4, 3, W4, UE2M2)
    x = s.conv(x, 4, 3, E2M1, E2M1)
    x = s.conv(x, 4, 3, e3m0, E2M1, low=0.0)
    network = s.network(s.conv(x, 4, 3, W4, uint8, high=100.0))
    model = to_finn(network)
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    weights = {
        node.input[0]: (
            int(constants[node.input[3]]),
            {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
        )
        for node in model.graph.node
        if node.op_type == "Quant"
    }
    types = {
        node.output[0]: {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for node in model.graph.node
        if node.op_type == "MultiThreshold"
    }

    signed = {"signed": 1, "narrow": 1, "rounding_mode": b"ROUND"}
    assert weights == {
        "conv1/weight": (4, signed),
        "conv2/weight": (5, signed),
        "conv3/weight": (8, signed),
        "conv4/weight": (4, signed),
    }
    assert {name: (t["out_dtype"], t["out_bias"]) for name, t in types.items()} == {
        "quantize0:out": (b"INT8", -128.0),
        "conv1:out": (b"UINT5", 0.0),
        "conv2:out": (b"INT5", -12.0),
        "conv3:out": (b"UINT4", 0.0),
        "conv4:out": (b"UINT7", 0.0),
    }
    assert all((t["out_scale"], t["data_layout"]) == (1.0, b"NCHW") for t in types.values())
    shapes = {name: constants[f"{name[:-4]}/thresholds"].shape for name in types}
    assert shapes["quantize0:out"] == (1, 255)
    assert shapes["conv1:out"] == (4, 28)
    assert shapes["conv4:out"] == (4, 100)
    for layer in network.layers():
        np.testing.assert_array_equal(
            constants[f"{layer.name}/weight"], units(layer.weight_format, layer.weight_values)
        )


def test_output_of_a_minifloat_is_scaled_to_values(sketch: Any) -> None:
    s = sketch(seed=3)
    network = s.network(s.conv(s.quantize(INT4), 4, 3, W4, E2M1))

    last = to_finn(network).graph.node[-1]

    assert (last.op_type, last.output[0]) == ("Mul", "conv1:out/values")


def test_file_says_what_it_is_and_has_a_batch_of_one(sketch: Any) -> None:
    s = sketch(seed=3)
    model = to_finn(s.network(chain(s, formats("int4", "int4", "uint4"))))

    assert {p.key: p.value for p in model.metadata_props}[FLAVOUR_KEY] == "FINN"
    for info in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        assert all(d.dim_value > 0 for d in info.type.tensor_type.shape.dim), info.name
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_same_network_gives_same_bytes(sketch: Any) -> None:
    def serialized() -> bytes:
        s = sketch(seed=3)
        network = s.network(residual(s, formats("e2m1", "e2m1", "ue2m2")))
        return bytes(to_finn(network).SerializeToString())

    assert serialized() == serialized()


def halved(network: Network) -> Network:
    """Return a network whose last layer halves the image: each odd number is a tie."""
    node = network.nodes[-1]
    assert isinstance(node, Conv)
    requantizer = Requantizer(
        multiplier=np.array([1 << 15]), shift=np.array([16]), low=-128.0, high=127.0
    )
    layer = replace(
        node,
        weight_codes=np.ones((1, 1, 1, 1), dtype=np.uint8),
        requantizer=requantizer,
    )
    return replace(network, nodes=(network.nodes[0], layer))


def test_ties_round_to_even(sketch: Any) -> None:
    s = sketch(seed=3, shape=(1, 4, 4))
    x = s.conv(s.quantize(INT8), 1, 1, W4, INT8, padding=(0, 0, 0, 0), bias=False)
    network = halved(s.network(x))
    model = to_finn(network)
    images = s.images(16)

    wanted = execute(network, images)
    halves = next(trace(network, images, keep=True))["quantize0:out"] / 2

    assert (halves % 1 != 0).sum() > 50
    np.testing.assert_array_equal(wanted, np.rint(halves))
    np.testing.assert_array_equal(run_qonnx(model, images, batch=1), wanted)


def float_clamp(s: Any) -> str:
    x = s.conv(s.quantize(INT4), 4, 3, W4, None)
    return s.clamp(x, 0.0, 1.0)  # type: ignore[no-any-return]


def float_quantize(s: Any) -> str:
    x = s.conv(s.quantize(INT4), 4, 3, W4, None)
    return s.quantize(INT4, x)  # type: ignore[no-any-return]


def float_add(s: Any) -> str:
    x = s.conv(s.quantize(INT4), 4, 3, W4, None)
    return s.add(x, x, None)  # type: ignore[no-any-return]


def float_average(s: Any) -> str:
    x = s.conv(s.quantize(INT4), 4, 3, W4, None)
    return s.pool(x, (2, 2), (2, 2))  # type: ignore[no-any-return]


def many_thresholds(s: Any) -> str:
    return s.conv(s.quantize(INT4), 4, 3, W4, parse_element("e4m3"))  # type: ignore[no-any-return]


def many_image_thresholds(s: Any) -> str:
    return s.quantize(parse_element("ue5m3"))  # type: ignore[no-any-return]


def wide_sums(s: Any) -> str:
    return s.conv(s.quantize(INT8), 4, 3, W4, INT8, wide=True)  # type: ignore[no-any-return]


def wide_addends(s: Any) -> str:
    x = s.quantize(INT8)
    return s.add(x, x, INT8, shifts=(0, 18))  # type: ignore[no-any-return]


def pad_before_a_pool(s: Any) -> str:
    x = s.pad(s.quantize(INT4), (1, 1, 1, 1))
    return s.pool(x, (2, 2), (2, 2), out=INT4)  # type: ignore[no-any-return]


def pad_at_the_end(s: Any) -> str:
    return s.pad(s.quantize(INT4), (1, 1, 1, 1))  # type: ignore[no-any-return]


def wide_max_pool(s: Any) -> str:
    return s.pool(  # type: ignore[no-any-return]
        s.quantize(INT4), (2, 2), (1, 1), maximum=True, padding=(2, 2, 2, 2)
    )


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (float_clamp, r"Clamp 'clamp2' has no form for FINN: it works on float tensors"),
        (float_quantize, r"Quantize 'quantize2' .* was computed in float"),
        (float_add, r"Add 'add2' has no form for FINN: it adds float tensors"),
        (float_average, r"Pool 'pool2' has no form for FINN: it averages float tensors"),
        (many_thresholds, rf"'conv1' rounds to e4m3, .* FINN gets at most {MAX_STEPS}"),
        (many_image_thresholds, r"'quantize0' rounds to ue5m3, .* use a format with fewer"),
        (wide_sums, r"Conv 'conv1': its sums of int4n times inputs need 25 bits"),
        (wide_addends, r"Add 'add1': its sums need 26 bits in integers; FINN"),
        (pad_before_a_pool, r"Pad 'pad1' .* zeros are put around the inputs of convolutions"),
        (pad_at_the_end, r"Pad 'pad1' .* zeros are put around the inputs of convolutions"),
        (wide_max_pool, r"Pool 'pool1' .* it pads by \(2, 2, 2, 2\) around windows of \(2, 2\)"),
    ],
)
def test_refusals_name_the_node_and_the_reason(
    sketch: Any, net: Callable[[Any], str], message: str
) -> None:
    s = sketch(seed=3)
    network = s.network(net(s))

    with pytest.raises(ExportError, match=message):
        to_finn(network)


def test_float_operator_is_refused(sketch: Any) -> None:
    s = sketch(seed=3)
    network = s.network(float_clamp(s))
    operator = Operator(
        name="gelu",
        operation=next(iter(Operation)),
        operands=("conv1:out",),
        output="clamp2:out",
        attributes={},
    )
    network = replace(network, nodes=(*network.nodes[:-1], operator))

    with pytest.raises(ExportError, match="Operator 'gelu' has no form for FINN"):
        to_finn(network)


def test_average_over_too_many_numbers_is_refused(sketch: Any) -> None:
    s = sketch(seed=3, shape=(1, 140, 140))
    x = s.quantize(parse_element("ue3m3"))  # up to 960 units each
    network = s.network(s.pool(x, (140, 140), (1, 1), out=INT4))

    with pytest.raises(ExportError, match=r"Pool 'pool1': its sums need 25 bits in integers; FINN"):
        to_finn(network)


def test_linear_layer_over_tokens_is_refused(sketch: Any) -> None:
    s = sketch(seed=3, shape=(7, 8))
    network = s.network(s.linear(s.quantize(INT4), 5, W4))

    with pytest.raises(ExportError, match=r"Linear 'linear1' .* the shape \(7, 5\)"):
        to_finn(network)


def test_scales_per_channel_reach_the_output(sketch: Any) -> None:
    s = sketch(seed=3)
    scales = tuple(Fraction(1, 50 + 7 * i) for i in range(4))
    network = s.network(s.conv(s.quantize(INT4), 4, 3, W4, None, scales=scales))
    images = s.images(4)

    found = run_qonnx(to_finn(network), images, batch=1)

    np.testing.assert_allclose(found, execute(network, images), rtol=2.0**-22, atol=1e-30)
