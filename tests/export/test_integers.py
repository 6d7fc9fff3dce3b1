# SPDX-License-Identifier: Apache-2.0
"""Thresholds on integer sums against rounding with fractions, and formats counted in units."""

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qonnx.core.datatype import DataType

from lutwise.errors import ExportError
from lutwise.export.integers import (
    Counts,
    Integers,
    Rescale,
    check_sums,
    integers_of,
    rescale_add,
    rescale_layer,
    rescale_pool,
    thresholds,
    units,
    weight_integers,
)
from lutwise.quant import reference
from lutwise.quant.formats import (
    FloatFormat,
    Format,
    all_formats,
    parse_element,
    parse_weight,
    values,
)
from lutwise.quant.network import MULTIPLIER_BITS, Network, Requantizer
from tests.strategies import formats

MAX_UNITS = 1 << 16
"""Beyond, rows of thresholds are too long; nothing else changes with more exponent bits."""

OCP = tuple(parse_element(name) for name in ("fp8_e4m3", "fp8_e5m2"))
FORMATS = (*all_formats(), *OCP, *(parse_weight(f"int{bits}") for bits in range(2, 9)))


def unit_of(fmt: Format) -> Fraction:
    return Fraction(2) ** fmt.unit_exponent


def span(fmt: Format) -> Fraction:
    """Return the units between the smallest and the largest value."""
    return Fraction(fmt.max_value - fmt.min_value) / unit_of(fmt)


SMALL = tuple(fmt for fmt in FORMATS if span(fmt) <= MAX_UNITS)


def rounded(fmt: Format, x: Fraction, low: Fraction, high: Fraction) -> Fraction:
    """Round half to an even significand with integers alone, then clamp."""
    magnitude, step = abs(x), Fraction(1)
    if isinstance(fmt, FloatFormat):
        step = unit_of(fmt)
        while magnitude >= step * (2 << fmt.mantissa_bits):
            step *= 2
    result = round(magnitude / step) * step
    # Without the largest codes (fp8_e4m3's NaN) as with them, what is beyond saturates.
    return min(max(-result if x < 0 else result, low), high)


