# SPDX-License-Identifier: Apache-2.0
"""Nodes of layers with weights: exact sums, then one multiplication.

A layer is computed in the narrowest type that is exact in any order of summation: float32 up to
24 magnitude bits, float64 above. Runtimes have no float64 convolution on CPUs, so that one is
written as slices, one per kernel tap, and a matrix product.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from lutwise.export.graph import GraphBuilder, Value
from lutwise.export.quantizers import emit_quantizer, emit_requantizer
from lutwise.quant.accumulator import twos_complement_bits
from lutwise.quant.network import Conv, Linear, Network

__all__ = ["FLOAT32_BITS", "FLOAT64_BITS", "bias_bits", "emit_layer", "emit_pad", "emit_taps"]

FLOAT32_BITS: Final = 24
"""Sums of at most this many magnitude bits are exact in float32."""

FLOAT64_BITS: Final = 53
"""Sums of at most this many magnitude bits are exact in float64."""


def bias_bits(node: Conv | Linear) -> int:
    """Return the two's complement width of a layer's bias codes, 0 without bias."""
    if not node.has_bias:
        return 0
    codes = [int(code) for code in node.bias_codes]
    return twos_complement_bits(min(codes), max(codes))


def emit_layer(b: GraphBuilder, network: Network, node: Conv | Linear, *, wide: bool) -> Value:
    """Write a convolution or linear layer with its requantizer.

    Args:
        b: The graph; it has the layer's input.
        network: The network.
        node: The layer.
        wide: Sum in float64.
    """
    x = b.value(node.input)
    if isinstance(node, Linear):
        total = _linear(b, network, node, x, wide=wide)
    elif wide:
        total = _wide_conv(b, network, node, x)
    else:
        total = _conv(b, network, node, x)
    _annotate(b, node, total, node.accumulator.bits)
    if node.has_bias:
        # On sums of more than 24 bits that float32 was asked for, the bias at least is exact.
        if node.accumulator.magnitude_bits > FLOAT32_BITS:
            total = b.cast(total, np.float64, f"{node.name}/wide_sum")
        total = _add_bias(b, node, total)
    total = b.cast(total, np.float64, f"{node.name}/accumulator")
    if node.requantizer is None:
        source = network.tensors[node.input].scale
        factors = np.array([float(source * scale) for scale in node.weight_scales])
        scaled = _times(b, node, total, factors)
        return b.cast(scaled, np.float32, node.output)
    scaled = _times(b, node, total, node.requantizer.factors())
    fmt = network.tensors[node.output].format
    assert fmt is not None
    return emit_requantizer(b, fmt, node.requantizer, scaled, node.name, node.output)


def emit_pad(
    b: GraphBuilder, x: Value, padding: tuple[int, int, int, int], prefix: str, output: str
) -> Value:
    """Put zeros around height and width.

    Args:
        b: The graph.
        x: Shape (channels, height, width).
        padding: (top, left, bottom, right).
        prefix: Of the names of what the node needs.
        output: Name of the result.
    """
    top, left, bottom, right = padding
    channels, height, width = x.shape
    pads = b.constant(f"{prefix}/pads", np.array([0, 0, top, left, 0, 0, bottom, right]))
    shape = (channels, height + top + bottom, width + left + right)
    return b.node("Pad", [x, pads], output, shape=shape)


def emit_taps(
    b: GraphBuilder,
    x: Value,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    size: tuple[int, int],
    prefix: str,
) -> Iterator[Value]:
    """Slice out what each tap of a window sees, in row-major order of the taps.

    Args:
        b: The graph.
        x: Padded input, shape (channels, height, width).
        kernel: Height and width of the window.
        stride: Of the window.
        dilation: Between taps.
        size: Height and width of the output.
        prefix: Of the names.

    Yields:
        Tensors of shape (channels, *size).
    """
    if kernel == (1, 1) and stride == (1, 1):
        yield x
        return
    axes = b.constant(f"{prefix}/axes", np.array([2, 3]))
    steps = b.constant(f"{prefix}/steps", np.array(stride))
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            start = np.array([row * dilation[0], column * dilation[1]])
            end = start + (np.array(size) - 1) * np.array(stride) + 1
            name = f"{prefix}/tap_{row}_{column}"
            starts, ends = b.constant(f"{name}/starts", start), b.constant(f"{name}/ends", end)
            yield b.node("Slice", [x, starts, ends, axes, steps], name, shape=(x.shape[0], *size))


def _per_channel(node: Conv | Linear, numbers: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return numbers.reshape((-1, 1, 1) if isinstance(node, Conv) else (-1,))


def _annotate(b: GraphBuilder, node: Conv | Linear, value: Value, bits: int) -> None:
    """State the type of sums or biases: integers in the accumulator's unit.

    qonnx has integers and binary fractions. It has no multiples of a power of two above one; those
    stand in the metadata alone.
    """
    exponent = node.accumulator.unit_exponent
    if exponent == 0:
        b.annotate(value, f"INT{bits}")
    elif exponent < 0:
        b.annotate(value, f"FIXED<{bits},{bits + exponent}>")


def _weights(b: GraphBuilder, node: Conv | Linear, *, transposed: bool = False) -> Value:
    """Put the weights' values under their quantizer, which is never folded.

    Their bit patterns lie beside them, for readers of the file; no node reads those.
    """
    values, codes = node.weight_values, node.weight_codes
    if transposed:
        values, codes = values.T, codes.T
    held = b.constant(f"{node.name}/weight", values.astype(np.float32))
    b.constant(f"{node.name}/weight_codes", codes)
    return emit_quantizer(
        b, node.weight_format, held, f"{node.name}/weight_quantizer", f"{node.name}/weight_values"
    )


def _add_bias(b: GraphBuilder, node: Conv | Linear, total: Value) -> Value:
    unit = Fraction(2) ** node.accumulator.unit_exponent
    numbers = np.array([float(int(code) * unit) for code in node.bias_codes], dtype=total.dtype)
    bias = b.constant(f"{node.name}/bias", _per_channel(node, numbers))
    biased = b.node("Add", [total, bias], f"{node.name}/biased")
    _annotate(b, node, bias, bias_bits(node))
    _annotate(b, node, biased, node.accumulator.bits)
    return biased


def _times(
    b: GraphBuilder, node: Conv | Linear, total: Value, factors: npt.NDArray[np.float64]
) -> Value:
    factor = b.constant(f"{node.name}/factor", _per_channel(node, factors))
    return b.node("Mul", [total, factor], f"{node.name}/scaled")


def _linear(b: GraphBuilder, network: Network, node: Linear, x: Value, *, wide: bool) -> Value:
    weights = _weights(b, node, transposed=True)
    if wide:
        x = b.cast(x, np.float64, f"{node.name}/wide_input")
        weights = b.cast(weights, np.float64, f"{node.name}/wide_weight")
    shape = network.tensors[node.output].shape
    return b.node("MatMul", [x, weights], f"{node.name}/sum", shape=shape)


def _conv(b: GraphBuilder, network: Network, node: Conv, x: Value) -> Value:
    return b.node(
        "Conv",
        [x, _weights(b, node)],
        f"{node.name}/sum",
        shape=network.tensors[node.output].shape,
        attributes={
            "kernel_shape": node.weight_codes.shape[2:],
            "strides": node.stride,
            "pads": node.padding,
            "dilations": node.dilation,
            "group": node.groups,
        },
    )


def _wide_conv(b: GraphBuilder, network: Network, node: Conv, x: Value) -> Value:
    """Sum in float64: (groups, out / groups, dot) @ (N, groups, dot, pixels)."""
    out, depth, *kernel = node.weight_codes.shape
    shape = network.tensors[node.output].shape
    pixels, channels = shape[1] * shape[2], x.shape[0]
    if any(node.padding):
        x = emit_pad(b, x, node.padding, f"{node.name}/padding", f"{node.name}/padded")
    taps = list(
        emit_taps(
            b,
            x,
            kernel=(kernel[0], kernel[1]),
            stride=node.stride,
            dilation=node.dilation,
            size=(shape[1], shape[2]),
            prefix=node.name,
        )
    )
    columns = taps[0]
    if len(taps) > 1:
        joined = b.node(
            "Concat",
            taps,
            f"{node.name}/taps",
            shape=(len(taps) * channels, *shape[1:]),
            attributes={"axis": 1},
        )
        by_tap = _reshape(b, joined, (len(taps), channels, pixels), f"{node.name}/by_tap")
        columns = b.node(
            "Transpose",
            [by_tap],
            f"{node.name}/by_channel",
            shape=(channels, len(taps), pixels),
            attributes={"perm": (0, 2, 1, 3)},
        )
    length = depth * len(taps)
    columns = _reshape(b, columns, (node.groups, length, pixels), f"{node.name}/columns")
    weights = _weights(b, node)
    rows = _reshape(b, weights, (node.groups, out // node.groups, length), f"{node.name}/rows")
    product = b.node(
        "MatMul",
        [
            b.cast(rows, np.float64, f"{node.name}/wide_weight"),
            b.cast(columns, np.float64, f"{node.name}/wide_input"),
        ],
        f"{node.name}/product",
        shape=(node.groups, out // node.groups, pixels),
    )
    return _reshape(b, product, shape, f"{node.name}/sum")


def _reshape(b: GraphBuilder, x: Value, shape: Sequence[int], output: str) -> Value:
    # A 0 keeps the batch as it is.
    target = np.array([0, *shape] if x.batched else [*shape])
    wanted = b.constant(f"{output}/shape", target)
    return b.node("Reshape", [x, wanted], output, shape=tuple(shape))
