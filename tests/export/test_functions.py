# SPDX-License-Identifier: Apache-2.0
"""Bodies of the quantizers: ONNX Runtime == qonnx == `lutwise.quant.numerics`."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from qonnx.custom_op.general.floatquant import float_quant
from qonnx.custom_op.general.quant import quant

from lutwise.errors import ExportError
from lutwise.export.functions import with_functions
from lutwise.export.graph import DOMAIN, GraphBuilder
from lutwise.export.quantizers import emit_quantizer, emit_unsigned_guard
from lutwise.quant.formats import (
    Format,
    IntFormat,
    all_formats,
    parse_element,
    values,
)
from lutwise.quant.numerics import quantize_scaled

FORMATS = [
    *(fmt for fmt in all_formats(min_bits=2) if str(fmt) != "ue8m0"),
    *(IntFormat(bits=bits, narrow=True) for bits in range(2, 9)),
    parse_element("fp8_e4m3"),
    parse_element("fp8_e5m2"),
]
SCALES = np.array([1.0, 0.37, 2.0**-5, 19.1], dtype=np.float32)


def points(fmt: Format, dtype: type[np.float32] | type[np.float64]) -> npt.NDArray[Any]:
    """Return values, ties, neighbours of both, subnormals, zeros and huge numbers."""
    table = values(fmt)
    ties = (table[1:] + table[:-1]) / 2
    edges = np.concatenate([table, ties, [0.0, -0.0], 2.0 ** np.arange(-140, 120, 7)]).astype(dtype)
    around = [np.nextafter(edges, dtype(sign * np.inf)) for sign in (1, -1)]
    random = np.random.default_rng(0).standard_normal(4000)
    wide = random * 2.0 ** np.linspace(fmt.unit_exponent - 3, np.log2(fmt.max_value) + 2, 4000)
    huge = np.array([1e30, -1e30, 3e38, -3e38])
    found = np.concatenate([edges, *around, random, wide, huge]).astype(dtype)
    return np.concatenate([found, np.negative(found)])


def run(fmt: Format, x: npt.NDArray[Any], scale: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """Run one quantizer with the given scale in ONNX Runtime; x has shape (n, *)."""
    b = GraphBuilder()
    source = b.input("x", x.shape[1:])
    b.node("Identity", [source], "unused")
    emit_quantizer(b, fmt, emit_unsigned_guard(b, fmt, source, "x"), "q", "y")
    model = b.build(name="one", inputs=["x"], outputs=["y"], metadata={})
    kind = onnx.TensorProto.DOUBLE if x.dtype == np.float64 else onnx.TensorProto.FLOAT
    for info in [*model.graph.input, *model.graph.value_info]:
        info.type.tensor_type.elem_type = kind
    for constant in model.graph.initializer:
        if constant.name == "q/scale":
            constant.CopyFrom(onnx.numpy_helper.from_array(scale, "q/scale"))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        with_functions(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    result: npt.NDArray[Any] = session.run(None, {"x": x})[0]
    return result


def by_qonnx(fmt: Format, x: npt.NDArray[Any], scale: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    if isinstance(fmt, IntFormat):
        bits = np.array(fmt.bits, dtype=np.float32)
        zero = np.float32(0)
        result = quant(x, scale, zero, bits, fmt.signed, fmt.narrow, "ROUND")
    else:
        numbers = (fmt.exponent_bits, fmt.mantissa_bits, fmt.bias)
        e, m, bias = (np.array(n, dtype=np.float32) for n in numbers)
        x = x if fmt.signed else np.maximum(x, 0)
        with np.errstate(over="ignore"):  # 3e38 rounds up to infinity before it is clipped
            result = float_quant(x, scale, e, m, bias, True, np.float32(fmt.max_value))
    return np.asarray(result).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_body_agrees_with_numerics_and_qonnx(
    fmt: Format, dtype: type[np.float32] | type[np.float64]
) -> None:
    per_channel = np.stack([points(fmt, dtype)] * len(SCALES), axis=1)
    with np.errstate(over="ignore"):  # dividing by 2**-5 takes 3e38 beyond float32
        inside = np.abs(per_channel / SCALES.astype(dtype)) < np.finfo(dtype).max
    x = np.where(inside, per_channel, dtype(0))

    got = run(fmt, x, SCALES)

    np.testing.assert_array_equal(got, by_qonnx(fmt, x, SCALES))
    np.testing.assert_array_equal(got, quantize_scaled(fmt, x, SCALES).astype(np.float32))


def test_float64_input_is_rounded_once() -> None:
    """2.5 + 2**-30 is a tie in float32 and above it in float64."""
    x = np.array([[2.5 + 2.0**-30, 2.5]])
    scale = np.array(1.0, dtype=np.float32)

    assert run(parse_element("int4"), x, scale).tolist() == [[3.0, 2.0]]
    assert run(parse_element("e2m1"), x, scale).tolist() == [[3.0, 2.0]]


def model_of(op: str, inputs: int, **attributes: Any) -> onnx.ModelProto:
    names = [f"i{i}" for i in range(inputs)]
    node = onnx.helper.make_node(op, names, ["y"], name="q", domain=DOMAIN, **attributes)
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [],
        [],
        [onnx.numpy_helper.from_array(np.array(1, dtype=np.float32), n) for n in names],
    )
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(DOMAIN, 1)]
    return onnx.helper.make_model(graph, opset_imports=imports)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (model_of("Quant", 4, signed=1, narrow=0, rounding_mode="FLOOR"), "rounds by 'FLOOR'"),
        (model_of("Quant", 4, signed=1, narrow=0), "one signed bit"),
        (model_of("FloatQuant", 6, saturation=0), "does not saturate"),
    ],
    ids=["floor", "bipolar", "overflow"],
)
def test_what_bodies_do_not_do_is_refused(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        with_functions(model)


def test_old_opset_is_refused() -> None:
    model = model_of("Quant", 4, signed=0, narrow=0)
    model.opset_import[0].version = 11

    with pytest.raises(ExportError, match="need opset 15 or later, the model has 11"):
        with_functions(model)


def test_bodies_are_added_once_and_only_where_used() -> None:
    model = model_of("Quant", 4, signed=0, narrow=0)

    once = with_functions(model)

    assert [f.name for f in once.functions] == ["Quant"]
    assert with_functions(once).SerializeToString() == once.SerializeToString()
    assert not model.functions
