# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest

from lutwise.errors import FormatError
from lutwise.quant.accumulator import accumulator_for, twos_complement_bits
from lutwise.quant.formats import parse_element, parse_weight, values


@pytest.mark.parametrize(
    ("low", "high", "bits"),
    [(0, 0, 1), (-1, 0, 1), (0, 1, 2), (-2, 1, 2), (-128, 127, 8), (-129, 0, 9), (0, 128, 9)],
)
def test_twos_complement_bits(low: int, high: int, bits: int) -> None:
    assert twos_complement_bits(low, high) == bits


@pytest.mark.parametrize(
    ("weight", "source", "length", "worst"),
    [
        ("int8", "int8", 1, 15),  # narrow weights: 127 * 128 = 16256
        ("int8", "uint8", 1, 16),
        ("int4", "int4", 9, 10),  # 9 * 7 * 8 = 504
        ("e2m1", "e2m1", 1, 9),  # 12 * 12 half units squared = 144
        ("e7m0", "e7m0", 1, 254),  # 2**126 * 2**126 units
    ],
)
def test_worst_bits(weight: str, source: str, length: int, worst: int) -> None:
    zeros, none = np.zeros((1, length)), np.array([0], dtype=object)

    found = accumulator_for(zeros, parse_weight(weight), parse_element(source), none)

    assert found.worst_bits == worst
    assert (found.bits, found.magnitude_bits) == (1, 1)


def test_same_grid_has_same_bits() -> None:
    """``E1M1`` is the grid of the narrow int3: one rule, one width."""
    weights, none = np.ones((2, 100)), np.array([0, 0], dtype=object)
    narrow = parse_element("int3n")
    integer = accumulator_for(weights, narrow, narrow, none)
    minifloat = accumulator_for(weights, parse_element("e1m1"), parse_element("e1m1"), none)

    # A one of int3 is two units of e1m1, whose unit is a half.
    assert integer.worst_bits == minifloat.worst_bits
    assert (
        minifloat.unit_exponent == integer.unit_exponent + 2 * parse_element("e1m1").unit_exponent
    )


@pytest.mark.parametrize("source", ["int2", "uint2", "e2m0", "ue1m1"])
def test_bits_are_the_tightest_for_the_weights(source: str) -> None:
    weight_format, source_format = parse_weight("int3"), parse_element(source)
    weights = np.array([[3.0, -1.0, 2.0], [0.0, -3.0, -2.0]])
    bias = np.array([5, -9], dtype=object)

    found = accumulator_for(weights, weight_format, source_format, bias)

    unit = 2.0**found.unit_exponent
    sums = [0]
    for x in itertools.product(values(source_format), repeat=3):
        plain = (weights @ np.array(x) / unit).astype(int)
        sums += [*plain, *(plain + bias)]
    assert found.bits == twos_complement_bits(min(sums), max(sums))
    assert 1 << found.magnitude_bits > max(map(abs, sums))


def test_weights_off_the_grid_are_refused() -> None:
    with pytest.raises(FormatError, match="not all values of int4n"):
        accumulator_for(
            np.array([[0.5]]),
            parse_weight("int4"),
            parse_element("int4"),
            np.array([0], dtype=object),
        )
