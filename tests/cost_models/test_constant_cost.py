# SPDX-License-Identifier: Apache-2.0
import time
from typing import Any

import pytest

from benchmarks.constant_units import random_unit
from lutwise.cost_models.constant_cost import (
    CONSTANT_ERROR,
    constant_luts,
    constant_output_luts,
    unit_luts,
)
from lutwise.cost_models.library import PriceSource, lut_per_mac
from lutwise.cost_models.units import weight_formats
from lutwise.errors import ConfigError
from lutwise.hw.bounds import accumulator_range, width_of_range
from lutwise.hw.weighted_layer import MOST_SUM_BITS
from lutwise.quant.formats import parse_element, parse_weight


@pytest.mark.parametrize(
    ("weights", "activations", "length", "outputs"),
    [
        ("int4", "uint4", 27, 12),
        ("e2m1", "ue2m2", 40, 8),
        ("int2", "int3", 60, 20),
        ("int8", "uint8", 18, 6),
        ("int5", "uint6", 90, 3),
        ("e3m2", "e2m1", 20, 1),
        ("e4m3", "ue4m3", 12, 4),
    ],
)
def test_prices_of_shapes_are_those_of_units(
    weights: str, activations: str, length: int, outputs: int
) -> None:
    w, a = parse_weight(weights), parse_element(activations)
    price = constant_luts(w, a, length, outputs)
    counted = unit_luts(random_unit(w, a, length, outputs, seed=99))
    assert price.source is PriceSource.FORMULA
    assert price.value == pytest.approx(counted.value, rel=2 * CONSTANT_ERROR)


def test_constants_cost_less_than_weights_that_change() -> None:
    for fmt in ("int2", "int4", "e2m1", "int8", "e4m3"):
        w, a = parse_weight(fmt), parse_element(fmt).as_unsigned()
        per_product = constant_luts(w, a, 144, 16).value / (144 * 16)
        assert per_product < 0.5 * lut_per_mac(w, a, 32).value


def test_more_of_anything_costs_more() -> None:
    w = parse_weight("int4")
    small, wide = parse_element("uint4"), parse_element("uint8")
    base = constant_luts(w, small, 36, 16).value
    assert constant_luts(w, wide, 36, 16).value > base
    assert constant_luts(w, small, 72, 16).value > base
    assert base < constant_luts(w, small, 36, 32).value < 2 * base
    assert constant_luts(w, small, 36, 16, groups=16).value > base
    assert constant_luts(w, small, 400, 256).value > constant_luts(w, small, 400, 128).value


def test_weights_of_every_unit_have_a_price() -> None:
    few = parse_element("uint2")
    for fmt in weight_formats():
        if width_of_range(*accumulator_range(fmt, few, 9)) >= MOST_SUM_BITS:
            with pytest.raises(ConfigError, match="no constant units"):
                constant_luts(fmt, few, 9, 1)
            continue
        for activations in ("uint2", "int8", "e2m1", "ue4m4", "e5m2"):
            assert constant_luts(fmt, parse_element(activations), 64, 64).value > 0


def test_a_price_takes_less_than_a_millisecond() -> None:
    w, a = parse_weight("int4"), parse_element("uint4")
    constant_luts(w, a, 9, 9)
    start = time.process_time()
    for length in range(1, 101):
        constant_luts(w, a, length, 16)
    assert time.process_time() - start < 0.1


def test_outputs_cost_what_their_form_does() -> None:
    assert constant_output_luts(14, None) == 0
    four, eight = (constant_output_luts(14, parse_element(f)) for f in ("uint4", "uint8"))
    assert 15 < four < 30 < 80 < eight < 130
    assert constant_output_luts(20, parse_element("uint8")) > eight
    assert constant_output_luts(14, parse_element("e4m3")) > eight


@pytest.mark.parametrize(
    ("sizes", "weights", "match"),
    [
        ({"dot_length": 0, "outputs": 1}, "int4", "sizes are positive"),
        ({"dot_length": 1, "outputs": 1, "groups": 0}, "int4", "sizes are positive"),
        ({"dot_length": 1, "outputs": 1}, "uint4", "no constant units of uint4"),
    ],
)
def test_bad_shapes_are_refused(sizes: dict[str, Any], weights: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        constant_luts(parse_element(weights), parse_element("uint4"), **sizes)
