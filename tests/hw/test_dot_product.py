# SPDX-License-Identifier: Apache-2.0
import random
from fractions import Fraction

import numpy as np
import pytest

from lutwise.errors import ConfigError, FormatError
from lutwise.hw.bounds import legal_codes
from lutwise.hw.dot_product import DotProduct, ProductStyle, applicable_styles
from lutwise.hw.synthesis import Synthesizer
from lutwise.hw.verify import verify_dot_product
from lutwise.quant.formats import all_formats, code_values, parse_element, parse_weight


def _unit(weights: str, activations: str, lanes: int, style: ProductStyle) -> DotProduct:
    return DotProduct(
        weights=parse_weight(weights),
        activations=parse_element(activations),
        lanes=lanes,
        style=style,
    )


@pytest.mark.parametrize(
    ("weights", "activations", "bits"),
    [
        ("int4", "int4", 17),
        ("e1m2", "e1m2", 17),
        ("int2", "int2", 13),
        ("e2m1", "e2m1", 19),
        ("e3m0", "e3m0", 24),
        ("e5m2", "e5m2", 77),
        ("uint4", "uint4", 18),
    ],
)
def test_accumulator_bits_follow_one_rule(weights: str, activations: str, bits: int) -> None:
    assert _unit(weights, activations, 1, ProductStyle.STAR).accumulator_bits == bits


@pytest.mark.parametrize("pair", [("e2m1", "ue2m2"), ("int4", "e3m2"), ("fp8_e4m3", "uint8")])
def test_model_is_the_exact_sum_of_values(pair: tuple[str, str]) -> None:
    unit = _unit(*pair, 5, ProductStyle.STAR)
    rng = np.random.default_rng(1)
    w = rng.choice(legal_codes(unit.weights), (20, 5))
    a = rng.choice(legal_codes(unit.activations), (20, 5))
    got = unit.model(w, a, accumulator=7)
    step = Fraction(2) ** unit.unit_exponent
    for row in range(20):
        wanted = sum(
            Fraction(float(code_values(unit.weights)[i]))
            * Fraction(float(code_values(unit.activations)[j]))
            for i, j in zip(w[row], a[row], strict=True)
        )
        assert got[row] * step == wanted + 7 * step


def test_model_wraps_like_the_register() -> None:
    signed = _unit("int2", "int2", 1, ProductStyle.STAR)
    assert signed.model([1], [1], accumulator=4095) == -4096
    unsigned = _unit("uint2", "uint2", 1, ProductStyle.STAR)
    assert unsigned.model([1], [1], accumulator=(1 << unsigned.accumulator_bits) - 1) == 0