def sums_to_try(rescale: Rescale, points: Counts, bias: int, count: int) -> list[int]:
    """Return sums on both sides of thresholds, and the ends; about ``count``."""
    # With all thresholds this tests every sum, as both sides are monotone.
    low = -rescale.largest - min(bias, 0)
    high = rescale.largest - max(bias, 0)
    found = {low, high}
    unique = np.unique(points).tolist()
    for at in unique[:: max(1, 2 * len(unique) // count)]:
        found |= {at - 1, at}
    return sorted(x for x in found if low <= x <= high)


def check(rescale: Rescale, *, count: int = 600) -> None:
    """Compare the thresholds of every channel with the oracle."""
    fmt, unit = rescale.format, unit_of(rescale.format)
    low, high = Fraction(rescale.low), Fraction(rescale.high)
    points = thresholds(rescale)
    assert points.shape == (rescale.channels, (high - low) / unit)
    assert (np.diff(points) >= 0).all()
    for channel, row in enumerate(points):
        bias = rescale.bias[channel % len(rescale.bias)]
        factor = rescale.factors[channel % len(rescale.factors)]
        sums = sums_to_try(rescale, row, bias, count)
        reached = np.searchsorted(row, sums, side="right").tolist()
        for total, above in zip(sums, reached, strict=True):
            wanted = rounded(fmt, (total + bias) * factor, low, high)
            assert above + low / unit == wanted / unit, (fmt, channel, total)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_oracle_is_the_reference_rounding(fmt: Format) -> None:
    """The oracle of this file computes, the library's searches the table: they agree."""
    low, high = Fraction(fmt.min_value), Fraction(fmt.max_value)
    grid = [Fraction(float(v)) for v in values(fmt)]
    middles = [(a + b) / 2 for a, b in pairwise(grid)]
    tiny = unit_of(fmt) / 1000
    for x in (*grid, *middles, low * 3, high * 3):
        for near in (x - tiny, x, x + tiny):
            assert rounded(fmt, near, low, high) == reference.quantize(fmt, near)


# Of units per sum: powers of two and 3/4 make exact ties, the others none or few.
FACTORS = tuple(Fraction(f) for f in ("1/2", "1/4", "3/4", "2", "5/16", "1/3", "43691/65536"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_thresholds_count_what_rounding_gives(fmt: Format) -> None:
    check(
        Rescale(
            bias=(0, -5, 7, 0, 3, -1, 2),
            factors=tuple(factor * unit_of(fmt) for factor in FACTORS),
            format=fmt,
            low=fmt.min_value,
            high=fmt.max_value,
            largest=8 * int(span(fmt)) + 16,
        ),
        count=300,
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_thresholds_between_bounds(fmt: Format) -> None:
    """ReLU and bounded ReLU: the first and the last step are those inside the bounds."""
    grid = values(fmt)
    positive = grid[grid > 0]
    for high in {positive[0], positive[len(positive) // 2], positive[-1]}:
        check(
            Rescale(
                bias=(-3,),
                factors=(unit_of(fmt) / 2, unit_of(fmt) * 3 / 4),
                format=fmt,
                low=0.0,
                high=float(high),
                largest=8 * int(span(fmt)) + 16,
            ),
            count=100,
        )


@pytest.mark.parametrize("name", ["int4", "uint3", "e2m1", "ue2m2", "e3m0", "ue2m1", "e1m2"])
@pytest.mark.parametrize("largest", [3, 40, 300])
def test_every_sum_gets_what_rounding_gives(name: str, largest: int) -> None:
    """All sums, also where many thresholds lie beyond the largest one."""
    fmt = parse_element(name)
    factors = tuple(factor * unit_of(fmt) for factor in FACTORS)
    bias = (0, -2, 3)
    rescale = Rescale(
        bias=bias,
        factors=factors,
        format=fmt,
        low=fmt.min_value,
        high=fmt.max_value,
        largest=largest,
    )
    low, high = Fraction(fmt.min_value), Fraction(fmt.max_value)
    points = thresholds(rescale)

    for channel, factor in enumerate(factors):
        # Sums with the bias that are within the largest.
        for biased in range(-largest, largest + 1):
            total = biased - bias[channel % 3]
            found = int((points[channel] <= total).sum()) * unit_of(fmt) + low
            assert found == rounded(fmt, biased * factor, low, high)
    # One more or less than any sum is enough to say always or never.
    offsets = np.resize(bias, len(factors))[:, None]
    assert (points + offsets >= -largest).all()
    assert (points + offsets <= largest + 1).all()


@pytest.mark.property
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data(), fmt=formats().filter(lambda fmt: span(fmt) <= MAX_UNITS >> 4))
def test_thresholds_of_any_requantizer(data: st.DataObject, fmt: Format) -> None:
    channels = data.draw(st.integers(1, 3))
    multipliers = data.draw(
        st.lists(st.integers(1, 1 << MULTIPLIER_BITS), min_size=channels, max_size=channels)
    )
    shift = data.draw(st.integers(0, 30))
    largest = data.draw(st.integers(1, (1 << 24) - 1))
    bias = data.draw(st.lists(st.integers(-largest, largest), min_size=1, max_size=channels))
    check(
        Rescale(
            bias=tuple(bias) if len(bias) == channels else (bias[0],),
            factors=tuple(m * unit_of(fmt) / Fraction(2) ** shift for m in multipliers),
            format=fmt,
            low=data.draw(st.sampled_from([fmt.min_value, 0.0])),
            high=fmt.max_value,
            largest=largest,
        ),
        count=60,
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("fmt", [f for f in FORMATS if span(f) < 1 << 60], ids=str)
def test_units_count_every_value(fmt: Format) -> None:
    counted = units(fmt, values(fmt))

    assert counted.dtype == np.int64
    assert [n * unit_of(fmt) for n in counted.tolist()] == list(reference.finite_values(fmt))
    assert integers_of(fmt) == Integers(low=int(counted[0]), high=int(counted[-1]))


@pytest.mark.exhaustive
@pytest.mark.parametrize("fmt", [f for f in FORMATS if span(f) < 1 << 60], ids=str)
def test_bits_are_the_fewest_that_qonnx_allows(fmt: Format) -> None:
    whole = integers_of(fmt)
    top = float(values(fmt)[-2])  # of a bounded ReLU
    for integers in (whole, integers_of(fmt, 0.0), integers_of(fmt, 0.0, top)):
        ends = (integers.low, integers.high)
        kind = DataType[integers.type_name]
        assert kind.bitwidth() == integers.bits
        assert kind.signed() == integers.signed == (integers.low < 0)
        assert all(kind.allowed(end) for end in ends)
        if integers.bits > 1:
            less = DataType[f"{'' if integers.signed else 'U'}INT{integers.bits - 1}"]
            assert not all(less.allowed(end) for end in ends)


@pytest.mark.parametrize(
    ("low", "high", "name"),
    [
        (0, 0, "UINT1"),
        (0, 1, "UINT1"),
        (0, 2, "UINT2"),
        (-1, 0, "INT1"),
        (-1, 1, "INT2"),
        (-8, 7, "INT4"),
        (-7, 8, "INT5"),
        (-9, 7, "INT5"),
        (0, 255, "UINT8"),
    ],
)
def test_type_of_a_range(low: int, high: int, name: str) -> None:
    assert Integers(low=low, high=high).type_name == name


def test_units_beyond_63_bits_are_refused() -> None:
    fmt = parse_element("e7m0")

    with pytest.raises(ExportError, match="e7m0 has values of more than 63 bits in its unit"):
        units(fmt, values(fmt))


@pytest.mark.parametrize(
    ("name", "low", "high", "narrow"),
    [
        ("int4", -7, 7, True),
        ("uint4", 0, 15, False),
        ("e2m1", -12, 12, True),
        ("ue2m2", 0, 28, False),
        ("e3m0", -64, 64, True),
    ],
)
def test_weights_are_integers(sketch: Any, name: str, low: int, high: int, narrow: bool) -> None:
    s = sketch(seed=1)
    fmt = parse_weight(name)
    s.conv(s.quantize(parse_element("int8")), 4, 3, fmt, None)
    node = s.nodes[-1]

    numbers, integers, is_narrow = weight_integers(node)

    assert (integers.low, integers.high, is_narrow) == (low, high, narrow)
    assert numbers.shape == (4, 3, 3, 3)
    np.testing.assert_array_equal(numbers * float(unit_of(fmt)), node.weight_values)


def test_full_range_integer_weights_are_not_narrow(sketch: Any) -> None:
    s = sketch(seed=1)
    s.conv(s.quantize(parse_element("int8")), 4, 3, parse_element("int4"), None)

    _, integers, narrow = weight_integers(s.nodes[-1])

    assert (integers.low, integers.high, narrow) == (-8, 7, False)


def network_with(s: Any, output: str) -> tuple[Network, Any]:
    network = s.network(output)
    return network, network.nodes[-1]


def factors_of(requantizer: Requantizer, unit: int) -> tuple[Fraction, ...]:
    pairs = zip(requantizer.multiplier.tolist(), requantizer.shift.tolist(), strict=True)
    return tuple(Fraction(m) / Fraction(2) ** s * Fraction(2) ** unit for m, s in pairs)


def test_rescale_of_a_layer(sketch: Any) -> None:
    s = sketch(seed=2)
    e2m1, ue2m2 = parse_element("e2m1"), parse_element("ue2m2")
    x = s.conv(s.quantize(e2m1), 5, 3, e2m1, ue2m2, high=3.0)
    network, node = network_with(s, x)

    rescale = rescale_layer(network, node)

    assert rescale.bias == tuple(int(code) for code in node.bias_codes)
    assert rescale.factors == factors_of(node.requantizer, -2)  # halves times halves
    assert (rescale.format, rescale.low, rescale.high) == (ue2m2, 0.0, 3.0)
    assert rescale.largest == (1 << node.accumulator.magnitude_bits) - 1
    assert rescale.channels == 5


def test_rescale_of_a_layer_without_bias_adds_one_zero(sketch: Any) -> None:
    s = sketch(seed=2)
    int4 = parse_element("int4")
    x = s.conv(s.quantize(int4), 5, 3, parse_weight("int4"), int4, bias=False)
    network, node = network_with(s, x)

    rescale = rescale_layer(network, node)

    assert rescale.bias == (0,)
    assert rescale.channels == 5


def test_rescale_of_an_add_aligns_units(sketch: Any) -> None:
    """A half of e2m1 times four and one of int4: the sum counts ones, the first is doubled."""
    s = sketch(seed=2)
    e2m1, int4 = parse_element("e2m1"), parse_element("int4")
    x = s.conv(s.quantize(int4), 4, 3, parse_weight("int4"), e2m1)
    y = s.conv(x, 4, 3, parse_weight("int4"), int4)
    network, node = network_with(s, s.add(x, y, int4, shifts=(2, 0)))

    rescale, powers = rescale_add(network, node)

    assert powers == (2, 1)
    assert rescale.largest == 2 * 12 + 8
    assert rescale.factors == factors_of(node.requantizer, 0)
    assert rescale.bias == (0,)


def test_rescale_of_an_average_counts_its_window(sketch: Any) -> None:
    s = sketch(seed=2)
    e2m1 = parse_element("e2m1")
    x = s.conv(s.quantize(e2m1), 4, 3, e2m1, e2m1)
    network, node = network_with(s, s.pool(x, (3, 2), (1, 1), out=parse_element("int8")))

    rescale = rescale_pool(network, node)

    assert rescale.largest == 6 * 12
    assert rescale.factors == factors_of(node.requantizer, -1)


def test_sums_of_24_bits_are_taken_and_wider_refused(sketch: Any) -> None:
    s = sketch(seed=2)
    x = s.conv(s.quantize(parse_element("int8")), 4, 3, parse_weight("int4"), None)
    layer = s.nodes[-1]
    s.add(x, x, None)

    check_sums(layer, 24, "a tool")
    with pytest.raises(
        ExportError, match=r"Conv 'conv1': its sums of int4n times inputs need 25 bits .* a tool"
    ):
        check_sums(layer, 25, "a tool")
    with pytest.raises(ExportError, match=r"Add 'add2': its sums need 26 bits .* a tool"):
        check_sums(s.nodes[-1], 26, "a tool")
