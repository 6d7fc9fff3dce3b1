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
from typing import Final

from lutwise.cost_models.library import LutPrice, PriceSource, requantizer_luts
from lutwise.errors import ConfigError
from lutwise.hw.constant_number import number_bits, number_sites
from lutwise.hw.constant_unit import ConstantUnit
from lutwise.hw.output_stage import Form, form_for, result_codes
from lutwise.quant.formats import Format

__all__ = [
    "CONSTANT_ERROR",
    "COUNTED_ERROR",
    "constant_luts",
    "constant_output_luts",
    "unit_luts",
]

CONSTANT_ERROR: Final = 0.15
"""Nine of ten layers are closer than this to the price of their shape, relative."""

COUNTED_ERROR: Final = 0.02
"""Nine of ten units are closer than this to their counted sites, relative."""

_CONSTANT_MULTIPLIER: Final = 0.7
"""Sites of a requantizer whose multiplier is a constant, over those of one that takes any."""


def unit_luts(unit: ConstantUnit) -> LutPrice:
    """Price a unit with its weights: everything but requantizers that multiply, exactly.

    Args:
        unit: The unit.

    Raises:
        ConfigError: The library has no requantizer to the output's format.
    """
    luts = unit.counted_sites().total
    if unit.stage is not None and unit.stage.form is Form.MULTIPLY:
        luts += unit.channels * constant_output_luts(unit.accumulator_bits, unit.stage.output)
    return LutPrice(value=luts, source=PriceSource.FORMULA, relative_error=COUNTED_ERROR)


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
            f"no constant units of {weights} in the library; it holds {', '.join(_table())}"
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


def constant_output_luts(accumulator_bits: int, output: Format | None) -> float:
    """Return the LUT sites that turn one channel's sum into a code, with constants built in.

    Args:
        accumulator_bits: Width of the sum.
        output: Format of the results; ``None`` where sums go out.

    Raises:
        ConfigError: The library has no requantizer to the format.
    """
    if output is None:
        return 0.0
    results = len(result_codes(output))
    if form_for(results) is Form.MULTIPLY:
        return _CONSTANT_MULTIPLIER * requantizer_luts(accumulator_bits, output).value
    levels = (results - 1).bit_length()
    search = sum(ceil(accumulator_bits / (5 - level)) + 1 for level in range(levels))
    return search + output.bits / 2


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


def _per_output(sizes: Mapping[int, Mapping[int, float]], outputs: float, length: int) -> float:
    """Interpolate over the logarithm of outputs, and along a line over length."""
    points = [(log2(count), _between(lengths.items(), length)) for count, lengths in sizes.items()]
    return _between(points, min(log2(outputs), max(points)[0]))


def _between(points: Iterable[tuple[float, float]], at: float) -> float:
    """Interpolate on a line between two neighbours, or extend that of the last two."""
    points = sorted(points)
    if len(points) == 1:
        return points[0][1]
    right = min(max(bisect_left(points, (at,)), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
