# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lutwise.errors import ConfigError, DataError, MismatchError, ModelError, ToolError
from lutwise.export.check import check
from lutwise.export.graph import DOMAIN
from lutwise.export.qonnx import to_qonnx
from lutwise.export.runnable import Runnable, Runner, input_of, runnable
from lutwise.quant.formats import parse_element, parse_weight


def written(sketch: Any, folder: Path, name: str = "net.onnx", spoil: str = "") -> Path:
    s = sketch(seed=1)
    x = s.conv(
        s.quantize(parse_element("int8")), 4, 3, parse_weight("e2m1"), parse_element("uint4")
    )
    model = to_qonnx(s.network(s.linear(s.flatten(x), 5, parse_weight("int4"))))
    for constant in model.graph.initializer:
        if constant.name == spoil:
            array = numpy_helper.to_array(constant).copy()
            array.reshape(-1)[1] += 1
            constant.CopyFrom(numpy_helper.from_array(array, constant.name))
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def test_one_file_is_the_same_in_both_runtimes(sketch: Any, tmp_path: Path) -> None:
    path = written(sketch, tmp_path)
    first = runnable(str(path), Runner.QONNX)
    second = runnable(f"onnxruntime:{path}", Runner.QONNX)
    assert [str(first), str(second)] == [f"qonnx:{path}", f"onnxruntime:{path}"]
    found = check(first, second, sketch(seed=1).images(20), batch=8)
    found.raise_if_differs()
    assert (found.images, found.outputs, found.differences) == (20, 100, ())
    assert found.tensors == len(first.makers)


def test_the_first_tensor_that_differs_is_named(sketch: Any, tmp_path: Path) -> None:
    names = {i.name for i in onnx.load(written(sketch, tmp_path)).graph.initializer}
    (bias,) = (n for n in names if n.startswith("conv") and n.endswith("/bias"))
    one = runnable(str(written(sketch, tmp_path)), Runner.ONNXRUNTIME)
    other = runnable(str(written(sketch, tmp_path, "other.onnx", bias)), Runner.ONNXRUNTIME)
    images = sketch(seed=1).images(20)
    found = check(one, other, images, batch=8)
    first = found.differences[0]
    assert (first.tensor, first.operator) == (bias.replace("/bias", "/biased"), "Add")
    assert first.largest == 1.0
    assert first.first[:2] == (0, 1)
    assert first.differing == len(images) * first.numbers // len(images) // 4  # one channel of four
    with pytest.raises(
        MismatchError, match=f"outputs differ.*tensor that differs is '{first.tensor}"
    ):
        found.raise_if_differs()
    loose = check(one, other, images, batch=8, tolerance=1e9)
    assert loose.differences == ()
    loose.raise_if_differs()
    for wrong in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ConfigError, match=f"a finite number from 0 on, got {wrong}"):
            check(one, other, images, batch=8, tolerance=wrong)


def file(nodes: list[onnx.NodeProto], path: Path, batch: int | str = 2) -> str:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    path.write_bytes(model.SerializeToString())
    return str(path)


def make(op: str, path: Path, batch: int | str = 2) -> Runnable:
    return runnable(file([helper.make_node(op, ["x"], ["y"])], path, batch), Runner.ONNXRUNTIME)


def test_fixed_batches_and_numbers_that_are_none(tmp_path: Path) -> None:
    images = np.array([[0, 1, -1], [4, 9, 1], [1, -4, 0]], np.float32)
    root, same = make("Sqrt", tmp_path / "a.onnx"), make("Sqrt", tmp_path / "b.onnx", "N")
    found = check(root, same, images)
    assert (found.images, found.outputs, found.output) == (3, 9, None)  # NaN equals NaN
    reciprocal = check(root, make("Log", tmp_path / "c.onnx"), images)
    assert reciprocal.output is not None
    assert reciprocal.output.largest == np.inf
    assert reciprocal.output.first == (0, 0)


def test_what_cannot_be_compared_is_named(sketch: Any, tmp_path: Path) -> None:
    path = written(sketch, tmp_path)
    one = runnable(str(path), Runner.QONNX)
    with pytest.raises(ConfigError, match="not 'tensorrt'"):
        runnable(f"tensorrt:{path}", Runner.QONNX)
    with pytest.raises(ModelError, match="does not exist"):
        runnable(str(tmp_path / "none.onnx"), Runner.QONNX)
    with pytest.raises(DataError, match="takes images of shape"):
        check(one, one, np.zeros((2, 7), np.float32))
    strange = runnable(
        file([helper.make_node("Strange", ["x"], ["y"], name="s")], tmp_path / "s.onnx"),
        Runner.ONNXRUNTIME,
    )
    with pytest.raises(ToolError, match="onnxruntime"):
        check(strange, strange, np.zeros((2, 3), np.float32))
    several = onnx.load(tmp_path / "s.onnx")
    several.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 3]))
    with pytest.raises(DataError, match="one input and one output is needed, got 2 and 1"):
        input_of(several)
