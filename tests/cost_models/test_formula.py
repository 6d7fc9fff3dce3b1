# SPDX-License-Identifier: Apache-2.0
import random

import pytest

from lutwise.cost_models.formula import (
    COUNTED,
    Coefficients,
    Observation,
    counted_sites,
    fit,
    formula_luts,
)
from lutwise.errors import ConfigError
from lutwise.hw.architecture import Architecture, architectures
from lutwise.hw.circuit import Part
from lutwise.hw.dot_product import DotProduct
from lutwise.quant.formats import Format, all_formats, parse_element, parse_weight


@pytest.mark.parametrize(("weights", "activations"), [("int4", "uint4"), ("e3m2", "ue3m3")])
def test_counts_are_those_of_the_circuit(weights: str, activations: str) -> None:
    w, a = parse_weight(weights), parse_element(activations)
    for architecture in architectures(w, a):
        dot = DotProduct(weights=w, activations=a, lanes=3, architecture=architecture)
        assert counted_sites(w, a, 3, architecture) == dot.counted_sites()


def test_counts_of_a_chain_are_its_rows() -> None:
    """Two Booth rows of one lane on chains as wide as their sums, and the accumulator."""
    w, a = parse_weight("int4"), parse_element("int4")
    sites = counted_sites(w, a, 1, Architecture.parse("chain-a"))
    # digits of -2..2 times -7..7 take 5 bits; with what is left of them the next row takes 6
    assert sites[Part.MULTIPLY] in {5 + 5, 5 + 6}
    assert sites[Part.ADD] == 17
    assert sites[Part.SHIFT] == sites[Part.EXPONENT] == sites[Part.SIGN] == 0


def test_formula_takes_the_cheapest_architecture() -> None:
    w, a = parse_weight("e2m1"), parse_element("e2m1")
    counts = [counted_sites(w, a, 4, architecture) for architecture in architectures(w, a)]
    assert formula_luts(w, a, 4, COUNTED) == min(sum(sites.values()) for sites in counts)


def _some_pairs() -> list[tuple[Format, Format]]:
    formats = all_formats()
    return random.Random(1).sample([(w, a) for w in formats for a in formats], 120)


@pytest.mark.parametrize("pair", _some_pairs(), ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_any_pair_has_a_price_that_grows_with_lanes(pair: tuple[Format, Format]) -> None:
    prices = [formula_luts(*pair, lanes) for lanes in (1, 2, 3)]
    assert 0 < prices[0] < prices[1] < prices[2]


def test_accumulators_that_no_unit_has_are_priced() -> None:
    wide, wider = parse_element("e5m2"), parse_element("e6m1")
    assert formula_luts(wider, wider, 2) > formula_luts(wide, wide, 2) > 2 * 77


def test_no_lanes_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one lane, got 0"):
        formula_luts(parse_weight("int4"), parse_element("int4"), 0)


def test_fit_recovers_known_coefficients() -> None:
    known = Coefficients(multiply=0.9, shift=1.1, exponent=0.4, sign=1.3)
    observations = []
    for name in ("int4", "int8", "e2m1", "e4m3", "e5m2", "e3m0"):
        fmt = parse_weight(name)
        sites = counted_sites(fmt, fmt, 3, architectures(fmt, fmt)[-1])
        observations.append(Observation(sites=sites, luts=known.luts(sites)))
    found = fit(observations)
    assert (found.multiply, found.shift) == pytest.approx((0.9, 1.1))
    assert (found.exponent, found.sign) == pytest.approx((0.4, 1.3))


def test_fit_needs_enough_units() -> None:
    with pytest.raises(ConfigError, match="four units or more, got 0"):
        fit([])
