# SPDX-License-Identifier: Apache-2.0
"""ONNX files as torch modules of standard layers, ready for tracing and quantization.

The graph is read as it is: `nn.Conv2d`, `nn.Linear`, `nn.BatchNorm2d`, ... under the names of
their nodes, with the operators of `lutwise.quant.onnx_ops.BUILDERS` and no others. Weights that
two nodes share are copied. Floating-point weights of any width become float32.
"""

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx.checker
import onnx.inliner
import onnx.numpy_helper
import onnx.shape_inference
from onnx.reference import ReferenceEvaluator
from torch import fx

from lutwise.errors import ModelError, UnsupportedLayerError
from lutwise.quant.onnx_graph import BATCH, Array, GraphBuilder, Shape, Site
from lutwise.quant.onnx_ops import BUILDERS, FOLDABLE, MOVES

__all__ = ["external_files", "input_shape", "load_onnx", "module_of", "read_onnx"]

_MIN_OPSET: Final = 7
_DOMAINS: Final = ("", "ai.onnx")
_QUANTIZED: Final = ("Quant", "FloatQuant", "QuantizeLinear", "DequantizeLinear", "BipolarQuant")
_ON_SIZES: Final = ("Shape", "Expand")
_MAX_CONSTANT: Final = 1 << 28


def read_onnx(path: str | Path) -> fx.GraphModule:
    """Read an ONNX file as a torch module in evaluation mode.

    Args:
        path: Of the file; weights in a file beside it are read too.

    Raises:
        ModelError: The file is missing or damaged, or has not one input and one output.
        UnsupportedLayerError: A node cannot be read; the message names it.
    """
    return module_of(load_onnx(path))


