# SPDX-License-Identifier: Apache-2.0
"""Output stages against fractions, and their two forms against each other."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutwise.errors import ConfigError
from lutwise.hw.bounds import code_integers, legal_codes
from lutwise.hw.netlist import bits_of, from_bits
from lutwise.hw.output_stage import Form, OutputStage, form_for, result_codes
from lutwise.hw.synthesis import Synthesizer
from lutwise.quant import reference
from lutwise.quant.formats import Format, all_formats, parse_element

_LARGEST = 1 << 61


def _ends(fmt: Format) -> tuple[int, int]:
    numbers = [int(number) for number in code_integers(fmt)[legal_codes(fmt)]]
    return min(numbers), max(numbers)


def _stage(output: str, low: int | None = None, high: int | None = None) -> OutputStage:
    fmt = parse_element(output)
    least, most = _ends(fmt)
    return OutputStage(
        output=fmt,
        bias=(0, 5, -7),
        multipliers=(1, 3, 8),
        shift=4,
        low=least if low is None else low,
        high=most if high is None else high,
    )


def _wanted(stage: OutputStage, total: int, channel: int) -> Fraction:
    """Return the result, in units of the output, decided with fractions."""
    unit = Fraction(2) ** stage.output.unit_exponent
    scaled = Fraction(total + stage.bias[channel]) * stage.multipliers[channel]
    rounded = reference.quantize(stage.output, scaled / (1 << stage.shift) * unit) / unit
    return min(max(rounded, Fraction(stage.low)), Fraction(stage.high))


@st.composite
def _cases(draw: st.DrawFn) -> tuple[OutputStage, list[int]]:
    """A stage of one channel, and sums around all places where its result changes."""
    fmt = draw(st.sampled_from(all_formats(min_bits=2, max_bits=8)))
    shift = draw(st.integers(0, 40))
    # Powers of two and small numbers make ties.
    multiplier = draw(st.one_of(
        st.integers(0, 16).map(lambda bits: 1 << bits), st.integers(1, 9), st.integers(1, 1 << 17)
    ))  # fmt: skip
    grid = sorted({int(number) for number in code_integers(fmt)[legal_codes(fmt)]})
    low = draw(st.sampled_from(grid[:-1]))
    high = draw(st.sampled_from([number for number in grid if number > low]))
    bias = draw(st.integers(-(1 << 20), 1 << 20))
    stage = OutputStage(
        output=fmt, bias=(bias,), multipliers=(multiplier,), shift=shift, low=low, high=high
    )
    middles = [Fraction(a + b, 2) for a, b in pairwise(grid)]
    chosen = draw(st.lists(st.sampled_from(middles), min_size=1, max_size=6))
    at = [int(middle * (1 << shift) / multiplier) - bias for middle in chosen]
    sums = [place + offset for place in at for offset in (-1, 0, 1)]
    sums += draw(st.lists(st.integers(-(1 << 40), 1 << 40), max_size=4))
    return stage, [total for total in sums if abs(total) < _LARGEST]


@pytest.mark.property
@given(_cases())
def test_model_is_the_rounded_fraction(case: tuple[OutputStage, list[int]]) -> None:
    stage, sums = case
    codes = stage.model(np.array(sums, dtype=np.int64), np.zeros(len(sums), dtype=np.int64))
    numbers = code_integers(stage.output)[codes]
    for total, code, number in zip(sums, codes, numbers, strict=True):
        assert code in legal_codes(stage.output)
        assert number == _wanted(stage, total, 0), total


@pytest.mark.exhaustive
@pytest.mark.parametrize("output", all_formats(min_bits=2, max_bits=5), ids=str)
def test_model_is_the_rounded_fraction_for_every_sum(output: Format) -> None:
    stage = _stage(output.name)
    sums = np.repeat(np.arange(-128, 128), 3)
    channels = np.tile(np.arange(3), 256)
    numbers = code_integers(output)[stage.model(sums, channels)]
    wanted = [_wanted(stage, int(t), int(c)) for t, c in zip(sums, channels, strict=True)]
    assert list(numbers) == wanted


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("output", ["int3", "int4n", "uint5", "int8", "e2m1", "ue3m2", "fp8_e4m3"])
def test_both_forms_give_the_same_for_every_sum(output: str, relu: bool) -> None:
    stage = _stage(output, low=0 if relu else None)
    unit = stage.requantizer(10)
    sums = np.repeat(np.arange(-500, 500), 3)
    channels = np.tile(np.arange(3), 1000)
    bias, multipliers = np.array(stage.bias)[channels], np.array(stage.multipliers)[channels]
    from_multiplier = unit.model(sums + bias, multipliers)
    found = stage.model(sums, channels)
    integers = code_integers(stage.output)
    assert list(integers[found]) == list(integers[from_multiplier])
    if stage.form is Form.MULTIPLY:
        assert list(found) == list(from_multiplier), "not even the zeros differ"


@pytest.mark.parametrize(
    ("output", "low", "high", "form"),
    [
        ("uint4", None, None, Form.THRESHOLDS),
        ("e2m1", None, None, Form.THRESHOLDS),
        ("uint5", None, None, Form.MULTIPLY),
        ("uint5", None, 15, Form.THRESHOLDS),
        ("int8", None, None, Form.MULTIPLY),
        ("int8", 0, 100, Form.MULTIPLY),
        ("int8", -3, 100, Form.THRESHOLDS),
        ("uint8", 1, None, Form.THRESHOLDS),
    ],
)
def test_form_follows_the_number_of_results_and_the_clamp(
    output: str, low: int | None, high: int | None, form: Form
) -> None:
    assert _stage(output, low, high).form is form


def test_form_follows_results_and_channels_of_a_lane() -> None:
    assert form_for(16) is Form.THRESHOLDS
    assert form_for(17) is Form.MULTIPLY
    for results, most in ((2, 960), (16, 64), (32, 30), (64, 15), (256, 3)):
        assert form_for(results, most) is Form.THRESHOLDS
        assert form_for(results, most + 1) is Form.MULTIPLY


@pytest.mark.parametrize("output", ["int3", "uint4", "int5", "e2m2", "uint6", "int8", "e4m3"])
@pytest.mark.parametrize("bits", [12, 16, 24])
def test_chosen_form_is_at_most_a_quarter_dearer_than_the_other(output: str, bits: int) -> None:
    """By the cost model, for lanes of any number of channels."""
    from lutwise.cost_models.layer_cost import LayerSize, output_sites

    for channels in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512):
        size = LayerSize(
            weights=parse_element("int4"), activations=parse_element("int4"),
            output=parse_element(output), accumulator_bits=bits, groups=channels, outputs=1,
            products=8, pe=1, simd=8,
        )  # fmt: skip
        sites = {form: output_sites(size, channels, form) for form in Form}
        chosen = form_for(len(result_codes(parse_element(output))), channels)
        assert sites[chosen] <= 1.25 * min(sites.values()), channels


def test_no_requantizer_clamps_anywhere() -> None:
    with pytest.raises(ConfigError, match="a requantizer to int8 does not clamp at -3"):
        _stage("int8", low=-3).requantizer(12)


def test_a_shift_longer_than_the_product_gives_zeros() -> None:
    stage = OutputStage(
        output=parse_element("int8"), bias=(0,), multipliers=(3,), shift=40, low=-128, high=127
    )
    unit = stage.requantizer(12)
    assert unit.shift == 40
    sums = np.arange(-2048, 2048)
    assert not unit.model(sums, 3).any()
    assert not stage.model(sums, np.zeros(4096, dtype=np.int64)).any()


@pytest.mark.parametrize("fmt", all_formats(min_bits=2, max_bits=6), ids=str)
def test_codes_of_results_rise(fmt: Format) -> None:
    least, most = _ends(fmt)
    codes = result_codes(fmt, least, most)
    numbers = [int(code_integers(fmt)[code]) for code in codes]
    assert numbers == sorted(set(numbers))
    assert [Fraction(n) * Fraction(2) ** fmt.unit_exponent for n in numbers] == list(
        reference.finite_values(fmt)
    )
    assert codes[numbers.index(0)] == 0, "the zero is the positive one"
    assert result_codes(fmt, 0, most) == codes[numbers.index(0) :]
    assert result_codes(fmt) == codes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": (1,)}, "a bias and a multiplier per channel, got 1 and 2"),
        ({"bias": (), "multipliers": ()}, "got 0 and 0"),
        ({"multipliers": (1, 0)}, "multipliers are positive"),
        ({"shift": -1}, "the shift is not negative"),
        ({"low": 3, "high": 3}, r"int4 has no two values in 3\.\.3"),
        ({"low": 5, "high": -5}, r"int4 has no two values in 5\.\.-5"),
    ],
)
def test_impossible_stages_are_refused(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "output": parse_element("int4"),
        "bias": (0, 1),
        "multipliers": (1, 2),
        "shift": 3,
        "low": -8,
        "high": 7,
    }
    with pytest.raises(ConfigError, match=message):
        OutputStage(**(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.rtl
@pytest.mark.parametrize("form", list(Form), ids=lambda form: form.value)
@pytest.mark.parametrize("output", ["int3", "uint4", "e2m1", "ue2m2", "e1m1"])
def test_netlists_of_both_forms_are_the_model(
    output: str, form: Form, synthesizer: Synthesizer
) -> None:
    """All sums of 9 bits whose sum with the bias fits, in all channels."""
    stage = replace(_stage(output), wanted=form)
    bits = 9
    netlist = synthesizer.map(stage.emit(bits, module="stage"), "stage")
    sums, channels = (a.ravel() for a in np.meshgrid(np.arange(-248, 248), np.arange(3)))
    found, _ = netlist.simulate({"acc": bits_of(sums, bits), "channel": bits_of(channels, 2)})
    assert np.array_equal(from_bits(found["y"], signed=False), stage.model(sums, channels))
    assert stage.form is form


def test_a_form_that_cannot_clamp_is_refused() -> None:
    """A requantizer ends at the format's least number, or at zero."""
    with pytest.raises(ConfigError, match="a requantizer to int4 does not clamp at -3"):
        replace(_stage("int4", low=-3), wanted=Form.MULTIPLY)
    assert replace(_stage("int4", low=-3), wanted=Form.THRESHOLDS).form is Form.THRESHOLDS
