# SPDX-License-Identifier: Apache-2.0
"""Judge prices without synthesis against the atlas of synthesized units.

    python benchmarks/cost_model.py --json cost_model.json
    python benchmarks/cost_model.py --other-lanes 60 --json cost_model.json

Prints and writes, per model and group of units, quantiles of the absolute relative error in
LUTs. Models: the formula with its fitted coefficients, the counted sites as they are, FINN's
formula with and without its constant (integers only), and the formula with the accumulators of
arXiv 2311.12359. ``--other-lanes`` builds random units with numbers of lanes that the atlas does
not have, to judge what is said of them.
"""

import argparse
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

if not __package__:  # run as a script: the benchmarks are a package of the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import circumstances, write_record
from lutwise.cost_models.characterize import characterize_dot_product
from lutwise.cost_models.formula import COEFFICIENTS, COUNTED, Coefficients, formula_luts
from lutwise.cost_models.library import (
    dot_product_table,
    fit_coefficients,
    is_fitted,
    lut_per_mac,
)
from lutwise.cost_models.published import finn_mvau_luts, paper_accumulator_bits
from lutwise.cost_models.units import LENGTH, UnitKey, one_format
from lutwise.errors import ConfigError
from lutwise.hw.bounds import accumulator_range, width_of_range
from lutwise.quant.formats import IntFormat

__all__ = ["groups", "main", "models", "summary"]

OTHER_LANES: Final = (2, 3, 4, 6, 9, 12, 16, 18, 24, 27, 64)

Model = Callable[[UnitKey], float | None]
"""LUTs of a unit, or ``None`` where a model has nothing to say."""


def summary(errors: Iterable[float]) -> dict[str, float]:
    """Return count, mean, bias and quantiles of relative errors, quantiles of their sizes."""
    found = np.array(list(errors))
    sizes = np.abs(found)
    return {
        "units": len(found),
        "bias": round(float(found.mean()), 4),
        "mean": round(float(sizes.mean()), 4),
        "median": round(float(np.median(sizes)), 4),
        "p90": round(float(np.quantile(sizes, 0.9)), 4),
        "worst": round(float(sizes.max()), 4),
    }


def groups(units: Sequence[UnitKey]) -> dict[str, list[UnitKey]]:
    """Split units in what the formula is fitted on and, by several aspects, the others."""

    def same(unit: UnitKey) -> bool:
        return one_format(unit.weight_format, unit.activation_format)

    held_out = [unit for unit in units if not is_fitted(unit)]
    found = {
        "fitted": [unit for unit in units if is_fitted(unit)],
        "held out": held_out,
        "held out, one format": [unit for unit in held_out if same(unit)],
        "held out, two formats": [unit for unit in held_out if not same(unit)],
        "held out, integers": [
            unit
            for unit in held_out
            if isinstance(unit.weight_format, IntFormat)
            and isinstance(unit.activation_format, IntFormat)
        ],
    }
    for lanes in sorted({unit.lanes for unit in units}):
        found[f"held out, {lanes} lanes"] = [unit for unit in held_out if unit.lanes == lanes]
    return {name: members for name, members in found.items() if members}


def models() -> dict[str, Model]:
    """Return the models by name."""
    return {
        "formula": lambda unit: _formula(unit, COEFFICIENTS),
        "counted sites": lambda unit: _formula(unit, COUNTED),
        "FINN": lambda unit: _finn(unit, 300.0),
        "FINN without its constant": lambda unit: _finn(unit, 0.0),
        "formula, accumulators of the paper": _with_paper_accumulators,
    }


def _formula(unit: UnitKey, coefficients: Coefficients) -> float:
    return formula_luts(unit.weight_format, unit.activation_format, unit.lanes, coefficients)


def _accumulator_bits(unit: UnitKey) -> int:
    return width_of_range(*accumulator_range(unit.weight_format, unit.activation_format, LENGTH))


def _finn(unit: UnitKey, constant: float) -> float | None:
    weights, activations = unit.weight_format, unit.activation_format
    if not (isinstance(weights, IntFormat) and isinstance(activations, IntFormat)):
        return None
    luts = finn_mvau_luts(
        weight_bits=weights.bits,
        activation_bits=activations.bits,
        pe=1,
        simd=unit.lanes,
        accumulator_bits=_accumulator_bits(unit),
    )
    return luts - 300.0 + constant


