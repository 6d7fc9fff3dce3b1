# SPDX-License-Identifier: Apache-2.0
import pytest

from lutwise.cost_models.published import finn_mvau_luts, paper_accumulator_bits
from lutwise.errors import ConfigError
from lutwise.quant.formats import parse_element


def test_finn_formula() -> None:
    luts = finn_mvau_luts(weight_bits=4, activation_bits=4, pe=2, simd=8, accumulator_bits=18)
    assert luts == pytest.approx(300 + 1.1 * 2 * (8 * 3 * 8 + 8 * 15 + 18))


@pytest.mark.parametrize(
    ("weights", "activations", "length", "bits"),
    [
        ("int4", "int4", 1024, 4 + 4 + 10 + 1),
        ("int3", "uint8", 1000, 3 + 8 + 10 + 1),
        ("e2m1", "e2m1", 1024, 4 + 1 + 4 + 1 + 10 - 1),
        ("e4m3", "e5m2", 1, 16 + 3 + 32 + 2 + 0 - 1),
    ],
)
def test_accumulators_of_the_paper(weights: str, activations: str, length: int, bits: int) -> None:
    found = paper_accumulator_bits(parse_element(weights), parse_element(activations), length)
    assert found == bits


def test_rules_of_the_paper_differ_on_one_grid() -> None:
    integer, minifloat = parse_element("int3"), parse_element("e1m1")
    assert paper_accumulator_bits(integer, integer, 64) == 2 + paper_accumulator_bits(
        minifloat, minifloat, 64
    )


@pytest.mark.parametrize(
    ("activations", "length", "message"),
    [
        ("e2m1", 16, "no accumulator for int4 x e2m1"),
        ("int4", 0, "at least one term, got length 0"),
    ],
    ids=["mixed", "empty"],
)
def test_what_the_paper_does_not_have_is_refused(
    activations: str, length: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        paper_accumulator_bits(parse_element("int4"), parse_element(activations), length)
