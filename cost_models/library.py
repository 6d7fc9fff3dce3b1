# SPDX-License-Identifier: Apache-2.0
"""Prices of units: the characterised tables first, formulas where they have no row.

Prices are LUT6 sites of UltraScale+ as ``lutwise.hw.packing`` estimates them from a netlist of
Yosys. They were not compared with a vendor's placer.
"""

import csv
import io
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib.resources import files
from typing import Final

from lutwise.cost_models.formula import COEFFICIENTS, Coefficients, Observation, fit, structure_of
from lutwise.cost_models.requantizer_units import RequantizerKey
from lutwise.cost_models.units import UnitKey
from lutwise.errors import ConfigError
from lutwise.hw.bounds import accumulator_range, width_of_range
from lutwise.quant.formats import FloatFormat, Format, IntFormat

__all__ = [
    "ANCHORED_ERROR",
    "FORMULA_ERROR",
    "INTERPOLATED_ERROR",
    "DotProductRow",
    "LutPrice",
    "PriceSource",
    "RequantizerRow",
    "dot_product_table",
    "fit_coefficients",
    "held_out_errors",
    "held_out_table",
    "lut_per_mac",
    "requantizer_luts",
    "requantizer_table",
]

FORMULA_ERROR: Final = 0.08
"""Mean relative error of the formula on units that it was not fitted on."""

ANCHORED_ERROR: Final = 0.04
"""The same where the formula is scaled to a characterised unit with other lanes."""

INTERPOLATED_ERROR: Final = 0.02
"""Relative error of a requantizer between two characterised accumulator widths."""

_LENGTH: Final = 1024
_WIDE_EXPONENT: Final = 6


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
        style: The product style that won.
        tool: The synthesizer.
    """

    unit: UnitKey
    luts: int
    carry8: int
    ffs: int
    depth: int
    style: str
    tool: str


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
    return _dot_products("dot_products.csv")


@cache
def held_out_table() -> dict[UnitKey, DotProductRow]:
    """Return the random sample of other pairs that the formula is judged on."""
    return _dot_products("held_out.csv")


def _dot_products(name: str) -> dict[UnitKey, DotProductRow]:
    table = {}
    for row in _read(name):
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


def _key(weights: Format, activations: Format, lanes: int) -> UnitKey | None:
    """Return the row that describes exactly these formats, if the table can hold one."""
    if isinstance(weights, IntFormat) and weights.signed and not weights.narrow:
        return None
    if isinstance(activations, IntFormat) and activations.narrow:
        return None
    return UnitKey(weights=weights.name, activations=activations.name, lanes=lanes)


def lut_per_mac(
    weights: Format, activations: Format, lanes: int, *, accumulator_bits: int | None = None
) -> LutPrice:
    """Price one multiply-accumulate of a dot-product unit.

    A characterised unit is looked up. One with the same formats and other lanes scales the
    formula to the nearest characterised lanes; any other pair takes the formula as it is.

    Args:
        weights: Format of the weights.
        activations: Format of the activations.
        lanes: Products per cycle of the unit.
        accumulator_bits: Width of the accumulator, when it is not the one for 1024 products;
            every bit more or less is one LUT of the unit.

    Raises:
        ConfigError: Fewer than one lane.
    """
    structure = structure_of(weights, activations, lanes)
    estimate = structure.luts()
    key = _key(weights, activations, lanes)
    row = dot_product_table().get(key) if key else None
    if row is not None:
        luts, source, error = float(row.luts), PriceSource.TABLE, 0.0
    else:
        luts, source, error = estimate, PriceSource.FORMULA, FORMULA_ERROR
        anchor = _nearest_lanes(weights, activations, lanes) if key else None
        if anchor is not None:
            there = structure_of(weights, activations, anchor.unit.lanes).luts()
            luts = estimate * anchor.luts / there
            # One lane says little of a tree: from there the formula's own error stays.
            error = ANCHORED_ERROR if anchor.unit.lanes > 1 else FORMULA_ERROR
    if accumulator_bits is not None:
        usual = width_of_range(*accumulator_range(weights, activations, _LENGTH))
        luts = max(1.0, luts + accumulator_bits - usual)
    return LutPrice(value=luts / lanes, source=source, relative_error=error)


@cache
def _nearest_lanes(weights: Format, activations: Format, lanes: int) -> DotProductRow | None:
    rows = [
        row
        for unit, row in dot_product_table().items()
        if unit.weights == weights.name and unit.activations == activations.name
    ]
    # Lanes matter by their ratio: 16 is as far from 8 as from 32.
    return min(
        rows,
        key=lambda row: max(row.unit.lanes / lanes, lanes / row.unit.lanes),
        default=None,
    )


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


def _interpolate(points: tuple[tuple[int, int], ...], at: int) -> float:
    right = min(max(bisect_left([bits for bits, _ in points], at), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


def _exponent_bits(fmt: Format) -> int:
    return fmt.exponent_bits if isinstance(fmt, FloatFormat) else 0


def _observations(rows: Iterable[DotProductRow]) -> list[Observation]:
    found = []
    for row in rows:
        formats = row.unit.weight_format, row.unit.activation_format
        if max(map(_exponent_bits, formats)) < _WIDE_EXPONENT:
            structure = structure_of(*formats, row.unit.lanes)
            found.append(Observation(structure=structure, luts=row.luts))
    return found


def fit_coefficients() -> Coefficients:
    """Fit the formula on the library, exponents up to five bits."""
    return fit(_observations(dot_product_table().values()))


def held_out_errors(coefficients: Coefficients = COEFFICIENTS) -> list[float]:
    """Return the relative errors of the formula on the units of ``held_out_table``."""
    return [
        o.structure.luts(coefficients) / o.luts - 1
        for o in _observations(held_out_table().values())
    ]
