# SPDX-License-Identifier: Apache-2.0
from fractions import Fraction

import numpy as np
import pytest

from lutwise.errors import ConfigError
from lutwise.hw.bounds import code_integers, legal_codes
from lutwise.hw.requantizer import Requantizer, typical_shift, verify_requantizer
from lutwise.hw.synthesis import Synthesizer
from lutwise.quant.formats import Format, parse_element


def _nearest(fmt: Format, wanted: Fraction) -> int:
    """Round by looking at all values of the format.

    A tie goes to the neighbour that is an even multiple of their distance, which is the last
    place of the tie's binade.
    """
    numbers = sorted({int(number) for number in code_integers(fmt)[legal_codes(fmt)]})
    if wanted >= numbers[-1]:
        return numbers[-1]
    if wanted <= numbers[0]:
        return numbers[0]
    below = max(number for number in numbers if number <= wanted)
    above = min(number for number in numbers if number >= wanted)
    if wanted - below != above - wanted:
        return below if wanted - below < above - wanted else above
    if below == above:
        return below
    inner, outer = sorted((below, above), key=abs)
    return inner if inner // (above - below) % 2 == 0 else outer


_OUTPUTS = ["int2", "int4", "int4n", "uint3", "e1m0", "e2m1", "e3m0", "ue2m2", "e4m3", "fp8_e4m3"]


@pytest.mark.parametrize("shift", [0, 1, 4, 9])
@pytest.mark.parametrize("output", _OUTPUTS)
def test_model_rounds_to_the_nearest_value(output: str, shift: int) -> None:
    fmt = parse_element(output)
    unit = Requantizer(accumulator_bits=9, output=fmt, shift=shift, multiplier_bits=4)
    acc = np.arange(-256, 256)
    for m in (0, 1, 3, 8, 15):
        codes = unit.model(acc, m)
        numbers = code_integers(fmt)[codes]
        for number, total in zip(numbers, acc, strict=True):
            wanted = Fraction(int(total) * m, 1 << shift)
            assert int(number) == _nearest(fmt, wanted), f"{total} * {m} >> {shift}"


def test_relu_drops_negative_numbers() -> None:
    unit = Requantizer(accumulator_bits=8, output=parse_element("e2m1"), shift=2, relu=True)
    assert list(unit.model([-100, -1, 0], 4)) == [0, 0, 0]
    assert unit.model([100], 1) == 0x7


def test_special_codes_are_never_produced() -> None:
    unit = Requantizer(accumulator_bits=32, output=parse_element("fp8_e5m2"), shift=0)
    codes = unit.model([(1 << 31) - 1, -(1 << 31)], 65535)
    assert list(codes) == [0x7B, 0xFB]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulator_bits": 2}, "3 bits or more"),
        ({"shift": -1}, r"a shift is 0\.\.28"),
        ({"shift": 29}, r"a shift is 0\.\.28"),
    ],
)
def test_impossible_units_are_refused(changes: dict[str, int], message: str) -> None:
    arguments: dict[str, int] = {"accumulator_bits": 12, "shift": 4} | changes
    with pytest.raises(ConfigError, match=message):
        Requantizer(output=parse_element("int4"), **arguments)  # type: ignore[arg-type]


def test_model_refuses_numbers_that_do_not_fit() -> None:
    unit = Requantizer(accumulator_bits=8, output=parse_element("int4"), shift=0)
    with pytest.raises(ConfigError, match=r"accumulator .* is -128\.\.127"):
        unit.model([128], 1)
    with pytest.raises(ConfigError, match=r"multiplier .* is 0\.\.65535"):
        unit.model([0], -1)


@pytest.mark.rtl
@pytest.mark.parametrize(
    ("output", "bits", "shift", "relu"),
    [
        ("int4", 12, None, False),
        ("int4n", 12, None, False),
        ("int8", 16, 3, True),
        ("uint4", 16, None, False),
        ("uint8", 12, 27, False),
        ("e1m0", 12, 0, False),
        ("e2m1", 16, None, False),
        ("ue2m2", 16, None, False),
        ("e3m0", 12, None, True),
        ("fp8_e4m3", 16, None, False),
        ("fp8_e5m2", 12, 0, False),
        ("e7m0", 12, 0, False),
    ],
)
def test_netlist_equals_model(
    output: str, bits: int, shift: int | None, relu: bool, synthesizer: Synthesizer
) -> None:
    fmt = parse_element(output)
    unit = Requantizer(
        accumulator_bits=bits,
        output=fmt,
        shift=typical_shift(bits, fmt) if shift is None else shift,
        relu=relu,
    )
    netlist = synthesizer.map(unit.emit(), "requantizer")
    proof = verify_requantizer(unit, netlist, vectors=2048)
    assert proof.mismatches == 0, proof.first_mismatch
