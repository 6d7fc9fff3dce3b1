# SPDX-License-Identifier: Apache-2.0
import pytest

from lutwise.cost_models.formula import Coefficients, Observation, fit, structure_of
from lutwise.quant.formats import Format, all_formats, parse_element, parse_weight


def test_structure_of_an_integer_unit_is_booth_rows_and_adders() -> None:
    structure = structure_of(parse_weight("int4"), parse_element("int4"), 8)
    assert structure.mul == 2 * (4 + 2) - 1
    assert (structure.shift, structure.exp, structure.sign) == (0, 0, 0)
    assert structure.adders == 4 * 8 + 2 * 9 + 10 + 17


def test_structure_of_a_small_minifloat_unit_is_a_table() -> None:
    structure = structure_of(parse_weight("e2m1"), parse_element("e2m1"), 1)
    assert structure.mul == 8, "six magnitude bits: one LUT for each of eight output bits"
    assert (structure.shift, structure.exp, structure.sign) == (0, 0, 1)


def test_unsigned_operands_need_no_sign() -> None:
    structure = structure_of(parse_weight("ue2m2"), parse_element("ue2m2"), 2)
    assert structure.sign == 0


@pytest.mark.parametrize("fmt", all_formats(), ids=str)
def test_every_pair_has_a_positive_price(fmt: Format) -> None:
    for other in all_formats():
        assert structure_of(fmt, other, 8).luts() > 0


def test_fit_recovers_known_coefficients() -> None:
    known = Coefficients(mul=0.9, shift=1.1, exp=0.4, sign=1.3)
    observations = []
    for name in ("int4", "int8", "e2m1", "e4m3", "e5m2", "e3m0"):
        structure = structure_of(parse_weight(name), parse_element(name), 8)
        observations.append(Observation(structure=structure, luts=structure.luts(known)))
    found = fit(observations)
    assert (found.mul, found.shift) == pytest.approx((0.9, 1.1))
    assert (found.exp, found.sign) == pytest.approx((0.4, 1.3))
