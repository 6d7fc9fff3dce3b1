# SPDX-License-Identifier: Apache-2.0
"""Prices of units: the characterised tables first, formulas where they have no row.

Prices are LUT6 sites of UltraScale+ as ``lutwise.hw.packing`` estimates them from a netlist of
Yosys. They were not compared with a vendor's placer.
"""

import csv
import io
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib.resources import files
from typing import Final

from lutwise.cost_models.formula import (
    COEFFICIENTS,
    Coefficients,
    Observation,
    counted_sites,
    fit,
    formula_luts,
)
from lutwise.cost_models.requantizer_units import RequantizerKey
from lutwise.cost_models.units import LANES, LENGTH, UnitKey, one_format
from lutwise.errors import ConfigError
from lutwise.hw.architecture import Architecture
from lutwise.hw.bounds import accumulator_range, width_of_range
from lutwise.quant.formats import Format, IntFormat

__all__ = [
    "FEW_LANES_ERROR",
    "FORMULA_ERROR",
    "INTERPOLATED_ERROR",
    "MANY_LANES_ERROR",
    "DotProductRow",
    "LutPrice",
    "PriceSource",
    "RequantizerRow",
    "dot_product_table",
    "fit_coefficients",
    "is_fitted",
    "lut_per_mac",
    "relative_error",
    "requantizer_luts",
    "requantizer_table",
]

FORMULA_ERROR: Final = 0.08
"""Nine of ten units that the formula was not fitted on are closer than this, relative."""

FEW_LANES_ERROR: Final = 0.08
"""The same for two to seven lanes, between characterised ones."""

MANY_LANES_ERROR: Final = 0.02
"""The same for more than eight lanes, between or beyond characterised ones."""

INTERPOLATED_ERROR: Final = 0.02
"""Relative error of a requantizer between two characterised accumulator widths."""


