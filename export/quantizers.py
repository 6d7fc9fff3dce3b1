# SPDX-License-Identifier: Apache-2.0
"""Quantizer nodes: a format as the attributes and inputs of ``Quant`` or ``FloatQuant``.

Scales are always 1: tensors hold values of their format, so that qonnx's ``InferDataTypes`` finds
the true type of each (INT4, FLOAT<2,1,1>, ...) instead of SCALEDINT or FLOAT32.
"""

import numpy as np

from lutwise.errors import ExportError
from lutwise.export.graph import DOMAIN, GraphBuilder, Value
from lutwise.quant.formats import FloatFormat, Format, IntFormat, SpecialCodes
from lutwise.quant.network import Requantizer

__all__ = [
    "check_format",
    "emit_clamp",
    "emit_quantizer",
    "emit_requantizer",
    "emit_unsigned_guard",
]

_MIN_FLOAT32_EXPONENT = -149


def check_format(fmt: Format, where: str) -> None:
    """Refuse a format with values that float32, the carrier of QONNX, does not hold.

    Raises:
        ExportError: The format reaches too far.
    """
    if fmt.max_value >= 2.0**128 or fmt.unit_exponent < _MIN_FLOAT32_EXPONENT:
        raise ExportError(
            f"{where} has the format {fmt}, whose values run from 2**{fmt.unit_exponent} to "
            f"{fmt.max_value:g}; QONNX carries values in float32, which does not hold them: use a "
            "format with fewer exponent bits"
        )


def emit_quantizer(b: GraphBuilder, fmt: Format, x: Value, prefix: str, output: str) -> Value:
    """Round ``x`` to the format, half to even, saturating.

    ``FloatQuant`` is always signed: the caller clamps at 0 before an unsigned minifloat.

    Args:
        b: The graph.
        fmt: The format.
        x: Numbers, float32 or float64.
        prefix: Of the names of what the node needs.
        output: Name of the result, float32.
    """

    def scalar(name: str, number: float) -> Value:
        return b.constant(f"{prefix}/{name}", np.array(number, dtype=np.float32))

    if isinstance(fmt, IntFormat):
        return b.node(
            "Quant",
            [x, scalar("scale", 1), scalar("zero_point", 0), scalar("bits", fmt.bits)],
            output,
            dtype=np.float32,
            domain=DOMAIN,
            attributes={
                "signed": int(fmt.signed),
                "narrow": int(fmt.narrow),
                "rounding_mode": "ROUND",
            },
        )
    return b.node(
        "FloatQuant",
        [
            x,
            scalar("scale", 1),
            scalar("exponent_bits", fmt.exponent_bits),
            scalar("mantissa_bits", fmt.mantissa_bits),
            scalar("exponent_bias", fmt.bias),
            scalar("max_value", fmt.max_value),
        ],
        output,
        dtype=np.float32,
        domain=DOMAIN,
        attributes={
            "has_inf": int(fmt.special is SpecialCodes.IEEE),
            "has_nan": int(fmt.special is not SpecialCodes.NONE),
            "has_subnormal": 1,
            "saturation": 1,
            "rounding_mode": "ROUND",
        },
    )


def emit_clamp(
    b: GraphBuilder, x: Value, low: float, high: float, prefix: str, output: str
) -> Value:
    """Clamp to ``low`` .. ``high``; an infinite bound is none.

    Args:
        b: The graph.
        x: Numbers.
        low: Lower bound.
        high: Upper bound.
        prefix: Of the names of the bounds.
        output: Name of the result.
    """

    def bound(name: str, number: float) -> Value:
        return b.constant(f"{prefix}/{name}", np.array(number, dtype=x.dtype))

    # Not Clip with an input left out: qonnx cannot run a node whose inputs have no name.
    if low == 0 and high == np.inf:
        return b.node("Relu", [x], output)
    if high == np.inf:
        return b.node("Max", [x, bound("low", low)], output)
    if low == -np.inf:
        return b.node("Min", [x, bound("high", high)], output)
    return b.node("Clip", [x, bound("low", low), bound("high", high)], output)


def emit_requantizer(
    b: GraphBuilder,
    fmt: Format,
    requantizer: Requantizer,
    scaled: Value,
    prefix: str,
    output: str,
) -> Value:
    """Clamp and round a scaled accumulator to the format.

    The network clamps after rounding. Both bounds are values of the format and rounding is
    monotone and keeps them, so clamping before gives the same, and there a quantizer that
    saturates by itself needs it only for the bounds that are tighter than the format's.

    Args:
        b: The graph.
        fmt: Of the result.
        requantizer: Gives the bounds.
        scaled: Accumulator times factor, float64.
        prefix: Of the names of what the nodes need.
        output: Name of the result, float32.
    """
    low, high = requantizer.low, requantizer.high
    clamps_low = low > fmt.min_value or low == 0
    # A ReLU is kept in front of unsigned integers too: readers look for it there.
    if clamps_low or high < fmt.max_value:
        scaled = emit_clamp(
            b,
            scaled,
            low if clamps_low else -np.inf,
            high if high < fmt.max_value else np.inf,
            f"{prefix}/clamp",
            f"{prefix}/clamped",
        )
    return emit_quantizer(b, fmt, scaled, f"{prefix}/quantizer", output)


def emit_unsigned_guard(b: GraphBuilder, fmt: Format, x: Value, prefix: str) -> Value:
    """Clamp at 0 before an unsigned minifloat, which ``FloatQuant`` does not know."""
    if isinstance(fmt, FloatFormat) and not fmt.signed:
        return b.node("Relu", [x], f"{prefix}/positive")
    return x
