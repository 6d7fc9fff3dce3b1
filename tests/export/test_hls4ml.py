# SPDX-License-Identifier: Apache-2.0
"""Files for hls4ml: qonnx runs them to the exact executor's codes, and so does hls4ml's C++."""

import re
import shutil
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx

from lutwise.errors import ExportError, ToolError
from lutwise.export.hls4ml import DEFAULT_PRECISION, MAX_BITS, PRECISION_KEY, Emulation, to_hls4ml
from lutwise.export.integer_graph import FLAVOUR_KEY
from lutwise.export.integers import units
from lutwise.export.qonnx import to_qonnx
from lutwise.export.run import run_qonnx
from lutwise.quant.executor import execute, trace
from lutwise.quant.formats import Format, parse_element, parse_weight, values
from lutwise.quant.network import Network, Pad
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

Images = npt.NDArray[np.float32]


def inside(fmt: Format) -> float:
    """Return a value at three quarters of a format's positive ones, as of a ReLU6."""
    positive = values(fmt)[values(fmt) > 0]
    return float(positive[len(positive) * 3 // 4 - 1])


def chain(s: Any, f: Formats) -> str:
    weights, signed, unsigned = f
    x = s.conv(s.quantize(signed), 6, 3, weights, unsigned, high=inside(unsigned))
    x = s.conv(x, 4, 3, weights, signed, stride=2, padding=(0, 1, 1, 2), low=0.0)
    return s.linear(s.flatten(x), 5, weights)  # type: ignore[no-any-return]


def residual(s: Any, f: Formats) -> str:
    weights, signed, unsigned = f
    x = s.conv(s.quantize(signed), 4, 3, weights, signed)
    y = s.conv(x, 4, 3, weights, signed, bias=False)
    y = s.add(x, y, unsigned, shifts=(-1, 2))
    x = s.conv(y, 4, 1, weights, signed, padding=(0, 0, 0, 0), low=0.0, high=inside(signed))
    return s.add(x, y, signed, shifts=(3, 0))  # type: ignore[no-any-return]


def depthwise(s: Any, f: Formats) -> str:
    weights, signed, unsigned = f
    x = s.conv(s.quantize(signed), 6, 1, weights, unsigned, padding=(0, 0, 0, 0))
    x = s.conv(x, 6, 3, weights, unsigned, groups=6, dilation=2, padding=(2, 2, 2, 2))
    x = s.conv(x, 6, 3, weights, signed, groups=6, stride=2)
    return s.conv(x, 3, 2, weights, None, padding=(0, 0, 0, 0))  # type: ignore[no-any-return]


def flat_output(s: Any, f: Formats) -> str:
    """Nothing reorders a flat output, so that the file does."""
    weights, signed, unsigned = f
    return s.flatten(s.conv(s.quantize(signed), 3, 3, weights, unsigned))  # type: ignore[no-any-return]


TOPOLOGIES: tuple[Topology, ...] = (
    chain,
    residual,
    depthwise,
    pools,
    concat_and_pad,
    flat_image,
    flat_output,
)
FORMATS = (
    ("int4", "int4", "uint4"),
    ("int8", "int8", "uint8"),
    ("e2m1", "e2m1", "ue2m2"),
    ("e3m0", "e1m2", "ue1m3"),  # weights may be without mantissa
    ("int4", "e3m2", "ue3m1"),
)


def channels_last(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def context(model: onnx.ModelProto, images: Images) -> dict[str, Images]:
    """Return every tensor that qonnx computes, for all images at once.

    qonnx makes a session for each node, of which there are many, and each call.
    """
    batched = onnx.ModelProto()
    batched.CopyFrom(model)
    graph = batched.graph
    reached = {graph.input[0].name}
    for node in graph.node:
        if reached & set(node.input):
            reached |= set(node.output)
    for info in [*graph.input, *graph.output, *graph.value_info]:
        if info.name in reached:
            info.type.tensor_type.shape.dim[0].dim_value = len(images)
    found: dict[str, Images] = execute_onnx(
        ModelWrapper(batched),
        {graph.input[0].name: channels_last(images)},
        return_full_exec_context=True,
    )
    return found


@pytest.mark.parametrize("names", FORMATS, ids="-".join)
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: t.__name__)
def test_qonnx_runs_the_file_to_the_same_codes(sketch: Any, topology: Topology, names: Any) -> None:
    s = sketch(seed=21, shape=(3, 6, 6))
    network = s.network(topology(s, formats(*names)))
    model = to_hls4ml(network)
    images = s.images(4)
    onnx.checker.check_model(model, full_check=True)
    folded = {n.output for n in network.nodes if isinstance(n, Pad)}
    compared = [t for t in network.tensors.values() if t.format and t.name not in folded]

    (wanted,) = trace(network, images, keep=True)
    found = context(model, images)

    numbers = differences = 0
    for spec in compared:
        assert spec.format is not None
        counted = channels_last(units(spec.format, wanted[spec.name].astype(np.float64)))
        got = found[spec.name]
        if got.ndim == 2:
            # A flat image is read by layers whose weights have the order of the file.
            got, counted = np.sort(got), np.sort(counted)
        numbers += got.size
        differences += int((got != counted).sum())
    assert numbers > 100
    # qonnx multiplies by a scale in float32, which can fall on a tie's other side.
    assert differences < 1e-3 * numbers

    outputs = found[model.graph.output[0].name]
    expected = channels_last(wanted[network.output])
    if network.tensors[network.output].format is None:
        np.testing.assert_allclose(outputs, expected, rtol=2.0**-21, atol=1e-30)
    else:
        np.testing.assert_array_equal(outputs, expected)
    assert len(np.unique(expected)) > 5  # else this compares little


def identity(s: Any, fmt: Format, low: float | None, high: float | None) -> Network:
    """Return a network that requantizes each pixel, with a factor of its channel."""
    x = s.conv(s.quantize(INT8), 4, 1, W4, fmt, padding=(0, 0, 0, 0), low=low, high=high)
    return s.network(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("bound", [None, "zero", "inside"])
@pytest.mark.parametrize(
    "name",
    ["int4", "uint4", "int8", "e1m2", "ue1m3", "e2m1", "ue2m2", "e2m3", "e3m1", "e3m2", "ue3m3"],
)
def test_every_rounding_with_bounds(sketch: Any, name: str, bound: str | None) -> None:
    s = sketch(seed=22, shape=(3, 16, 16))
    fmt = parse_element(name)
    network = identity(
        s, fmt, None if bound is None else 0.0, inside(fmt) if bound == "inside" else None
    )
    images = s.images(2) * 2

    found = run_qonnx(to_hls4ml(network), channels_last(images), batch=1)

    wanted = channels_last(execute(network, images))
    assert (found != wanted).sum() < 1e-3 * wanted.size
    assert np.isin(found, values(fmt)).all()
    last = inside(fmt) if bound == "inside" else fmt.max_value
    assert wanted.max() == last  # else saturation was not met
    assert wanted.min() == (0.0 if bound else fmt.min_value)


def test_lower_bound_below_zero(sketch: Any) -> None:
    """As of a hardtanh: -1 to 1."""
    s = sketch(seed=22, shape=(3, 8, 8))
    images = s.images(2)
    for fmt, low, high in ((INT8, -50.0, 60.0), (E2M1, -2.0, 3.0), (INT4, -3.0, None)):
        network = identity(s, fmt, low, high)

        found = run_qonnx(to_hls4ml(network), channels_last(images), batch=1)

        wanted = channels_last(execute(network, images))
        assert wanted.min() == low
        assert (found != wanted).sum() < 1e-3 * wanted.size


def float_clamp(s: Any) -> str:
    x = s.conv(s.quantize(INT4), 4, 3, W4, None)
    return s.clamp(x, 0.0, 1.0)  # type: ignore[no-any-return]


def float_quantize(s: Any) -> str:
    x = s.conv(s.quantize(INT4), 4, 3, W4, None)
    return s.quantize(INT4, x)  # type: ignore[no-any-return]


def no_mantissa(s: Any) -> str:
    return s.conv(s.quantize(INT4), 4, 3, W4, parse_element("e3m0"))  # type: ignore[no-any-return]


def no_mantissa_of_images(s: Any) -> str:
    return s.quantize(parse_element("ue3m0"))  # type: ignore[no-any-return]


def wide_minifloat(s: Any) -> str:
    return s.conv(s.quantize(INT4), 4, 3, W4, parse_element("e4m3"))  # type: ignore[no-any-return]


def wide_sums(s: Any) -> str:
    return s.conv(s.quantize(INT8), 4, 3, W4, INT8, wide=True)  # type: ignore[no-any-return]


def pad_before_a_pool(s: Any) -> str:
    x = s.pad(s.quantize(INT4), (1, 1, 1, 1))
    return s.pool(x, (2, 2), (2, 2), out=INT4)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (float_clamp, r"Clamp 'clamp2' has no form for hls4ml: it works on float tensors"),
        (float_quantize, r"Quantize 'quantize2' .* was computed in float"),
        (no_mantissa, r"Conv 'conv1' has no form for hls4ml: it rounds to e3m0, whose ties go up"),
        (no_mantissa_of_images, r"Quantize 'quantize0' .* use a format with a mantissa"),
        (wide_minifloat, rf"Conv 'conv1' .* rounds to e4m3, .* at most {MAX_BITS}: use fewer"),
        (wide_sums, r"Conv 'conv1': its sums .* need 25 bits in integers; hls4ml computes"),
        (pad_before_a_pool, r"Pad 'pad1' .* zeros are put around the inputs of convolutions"),
    ],
)
def test_refusals_name_the_node_and_the_reason(
    sketch: Any, net: Callable[[Any], str], message: str
) -> None:
    s = sketch(seed=3)
    network = s.network(net(s))

    with pytest.raises(ExportError, match=message):
        to_hls4ml(network)


def properties(model: onnx.ModelProto) -> dict[str, str]:
    return {p.key: p.value for p in model.metadata_props}


def test_file_says_what_it_is_and_has_a_batch_of_one(sketch: Any) -> None:
    s = sketch(seed=3)
    model = to_hls4ml(s.network(chain(s, formats("e2m1", "e2m1", "ue2m2"))))

    assert properties(model)[FLAVOUR_KEY] == "hls4ml"
    for info in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        assert all(d.dim_value > 0 for d in info.type.tensor_type.shape.dim), info.name
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, 8, 8, 3]


