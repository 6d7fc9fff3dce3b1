# SPDX-License-Identifier: Apache-2.0
"""Small ONNX graphs for tests, and the comparison with ONNX Runtime."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, fx, nn

TOLERANCE = 1e-5

Arrays = Mapping[str, npt.NDArray[np.generic] | np.float32 | tuple[int, ...]]


def make_model(
    nodes: str, weights: Arrays, shape: str = "n,4,9,9", opset: int = 17
) -> onnx.ModelProto:
    """Make a model of input ``x`` and output ``y``; weights given by shape are random."""
    rng = np.random.default_rng(0)
    outer = "<ir_version: 8, opset_import: "
    text = f'{outer}["" : {opset}]> g (float[{shape}] x) => (float[] y) {{ {nodes} }}'
    model = onnx.parser.parse_model(text)
    for name, value in weights.items():
        if isinstance(value, tuple):
            value = rng.uniform(0.1, 1.0, value).astype(np.float32) - np.float32(0.4)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def session(model: onnx.ModelProto | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def assert_equal(model: onnx.ModelProto | str, module: nn.Module, x: Tensor) -> None:
    """Compare with ONNX Runtime, as it is and after tracing once more."""
    run = session(model)
    wanted = torch.from_numpy(run.run(None, {run.get_inputs()[0].name: x.numpy()})[0])
    with torch.no_grad():
        for candidate in (module, fx.symbolic_trace(module)):
            found = candidate(x)
            assert found.shape == wanted.shape
            scale = max(1.0, wanted.abs().max().item())
            assert (found - wanted).abs().max().item() <= TOLERANCE * scale


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def floats(*values: float) -> npt.NDArray[np.float32]:
    return np.array(values, np.float32)


def ints(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)