def _extra_bits(unit: UnitKey) -> int | None:
    try:
        bits = paper_accumulator_bits(unit.weight_format, unit.activation_format, LENGTH)
    except ConfigError:
        return None
    return bits - _accumulator_bits(unit)


def _with_paper_accumulators(unit: UnitKey) -> float | None:
    extra = _extra_bits(unit)
    return None if extra is None else _formula(unit, COEFFICIENTS) + extra


def _judged(units: Sequence[UnitKey]) -> list[dict[str, Any]]:
    table = dot_product_table()
    rows = []
    for model, price in models().items():
        prices = {unit: luts for unit in units if (luts := price(unit)) is not None}
        for group, members in groups(list(prices)).items():
            errors = (prices[unit] / table[unit].luts - 1 for unit in members)
            rows.append({"model": model, "on": group, **summary(errors)})
    return rows


def _worst(units: Sequence[UnitKey], count: int = 20) -> list[dict[str, Any]]:
    table = dot_product_table()
    rows = [
        {
            **asdict(unit),
            "luts": table[unit].luts,
            "style": table[unit].style,
            "error": round(_formula(unit, COEFFICIENTS) / table[unit].luts - 1, 4),
        }
        for unit in units
        if not is_fitted(unit)
    ]
    return sorted(rows, key=lambda row: -abs(row["error"]))[:count]


def _accumulators(units: Sequence[UnitKey]) -> list[dict[str, Any]]:
    """Say by how many bits the paper's accumulators differ from the exact ones."""
    rows = []
    for family, integers in (("integers", True), ("minifloats", False)):
        extra = [
            bits
            for unit in units
            if unit.lanes == 1
            and isinstance(unit.weight_format, IntFormat) == integers
            and (bits := _extra_bits(unit)) is not None
        ]
        if extra:
            rows.append(
                {
                    "formats": family,
                    "pairs": len(extra),
                    "mean_extra_bits": round(float(np.mean(extra)), 2),
                    "least_extra_bits": min(extra),
                    "most_extra_bits": max(extra),
                }
            )
    return rows


def _other_lanes(units: Sequence[UnitKey], count: int) -> list[dict[str, Any]]:
    pairs = random.Random(0).sample([unit for unit in units if unit.lanes == 8], count)
    errors: dict[int, list[float]] = {}
    for place, pair in enumerate(pairs):
        lanes = OTHER_LANES[place % len(OTHER_LANES)]
        unit = UnitKey(weights=pair.weights, activations=pair.activations, lanes=lanes)
        price = lut_per_mac(unit.weight_format, unit.activation_format, lanes).value * lanes
        errors.setdefault(lanes, []).append(price / characterize_dot_product(unit)["luts"] - 1)
    return [
        {"lanes": "all", **summary(error for found in errors.values() for error in found)},
        *({"lanes": lanes, **summary(found)} for lanes, found in sorted(errors.items())),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="where to write the record")
    parser.add_argument("--every", type=int, default=1, help="judge every n-th unit only")
    parser.add_argument("--other-lanes", type=int, default=0, help="units to build besides")
    options = parser.parse_args(argv)
    if options.every < 1 or options.other_lanes < 0:
        parser.error("--every wants a positive number, --other-lanes none below zero")
    units = list(dot_product_table())[:: options.every]
    record: dict[str, Any] = {
        **circumstances(1),
        "coefficients": asdict(COEFFICIENTS),
        "coefficients_fitted_again": asdict(fit_coefficients()),
        "rows": _judged(units),
        "worst": _worst(units),
        "accumulators": _accumulators(units),
    }
    if options.other_lanes:
        record["other_lanes"] = _other_lanes(units, options.other_lanes)
    for row in record["rows"]:
        print(
            f"{row['model']:36} {row['on']:24} {row['units']:5} units  median "
            f"{100 * row['median']:5.1f} %  p90 {100 * row['p90']:5.1f} %  worst "
            f"{100 * row['worst']:5.1f} %"
        )
    if options.json:
        write_record(record, options.json)


if __name__ == "__main__":
    main()
