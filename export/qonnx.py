# SPDX-License-Identifier: Apache-2.0
"""A `Network` as a QONNX file that qonnx and stock ONNX Runtime run bit for bit."""

import json
from collections.abc import Sequence
from enum import Enum
from fractions import Fraction
from functools import reduce
from typing import Final

import numpy as np
import onnx

from lutwise import __version__
from lutwise.errors import ExportError
from lutwise.export.functions import with_functions
from lutwise.export.graph import GraphBuilder, Value
from lutwise.export.layers import (
    FLOAT32_BITS,
    FLOAT64_BITS,
    bias_bits,
    emit_layer,
    emit_pad,
    emit_taps,
)
from lutwise.export.operators import emit_operator
from lutwise.export.quantizers import (
    check_format,
    emit_clamp,
    emit_quantizer,
    emit_requantizer,
    emit_unsigned_guard,
)
from lutwise.quant.network import (
    MULTIPLIER_BITS,
    Add,
    Clamp,
    Concat,
    Conv,
    Flatten,
    Linear,
    Network,
    Node,
    Operator,
    Pad,
    Pool,
    Quantize,
)

__all__ = ["METADATA_KEY", "ConvolutionForm", "to_qonnx"]

METADATA_KEY: Final = "lutwise.network"
"""Key in ``metadata_props`` of the JSON that describes formats, scales and accumulators."""


class ConvolutionForm(Enum):
    """How layers are written whose sums need more than float32's 24 bits."""

    AUTO = "auto"
    """In float64, convolutions as slices and a matrix product: exact."""

    FLOAT32 = "float32"
    """As plain float32 nodes, which every tool knows: off by float32's roundings."""


def to_qonnx(
    network: Network, *, convolution: ConvolutionForm = ConvolutionForm.AUTO
) -> onnx.ModelProto:
    """Write a network as QONNX.

    The input is float32 with a batch of any size. The output holds what the exact executor
    gives: values of the output's format, or the real numbers of a float32 output. Quantized
    tensors carry values, so that every quantizer has scale 1; scales sit in one float64
    multiplication per layer behind the accumulator. Weights are stored twice, as values that the
    nodes read and as bit patterns beside them, that none reads; sums and biases have their types
    as qonnx's annotations, where it has such a type. The bodies of the quantizers are in the
    file; qonnx does not look at them, other runtimes need them. The same network gives the same
    bytes.

    Results equal `lutwise.quant.executor.execute` as follows, ``m`` being the magnitude bits of
    a layer's accumulator and 16 those of a multiplier:

    * m <= 37: exact, sums and the multiplication.
    * m <= 53: sums are exact; the product rounds at 2**-53 of its value before it is rounded
      to the output format.
    * m > 53 (minifloats with 5 exponent bits and more): float64 sums, which round at 2**-53.

    In the last two cases a result differs where that rounding crosses a tie. With
    ``ConvolutionForm.FLOAT32`` every layer with m > 24 rounds at 2**-24. Layers whose output is
    float32 round once, to float32, in the order of the executor. Finite inputs whose quotient by
    the input scale overflows float32 are not handled.

    Args:
        network: The network.
        convolution: How to write layers that float32 does not sum exactly.

    Raises:
        ExportError: A format's values do not fit float32, a pool's padding is not smaller than
            its window, or the constants are too large for one file.

    Reference:
        QONNX: arXiv 2206.07527; FloatQuant: qonnx 1.0, ``docs/qonnx-custom-ops``.
    """
    _check(network)
    b = GraphBuilder(reserved=network.tensors)
    b.input(network.input, network.tensors[network.input].shape)
    for node in network.nodes:
        _emit(b, network, node, convolution)
    model = b.build(
        name=network.name,
        inputs=[network.input],
        outputs=[network.output],
        metadata={
            "lutwise.version": __version__,
            METADATA_KEY: json.dumps(_describe(network, convolution), sort_keys=True),
        },
    )
    return with_functions(model)


def _check(network: Network) -> None:
    for node in network.nodes:
        where = f"{type(node).__name__} {node.name!r}"
        fmt = network.tensors[node.output].format
        if fmt is not None:
            check_format(fmt, f"the output of {where}")
        if isinstance(node, Conv | Linear):
            check_format(node.weight_format, f"the weight of {where}")


def _emit(b: GraphBuilder, network: Network, node: Node, convolution: ConvolutionForm) -> Value:
    match node:
        case Quantize():
            return _quantize(b, network, node)
        case Conv() | Linear():
            return emit_layer(b, network, node, wide=_is_wide(node, convolution))
        case Add():
            return _add(b, network, node)
        case Pool():
            return _max_pool(b, network, node) if node.maximum else _average(b, network, node)
        case Concat():
            xs = [b.value(name) for name in node.inputs]
            shape = network.tensors[node.output].shape
            return b.node("Concat", xs, node.output, shape=shape, attributes={"axis": node.axis})
        case Flatten():
            shape = network.tensors[node.output].shape
            x = b.value(node.input)
            return b.node("Flatten", [x], node.output, shape=shape, attributes={"axis": 1})
        case Pad():
            return emit_pad(b, b.value(node.input), node.padding, node.name, node.output)
        case Clamp():
            x = b.value(node.input)
            return emit_clamp(b, x, node.low, node.high, node.name, node.output)
        case Operator():
            return emit_operator(b, network, node)


