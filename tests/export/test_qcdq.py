# SPDX-License-Identifier: Apache-2.0
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lutwise.errors import ExportError
from lutwise.export.graph import DOMAIN
from lutwise.export.qcdq import to_qcdq
from lutwise.export.qonnx import to_qonnx
from lutwise.export.run import run_onnxruntime, run_qonnx
from lutwise.quant.executor import execute
from tests.quant.nets import NETS, make, network_of


def network(name: str, weights: str, acts: str, mode: str) -> Any:
    net, images = make(name)
    return network_of(net, images, weights, acts, mode), images.numpy()


@pytest.mark.parametrize("mode", ["dataflow", "layerwise"])
@pytest.mark.parametrize("fmt", ["int2", "int4", "int8"])
@pytest.mark.parametrize("name", NETS)
def test_integers_give_what_the_exact_executor_gives(name: str, fmt: str, mode: str) -> None:
    net, images = network(name, fmt, fmt, mode)
    model = to_qcdq(to_qonnx(net))
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert {o.domain for o in model.opset_import} == {""}
    assert not model.functions
    expected = execute(net, images)
    np.testing.assert_array_equal(run_onnxruntime(model, images), expected)
    np.testing.assert_array_equal(run_qonnx(model, images), expected)
    stored = [numpy_helper.to_array(t) for t in model.graph.initializer]
    assert sum(a.dtype == np.int8 and a.ndim > 1 for a in stored) == len(list(net.layers()))


@pytest.mark.parametrize("fmt", ["fp8_e4m3", "fp8_e5m2"])
def test_ocp_floats_of_float32_tensors(fmt: str) -> None:
    net, images = network("residual", fmt, fmt, "layerwise")
    model = to_qcdq(to_qonnx(net))
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run_onnxruntime(model, images), execute(net, images))


def test_formats_that_onnx_lacks_are_named() -> None:
    net, _ = network("chain", "e2m1", "int8", "layerwise")
    with pytest.raises(ExportError, match=r"FloatQuant .*ONNX has no float of 2 exponent"):
        to_qcdq(to_qonnx(net))
    net, _ = network("chain", "int8", "fp8_e4m3", "dataflow")
    with pytest.raises(ExportError, match=r"FloatQuant .*its input is float64"):
        to_qcdq(to_qonnx(net))


def foreign(**changes: Any) -> onnx.ModelProto:
    """Return a quantizer as other tools write it: a scale per channel, a zero point."""
    attributes: dict[str, Any] = {"signed": 0, "narrow": 0, "rounding_mode": "ROUND"}
    attributes |= changes.pop("attributes", {})
    constants = {
        "scale": np.array([0.1, 0.37, 2.0], np.float32).reshape(1, 3, 1),
        "zero": np.float32(3),
        "bits": np.float32(5),
    } | changes
    node = helper.make_node(
        "Quant", ["x", "scale", "zero", "bits"], ["y"], name="q", domain=DOMAIN, **attributes
    )
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3, 7]) for n in "xy"]
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:], initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize("bits", [3, 8])
def test_scales_per_channel_and_zero_points(signed: int, narrow: int, bits: int) -> None:
    model = foreign(bits=np.float32(bits), attributes={"signed": signed, "narrow": narrow})
    images = np.random.default_rng(0).normal(0, 8, (50, 3, 7)).astype(np.float32)
    found = run_onnxruntime(to_qcdq(model), images)
    np.testing.assert_allclose(found, run_qonnx(model, images), rtol=1e-6, atol=1e-6)
    assert len(np.unique(found[:, 2])) > 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bits": np.float32(9)}, "9 bits"),
        ({"bits": np.float32(2.5)}, "2.5 bits"),
        ({"zero": np.float32(0.5)}, "zero point is 0.5"),
        ({"zero": np.float32(np.nan)}, "zero point is nan"),
        ({"scale": np.float32(0)}, "its scale is 0.0; wanted positive numbers"),
        ({"scale": np.float32(np.nan)}, "its scale is nan; wanted positive numbers"),
        ({"bits": np.array([4, 5], np.float32)}, r"its bits are \[4.0, 5.0\]; wanted one number"),
        ({"attributes": {"rounding_mode": b"\xf3"}}, "rounds by"),
        ({"scale": np.ones((1, 3, 7), np.float32)}, "one axis is known"),
        ({"attributes": {"rounding_mode": "FLOOR"}}, "rounds by 'FLOOR'"),
    ],
)
def test_quantizers_without_such_a_form_are_named(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ExportError, match=f"Quant 'q' .*{reason}"):
        to_qcdq(foreign(**changes))


def of_weights(numbers: Any) -> onnx.ModelProto:
    """Return the quantizer of other tools behind weights."""
    model = foreign(w=np.asarray(numbers, np.float32), zero=np.float32(0), attributes={"signed": 1})
    model.graph.node[0].input[0] = "w"
    return model


def test_weights_are_rounded_as_runtimes_round_them() -> None:
    """0.85 by 0.1 is just above 8.5, which float32 rounds to a tie."""
    numbers = np.zeros((1, 3, 7), np.float32)
    numbers[0, 0] = 0.85
    quotient = numbers[0, 0, 0] / np.float32(0.1)
    assert quotient == 8.5 < float(numbers[0, 0, 0]) / float(np.float32(0.1))
    model = of_weights(numbers)
    images = np.zeros((1, 3, 7), np.float32)
    np.testing.assert_array_equal(run_onnxruntime(to_qcdq(model), images), run_qonnx(model, images))


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(number: float) -> None:
    numbers = np.zeros((1, 3, 7))
    numbers[0, 2, 1] = number
    with pytest.raises(
        ExportError,
        match=rf"Quant 'q' .*1 of the 21 weights 'w' are not finite, the first at \(0, 2, 1\): "
        rf"{number}; export from a checkpoint",
    ):
        to_qcdq(of_weights(numbers))


def test_old_files_are_refused() -> None:
    model = foreign()
    model.opset_import[0].version = 17
    with pytest.raises(ExportError, match="needs opset 19 or later, the model has 17"):
        to_qcdq(model)