def test_model_refuses_bad_operands() -> None:
    unit = _unit("int4", "int4", 2, ProductStyle.STAR)
    with pytest.raises(ConfigError, match=r"weights of shape \(\.\.\., 2\)"):
        unit.model([1], [1])
    with pytest.raises(FormatError, match="0x8 is not a number of int4n"):
        unit.model([8, 0], [0, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 0}, "1..length lanes"),
        ({"lanes": 8, "length": 4}, "1..length lanes"),
        ({"style": ProductStyle.ROWS}, "'rows' does not fit int4n x int4"),
    ],
    ids=["no lane", "longer than the dot product", "style"],
)
def test_impossible_units_are_refused(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "weights": parse_weight("int4"),
        "activations": parse_element("int4"),
        "lanes": 2,
    }
    with pytest.raises(ConfigError, match=message):
        DotProduct(**(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weights", "activations", "styles"),
    [
        ("int4", "int4", {"star", "booth", "table"}),
        ("int8", "uint8", {"star", "booth"}),
        ("e2m1", "e2m1", {"star", "booth", "rows", "two_shift", "table"}),
        ("e4m3", "ue4m4", {"star", "booth", "rows"}),
        ("e3m0", "int8", {"star"}),
    ],
)
def test_applicable_styles_fit_the_formats(
    weights: str, activations: str, styles: set[str]
) -> None:
    found = applicable_styles(parse_weight(weights), parse_element(activations))
    assert {style.value for style in found} == styles


def test_ports_describe_the_emitted_module() -> None:
    unit = _unit("e2m1", "ue2m2", 3, ProductStyle.TABLE)
    verilog = unit.emit(module="mac3")
    top = verilog[verilog.index("module mac3 (") :]
    for port in unit.ports:
        span = f"[{port.bits - 1}:0] " if port.bits > 1 else ""
        reg = "reg " if port.name == "acc" else ""
        assert f"{port.direction.value} {reg}{span}{port.name}" in top


def _small_pairs() -> list[tuple[str, str, ProductStyle]]:
    formats = all_formats(max_bits=4)
    triples = [
        (w.name, a.name, style)
        for w in formats
        for a in formats
        for style in (*applicable_styles(parse_weight(w.name), a), ProductStyle.PLAIN)
    ]
    return random.Random(4).sample(triples, 24)


@pytest.mark.rtl
@pytest.mark.exhaustive
@pytest.mark.parametrize(("weights", "activations", "style"), _small_pairs(), ids=str)
def test_netlist_equals_model_for_every_pair_of_codes(
    weights: str, activations: str, style: ProductStyle, synthesizer: Synthesizer
) -> None:
    unit = _unit(weights, activations, 1, style)
    proof = verify_dot_product(unit, synthesizer.map(unit.emit(), "dot_product"))
    assert proof.exhaustive
    assert proof.mismatches == 0, proof.first_mismatch


@pytest.mark.rtl
@pytest.mark.parametrize(
    ("weights", "activations", "lanes", "style"),
    [
        ("int8", "uint8", 3, ProductStyle.BOOTH),
        ("uint5", "uint3", 5, ProductStyle.ROWS),
        ("e3m2", "ue2m4", 4, ProductStyle.ROWS),
        ("e2m3", "e2m3", 7, ProductStyle.TWO_SHIFT),
        ("e4m3", "int6", 2, ProductStyle.BOOTH),
        ("int3", "ue3m3", 6, ProductStyle.STAR),
        ("fp8_e4m3", "fp8_e5m2", 2, ProductStyle.STAR),
        ("e7m0", "ue7m1", 1, ProductStyle.STAR),
        ("ue2m2", "ue2m2", 8, ProductStyle.TABLE),
    ],
    ids=str,
)
def test_netlist_equals_model_for_random_codes(
    weights: str, activations: str, lanes: int, style: ProductStyle, synthesizer: Synthesizer
) -> None:
    unit = _unit(weights, activations, lanes, style)
    proof = verify_dot_product(unit, synthesizer.map(unit.emit(), "dot_product"), vectors=2048)
    assert proof.mismatches == 0, proof.first_mismatch


@pytest.mark.rtl
@pytest.mark.parametrize("style", [ProductStyle.BOOTH, ProductStyle.TABLE, ProductStyle.ROWS])
def test_plain_verilog_branch_does_the_same(style: ProductStyle, synthesizer: Synthesizer) -> None:
    unit = _unit("e2m1", "e2m1", 3, style)
    behavioural = "`undef LUTWISE_ALU\n" + unit.emit()
    proof = verify_dot_product(unit, synthesizer.map(behavioural, "dot_product"), vectors=1024)
    assert proof.mismatches == 0, proof.first_mismatch


@pytest.mark.rtl
def test_a_wrong_circuit_is_noticed(synthesizer: Synthesizer) -> None:
    unit = _unit("int4", "int4", 1, ProductStyle.BOOTH)
    broken = unit.emit().replace(".cin(digit[2])", ".cin(1'b0)")
    proof = verify_dot_product(unit, synthesizer.map(broken, "dot_product"))
    assert not proof.passed
    assert proof.first_mismatch is not None
    assert "netlist" in proof.first_mismatch
