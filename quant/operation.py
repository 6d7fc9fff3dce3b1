# SPDX-License-Identifier: Apache-2.0
"""Operations on float32 tensors that stay in float: those between the layers of transformers."""

from enum import StrEnum

__all__ = ["Operation"]


class Operation(StrEnum):
    """What an `lutwise.quant.network.Operator` does, and its attributes.

    Axes count the batch, which is axis 0 of every operand and of the result, so they are at least
    1. Constant operands broadcast as in numpy.
    """

    ADD = "add"
    SUBTRACT = "subtract"
    MULTIPLY = "multiply"
    DIVIDE = "divide"
    MATMUL = "matmul"
    """Matrix product of the last two axes."""

    NEGATE = "negate"
    SIGMOID = "sigmoid"
    SILU = "silu"
    TANH = "tanh"
    GELU = "gelu"
    """``x * (1 + erf(x / sqrt(2))) / 2``."""

    GELU_TANH = "gelu_tanh"
    """The approximation of the above with the hyperbolic tangent (arXiv 1606.08415, section 2)."""

    HARD_SIGMOID = "hard_sigmoid"
    """``min(max(x / 6 + 1 / 2, 0), 1)``."""

    HARD_SWISH = "hard_swish"
    """The above times ``x``."""

    SOFTMAX = "softmax"
    """Over ``axis``."""

    LAYER_NORM = "layer_norm"
    """Over the axes from ``axis`` on, plus ``epsilon``; operands: input, weight, bias."""

    MEAN = "mean"
    """Over ``axes``; ``keep`` (0 or 1) says whether they stay, of length one."""

    RESHAPE = "reshape"
    """To ``shape``, which leaves out the batch."""

    TRANSPOSE = "transpose"
    """Axes in the order ``order``, the first of which is 0."""

    SELECT = "select"
    """``index`` of ``axis``, which goes away."""

    SLICE = "slice"
    """From ``start`` to before ``stop`` by ``step`` along ``axis``; none is negative."""

    REPEAT = "repeat"
    """A constant, whose first axis has length one, for each image; operands: input, constant."""

    @property
    def moves(self) -> bool:
        """Whether numbers are only moved, so that nothing is rounded."""
        return self in _MOVES


_MOVES = frozenset(
    {
        Operation.RESHAPE,
        Operation.TRANSPOSE,
        Operation.SELECT,
        Operation.SLICE,
        Operation.REPEAT,
        Operation.NEGATE,
    }
)
