# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from lutwise.errors import FormatError
from lutwise.quant.formats import (
    OCP_FORMATS,
    BlockFormat,
    FloatFormat,
    IntFormat,
    SpecialCodes,
    all_formats,
    parse,
    parse_element,
    parse_weight,
    values,
)
from tests.strategies import FORMATS

pytestmark = pytest.mark.exhaustive


def test_all_formats_counts_every_split() -> None:
    # 7 widths x 2 integers, 28 signed and 35 unsigned minifloats.
    assert len(all_formats()) == 7 * 2 + 28 + 35
    assert len(set(all_formats())) == len(all_formats())
    assert all(f.bits == 5 for f in all_formats(min_bits=5, max_bits=5))


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_spelling_parses_back(fmt: IntFormat | FloatFormat) -> None:
    assert parse(str(fmt)) == fmt
    assert parse(fmt.name.upper()) == fmt


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_values_lie_on_the_unit_and_end_at_the_extremes(fmt: IntFormat | FloatFormat) -> None:
    found = values(fmt)
    assert found[0] == fmt.min_value
    assert found[-1] == fmt.max_value
    in_units = np.ldexp(found, -fmt.unit_exponent)
    assert (in_units == np.rint(in_units)).all()
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int4n", [-7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7]),
        ("uint2", [0, 1, 2, 3]),
        ("e2m1", [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]),
        ("e3m0", [-16, -8, -4, -2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 2, 4, 8, 16]),
        ("ue2m1", [0, 0.5, 1, 1.5, 2, 3, 4, 6]),
        ("e1m0", [-2, 0, 2]),
    ],
)
def test_values_match_the_tables_written_by_hand(text: str, expected: list[float]) -> None:
    assert values(parse_element(text)).tolist() == expected


@pytest.mark.parametrize("bits", range(3, 9))
def test_e1m_is_the_narrow_integer_grid(bits: int) -> None:
    minifloat = values(FloatFormat(exponent_bits=1, mantissa_bits=bits - 2))
    integer = values(IntFormat(bits=bits, narrow=True))
    assert (minifloat / minifloat[-1] * integer[-1] == integer).all()


@pytest.mark.parametrize(
    ("text", "maximum", "smallest"),
    [
        ("fp8_e4m3", 448.0, 2.0**-9),
        ("fp8_e5m2", 57344.0, 2.0**-16),
        ("fp6_e3m2", 28.0, 2.0**-4),
        ("fp6_e2m3", 7.5, 2.0**-3),
        ("fp4_e2m1", 6.0, 2.0**-1),
    ],
)
def test_ocp_extremes_are_those_of_the_specification(
    text: str, maximum: float, smallest: float
) -> None:
    found = values(parse_element(text))
    assert found[-1] == maximum
    assert found[found > 0][0] == smallest


def test_weights_are_narrow_unless_asked() -> None:
    assert parse_weight("int4") == IntFormat(bits=4, narrow=True)
    assert parse_weight("int4", narrow=False) == IntFormat(bits=4)
    assert parse_weight("e2m1") == FloatFormat(exponent_bits=2, mantissa_bits=1)
    assert parse_weight("uint4") == IntFormat(bits=4, signed=False)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_signed_and_unsigned_forms_keep_the_width(fmt: IntFormat | FloatFormat) -> None:
    if fmt == FloatFormat(exponent_bits=1, mantissa_bits=1, signed=False):
        assert fmt.as_signed() == FloatFormat(exponent_bits=1, mantissa_bits=0)
    assert fmt.as_unsigned().bits == fmt.as_signed().bits == fmt.bits
    assert not fmt.as_unsigned().signed
    assert fmt.as_signed().signed


@pytest.mark.parametrize(
    "text",
    ["int9", "int1", "uint0", "e0m3", "e9m9", "e8m0", "ue9m0", "e-1m2", "float8", "", "mxfp5"],
)
def test_unknown_spellings_are_refused(text: str) -> None:
    with pytest.raises(FormatError, match="no format"):
        parse(text)


def test_block_formats_are_refused_where_elements_are_wanted() -> None:
    assert isinstance(parse("mxfp4"), BlockFormat)
    with pytest.raises(FormatError, match="shares scales"):
        parse_element("mxfp4")


def test_nonsense_is_refused() -> None:
    with pytest.raises(FormatError, match="only a signed integer"):
        IntFormat(bits=4, signed=False, narrow=True)
    with pytest.raises(FormatError, match="only the OCP formats"):
        FloatFormat(exponent_bits=3, mantissa_bits=2, special=SpecialCodes.IEEE)


def test_block_formats_count_their_scale() -> None:
    widths = {name: f.bits for name, f in OCP_FORMATS.items() if isinstance(f, BlockFormat)}
    assert widths["mxfp4"] == 4.25
    assert widths["mxint8"] == 8.25


def test_values_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        values(parse_element("int4"))[0] = 1