def test_same_network_gives_same_bytes(sketch: Any) -> None:
    def serialized() -> bytes:
        s = sketch(seed=3)
        network = s.network(residual(s, formats("e2m1", "e2m1", "ue2m2")))
        return bytes(to_hls4ml(network).SerializeToString())

    assert serialized() == serialized()


def test_constants_have_one_reader_each(sketch: Any) -> None:
    """hls4ml fuses constants into what reads them."""
    s = sketch(seed=3)
    model = to_hls4ml(s.network(residual(s, formats("e2m1", "e2m1", "ue2m2"))))

    readers = [name for node in model.graph.node for name in node.input]

    for held in model.graph.initializer:
        assert readers.count(held.name) == 1, held.name


def test_precision_holds_what_is_rounded(sketch: Any) -> None:
    """A small net has the default; large numbers before a rounding take more whole bits."""
    s = sketch(seed=3)
    small = to_hls4ml(s.network(s.conv(s.quantize(INT4), 4, 3, W4, UINT4)))
    s = sketch(seed=3)
    x = s.conv(s.quantize(INT8), 4, 3, parse_weight("int8"), UINT4)
    node = s.nodes[-1]
    node.requantizer.shift[:] -= 12  # every factor 4096 times as large
    model = to_hls4ml(s.network(x))

    width, whole = map(int, re.findall(r"\d+", properties(model)[PRECISION_KEY]))

    assert properties(small)[PRECISION_KEY] == DEFAULT_PRECISION
    largest = max(node.requantizer.factors()) * 2.0**node.accumulator.magnitude_bits
    assert 2.0 ** (whole - 1) > largest > 2.0**16
    assert width - whole >= 32


