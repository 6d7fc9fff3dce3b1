# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutwise.errors import ConfigError
from lutwise.hw.architecture import PLAIN, Architecture, Kind, architectures, as_magnitude
from lutwise.hw.bounds import code_integers, legal_codes
from lutwise.hw.dot_product import DotProduct
from lutwise.hw.multiplier import Array
from lutwise.hw.operand import operand_of
from lutwise.hw.synthesis import Flow
from lutwise.quant.formats import Format, IntFormat, all_formats, parse_element, parse_weight
from tests.strategies import formats


def weight_formats() -> st.SearchStrategy[Format]:
    """Any format, integers of both ranges."""
    return formats().flatmap(lambda fmt: st.sampled_from([fmt, parse_weight(fmt.name)]))


@pytest.mark.parametrize(
    ("text", "architecture"),
    [
        ("plain", PLAIN),
        ("table", Architecture(kind=Kind.TABLE)),
        ("chain-w", Architecture(kind=Kind.CHAIN, recoded="w")),
        ("chain-a", Architecture(kind=Kind.CHAIN, recoded="a")),
        ("array-booth-8", Architecture(kind=Kind.ARRAY, array=Array.BOOTH, step=8)),
        ("array-digits-3", Architecture(kind=Kind.ARRAY, array=Array.DIGITS, step=3)),
        ("magnitude-table", Architecture(kind=Kind.TABLE, magnitude=True)),
        (
            "magnitude-array-digits-1",
            Architecture(kind=Kind.ARRAY, array=Array.DIGITS, magnitude=True),
        ),
    ],
)
def test_spelling(text: str, architecture: Architecture) -> None:
    assert str(architecture) == text
    assert Architecture.parse(text) == architecture


@pytest.mark.parametrize(
    "text",
    [
        *("", "rows", "magnitude", "magnitude-", "table-4", "chain", "chain-b", "chain-w-2"),
        *("array", "array-booth", "array-2", "array-rows-2", "array-booth-two", "array-booth-2-2"),
    ],
)
def test_no_spelling(text: str) -> None:
    with pytest.raises(ConfigError, match=f"no architecture '{text}'; wanted plain, table"):
        Architecture.parse(text)


def test_flows() -> None:
    assert PLAIN.flow is Flow.ABC9
    assert Architecture.parse("chain-w").flow is Flow.LEAN
    assert Architecture.parse("table").flow is Flow.AREA
    assert Architecture.parse("magnitude-array-booth-2").flow is Flow.AREA


@pytest.mark.parametrize(
    ("weights", "activations", "wanted"),
    [
        ("int4", "int4", "table chain-w chain-a"),
        ("int8", "int8", "chain-w chain-a"),
        (
            "int4",
            "uint4",
            "table chain-w chain-a array-digits-1 array-booth-1 magnitude-table "
            "magnitude-array-digits-1 magnitude-array-booth-1",
        ),
        ("e3m0", "int8", "array-digits-4"),
        ("e2m1", "e2m1", "table array-digits-2 array-digits-3 array-digits-4 array-booth-2 "
         "array-booth-3 array-booth-4"),
        ("e4m3", "ue4m4", "array-digits-4 array-digits-8 array-booth-4 array-booth-8"),
    ],
)  # fmt: skip
def test_architectures_of_a_pair(weights: str, activations: str, wanted: str) -> None:
    found = architectures(parse_weight(weights), parse_element(activations))
    assert " ".join(str(architecture) for architecture in found) == wanted


@pytest.mark.property
@given(weight_formats(), formats(), st.integers(1, 9))
@settings(deadline=None)
def test_every_architecture_makes_a_unit(weights: Format, activations: Format, lanes: int) -> None:
    found = architectures(weights, activations)
    assert found
    assert len({str(architecture) for architecture in found}) == len(found)
    for architecture in found:
        assert Architecture.parse(str(architecture)) == architecture
        unit = DotProduct(
            weights=weights,
            activations=activations,
            lanes=lanes,
            architecture=architecture,
            bounds=(-(1 << 23), (1 << 23) - 1),
        )
        counted = unit.counted_sites()
        assert sum(counted.values()) >= unit.accumulator_bits
        assert min(counted.values()) >= 0
        assert unit.emit().count("endmodule") > 1


@pytest.mark.property
@given(weight_formats(), formats())
def test_architectures_fit_the_formats(weights: Format, activations: Format) -> None:
    w, a = operand_of(weights), operand_of(activations)
    for architecture in architectures(weights, activations):
        assert architecture.kind is not Kind.PLAIN
        if architecture.kind is Kind.TABLE:
            assert w.magnitude_bits + a.magnitude_bits - architecture.magnitude <= 8
        if architecture.kind is Kind.CHAIN:
            assert not w.exponent_bits
            assert not a.exponent_bits
        if architecture.kind is Kind.ARRAY:
            assert 1 <= architecture.step <= max(1, w.max_shift + a.max_shift)
        if architecture.magnitude:
            assert isinstance(weights, IntFormat)
            assert weights.narrow
            assert not a.twos_complement


@pytest.mark.parametrize("fmt", all_formats(), ids=str)
def test_only_narrow_integers_are_stored_as_magnitude(fmt: Format) -> None:
    assert as_magnitude(fmt) is None
    narrow = parse_weight(fmt.name)
    recoded = as_magnitude(narrow)
    assert (recoded is not None) == (narrow != fmt)
    if recoded is not None:
        assert recoded.bits == narrow.bits
        both = [set(code_integers(one)[legal_codes(one)]) for one in (narrow, recoded)]
        assert both[0] == both[1]
