# SPDX-License-Identifier: Apache-2.0
import random
from dataclasses import astuple

import numpy as np
import pytest

from lutwise.cost_models.formula import COEFFICIENTS, fit
from lutwise.cost_models.library import (
    ANCHORED_ERROR,
    FORMULA_ERROR,
    PriceSource,
    dot_product_table,
    fit_coefficients,
    held_out_errors,
    held_out_table,
    lut_per_mac,
    requantizer_luts,
    requantizer_table,
)
from lutwise.cost_models.requantizer_units import RequantizerKey, requantizer_units
from lutwise.cost_models.units import UnitKey, held_out_units, library_units
from lutwise.errors import ConfigError
from lutwise.hw.dot_product import DotProduct, ProductStyle
from lutwise.hw.requantizer import Requantizer, typical_shift
from lutwise.hw.synthesis import Synthesizer, tool_name
from lutwise.quant.formats import parse_element, parse_weight


def test_tables_hold_exactly_the_listed_units() -> None:
    assert list(dot_product_table()) == list(library_units())
    assert list(held_out_table()) == list(held_out_units())
    assert list(requantizer_table()) == list(requantizer_units())


@pytest.mark.parametrize(
    ("weights", "activations", "lanes", "luts"),
    [
        ("int2", "int2", 8, 6.1),
        ("int4", "int4", 8, 20.6),
        ("int4", "int4", 32, 20.1),
        ("e1m2", "e1m2", 8, 15.1),
        ("e2m1", "e2m1", 8, 20.1),
        ("e3m0", "e3m0", 8, 30.2),
        ("int8", "int8", 8, 56.6),
        ("e4m3", "e4m3", 8, 110.5),
        ("int8", "int8", 1, 64.0),
    ],
)
def test_prices_agree_with_an_independent_measurement(
    weights: str, activations: str, lanes: int, luts: float
) -> None:
    price = lut_per_mac(parse_weight(weights), parse_element(activations), lanes)
    assert price.source is PriceSource.TABLE
    assert price.relative_error == 0
    assert price.value == pytest.approx(luts, rel=0.03)


def test_accumulators_of_the_table_follow_the_rule() -> None:
    for unit, row in dot_product_table().items():
        dot = DotProduct(
            weights=unit.weight_format, activations=unit.activation_format, lanes=unit.lanes
        )
        assert row.ffs == dot.accumulator_bits, unit


def test_more_lanes_never_cost_more_per_product() -> None:
    for bits in range(2, 9):
        w, a = parse_weight(f"int{bits}"), parse_element(f"int{bits}")
        one, eight, many = (lut_per_mac(w, a, lanes).value for lanes in (1, 8, 32))
        assert one > eight > many


def test_other_lanes_are_scaled_from_the_table() -> None:
    w, a = parse_weight("int4"), parse_element("int4")
    price = lut_per_mac(w, a, 16)
    assert (price.source, price.relative_error) == (PriceSource.FORMULA, ANCHORED_ERROR)
    assert lut_per_mac(w, a, 32).value < price.value < lut_per_mac(w, a, 8).value


def test_other_pairs_and_ranges_take_the_formula() -> None:
    for w, a in [("e2m1", "e4m1"), ("int4", "e2m1")]:
        price = lut_per_mac(parse_weight(w), parse_element(a), 8)
        assert (price.source, price.relative_error) == (PriceSource.FORMULA, FORMULA_ERROR)
        assert price.low < price.value < price.high
    full_range = lut_per_mac(parse_element("int4"), parse_element("int4"), 8)
    assert full_range.source is PriceSource.FORMULA


def test_accumulator_bits_cost_one_lut_each() -> None:
    w, a = parse_weight("int4"), parse_element("int4")
    usual = lut_per_mac(w, a, 8).value * 8
    assert lut_per_mac(w, a, 8, accumulator_bits=20).value * 8 == pytest.approx(usual + 3)
    assert lut_per_mac(w, a, 8, accumulator_bits=14).value * 8 == pytest.approx(usual - 3)


def test_no_lanes_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one lane"):
        lut_per_mac(parse_weight("int4"), parse_element("int4"), 0)


def test_stated_errors_hold_on_units_that_were_held_out() -> None:
    errors = np.abs(held_out_errors())
    assert len(errors) == len(held_out_table())
    assert errors.mean() <= FORMULA_ERROR
    assert np.median(errors) <= FORMULA_ERROR


def test_coefficients_are_those_of_the_library() -> None:
    assert astuple(fit_coefficients()) == pytest.approx(astuple(COEFFICIENTS), abs=0.006)


def test_fit_needs_enough_units() -> None:
    with pytest.raises(ConfigError, match="four units or more, got 0"):
        fit([])


@pytest.mark.parametrize("output", ["int4", "uint8", "e2m1", "ue2m2", "e4m3", "fp8_e5m2"])
def test_requantizers_grow_with_the_accumulator(output: str) -> None:
    fmt = parse_element(output)
    prices = [requantizer_luts(bits, fmt) for bits in (8, 12, 14, 16, 18, 20, 24, 28, 32, 40)]
    values = [price.value for price in prices]
    assert values == sorted(values)
    assert prices[1].source is PriceSource.TABLE
    assert prices[2].source is PriceSource.FORMULA
    assert prices[2].value == pytest.approx((prices[1].value + prices[3].value) / 2)


def test_requantizer_width_is_checked() -> None:
    with pytest.raises(ConfigError, match="at least one bit, got 0"):
        requantizer_luts(0, parse_element("int4"))


def _same_tool(tool: str) -> None:
    if tool != tool_name():
        pytest.skip(f"the table was made with {tool}, installed is {tool_name()}")


_SAMPLE = random.Random(7).sample(
    [unit for unit in library_units() if unit.lanes <= 8 and "e7" not in unit.weights], 6
)


@pytest.mark.rtl
@pytest.mark.parametrize(
    "unit", _SAMPLE, ids=lambda unit: f"{unit.weights}-{unit.activations}-{unit.lanes}"
)
def test_synthesis_again_equals_the_table(unit: UnitKey, synthesizer: Synthesizer) -> None:
    row = dot_product_table()[unit]
    _same_tool(row.tool)
    dot = DotProduct(
        weights=unit.weight_format,
        activations=unit.activation_format,
        lanes=unit.lanes,
        style=ProductStyle(row.style),
    )
    result = synthesizer.synthesize(dot.emit(), "dot_product")
    assert (result.luts, result.carry8, result.ffs, result.depth) == (
        row.luts,
        row.carry8,
        row.ffs,
        row.depth,
    )


@pytest.mark.rtl
def test_requantizer_again_equals_the_table(synthesizer: Synthesizer) -> None:
    key = RequantizerKey(accumulator_bits=16, output="ue2m2")
    row = requantizer_table()[key]
    _same_tool(row.tool)
    unit = Requantizer(
        accumulator_bits=16,
        output=key.output_format,
        shift=typical_shift(16, key.output_format),
    )
    assert synthesizer.synthesize(unit.emit(), "requantizer").luts == row.luts
