# SPDX-License-Identifier: Apache-2.0
"""What operators that stay in float compute, in the exact executor.

They have no exact results (the exponential function is not rational), so they are defined as
float64 arithmetic whose result is rounded to float32 once. What is left of the order of summation
and of the library of elementary functions is some 2**-50 of a result, which moves a float32 in one
of 2**26 cases, and a code behind it far more rarely.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
import torch.nn.functional as F

from lutwise.quant.operation import Operation

__all__ = ["Attributes", "apply"]

Attributes = Mapping[str, int | float | tuple[int, ...]]


def apply(
    operation: Operation, operands: Sequence[torch.Tensor], attributes: Attributes
) -> torch.Tensor:
    """Return the float32 result of an operation.

    Args:
        operation: What to do.
        operands: Float32 tensors.
        attributes: As `Operation` says.
    """
    if operation.moves:
        return _MOVED[operation](*operands, **attributes).contiguous()
    wide = [operand.double() for operand in operands]
    return _COMPUTED[operation](*wide, **attributes).float()


def _layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, axis: int, epsilon: float
) -> torch.Tensor:
    return F.layer_norm(x, x.shape[axis:], weight, bias, epsilon)


def _slice(x: torch.Tensor, *, axis: int, start: int, stop: int, step: int) -> torch.Tensor:
    return x[(slice(None),) * axis + (slice(start, stop, step),)]


_Run = Callable[..., torch.Tensor]

_COMPUTED: Final[Mapping[Operation, _Run]] = {
    Operation.ADD: torch.add,
    Operation.SUBTRACT: torch.sub,
    Operation.MULTIPLY: torch.mul,
    Operation.DIVIDE: torch.div,
    Operation.MATMUL: torch.matmul,
    Operation.SIGMOID: torch.sigmoid,
    Operation.SILU: F.silu,
    Operation.TANH: torch.tanh,
    Operation.GELU: F.gelu,
    Operation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Operation.HARD_SIGMOID: F.hardsigmoid,
    Operation.HARD_SWISH: F.hardswish,
    Operation.SOFTMAX: lambda x, axis: x.softmax(axis),
    Operation.LAYER_NORM: _layer_norm,
    Operation.MEAN: lambda x, axes, keep: x.mean(axes, keepdim=bool(keep)),
}

_MOVED: Final[Mapping[Operation, _Run]] = {
    Operation.NEGATE: torch.neg,
    Operation.RESHAPE: lambda x, shape: x.reshape(len(x), *shape),
    Operation.TRANSPOSE: lambda x, order: x.permute(order),
    Operation.SELECT: lambda x, axis, index: x.select(axis, index),
    Operation.SLICE: _slice,
    Operation.REPEAT: lambda x, constant: constant.expand(len(x), *constant.shape[1:]),
}