def test_precision_holds_fine_factors(sketch: Any) -> None:
    s = sketch(seed=3)
    scale = Fraction(1, 10**6 + 3)
    model = to_hls4ml(s.network(s.conv(s.quantize(INT4), 4, 3, W4, None, scales=(scale,))))

    width, whole = map(int, re.findall(r"\d+", properties(model)[PRECISION_KEY]))

    assert 2.0 ** (whole - width) <= float(scale) * 2.0**-22


@pytest.fixture
def emulate() -> Callable[[onnx.ModelProto], Emulation]:
    """Return what compiles a file; the test is skipped where hls4ml or a compiler is missing."""
    if shutil.which("g++") is None:
        pytest.skip("hls4ml compiles with g++")
    pytest.importorskip("hls4ml")
    return Emulation


@pytest.mark.parametrize(
    ("topology", "names"),
    [(residual, ("int4", "int4", "uint4")), (chain, ("e2m1", "e2m1", "ue2m2"))],
    ids=["residual-int4", "chain-e2m1"],
)
def test_compiled_code_equals_the_exact_executor(
    sketch: Any,
    emulate: Callable[[onnx.ModelProto], Emulation],
    topology: Topology,
    names: tuple[str, str, str],
) -> None:
    s = sketch(seed=23, shape=(2, 5, 5))
    network = s.network(topology(s, formats(*names)))
    images = s.images(32)

    compiled = emulate(to_hls4ml(network))
    found = compiled(np.ascontiguousarray(channels_last(images)))

    wanted = channels_last(execute(network, images))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)
    assert len(np.unique(wanted)) > 5


def test_file_that_hls4ml_does_not_take_is_an_error_of_the_tool(
    sketch: Any, emulate: Callable[[onnx.ModelProto], Emulation]
) -> None:
    s = sketch(seed=3)
    network = s.network(s.conv(s.quantize(E2M1), 4, 3, E2M1, UE2M2))

    with pytest.raises(ToolError, match="hls4ml") as caught:
        emulate(to_qonnx(network))

    assert caught.value.tool == "hls4ml"
    assert "FloatQuant" in str(caught.value)
