# SPDX-License-Identifier: Apache-2.0
"""Nodes of operators that stay in float: float64 arithmetic, one rounding to float32 at the end.

ONNX Runtime has no error function in float64, and a float32 one would move a code behind it now
and then. So it is written as a table of polynomials, which standard operators look up.
"""

from collections.abc import Callable, Mapping, Sequence
from math import erf, exp, pi, sqrt
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from lutwise.export.graph import GraphBuilder, Value
from lutwise.quant.network import Network, Operator
from lutwise.quant.operation import Operation

__all__ = ["emit_operator", "erf_table"]

_ERF_END: Final = 6.0
"""From here on the error function is one in float64."""

_ERF_STEPS: Final = 16
"""Polynomials per unit of x."""

_ERF_TERMS: Final = 12


def emit_operator(b: GraphBuilder, network: Network, node: Operator) -> Value:
    """Write an operator.

    Args:
        b: The graph; it has the operator's inputs.
        network: The network.
        node: The operator.
    """
    shape = network.tensors[node.output].shape
    if node.operation.moves:
        return _move(b, node, shape)
    writer = _Writer(b, node.name, shape)
    operands = [
        b.cast(b.value(operand), np.float64, f"{node.name}/wide_{i}")
        if isinstance(operand, str)
        else writer.constant(operand.astype(np.float64))
        for i, operand in enumerate(node.operands)
    ]
    return b.cast(_COMPUTED[node.operation](writer, node, operands), np.float32, node.output)


class _Writer:
    """Writes nodes of one operator, most of them with the shape of its output."""

    def __init__(self, b: GraphBuilder, prefix: str, shape: tuple[int, ...]) -> None:
        self._b, self._prefix, self.shape = b, prefix, shape

    def constant(self, array: npt.ArrayLike) -> Value:
        content = np.asarray(array)
        return self._b.constant(f"{self._prefix}/constant", content)

    def __call__(
        self,
        op: str,
        *inputs: Value | float,
        shape: tuple[int, ...] | None = None,
        dtype: npt.DTypeLike | None = None,
        **attributes: int | str | Sequence[int],
    ) -> Value:
        values = [i if isinstance(i, Value) else self.constant(np.float64(i)) for i in inputs]
        return self._b.node(
            op,
            values,
            f"{self._prefix}/{op.lower()}",
            shape=shape,
            dtype=dtype,
            attributes=attributes,
        )


def _plain(op: str) -> Callable[[_Writer, Operator, list[Value]], Value]:
    def write(w: _Writer, node: Operator, operands: list[Value]) -> Value:
        del node
        return w(op, *operands, shape=w.shape)

    return write


def _silu(w: _Writer, node: Operator, operands: list[Value]) -> Value:
    del node
    return w("Mul", operands[0], w("Sigmoid", operands[0]))


def _gelu(w: _Writer, node: Operator, operands: list[Value]) -> Value:
    del node
    (x,) = operands
    return w("Mul", w("Mul", x, 0.5), w("Add", _erf(w, w("Mul", x, sqrt(0.5))), 1.0))


def _gelu_tanh(w: _Writer, node: Operator, operands: list[Value]) -> Value:
    del node
    (x,) = operands
    cube = w("Mul", w("Mul", w("Mul", x, x), x), 0.044715)
    inner = w("Mul", w("Add", x, cube), sqrt(2 / pi))
    return w("Mul", w("Mul", x, 0.5), w("Add", w("Tanh", inner), 1.0))


def _hard_sigmoid(w: _Writer, node: Operator, operands: list[Value]) -> Value:
    del node
    shifted = w("Add", operands[0], 3.0)
    return w("Div", w("Min", w("Max", shifted, 0.0), 6.0), 6.0)


def _hard_swish(w: _Writer, node: Operator, operands: list[Value]) -> Value:
    return w("Mul", operands[0], _hard_sigmoid(w, node, operands))


def _softmax(w: _Writer, node: Operator, operands: list[Value]) -> Value:
    return w("Softmax", operands[0], axis=cast(int, node.attributes["axis"]))


def _layer_norm(w: _Writer, node: Operator, operands: list[Value]) -> Value:
    x, weight, bias = operands
    axis = cast(int, node.attributes["axis"])
    axes = w.constant(np.arange(axis, len(x.shape) + 1))
    reduced = (*x.shape[: axis - 1], *[1] * (len(x.shape) - axis + 1))
    mean = w("ReduceMean", x, axes, shape=reduced)
    centred = w("Sub", x, mean)
    variance = w("ReduceMean", w("Mul", centred, centred), axes, shape=reduced)
    deviation = w("Sqrt", w("Add", variance, float(cast(float, node.attributes["epsilon"]))))
    return w("Add", w("Mul", w("Div", centred, deviation), weight), bias)


