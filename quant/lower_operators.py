# SPDX-License-Identifier: Apache-2.0
"""From the nodes of a torch graph that stay in float to `Operator` nodes.

Attention moves the batch away from axis 0 for a while: ``permute(2, 0, 3, 1, 4)`` puts queries,
keys and values first, and indexing takes them apart again. Such an arrangement is remembered and
not carried out until the batch is back in front, so that every tensor of a network has it there.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from lutwise.errors import UnsupportedLayerError
from lutwise.quant.graph import ChannelScale, PreparedModel, operation_of
from lutwise.quant.network import Operator
from lutwise.quant.operation import Operation
from lutwise.quant.operators import Attributes

__all__ = ["OperatorLowering"]

Operand: TypeAlias = str | npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor whose axes are meant in another order: axis i is ``order[i]`` of the tensor's."""

    tensor: str
    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """One of several tensors that a node gives: what it takes of its input along an axis."""

    axis: int
    taken: int | slice


class OperatorLowering:
    """Writes operators for one graph.

    Args:
        model: The float model, whose nodes are lowered.
        emit: Takes an operator and the shape of its output, without the batch.
        held: Name of the tensor that holds a node's output, by node; completed here.
    """

    def __init__(
        self,
        model: PreparedModel,
        emit: Callable[[Operator, tuple[int, ...]], None],
        held: dict[str, str],
    ) -> None:
        self._model, self._emit, self._held = model, emit, held
        self._run: dict[str, tuple[Any, Any]] | None = None
        self._dependent: set[str] = set()
        self._views: dict[str, _View] = {}
        self._parts: dict[str, list[_Part]] = {}

    def lower(self, node: fx.Node) -> None:
        """Write what a node does.

        Raises:
            UnsupportedLayerError: There is no form of it.
        """
        if self.is_constant(node):
            return  # written where it is used
        if not self._depends(node):
            self._repeat(node)
            return
        handler = self._handler(node)
        if handler is None:
            raise self._refuse(node)
        handler(node)

    def is_constant(self, node: fx.Node) -> bool:
        """Return whether a node's output is a tensor that no image changes."""
        two, three = self._facts()[node.name]
        same = isinstance(two, torch.Tensor) and two.shape == three.shape
        return same and not self._depends(node)

    # ------------------------------------------------------------------ facts about nodes

    def _facts(self) -> dict[str, tuple[Any, Any]]:
        """Return what each node gives for two images and for three."""
        if self._run is None:
            graph = self._model.graph
            first = next(n for n in graph.graph.nodes if n.op == "placeholder")
            runs = []
            for images in (2, 3):
                run = _Recorder(graph)
                run.run(torch.zeros(images, *self._model.shapes[first.name]))
                runs.append(run.found)
            self._run = {name: (value, runs[1][name]) for name, value in runs[0].items()}
            for node in graph.graph.nodes:
                sources = (s.name for s in node.all_input_nodes if _is_tensor(runs[0][s.name]))
                if node.op == "placeholder" or any(name in self._dependent for name in sources):
                    self._dependent.add(node.name)
        return self._run

    def _depends(self, node: fx.Node) -> bool:
        """Return whether the numbers of a node's output depend on the images; sizes do not."""
        self._facts()
        return node.name in self._dependent

    def _batch_axis(self, node: fx.Node) -> int:
        two, three = self._facts()[node.name]
        if isinstance(two, torch.Tensor) and two.dim() == three.dim():
            sizes = zip(two.shape, three.shape, strict=True)
            changed = [i for i, (a, b) in enumerate(sizes) if a != b]
            if len(changed) == 1 and (two.shape[changed[0]], three.shape[changed[0]]) == (2, 3):
                return changed[0]
        raise self._refuse(node, "it mixes the images of a batch")

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of a node's output, the batch left out."""
        if self._batch_axis(node) != 0:
            raise self._refuse(node, "the batch is not its first axis")
        return tuple(self._facts()[node.name][0].shape[1:])

    def _rank(self, node: fx.Node) -> int:
        return int(self._facts()[node.name][0].dim())

    # ------------------------------------------------------------------ operands

    def _operand(self, node: fx.Node, value: Any) -> Operand:
        """Return an argument as an operand of an operator."""
        if isinstance(value, fx.Node):
            if self.is_constant(value):
                return _array(self._facts()[value.name][0])
            if value.name not in self._held:
                raise self._refuse(node, f"its operand {value.name!r} has the batch elsewhere")
            return self._held[value.name]
        if isinstance(value, int | float):
            return np.asarray(value, dtype=np.float32)
        raise self._refuse(node, f"it takes {value!r}")

    def _write(
        self,
        node: fx.Node,
        operation: Operation,
        operands: Sequence[Operand],
        *,
        output: str | None = None,
        shape: tuple[int, ...] | None = None,
        attributes: Attributes | None = None,
    ) -> str:
        """Write an operator; without a name for its output it is the node's."""
        name = output or node.name
        made = self._shape(node) if shape is None else shape
        self._emit(
            Operator(
                name=name,
                operation=operation,
                operands=tuple(operands),
                output=name,
                attributes=attributes or {},
            ),
            made,
        )
        if output is None:
            self._held[node.name] = name
        return name

    def _repeat(self, node: fx.Node) -> None:
        if self._batch_axis(node) != 0:
            raise self._refuse(node, "a constant is repeated along an axis that is not the first")
        first = next(n for n in self._model.graph.graph.nodes if n.op == "placeholder")
        constant = _array(self._facts()[node.name][0][:1])
        self._write(node, Operation.REPEAT, [self._held[first.name], constant])

    def _refuse(self, node: fx.Node, reason: str = "") -> UnsupportedLayerError:
        return UnsupportedLayerError(
            f"{self._model.name}: node {node.name!r} ({operation_of(self._model, node)}) runs in "
            "torch, but there is no form of it for export, costs and RTL yet"
            + (f": {reason}" if reason else "")
        )

    # ------------------------------------------------------------------ what computes

    def _handler(self, node: fx.Node) -> Callable[[fx.Node], None] | None:
        if node.op == "call_module":
            return self._module
        target: Any = node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        if target in _BINARY or (node.op == "call_method" and name in _BINARY_METHODS):
            return self._binary
        if name in _UNARY:
            return self._unary
        return {
            "softmax": self._softmax,
            "mean": self._mean,
            "layer_norm": self._layer_norm,
            "linear": self._linear,
            "scaled_dot_product_attention": self._attention,
            "transpose": self._transpose,
            "swapaxes": self._transpose,
            "permute": self._permute,
            "reshape": self._reshape,
            "view": self._reshape,
            "flatten": self._reshape,
            "unflatten": self._reshape,
            "squeeze": self._reshape,
            "unsqueeze": self._reshape,
            "contiguous": self._same,
            "dropout": self._same,
            "getitem": self._getitem,
            "select": self._select,
            "chunk": self._divide,
            "split": self._divide,
            "unbind": self._divide,
        }.get(name)

    def _module(self, node: fx.Node) -> None:
        module = self._model.module(node)
        x = self._operand(node, node.args[0])
        match module:
            case nn.LayerNorm():
                self._norm(node, x, module.normalized_shape, module.weight, module.bias, module.eps)
            case nn.GELU():
                tanh = module.approximate == "tanh"
                self._write(node, Operation.GELU_TANH if tanh else Operation.GELU, [x])
            case nn.Softmax() if module.dim is not None:
                self._softmax_over(node, x, module.dim)
            case ChannelScale():
                self._write(node, Operation.MULTIPLY, [x, _array(module.factors)])
            case nn.Linear():  # left in float
                self._product(node, x, module.weight, module.bias)
            case _ if type(module) in _MODULES:
                self._write(node, _MODULES[type(module)], [x])
            case _:
                raise self._refuse(node)

    def _binary(self, node: fx.Node) -> None:
        if set(node.kwargs) - {"other", "input"} or len(node.args) + len(node.kwargs) != 2:
            raise self._refuse(node, f"it takes {dict(node.kwargs)}")
        values = [*node.args, *node.kwargs.values()]
        target: Any = node.target
        operation = _BINARY_METHODS[target] if isinstance(target, str) else _BINARY[target]
        self._write(node, operation, [self._operand(node, value) for value in values])

    def _unary(self, node: fx.Node) -> None:
        name = getattr(node.target, "__name__", str(node.target))
        operation = _UNARY[name]
        if name == "gelu" and node.kwargs.get("approximate") == "tanh":
            operation = Operation.GELU_TANH
        self._write(node, operation, [self._operand(node, node.args[0])])

    def _softmax(self, node: fx.Node) -> None:
        self._softmax_over(node, self._operand(node, node.args[0]), _argument(node, 1, "dim"))

    def _softmax_over(self, node: fx.Node, x: Operand, axis: int) -> None:
        axis %= self._rank(node)
        if axis == 0:
            raise self._refuse(node, "it mixes the images of a batch")
        self._write(node, Operation.SOFTMAX, [x], attributes={"axis": axis})

    def _mean(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        given = _argument(node, 1, "dim")
        if given is None:
            raise self._refuse(node, "it mixes the images of a batch")
        axes = [given] if isinstance(given, int) else given
        self._write(
            node,
            Operation.MEAN,
            [self._operand(node, source)],
            attributes={
                "axes": tuple(axis % self._rank(source) for axis in axes),
                "keep": int(bool(_argument(node, 2, "keepdim"))),
            },
        )

    def _layer_norm(self, node: fx.Node) -> None:
        weight, bias = (_argument(node, i, name) for i, name in ((2, "weight"), (3, "bias")))
        tensors = [None if t is None else self._facts()[t.name][0] for t in (weight, bias)]
        epsilon = _argument(node, 4, "eps")
        x = self._operand(node, node.args[0])
        shape = _argument(node, 1, "normalized_shape")
        self._norm(node, x, shape, tensors[0], tensors[1], 1e-5 if epsilon is None else epsilon)

    def _norm(
        self,
        node: fx.Node,
        x: Operand,
        shape: Sequence[int],
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        epsilon: float,
    ) -> None:
        scale = torch.ones(*shape) if weight is None else weight
        offset = torch.zeros(*shape) if bias is None else bias
        axis = self._rank(node) - len(shape)
        self._write(
            node,
            Operation.LAYER_NORM,
            [x, _array(scale), _array(offset)],
            attributes={"axis": axis, "epsilon": float(epsilon)},
        )

    def _linear(self, node: fx.Node) -> None:
        weight, bias = (_argument(node, i, name) for i, name in ((1, "weight"), (2, "bias")))
        values = [None if t is None else self._facts()[t.name][0] for t in (weight, bias)]
        assert values[0] is not None
        self._product(node, self._operand(node, node.args[0]), values[0], values[1])

    def _product(
        self, node: fx.Node, x: Operand, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        matrix = _array(weight.T)
        if bias is None:
            self._write(node, Operation.MATMUL, [x, matrix])
            return
        product = f"{node.name}.product"
        self._write(node, Operation.MATMUL, [x, matrix], output=product, shape=self._shape(node))
        self._write(node, Operation.ADD, [product, _array(bias)])

    def _attention(self, node: fx.Node) -> None:
        if any(_argument(node, i, name) for i, name in ((3, "attn_mask"), (5, "is_causal"))):
            raise self._refuse(node, "attention with a mask")
        query, key, value = (self._operand(node, a) for a in node.args[:3])
        shapes = [self._shape(source) for source in node.all_input_nodes]
        scale = node.kwargs.get("scale") or shapes[0][-1] ** -0.5
        rank = len(shapes[0]) + 1
        order = (*range(rank - 2), rank - 1, rank - 2)
        scores = (*shapes[0][:-1], shapes[1][-2])
        parts = {name: f"{node.name}.{name}" for name in ("scaled", "turned", "scores", "weights")}
        factor = np.asarray(scale, dtype=np.float32)
        self._write(
            node, Operation.MULTIPLY, [query, factor], output=parts["scaled"], shape=shapes[0]
        )
        turned = (*shapes[1][:-2], shapes[1][-1], shapes[1][-2])
        self._write(
            node,
            Operation.TRANSPOSE,
            [key],
            output=parts["turned"],
            shape=turned,
            attributes={"order": order},
        )
        operands = [parts["scaled"], parts["turned"]]
        self._write(node, Operation.MATMUL, operands, output=parts["scores"], shape=scores)
        self._write(
            node, Operation.SOFTMAX, [parts["scores"]], output=parts["weights"], shape=scores,
            attributes={"axis": rank - 1},
        )  # fmt: skip
        self._write(node, Operation.MATMUL, [parts["weights"], value])

    # ------------------------------------------------------------------ what moves

    def _same(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        if source.name in self._views:
            self._views[node.name] = self._views[source.name]
        else:
            operand = self._operand(node, source)
            assert isinstance(operand, str)
            self._held[node.name] = operand

    def _reshape(self, node: fx.Node) -> None:
        x = self._operand(node, node.args[0])
        shape = self._shape(node)
        if prod(shape) != prod(self._shape(node.all_input_nodes[0])):
            raise self._refuse(node, "it mixes the images of a batch")
        self._write(node, Operation.RESHAPE, [x], attributes={"shape": shape})

    def _view(self, node: fx.Node, source: fx.Node) -> _View:
        if source.name in self._views:
            return self._views[source.name]
        operand = self._operand(node, source)
        assert isinstance(operand, str)
        return _View(operand, tuple(range(self._rank(source))))

    def _transpose(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        rank = self._rank(source)
        first, second = (_argument(node, i, name) % rank for i, name in ((1, "dim0"), (2, "dim1")))
        order = list(range(rank))
        order[first], order[second] = second, first
        self._arrange(node, source, order)

    def _permute(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        given: Any = node.args[1] if len(node.args) == 2 else node.args[1:]
        dims = node.kwargs.get("dims", given)
        self._arrange(node, source, [d % self._rank(source) for d in dims])

    def _arrange(self, node: fx.Node, source: fx.Node, order: Sequence[int]) -> None:
        view = self._view(node, source)
        self._keep(node, _View(view.tensor, tuple(view.order[axis] for axis in order)))

    def _keep(self, node: fx.Node, view: _View) -> None:
        """Carry out an arrangement where the batch comes first, else remember it."""
        if view.order[0] != 0:
            self._views[node.name] = view
        elif view.order == tuple(range(len(view.order))):
            self._held[node.name] = view.tensor
        else:
            self._write(node, Operation.TRANSPOSE, [view.tensor], attributes={"order": view.order})

    def _select(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        axis = _argument(node, 1, "dim") % self._rank(source)
        self._take(node, source, [_Part(axis, _argument(node, 2, "index"))])

    def _divide(self, node: fx.Node) -> None:
        """Note what each output of a node is; indexing takes one of them."""
        source = node.all_input_nodes[0]
        name = getattr(node.target, "__name__", str(node.target))
        axis = _argument(node, 1 if name == "unbind" else 2, "dim") or 0
        axis %= self._rank(source)
        outputs = self._facts()[node.name][0]
        parts, start = [], 0
        for i, output in enumerate(outputs):
            if name == "unbind":
                parts.append(_Part(axis, i))
                continue
            stop = start + output.shape[axis]
            parts.append(_Part(axis, slice(start, stop)))
            start = stop
        self._parts[node.name] = parts

    def _getitem(self, node: fx.Node) -> None:
        source, index = node.args
        assert isinstance(source, fx.Node)
        if source.name in self._parts:
            assert isinstance(index, int)
            self._take(node, source.all_input_nodes[0], [self._parts[source.name][index]])
            return
        self._take(node, source, self._indices(node, source, index))

    def _indices(self, node: fx.Node, source: fx.Node, index: Any) -> list[_Part]:
        """Return what an index takes, by axis of the source, the last axis first."""
        given = list(index) if isinstance(index, tuple) else [index]
        if any(i is None or isinstance(i, fx.Node | list) for i in given):
            raise self._refuse(node, f"the index {index!r}")
        if Ellipsis in given:
            place = given.index(Ellipsis)
            missing = self._rank(source) - len(given) + 1
            given[place : place + 1] = [slice(None)] * missing
        parts = [_Part(axis, taken) for axis, taken in enumerate(given) if taken != slice(None)]
        return parts[::-1]

    def _take(self, node: fx.Node, source: fx.Node, parts: Sequence[_Part]) -> None:
        view = self._view(node, source)
        shape = list(self._facts()[source.name][0].shape)
        sizes = {axis: shape[i] for i, axis in enumerate(view.order)}  # of the tensor's axes
        for number, part in enumerate(parts):
            axis = view.order[part.axis]
            if axis == 0:
                raise self._refuse(node, "it mixes the images of a batch")
            name = f"{node.name}.taken_{number}"
            if isinstance(part.taken, slice):
                start, stop, step = part.taken.indices(sizes[axis])
                if step < 1:
                    raise self._refuse(node, "a step backwards")
                sizes[axis] = len(range(start, stop, step))
                attributes = {"axis": axis, "start": start, "stop": stop, "step": step}
                self._write(
                    node, Operation.SLICE, [view.tensor], output=name, shape=_rest(sizes),
                    attributes=attributes,
                )  # fmt: skip
                view = _View(name, view.order)
                continue
            index = part.taken % sizes[axis]
            del sizes[axis]
            sizes = {a - (a > axis): size for a, size in sizes.items()}
            order = tuple(a - (a > axis) for a in view.order if a != axis)
            self._write(
                node, Operation.SELECT, [view.tensor], output=name, shape=_rest(sizes),
                attributes={"axis": axis, "index": index},
            )  # fmt: skip
            view = _View(name, order)
        self._keep(node, view)


class _Recorder(fx.Interpreter):
    """Runs a graph and remembers what every node gave."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.found: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        with torch.no_grad():
            self.found[n.name] = super().run_node(n)
        return self.found[n.name]


def _is_tensor(value: Any) -> bool:
    several = isinstance(value, tuple | list) and any(isinstance(v, torch.Tensor) for v in value)
    return isinstance(value, torch.Tensor) or several


def _array(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = tensor.detach().float().contiguous().numpy().copy()
    return found


def _rest(sizes: Mapping[int, int]) -> tuple[int, ...]:
    return tuple(sizes[axis] for axis in sorted(sizes) if axis)


def _argument(node: fx.Node, place: int, name: str) -> Any:
    """Return an argument that is given by place or by name, or None."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


_BINARY: Final[Mapping[Any, Operation]] = {
    operator.add: Operation.ADD,
    operator.iadd: Operation.ADD,
    torch.add: Operation.ADD,
    operator.sub: Operation.SUBTRACT,
    torch.sub: Operation.SUBTRACT,
    operator.mul: Operation.MULTIPLY,
    operator.imul: Operation.MULTIPLY,
    torch.mul: Operation.MULTIPLY,
    operator.truediv: Operation.DIVIDE,
    torch.div: Operation.DIVIDE,
    operator.matmul: Operation.MATMUL,
    torch.matmul: Operation.MATMUL,
    torch.bmm: Operation.MATMUL,
}
_BINARY_METHODS: Final[Mapping[str, Operation]] = {
    "add": Operation.ADD,
    "sub": Operation.SUBTRACT,
    "mul": Operation.MULTIPLY,
    "div": Operation.DIVIDE,
    "matmul": Operation.MATMUL,
    "bmm": Operation.MATMUL,
}
_UNARY: Final[Mapping[str, Operation]] = {
    "neg": Operation.NEGATE,
    "sigmoid": Operation.SIGMOID,
    "silu": Operation.SILU,
    "tanh": Operation.TANH,
    "gelu": Operation.GELU,
    "hardsigmoid": Operation.HARD_SIGMOID,
    "hardswish": Operation.HARD_SWISH,
}
_MODULES: Final[Mapping[type[nn.Module], Operation]] = {
    nn.Sigmoid: Operation.SIGMOID,
    nn.SiLU: Operation.SILU,
    nn.Tanh: Operation.TANH,
    nn.Hardsigmoid: Operation.HARD_SIGMOID,
    nn.Hardswish: Operation.HARD_SWISH,
}
