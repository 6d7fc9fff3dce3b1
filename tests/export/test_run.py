# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from lutwise.errors import DataError, MismatchError, ToolError
from lutwise.export.qonnx import to_qonnx
from lutwise.export.run import Executor, compare, run_onnxruntime, run_qonnx
from lutwise.quant.formats import parse_element, parse_weight
from lutwise.quant.network import Network


def small(s: Any) -> Network:
    x = s.conv(
        s.quantize(parse_element("int8")), 4, 3, parse_weight("int4"), parse_element("uint4")
    )
    return s.network(s.linear(s.flatten(x), 5, parse_weight("int4")))  # type: ignore[no-any-return]


def test_batches_make_no_difference(sketch: Any) -> None:
    s = sketch(seed=1)
    model, images = to_qonnx(small(s)), s.images(10)
    expected = run_onnxruntime(model, images)

    for batch in (1, 3, 10, 64):
        np.testing.assert_array_equal(run_onnxruntime(model, images, batch=batch), expected)
    for batch in (4, 64):
        np.testing.assert_array_equal(run_qonnx(model, images, batch=batch), expected)


def test_mismatch_is_counted_and_located(sketch: Any) -> None:
    s = sketch(seed=1)
    network, images = small(s), s.images(10)
    model = to_qonnx(network)
    for constant in model.graph.initializer:
        if constant.name == "linear3/bias":
            bias = onnx.numpy_helper.to_array(constant).copy()
            bias[2] += 1
            constant.CopyFrom(onnx.numpy_helper.from_array(bias, constant.name))

    report = compare(network, model, images)

    assert not report.agrees
    assert [a.mismatches for a in report.agreements] == [10, 10]
    assert [a.first for a in report.agreements] == [(0, 2), (0, 2)]
    with pytest.raises(MismatchError, match=r"10 of 50 outputs of qonnx differ .* at \(0, 2\)"):
        report.raise_if_differs()


def test_agreement_of_chosen_executor(sketch: Any) -> None:
    s = sketch(seed=1)
    network = small(s)

    report = compare(network, to_qonnx(network), s.images(5), executors=[Executor.ONNXRUNTIME])

    assert report.agrees
    assert [a.executor for a in report.agreements] == [Executor.ONNXRUNTIME]
    assert (report.images, report.outputs) == (5, 25)


@pytest.mark.parametrize("run", [run_qonnx, run_onnxruntime])
@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 3, 8, 9), np.float32),
        np.zeros((0, 3, 8, 8), np.float32),
        np.zeros((2, 3, 8, 8), np.float64),
    ],
    ids=["shape", "none", "dtype"],
)
def test_wrong_images_are_refused(sketch: Any, run: Any, images: Any) -> None:
    model = to_qonnx(small(sketch(seed=1)))

    with pytest.raises(DataError, match=r"takes float32 images of shape \(n, 3, 8, 8\)"):
        run(model, images)


def test_failure_of_a_tool_is_reported(sketch: Any) -> None:
    s = sketch(seed=1)
    model = to_qonnx(small(s))
    del model.functions[:]

    with pytest.raises(ToolError, match=r"onnxruntime .* failed"):
        run_onnxruntime(model, s.images(1))

    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ToolError, match=r"qonnx .* failed"):
        run_qonnx(model, s.images(1))


def test_executors_differing_in_shape_is_a_mismatch(sketch: Any) -> None:
    s = sketch(seed=1)
    network = small(s)
    shorter = replace(network, output="conv1:out")

    with pytest.raises(MismatchError, match="have shape"):
        compare(shorter, to_qonnx(network), s.images(2))
