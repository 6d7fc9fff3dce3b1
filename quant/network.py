# SPDX-License-Identifier: Apache-2.0
"""The narrow waist: a quantized network as plain numbers, without torch.

Everything after quantization (exact executor, QONNX, costs, RTL) reads this and nothing else.

A quantized tensor holds *values* ``v`` of its format; the real number is ``scale * v``. Values
are integer multiples of ``2**format.unit_exponent``, so products and sums of them are exact.
A layer computes ``accumulator = sum(w * x) + bias`` exactly and then, in one correctly rounded
step, ``clamp(round(accumulator * multiplier * 2**-shift))`` in its output format. Multipliers
are integers of a stated width, so that step is the same in hardware and in every executor.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from lutwise.errors import FormatError
from lutwise.quant.formats import Format
from lutwise.quant.numerics import decode
from lutwise.quant.operation import Operation

__all__ = [
    "MULTIPLIER_BITS",
    "Accumulator",
    "Add",
    "Clamp",
    "Concat",
    "Conv",
    "Flatten",
    "Linear",
    "Network",
    "Node",
    "Operator",
    "Pad",
    "Pool",
    "Quantize",
    "Requantizer",
    "Tensor",
    "snap",
]

MULTIPLIER_BITS: Final = 16
"""Significant bits of a requantizer's multiplier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """What is known of a tensor between nodes.

    Args:
        name: Unique in the network.
        shape: Without the batch.
        format: Of its values; None for a float32 tensor.
        scale: Real number that a value of one means; 1 for a float32 tensor.
    """

    name: str
    shape: tuple[int, ...]
    format: Format | None = None
    scale: Fraction = Fraction(1)


def snap(ratio: Fraction, bits: int = MULTIPLIER_BITS) -> tuple[int, int]:
    """Return ``(multiplier, shift)`` with ``multiplier * 2**-shift`` nearest to ``ratio``.

    The multiplier has at most ``bits`` significant bits and is odd or has exactly ``bits`` bits.

    Raises:
        FormatError: The ratio is not positive.
    """
    if ratio <= 0:
        raise FormatError(f"a scale ratio is positive, got {ratio}")
    # 2**(bits - 1) <= ratio * 2**shift < 2**bits
    shift = bits - (ratio.numerator.bit_length() - ratio.denominator.bit_length())
    while ratio * Fraction(2) ** shift >= 1 << bits:
        shift -= 1
    while ratio * Fraction(2) ** shift < 1 << (bits - 1):
        shift += 1
    return round(ratio * Fraction(2) ** shift), shift


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Requantizer:
    """From an accumulator to the output format: multiply, shift, round half to even, clamp.

    Args:
        multiplier: Positive integers of at most 17 bits, shape (channels,) or (1,).
        shift: Right shifts, same shape; negative means left.
        low: Smallest result, a value of the output format (0 for ReLU).
        high: Largest result, a value of the output format (ReLU6 and saturation).
    """

    multiplier: npt.NDArray[np.int64]
    shift: npt.NDArray[np.int64]
    low: float
    high: float

    def factors(self) -> npt.NDArray[np.float64]:
        """Return ``multiplier * 2**-shift`` per channel, exact in float64."""
        result: npt.NDArray[np.float64] = np.ldexp(
            self.multiplier.astype(np.float64), -self.shift.astype(np.int32)
        )
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Accumulator:
    """How wide exact sums are.

    Args:
        unit_exponent: Every sum is an integer multiple of ``2**unit_exponent``.
        worst_bits: Two's complement width for any weights of the format.
        bits: Two's complement width for the actual weights and bias (per-channel L1 bound).
        magnitude_bits: Bits of the largest magnitude that a partial sum of the actual weights
            can reach, in units; at most 24 means that float32 computes the layer exactly in any
            order, at most 53 that float64 does.
    """

    unit_exponent: int
    worst_bits: int
    bits: int
    magnitude_bits: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layer:
    """What convolution and linear layers share.

    Args:
        name: Of the layer in the model.
        input: Name of the input tensor (quantized).
        output: Name of the output tensor.
        weight_format: Format of the weights.
        weight_codes: Bit patterns, shape (out, in / groups, *kernel).
        weight_scales: Real number that a weight value of one means, per output channel or one.
        bias_codes: Integers in accumulator units, shape (out,), dtype object; zero without bias.
        accumulator: Widths of the sums.
        requantizer: To the output format; None where the output is float32, which then is
            ``accumulator * input scale * weight scale``.
    """

    name: str
    input: str
    output: str
    weight_format: Format
    weight_codes: npt.NDArray[np.uint8]
    weight_scales: tuple[Fraction, ...]
    bias_codes: npt.NDArray[np.object_]
    accumulator: Accumulator
    requantizer: Requantizer | None

    @cached_property
    def weight_values(self) -> npt.NDArray[np.float64]:
        """Values of the weights, shape of the codes."""
        return decode(self.weight_format, self.weight_codes)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors read."""
        return (self.input,)

    @property
    def has_bias(self) -> bool:
        """Whether any bias is not zero."""
        return any(int(b) for b in self.bias_codes)

    @property
    def dot_length(self) -> int:
        """Products per output."""
        return int(np.prod(self.weight_codes.shape[1:]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv(_Layer):
    """Two-dimensional convolution, NCHW. Padding is (top, left, bottom, right), of zeros."""

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear(_Layer):
    """Matrix product over the last axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantize:
    """Float32 to a format: ``round(x / scale)``, the quotient rounded to float32 first."""

    name: str
    input: str
    output: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors read."""
        return (self.input,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Add:
    """Sum of two tensors.

    Quantized operands are aligned by shifts: ``accumulator = sum(v_i * 2**shifts[i])``. On
    float32 tensors ``requantizer`` is None and ``shifts`` are zero.
    """

    name: str
    inputs: tuple[str, str]
    output: str
    shifts: tuple[int, int]
    requantizer: Requantizer | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """Maximum or average over windows, NCHW. ``padding`` is (top, left, bottom, right).

    The maximum keeps format and scale, and pads with minus infinity. The average of a quantized
    tensor is the exact sum over the window (pads are zeros and count), requantized; the divisor
    is part of the multiplier.
    """

    name: str
    input: str
    output: str
    maximum: bool
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    requantizer: Requantizer | None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors read."""
        return (self.input,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Concat:
    """Join along an axis (batch is axis 0). Quantized inputs share format and scale."""

    name: str
    inputs: tuple[str, ...]
    output: str
    axis: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flatten:
    """Flatten all axes but the batch."""

    name: str
    input: str
    output: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors read."""
        return (self.input,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pad:
    """Zeros around height and width: (top, left, bottom, right)."""

    name: str
    input: str
    output: str
    padding: tuple[int, int, int, int]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors read."""
        return (self.input,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamp:
    """``min(max(x, low), high)`` on a float32 tensor (ReLU: 0 and infinity)."""

    name: str
    input: str
    output: str
    low: float
    high: float

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors read."""
        return (self.input,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operator:
    """An operation on float32 tensors that stays in float (``layerwise`` networks only).

    Its result is that of float64 arithmetic, rounded to float32 once.

    Args:
        name: Of the node in the model.
        operation: What it does.
        operands: Names of tensors, and float32 constants, in the order of the operation.
        output: Name of the output tensor.
        attributes: As the operation wants them.
    """

    name: str
    operation: Operation
    operands: tuple[str | npt.NDArray[np.float32], ...]
    output: str
    attributes: Mapping[str, int | float | tuple[int, ...]]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors read."""
        return tuple(operand for operand in self.operands if isinstance(operand, str))


Node: TypeAlias = Quantize | Conv | Linear | Add | Pool | Concat | Flatten | Pad | Clamp | Operator


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Network:
    """A quantized network, nodes in execution order.

    Args:
        name: For people.
        input: Name of the float32 input tensor.
        output: Name of the output tensor.
        nodes: In execution order.
        tensors: Every tensor by name, input and output included.
    """

    name: str
    input: str
    output: str
    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]

    def layers(self) -> Iterator[Conv | Linear]:
        """Iterate over the layers with weights, in execution order."""
        for node in self.nodes:
            if isinstance(node, Conv | Linear):
                yield node