def _mean(w: _Writer, node: Operator, operands: list[Value]) -> Value:
    axes = w.constant(np.array(node.attributes["axes"]))
    keep = cast(int, node.attributes["keep"])
    return w("ReduceMean", operands[0], axes, shape=w.shape, keepdims=keep)


def erf_table() -> npt.NDArray[np.float64]:
    """Return Taylor coefficients of the error function at the middle of each step.

    Shape (steps, terms). The nth derivative is ``2 / sqrt(pi) * exp(-x^2)`` times a Hermite
    polynomial, so that the coefficients follow from the two before:
    ``c[n+1] = -2 (x n c[n] + (n - 1) c[n-1]) / (n (n + 1))``.
    """
    count = round(_ERF_END * _ERF_STEPS)
    rows = []
    for step in range(count):
        x = (step + 0.5) / _ERF_STEPS
        found = [erf(x), 2 / sqrt(pi) * exp(-x * x)]
        for n in range(1, _ERF_TERMS - 1):
            following = -2 * (x * n * found[n] + (n - 1) * found[n - 1]) / (n * (n + 1))
            found.append(following)
        rows.append(found)
    return np.array([*rows, [1.0] + [0.0] * (_ERF_TERMS - 1)])


def _erf(w: _Writer, x: Value) -> Value:
    """Return the error function, right to 2**-51."""
    scaled = w("Mul", w("Min", w("Abs", x), _ERF_END), float(_ERF_STEPS))
    step = w("Floor", scaled)
    offset = w("Div", w("Sub", w("Sub", scaled, step), 0.5), float(_ERF_STEPS))
    index = w("Cast", step, dtype=np.int64, to=7)
    wide = (*x.shape, _ERF_TERMS)
    table = w.constant(erf_table())
    rows = w("Gather", table, index, shape=wide, axis=0)
    last = w.constant(np.array([-1]))
    column = w("Unsqueeze", offset, last, shape=(*x.shape, 1))
    exponents = w.constant(np.arange(_ERF_TERMS, dtype=np.float64))
    powers = w("Pow", column, exponents, shape=wide)
    total = w("ReduceSum", w("Mul", rows, powers, shape=wide), last, shape=x.shape, keepdims=0)
    return w("Mul", total, w("Sign", x))


_COMPUTED: Final[Mapping[Operation, Callable[[_Writer, Operator, list[Value]], Value]]] = {
    Operation.ADD: _plain("Add"),
    Operation.SUBTRACT: _plain("Sub"),
    Operation.MULTIPLY: _plain("Mul"),
    Operation.DIVIDE: _plain("Div"),
    Operation.MATMUL: _plain("MatMul"),
    Operation.SIGMOID: _plain("Sigmoid"),
    Operation.TANH: _plain("Tanh"),
    Operation.SILU: _silu,
    Operation.GELU: _gelu,
    Operation.GELU_TANH: _gelu_tanh,
    Operation.HARD_SIGMOID: _hard_sigmoid,
    Operation.HARD_SWISH: _hard_swish,
    Operation.SOFTMAX: _softmax,
    Operation.LAYER_NORM: _layer_norm,
    Operation.MEAN: _mean,
}


def _move(b: GraphBuilder, node: Operator, shape: tuple[int, ...]) -> Value:
    """Write an operation that only moves numbers."""
    name, attributes = node.name, node.attributes
    x = b.value(node.inputs[0])
    match node.operation:
        case Operation.NEGATE:
            return b.node("Neg", [x], node.output)
        case Operation.RESHAPE:
            wanted = b.constant(f"{name}/shape", np.array([-1, *shape]))
            return b.node("Reshape", [x, wanted], node.output, shape=shape)
        case Operation.TRANSPOSE:
            order = cast(tuple[int, ...], attributes["order"])
            return b.node("Transpose", [x], node.output, shape=shape, attributes={"perm": order})
        case Operation.SELECT:
            index = b.constant(f"{name}/index", np.array(attributes["index"]))
            axis = cast(int, attributes["axis"])
            return b.node("Gather", [x, index], node.output, shape=shape, attributes={"axis": axis})
        case Operation.SLICE:
            ends = [
                b.constant(f"{name}/{key}", np.array([attributes[key]]))
                for key in ("start", "stop", "axis", "step")
            ]
            return b.node("Slice", [x, *ends], node.output, shape=shape)
        case _:
            constant = node.operands[1]
            assert not isinstance(constant, str)
            return b.repeated(constant, x, node.output)