def _is_wide(node: Conv | Linear, convolution: ConvolutionForm) -> bool:
    return convolution is ConvolutionForm.AUTO and node.accumulator.magnitude_bits > FLOAT32_BITS


def _quantize(b: GraphBuilder, network: Network, node: Quantize) -> Value:
    spec = network.tensors[node.output]
    assert spec.format is not None
    scale = b.constant(f"{node.name}/scale", np.array(float(spec.scale), dtype=np.float32))
    x = b.node("Div", [b.value(node.input), scale], f"{node.name}/divided")
    x = emit_unsigned_guard(b, spec.format, x, node.name)
    return emit_quantizer(b, spec.format, x, f"{node.name}/quantizer", node.output)


def _add(b: GraphBuilder, network: Network, node: Add) -> Value:
    xs = [b.value(name) for name in node.inputs]
    if node.requantizer is None:
        return b.node("Add", xs, node.output)
    parts = []
    for i, (x, shift) in enumerate(zip(xs, node.shifts, strict=True)):
        part = b.cast(x, np.float64, f"{node.name}/wide_{i}")
        if shift:
            power = b.constant(f"{node.name}/power_{i}", np.array(2.0**shift))
            part = b.node("Mul", [part, power], f"{node.name}/shifted_{i}")
        parts.append(part)
    total = b.node("Add", parts, f"{node.name}/sum")
    return _requantize(b, network, node, total)


def _requantize(b: GraphBuilder, network: Network, node: Add | Pool, total: Value) -> Value:
    fmt = network.tensors[node.output].format
    assert fmt is not None
    assert node.requantizer is not None
    factor = b.constant(f"{node.name}/factor", np.array(node.requantizer.factors()[0]))
    scaled = b.node("Mul", [total, factor], f"{node.name}/scaled")
    return emit_requantizer(b, fmt, node.requantizer, scaled, node.name, node.output)


def _max_pool(b: GraphBuilder, network: Network, node: Pool) -> Value:
    top, left, bottom, right = node.padding
    if max(top, bottom) >= node.kernel[0] or max(left, right) >= node.kernel[1]:
        raise ExportError(
            f"Pool {node.name!r} pads by {node.padding} around windows of {node.kernel}; ONNX "
            "wants less padding than the window: put a Pad before it"
        )
    return b.node(
        "MaxPool",
        [b.value(node.input)],
        node.output,
        shape=network.tensors[node.output].shape,
        attributes={
            "kernel_shape": node.kernel,
            "strides": node.stride,
            "pads": node.padding,
        },
    )


def _average(b: GraphBuilder, network: Network, node: Pool) -> Value:
    """Sum over windows, then divide.

    The sum of values is exact in float64 in any order. Float32 numbers are added one after the
    other in row-major order and then divided, which is what the executor (torch) does.
    """
    x = b.value(node.input)
    shape = network.tensors[node.output].shape
    exact = node.requantizer is not None
    if exact:
        x = b.cast(x, np.float64, f"{node.name}/wide")
    if exact and node.kernel == x.shape[1:] and not any(node.padding):
        axes = b.constant(f"{node.name}/axes", np.array([2, 3]))
        total = b.node("ReduceSum", [x, axes], f"{node.name}/sum", shape=shape)
    else:
        if any(node.padding):
            x = emit_pad(b, x, node.padding, f"{node.name}/padding", f"{node.name}/padded")
        taps = emit_taps(
            b,
            x,
            kernel=node.kernel,
            stride=node.stride,
            dilation=(1, 1),
            size=(shape[1], shape[2]),
            prefix=node.name,
        )
        total = reduce(lambda a, t: b.node("Add", [a, t], f"{node.name}/sum"), taps)
    if exact:
        return _requantize(b, network, node, total)
    window = np.array(node.kernel[0] * node.kernel[1], dtype=np.float32)
    divisor = b.constant(f"{node.name}/window", window)
    return b.node("Div", [total, divisor], node.output)


def _describe(network: Network, convolution: ConvolutionForm) -> dict[str, object]:
    tensors = {
        t.name: {"format": None if t.format is None else str(t.format), "scale": str(t.scale)}
        for t in network.tensors.values()
    }
    return {
        "name": network.name,
        "input": network.input,
        "output": network.output,
        "tensors": tensors,
        "layers": [_describe_layer(layer, convolution) for layer in network.layers()],
    }


def _describe_layer(node: Conv | Linear, convolution: ConvolutionForm) -> dict[str, object]:
    wide = _is_wide(node, convolution)
    bits = node.accumulator.magnitude_bits
    return {
        "name": node.name,
        "output": node.output,
        "weight_format": str(node.weight_format),
        "weight_scales": _fractions(node.weight_scales),
        "bias_bits": bias_bits(node),
        "accumulator": {
            "unit_exponent": node.accumulator.unit_exponent,
            "worst_bits": node.accumulator.worst_bits,
            "bits": node.accumulator.bits,
            "magnitude_bits": bits,
        },
        "arithmetic": "float64" if wide else "float32",
        "exact": bits + MULTIPLIER_BITS <= FLOAT64_BITS and (wide or bits <= FLOAT32_BITS),
    }


def _fractions(numbers: Sequence[Fraction]) -> list[str]:
    return [str(number) for number in numbers]