def load_onnx(path: str | Path) -> onnx.ModelProto:
    """Load and check a file.

    Raises:
        ModelError: The file is missing, damaged, or not valid ONNX.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"an ONNX file is needed, {str(path)!r} does not exist")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as e:
        # protobuf, the checker and the reader of weights each raise errors of their own
        raise ModelError(
            f"{path} is no valid ONNX file, or weights beside it are missing: "
            f"{' '.join(str(e).split())[:300]}; export it again"
        ) from e


def external_files(path: str | Path) -> tuple[Path, ...]:
    """Return the files of weights beside an ONNX file, sorted."""
    path = Path(path)
    model = onnx.load(path, load_external_data=False)
    names = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(path.parent / name for name in sorted(names))


def input_shape(model: onnx.ModelProto) -> tuple[int, ...] | None:
    """Return the shape of the input without the batch; None where a size is free."""
    shape = _shape(_single_input(model)) or ()
    sizes = tuple(d for d in shape[1:] if isinstance(d, int))
    return sizes if sizes and len(sizes) == len(shape) - 1 else None


def module_of(model: onnx.ModelProto) -> fx.GraphModule:
    """Make a torch module of a loaded model.

    Raises:
        ModelError: It has not one input and one output.
        UnsupportedLayerError: A node cannot be read; the message names it.
    """
    graph = model.graph
    opset = next((o.version for o in model.opset_import if o.domain in _DOMAINS), 0)
    if opset < _MIN_OPSET:
        raise ModelError(f"ONNX opset {_MIN_OPSET} or later is needed, got {opset}; export again")
    source = _single_input(model)
    if len(graph.output) != 1:
        outputs = [o.name for o in graph.output]
        raise ModelError(f"an ONNX graph of one output is needed, got {outputs}")
    result = graph.output[0].name
    shapes = {v.name: s for v in (*graph.value_info, source, *graph.output) if (s := _shape(v))}
    builder = GraphBuilder(shapes=shapes, uses={}, constants=_initializers(graph.initializer))
    nodes = _needed(graph, builder, result)
    builder.uses = Counter([name for _, node in nodes for name in node.input] + [result])
    builder.values[source.name] = builder.graph.placeholder("input")
    for index, node in nodes:
        name = node.name or f"{node.op_type}_{index}"
        site = Site(node=node, name=name, opset=opset, builder=builder)
        builder.values[node.output[0]] = _build(site)
    if result not in builder.values:
        raise ModelError(f"the output {result!r} of the ONNX graph does not depend on its input")
    builder.graph.output(builder.values[result])
    builder.graph.lint()
    module = fx.GraphModule(builder.root, builder.graph, "OnnxModule")
    return module.eval()


def _build(site: Site) -> fx.Node:
    node = site.node
    build = BUILDERS.get(node.op_type) if node.domain in _DOMAINS else None
    if build is None:
        domain = f" of domain {node.domain}" if node.domain not in _DOMAINS else ""
        hint = f"operators that are read: {', '.join(BUILDERS)}"
        if node.op_type in _QUANTIZED:
            hint = "the file is quantized already, give the float model"
        if node.op_type in _ON_SIZES:
            hint = (
                "the graph computes with sizes at run time (as the class token of a vision "
                "transformer does); load the torch checkpoint with --arch instead"
            )
        raise site.unsupported(f"the operator{domain} is not supported; {hint}")
    for name in _followed(node):
        if name not in site.builder.constants and name not in site.builder.values:
            raise site.unsupported(f"input {name!r} is an output that is not supported")
    return build(site)


def _needed(
    graph: onnx.GraphProto, builder: GraphBuilder, result: str
) -> list[tuple[int, onnx.NodeProto]]:
    """Fold constants, then return the nodes that the result depends on, in order.

    The target of a ``Reshape`` is not followed: it is known from shape inference, and exporters
    compute it with ``Shape``, ``Gather`` and ``Concat``.
    """
    dynamic: list[tuple[int, onnx.NodeProto]] = []
    for index, node in enumerate(graph.node):
        inputs = [name for name in node.input if name]
        known = all(name in builder.constants for name in inputs)
        if known and node.op_type in FOLDABLE and node.domain in _DOMAINS:
            _fold(node, index, builder)
        elif not _follow_sizes(node, index, builder):
            dynamic.append((index, node))
    needed, wanted = [], {result}
    for index, node in reversed(dynamic):
        if not wanted.intersection(filter(None, node.output)):
            continue
        needed.append((index, node))
        wanted.update(_followed(node))
    return needed[::-1]


def _followed(node: onnx.NodeProto) -> list[str]:
    inputs = node.input[:1] if node.op_type == "Reshape" else node.input
    return [name for name in inputs if name]


def _fold(node: onnx.NodeProto, index: int, builder: GraphBuilder) -> None:
    name = node.name or f"{node.op_type}_{index}"
    feeds = {n: builder.sizes.get(n, builder.constants.get(n)) for n in node.input if n}
    if node.op_type == "ConstantOfShape":
        wanted = math.prod(int(v) for v in np.asarray(feeds[node.input[0]]).reshape(-1).tolist())
        if wanted > _MAX_CONSTANT:
            raise ModelError(f"ONNX node {name!r} makes a constant of {wanted} numbers")
    try:
        results = ReferenceEvaluator(node).run(None, feeds)
    except Exception as e:
        # the evaluator passes on whatever numpy raises
        raise UnsupportedLayerError(
            f"ONNX node {name!r} ({node.op_type}): its stored inputs cannot be computed: {e}"
        ) from e
    for output, value in zip(node.output, results, strict=False):
        _store(output, np.asarray(value), builder)


def _follow_sizes(node: onnx.NodeProto, index: int, builder: GraphBuilder) -> bool:
    """Compute sizes that exporters read from a tensor, with `BATCH` for the number of images."""
    if node.op_type == "Shape" and node.domain in _DOMAINS:
        sizes = (builder.shapes.get(node.input[0]) or (None, None))[1:]
        known = [d for d in sizes if isinstance(d, int)]
        if len(known) < len(sizes) or node.attribute:
            return False
        _store(node.output[0], np.array([BATCH, *known], np.int64), builder)
        return True
    inputs = [name for name in node.input if name]
    moved = node.op_type in MOVES and any(name in builder.sizes for name in inputs)
    if not moved or not all(n in builder.sizes or n in builder.constants for n in inputs):
        return False
    _fold(node, index, builder)
    return True


def _store(name: str, value: Array, builder: GraphBuilder) -> None:
    open_size = np.issubdtype(value.dtype, np.integer) and bool(np.any(value == BATCH))
    (builder.sizes if open_size else builder.constants)[name] = value


def _initializers(tensors: Iterable[onnx.TensorProto]) -> dict[str, Array]:
    try:
        return {t.name: onnx.numpy_helper.to_array(t) for t in tensors}
    except Exception as e:
        # numpy's error where the bytes do not fill the shape
        raise ModelError(f"weights of the ONNX file are damaged: {e}") from e


def _single_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    stored = {t.name for t in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in stored]
    if len(inputs) != 1:
        raise ModelError(f"an ONNX graph of one input is needed, got {[v.name for v in inputs]}")
    value: onnx.ValueInfoProto = inputs[0]
    return value


def _shape(value: onnx.ValueInfoProto) -> Shape | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(
        d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in kind.shape.dim
    )
