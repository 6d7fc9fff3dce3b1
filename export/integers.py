# SPDX-License-Identifier: Apache-2.0
"""A network in integers: what tools without minifloats, and without float64, can compute exactly.

Every tensor of a format is counted in the format's unit, the power of two of which all its values
are multiples: an ``e2m1`` number is one of 0, 1, 2, 3, 4, 6, 8, 12 halves, which is a 5-bit integer
with the sign. Weights become such integers. A requantizer becomes the integer sums from which on
its result rises, one after the other, so that its rounding, ties included, is the exact executor's.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lutwise.errors import ExportError
from lutwise.export.layers import FLOAT32_BITS
from lutwise.quant.formats import Format, IntFormat, values
from lutwise.quant.network import Add, Conv, Linear, Network, Pool, Requantizer
from lutwise.quant.numerics import quantize

__all__ = [
    "Counts",
    "Integers",
    "Rescale",
    "Rescaled",
    "check_sums",
    "integers_of",
    "rescale_add",
    "rescale_layer",
    "rescale_pool",
    "steps",
    "thresholds",
    "units",
    "weight_integers",
]

Counts = npt.NDArray[np.int64]
Rescaled: TypeAlias = Conv | Linear | Add | Pool
"""Nodes that sum integers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Integers:
    """The integers that a format's values are in units.

    Args:
        low: Smallest.
        high: Largest.
    """

    low: int
    high: int

    @property
    def signed(self) -> bool:
        """Whether any is negative."""
        return self.low < 0

    @property
    def bits(self) -> int:
        """Width that holds them: two's complement where any is negative."""
        if not self.signed:
            return max(1, self.high.bit_length())
        return 1 + max(self.high.bit_length(), (-self.low - 1).bit_length())

    @property
    def type_name(self) -> str:
        """The spelling of qonnx's data types."""
        return f"{'' if self.signed else 'U'}INT{self.bits}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rescale:
    """From sums in integers to a format: ``clamp(round((sum + bias) * factor))``.

    Args:
        bias: Added to the sums, per channel or one.
        factors: Values of the format that a sum of one means, as many.
        format: Of the result.
        low: Smallest result, a value.
        high: Largest result, a value.
        largest: No sum, partial or with bias, exceeds it in magnitude.
    """

    bias: tuple[int, ...]
    factors: tuple[Fraction, ...]
    format: Format
    low: float
    high: float
    largest: int

    @property
    def channels(self) -> int:
        """How many channels have numbers of their own."""
        return max(len(self.bias), len(self.factors))


def units(fmt: Format, numbers: npt.NDArray[np.float64]) -> Counts:
    """Return values of a format in units.

    Args:
        fmt: The format.
        numbers: Its values, any shape.

    Raises:
        ExportError: The format's values in units do not fit 63 bits.
    """
    if fmt.max_value * 2.0**-fmt.unit_exponent >= 2.0**63:
        raise ExportError(f"{fmt} has values of more than 63 bits in its unit")
    found: Counts = np.ldexp(numbers, -fmt.unit_exponent).astype(np.int64)
    return found


def integers_of(fmt: Format, low: float | None = None, high: float | None = None) -> Integers:
    """Return the integers of a format in units, or of its values between two bounds."""
    ends = np.array(
        [fmt.min_value if low is None else low, fmt.max_value if high is None else high]
    )
    first, last = units(fmt, ends).tolist()
    return Integers(low=int(first), high=int(last))


@cache
def steps(fmt: Format, low: float, high: float) -> tuple[tuple[int, Fraction, bool], ...]:
    """Return how a format's rounding rises from one value to the next.

    Args:
        fmt: The format.
        low: First value.
        high: Last value.

    Returns:
        For each pair of neighbours: by how many units the result rises, the number in the middle,
        and whether that number itself is rounded up.
    """
    grid = values(fmt)
    grid = grid[(grid >= low) & (grid <= high)]
    middles = (grid[:-1] + grid[1:]) / 2
    up = quantize(fmt, middles) == grid[1:]
    rises = np.diff(units(fmt, grid))
    return tuple(
        (int(rise), Fraction(float(middle)), bool(ties))
        for rise, middle, ties in zip(rises, middles, up, strict=True)
    )


