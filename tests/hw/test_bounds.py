# SPDX-License-Identifier: Apache-2.0
from fractions import Fraction

import numpy as np
import pytest

from lutwise.errors import ConfigError, FormatError
from lutwise.hw.bounds import (
    accumulator_range,
    code_integers,
    exact_integers,
    legal_codes,
    product_range,
    weight_bounded_range,
    width_of_range,
)
from lutwise.quant.formats import (
    Format,
    all_formats,
    code_values,
    parse_element,
    parse_weight,
    values,
)


@pytest.mark.parametrize("fmt", all_formats(), ids=str)
def test_code_integers_are_the_values_in_units(fmt: Format) -> None:
    numbers = code_integers(fmt)
    for code in legal_codes(fmt):
        value = Fraction(float(code_values(fmt)[code]))
        assert value == numbers[code] * Fraction(2) ** fmt.unit_exponent


@pytest.mark.parametrize(
    ("low", "high", "bits"),
    [(0, 0, 1), (0, 1, 1), (0, 255, 8), (-1, 0, 1), (-1, 1, 2), (-128, 127, 8), (-128, 128, 9)],
)
def test_width_of_range_is_the_narrowest(low: int, high: int, bits: int) -> None:
    assert width_of_range(low, high) == bits


def test_width_of_range_refuses_an_empty_range() -> None:
    with pytest.raises(ConfigError, match="low <= high"):
        width_of_range(1, 0)


@pytest.mark.parametrize("bits", range(3, 9))
@pytest.mark.parametrize("length", [1, 9, 1024, 4608])
def test_same_grid_needs_the_same_accumulator(bits: int, length: int) -> None:
    minifloat = parse_element(f"e1m{bits - 2}")
    narrow = parse_weight(f"int{bits}")
    assert width_of_range(*accumulator_range(minifloat, minifloat, length)) == width_of_range(
        *accumulator_range(narrow, narrow, length)
    )


@pytest.mark.parametrize("weights", ["int2", "int8", "uint4", "e2m1", "ue3m2", "fp8_e4m3"])
@pytest.mark.parametrize("activations", ["int4", "uint8", "e3m0", "ue2m2", "fp8_e5m2"])
def test_product_range_is_reached_and_never_left(weights: str, activations: str) -> None:
    w, a = parse_weight(weights), parse_element(activations)
    products = np.outer(values(w), values(a)) * 2.0 ** -(w.unit_exponent + a.unit_exponent)
    assert product_range(w, a) == (int(products.min()), int(products.max()))


@pytest.mark.parametrize("length", [1, 2, 3, 100, 1024])
def test_accumulator_range_is_tight(length: int) -> None:
    w, a = parse_weight("int4"), parse_element("uint4")
    bits = width_of_range(*accumulator_range(w, a, length))
    largest = 7 * 15 * length
    assert -(1 << (bits - 1)) <= -largest
    assert largest >= 1 << (bits - 2), "one bit less would not do"


def test_known_weights_give_a_tighter_range() -> None:
    a = parse_element("uint2")
    assert weight_bounded_range([1, -2, 0], a) == (-6, 3)
    assert weight_bounded_range([3, 1], a) == (0, 12)


def test_exact_integers_refuse_codes_that_are_no_numbers() -> None:
    assert list(exact_integers(parse_element("e2m1"), [0x1, 0x9, 0xF])) == [1, -1, -12]
    for fmt, code in [("fp8_e4m3", 0x7F), ("fp8_e5m2", 0x7C), ("int4n", 0x8)]:
        with pytest.raises(FormatError, match="not a number"):
            exact_integers(parse_element(fmt), [code])
    with pytest.raises(FormatError, match=r"0\.\.15"):
        exact_integers(parse_element("int4"), [16])
    with pytest.raises(FormatError, match="integers"):
        exact_integers(parse_element("int4"), [0.5])