class PriceSource(Enum):
    """Where a price comes from."""

    TABLE = "table"
    """Synthesized and verified; only the count of sites is an estimate."""

    FORMULA = "formula"
    """From the structure of the unit, or between synthesized ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LutPrice:
    """A price and how far to trust it.

    Args:
        value: LUT sites.
        source: Table or formula.
        relative_error: Expected relative deviation from synthesis by this package; 0 for
            table rows.
    """

    value: float
    source: PriceSource
    relative_error: float

    @property
    def low(self) -> float:
        """Lower end of the error bar."""
        return self.value * (1 - self.relative_error)

    @property
    def high(self) -> float:
        """Upper end of the error bar."""
        return self.value * (1 + self.relative_error)


@dataclass(frozen=True, slots=True, kw_only=True)
class DotProductRow:
    """A row of ``data/dot_products.csv``.

    Args:
        unit: What was built.
        luts: LUT sites of the whole unit.
        carry8: CARRY8 cells.
        ffs: Flip-flops.
        depth: LUTs on the longest path.
        style: The architecture that won.
        tool: The synthesizer.
        delay_ns: Estimated delay of the longest path in nanoseconds.
    """

    unit: UnitKey
    luts: int
    carry8: int
    ffs: int
    depth: int
    style: str
    tool: str
    delay_ns: float

    @property
    def architecture(self) -> Architecture:
        """The architecture that won."""
        return Architecture.parse(self.style)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequantizerRow:
    """A row of ``data/requantizers.csv``; fields as in ``DotProductRow``."""

    unit: RequantizerKey
    luts: int
    carry8: int
    depth: int
    tool: str


def _read(name: str) -> list[dict[str, str]]:
    path = files("lutwise.cost_models") / "data" / name
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


@cache
def dot_product_table() -> dict[UnitKey, DotProductRow]:
    """Return the table of dot-product units."""
    table = {}
    for row in _read("dot_products.csv"):
        unit = UnitKey(
            weights=row["weights"], activations=row["activations"], lanes=int(row["lanes"])
        )
        table[unit] = DotProductRow(
            unit=unit,
            luts=int(row["luts"]),
            carry8=int(row["carry8"]),
            ffs=int(row["ffs"]),
            depth=int(row["depth"]),
            style=row["style"],
            tool=row["tool"],
            delay_ns=float(row["delay_ns"]),
        )
    return table


@cache
def requantizer_table() -> dict[RequantizerKey, RequantizerRow]:
    """Return the table of requantizers."""
    table = {}
    for row in _read("requantizers.csv"):
        unit = RequantizerKey(accumulator_bits=int(row["accumulator_bits"]), output=row["output"])
        table[unit] = RequantizerRow(
            unit=unit,
            luts=int(row["luts"]),
            carry8=int(row["carry8"]),
            depth=int(row["depth"]),
            tool=row["tool"],
        )
    return table


def lut_per_mac(
    weights: Format, activations: Format, lanes: int, *, accumulator_bits: int | None = None
) -> LutPrice:
    """Price one multiply-accumulate of a dot-product unit.

    A unit of the atlas is looked up. Pairs and ranges that it lacks take the formula, whatever the
    width of their accumulator. LUTs of lanes other than ``lutwise.cost_models.units.LANES`` lie on
    a line between those of the next fewer and the next more, or through the two last ones.

    Args:
        weights: Format of the weights.
        activations: Format of the activations.
        lanes: Products per cycle of the unit.
        accumulator_bits: Width of the accumulator, when it is not the one for 1024 products;
            every bit more or less is one LUT of the unit.

    Raises:
        ConfigError: Fewer than one lane.
    """
    unit = _unit_price(weights, activations, lanes)
    luts = unit.value
    if accumulator_bits is not None:
        luts = max(1.0, luts + accumulator_bits - _usual_bits(weights, activations))
    return LutPrice(value=luts / lanes, source=unit.source, relative_error=unit.relative_error)


@cache
def _usual_bits(weights: Format, activations: Format) -> int:
    return width_of_range(*accumulator_range(weights, activations, LENGTH))


@cache
def _unit_price(weights: Format, activations: Format, lanes: int) -> LutPrice:
    """Price a whole unit whose accumulator holds 1024 products."""
    if lanes in LANES:
        row = _row(weights, activations, lanes)
        if row is not None:
            return LutPrice(value=float(row.luts), source=PriceSource.TABLE, relative_error=0.0)
        return LutPrice(
            value=formula_luts(weights, activations, lanes),
            source=PriceSource.FORMULA,
            relative_error=FORMULA_ERROR,
        )
    if lanes < 1:
        raise ConfigError(f"a unit has at least one lane, got {lanes}")
    few, some, many = LANES
    ends, error = (few, some), FEW_LANES_ERROR
    if lanes > some:
        ends, error = (some, many), MANY_LANES_ERROR
    prices = [_unit_price(weights, activations, end) for end in ends]
    return LutPrice(
        value=_interpolate(
            [(end, price.value) for end, price in zip(ends, prices, strict=True)], lanes
        ),
        source=PriceSource.FORMULA,
        relative_error=max(error, *(price.relative_error for price in prices)),
    )


def _row(weights: Format, activations: Format, lanes: int) -> DotProductRow | None:
    """Return the row of exactly these formats; no row is of a range that the atlas lacks."""
    if isinstance(weights, IntFormat) and weights.signed and not weights.narrow:
        return None
    if isinstance(activations, IntFormat) and activations.narrow:
        return None
    key = UnitKey(weights=weights.name, activations=activations.name, lanes=lanes)
    return dot_product_table().get(key)


def requantizer_luts(accumulator_bits: int, output_format: Format) -> LutPrice:
    """Price a requantizer with a 16-bit multiplier.

    Linear in the accumulator's width between characterised widths, and beyond the last ones.

    Args:
        accumulator_bits: Width of the accumulator.
        output_format: Format of the result.

    Raises:
        ConfigError: The width is not positive, or the table does not hold the format.
    """
    if accumulator_bits < 1:
        raise ConfigError(f"an accumulator has at least one bit, got {accumulator_bits}")
    points = _requantizer_points(output_format.name)
    if len(points) < 2:
        raise ConfigError(f"no requantizer to {output_format} in the library")
    for bits, luts in points:
        if bits == accumulator_bits:
            return LutPrice(value=float(luts), source=PriceSource.TABLE, relative_error=0.0)
    value = _interpolate(points, accumulator_bits)
    return LutPrice(
        value=max(1.0, value), source=PriceSource.FORMULA, relative_error=INTERPOLATED_ERROR
    )


@cache
def _requantizer_points(output: str) -> tuple[tuple[int, int], ...]:
    """Return accumulator bits and LUTs of the characterised requantizers, ascending."""
    rows = requantizer_table().items()
    return tuple(
        sorted((unit.accumulator_bits, row.luts) for unit, row in rows if unit.output == output)
    )


def _interpolate(points: Sequence[tuple[int, float]], at: int) -> float:
    right = min(max(bisect_left([bits for bits, _ in points], at), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


def is_fitted(unit: UnitKey) -> bool:
    """Tell whether the formula is fitted on a unit of the atlas; it is judged on the others.

    Fitted are 1 and 8 lanes of even widths, with the same format on both sides or the unsigned
    one of its width.
    """
    weights, activations = unit.weight_format, unit.activation_format
    return one_format(weights, activations) and weights.bits % 2 == 0 and unit.lanes in {1, 8}


def fit_coefficients() -> Coefficients:
    """Fit the formula on its part of the atlas."""
    return fit(
        [
            Observation(
                sites=counted_sites(
                    unit.weight_format, unit.activation_format, unit.lanes, row.architecture
                ),
                luts=row.luts,
            )
            for unit, row in dot_product_table().items()
            if is_fitted(unit)
        ]
    )


def relative_error(unit: UnitKey, coefficients: Coefficients = COEFFICIENTS) -> float:
    """Return what the formula says of a unit of the atlas over its LUTs, less 1.

    Raises:
        KeyError: The atlas does not hold the unit.
    """
    formats = unit.weight_format, unit.activation_format
    return formula_luts(*formats, unit.lanes, coefficients) / dot_product_table()[unit].luts - 1