def thresholds(rescale: Rescale) -> Counts:
    """Return the sums, without bias, from which on a result rises by one unit each.

    The result is the smallest plus the number of thresholds that a sum reaches.

    Returns:
        Ascending along the last axis, shape (channels, units between the smallest and the largest
        result).
    """
    rises = steps(rescale.format, rescale.low, rescale.high)
    repeats = [rise for rise, _, _ in rises]
    rows = []
    for channel in range(rescale.channels):
        factor = rescale.factors[channel % len(rescale.factors)]
        bias = rescale.bias[channel % len(rescale.bias)]
        # Beyond these, a threshold is reached always or never.
        least, most = -rescale.largest - bias, rescale.largest + 1 - bias
        row = []
        for _, middle, ties_up in rises:
            at = middle / factor
            first = -(-at.numerator // at.denominator)
            if not ties_up and at.denominator == 1:
                first += 1
            row.append(min(max(first - bias, least), most))
        rows.append(np.repeat(np.array(row, dtype=np.int64), repeats))
    return np.stack(rows)


def rescale_layer(network: Network, node: Conv | Linear) -> Rescale:
    """Return how a layer's integer sums become its output; it has a requantizer."""
    assert node.requantizer is not None
    return _rescale(
        network,
        node,
        node.requantizer,
        unit=node.accumulator.unit_exponent,
        bias=tuple(int(code) for code in node.bias_codes) if node.has_bias else (0,),
        largest=(1 << node.accumulator.magnitude_bits) - 1,
    )


def rescale_add(network: Network, node: Add) -> tuple[Rescale, tuple[int, int]]:
    """Return how the sum of two tensors becomes the output, and what multiplies each before."""
    assert node.requantizer is not None
    formats = [network.tensors[name].format for name in node.inputs]
    exponents = []
    for fmt, shift in zip(formats, node.shifts, strict=True):
        assert fmt is not None
        exponents.append(fmt.unit_exponent + shift)
    unit = min(exponents)
    first, second = (1 << (exponent - unit) for exponent in exponents)
    largest = 0
    for fmt, power in zip(formats, (first, second), strict=True):
        assert fmt is not None
        ends = integers_of(fmt)
        largest += power * max(ends.high, -ends.low)
    rescale = _rescale(network, node, node.requantizer, unit=unit, bias=(0,), largest=largest)
    return rescale, (first, second)


def rescale_pool(network: Network, node: Pool) -> Rescale:
    """Return how the sums over an average's windows become the output."""
    assert node.requantizer is not None
    fmt = network.tensors[node.input].format
    assert fmt is not None
    ends = integers_of(fmt)
    return _rescale(
        network,
        node,
        node.requantizer,
        unit=fmt.unit_exponent,
        bias=(0,),
        largest=node.kernel[0] * node.kernel[1] * max(ends.high, -ends.low),
    )


def _rescale(
    network: Network,
    node: Rescaled,
    requantizer: Requantizer,
    *,
    unit: int,
    bias: tuple[int, ...],
    largest: int,
) -> Rescale:
    fmt = network.tensors[node.output].format
    assert fmt is not None
    pairs = zip(requantizer.multiplier.tolist(), requantizer.shift.tolist(), strict=True)
    return Rescale(
        bias=bias,
        factors=tuple(m * Fraction(2) ** (unit - s) for m, s in pairs),
        format=fmt,
        low=requantizer.low,
        high=requantizer.high,
        largest=largest,
    )


def check_sums(node: Rescaled, bits: int, tool: str) -> None:
    """Refuse a node whose integer sums float32 does not hold.

    Args:
        node: The node.
        bits: Of the largest magnitude of a sum.
        tool: That the file is for.

    Raises:
        ExportError: They need more than 24 bits.
    """
    if bits > FLOAT32_BITS:
        terms = f" of {node.weight_format} times inputs" if isinstance(node, Conv | Linear) else ""
        raise ExportError(
            f"{type(node).__name__} {node.name!r}: its sums{terms} need {bits} bits in integers; "
            f"{tool} computes in float32, which holds {FLOAT32_BITS}: use formats with fewer "
            "exponent bits, or fewer bits"
        )


def weight_integers(node: Conv | Linear) -> tuple[Counts, Integers, bool]:
    """Return a layer's weights in units, which integers its format has, and if they are narrow."""
    fmt = node.weight_format
    narrow = fmt.narrow if isinstance(fmt, IntFormat) else fmt.signed
    return units(fmt, node.weight_values), integers_of(fmt), narrow
