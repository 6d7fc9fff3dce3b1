# SPDX-License-Identifier: Apache-2.0
"""Prices of constant units: layers fully unrolled, with their weights built in.

With the weights at hand a unit is counted exactly by its generator. With shapes only, the price of
an output comes from ``data/constant_products.csv``: counted units of random weights over formats,
widths of numbers, outputs and lengths, between which it is interpolated.
"""

import csv
import io
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from math import ceil, log2
from typing import Final, TypeAlias

from lutwise.cost_models.library import LutPrice, PriceSource
from lutwise.errors import ConfigError
from lutwise.hw.constant_number import number_bits, number_sites
from lutwise.hw.constant_unit import ConstantUnit
from lutwise.hw.output_stage import Form, form_for, result_codes
from lutwise.quant.formats import Format, IntFormat

__all__ = [
    "CONSTANT_ERROR",
    "COUNTED_ERROR",
    "constant_luts",
    "constant_output_luts",
    "has_constant_price",
    "unit_luts",
]

CONSTANT_ERROR: Final = 0.11
"""Nine of ten layers of runs are closer than this to the price of their shape, relative."""

COUNTED_ERROR: Final = 0.03
"""Nine of ten units are closer than this to their counted sites, relative."""

_MULTIPLIER_BITS: Final = 16
_SITES_PER_SUM_BIT: Final = 5.3
"""Sites of a product with a constant of 16 bits, per bit of the sum."""


def unit_luts(unit: ConstantUnit) -> LutPrice:
    """Price a unit, its output stages included, by what its generator counts.

    Args:
        unit: The unit.
    """
    return LutPrice(
        value=unit.counted_sites().total,
        source=PriceSource.FORMULA,
        relative_error=COUNTED_ERROR,
    )


def constant_luts(
    weights: Format, activations: Format, dot_length: int, outputs: int, *, groups: int = 1
) -> LutPrice:
    """Price the sums of a layer of which only formats and sizes are known.

    Args:
        weights: Format of the weights.
        activations: Format of the inputs.
        dot_length: Products per output.
        outputs: Output channels of all groups.
        groups: Groups of outputs with inputs of their own.

    Raises:
        ConfigError: A size is not positive, or the table does not hold the weights' format.
    """
    if min(dot_length, outputs, groups) < 1:
        raise ConfigError(
            f"sizes are positive, got dot_length={dot_length}, outputs={outputs}, groups={groups}"
        )
    by_bits = _table().get(weights.name)
    if by_bits is None:
        raise ConfigError(
            f"no constant units of {weights} in the library; sums of wide exponents do not fit "
            f"one, and it holds {', '.join(_table())}"
        )
    beside = max(1.0, outputs / groups)
    price = _between(
        [(bits, _per_output(sizes, beside, dot_length)) for bits, sizes in by_bits.items()],
        number_bits(activations),
    )
    numbers = dot_length * groups * number_sites(activations)
    return LutPrice(
        value=outputs * max(1.0, price) + numbers,
        source=PriceSource.FORMULA,
        relative_error=CONSTANT_ERROR,
    )


def has_constant_price(weights: Format) -> bool:
    """Tell whether the library holds constant units of a format of weights."""
    return weights.name in _table()


def constant_output_luts(accumulator_bits: int, output: Format | None) -> float:
    """Return the LUT sites that turn one channel's sum into a code, with constants built in.

    Args:
        accumulator_bits: Width of the sum.
        output: Format of the results; ``None`` where sums go out.
    """
    if output is None:
        return 0.0
    results = len(result_codes(output))
    if form_for(results) is Form.THRESHOLDS:
        levels = (results - 1).bit_length()
        search = sum(ceil(accumulator_bits / (5 - level)) + 1 for level in range(levels))
        return search + output.bits / 2
    product_bits = accumulator_bits + _MULTIPLIER_BITS
    multiply = _SITES_PER_SUM_BIT * accumulator_bits
    if isinstance(output, IntFormat):
        return multiply + 2 * output.bits + (product_bits - output.bits) / 5
    return multiply + product_bits * (output.signed + output.exponent_bits / 2)


_Lengths: TypeAlias = Mapping[int, float]
"""LUTs of an output by its length."""


@cache
def _table() -> dict[str, dict[int, dict[int, dict[int, float]]]]:
    """Return LUTs of an output by weights, bits of a number, outputs and length."""
    path = files("lutwise.cost_models") / "data" / "constant_products.csv"
    found: dict[str, dict[int, dict[int, dict[int, float]]]] = {}
    for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
        sizes = found.setdefault(row["weights"], {}).setdefault(int(row["number_bits"]), {})
        lengths = sizes.setdefault(int(row["outputs"]), {})
        lengths[int(row["length"])] = float(row["luts_per_output"])
    return found


def _per_output(sizes: Mapping[int, _Lengths], outputs: float, length: int) -> float:
    """Interpolate over the logarithm of outputs, and along a line over length.

    Args:
        sizes: What the table holds, by outputs.
        outputs: Outputs with the same inputs.
        length: Products per output.
    """
    points: list[tuple[float, float]] = []
    fewer: _Lengths = {}
    for count, lengths in sorted(sizes.items()):
        longest = max(lengths)
        price = _between(lengths.items(), length)
        if fewer and longest < min(length, max(fewer)):
            # Many outputs of great length are not in the table: they grow as fewer ones do.
            price = points[-1][1] * lengths[longest] / _between(fewer.items(), longest)
        else:
            fewer = lengths
        points.append((log2(count), price))
    return _between(points, min(log2(outputs), points[-1][0]))


def _between(points: Iterable[tuple[float, float]], at: float) -> float:
    """Interpolate on a line between two neighbours, or extend that of the last two."""
    points = sorted(points)
    if len(points) == 1:
        return points[0][1]
    right = min(max(bisect_left(points, (at,)), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
