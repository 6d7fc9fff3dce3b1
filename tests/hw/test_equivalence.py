# SPDX-License-Identifier: Apache-2.0
import re
from typing import Any

import pytest

from lutwise.errors import ConfigError, ToolError
from lutwise.hw.architecture import Architecture
from lutwise.hw.dot_product import DotProduct
from lutwise.hw.equivalence import prove_equal
from lutwise.hw.synthesis import Synthesizer
from lutwise.quant.formats import parse_element, parse_weight


def _unit(weights: str, activations: str, lanes: int, style: str, **options: Any) -> DotProduct:
    return DotProduct(
        weights=parse_weight(weights),
        activations=parse_element(activations),
        lanes=lanes,
        architecture=Architecture.parse(style),
        **options,
    )


@pytest.mark.rtl
@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize(
    ("weights", "activations", "styles"),
    [
        ("int3", "int3", "table chain-w chain-a"),
        ("int4", "uint3", "table chain-w chain-a array-digits-1 array-booth-1 magnitude-table "
         "magnitude-array-digits-1"),
        ("uint3", "uint3", "table chain-a array-digits-1"),
        ("e2m1", "e2m1", "table array-digits-2 array-digits-4 array-booth-3"),
        ("e2m1", "int3", "table array-digits-2"),
        ("ue3m0", "e3m0", "table array-digits-3 array-digits-4"),
    ],
)  # fmt: skip
def test_architectures_are_proven_equal_to_plain_verilog(
    weights: str, activations: str, styles: str, lanes: int, synthesizer: Synthesizer
) -> None:
    """For all operands and all accumulators of 1024 products."""
    plain = _unit(weights, activations, lanes, "plain")
    for style in styles.split():
        found = prove_equal(
            _unit(weights, activations, lanes, style), plain, synthesizer=synthesizer
        )
        assert found.proven, f"{style}: {found.counterexample}"


@pytest.mark.rtl
@pytest.mark.parametrize(
    ("weights", "activations", "one", "other"),
    [
        ("fp8_e4m3", "e2m1", "array-digits-4", "plain"),
        ("int6", "uint6", "chain-a", "array-digits-1"),
        ("e3m2", "ue3m3", "array-booth-4", "array-digits-8"),
        ("int4", "uint4", "magnitude-array-booth-1", "chain-w"),
    ],
)
def test_wide_operands_are_proven_for_one_lane(
    weights: str, activations: str, one: str, other: str, synthesizer: Synthesizer
) -> None:
    units = [_unit(weights, activations, 1, style) for style in (one, other)]
    found = prove_equal(*units, synthesizer=synthesizer)
    assert found.proven, found.counterexample


@pytest.mark.rtl
@pytest.mark.parametrize("options", [{"restart": True}, {"pipeline": True}], ids=str)
def test_units_of_layers_are_proven(options: dict[str, bool], synthesizer: Synthesizer) -> None:
    styles = ("table", "array-digits-2") if "pipeline" in options else ("table", "array-booth-2")
    units = [_unit("e2m1", "int3", 2, style, **options) for style in styles]
    assert prove_equal(*units, synthesizer=synthesizer).proven


class _Broken(DotProduct):
    """A unit that forgets the carry which completes the negation of its first product."""

    def emit(self, *, module: str = "dot_product") -> str:
        text = super().emit(module=module)
        found = re.sub(r"(lw_add3 .* accumulate .*)\.cin0\([^)]*\)", r"\1.cin0(1'b0)", text)
        assert found != text
        return found


@pytest.mark.rtl
@pytest.mark.parametrize("style", ["table", "array-digits-2"])
@pytest.mark.parametrize("pipeline", [False, True])
def test_a_broken_unit_is_refuted(style: str, pipeline: bool, synthesizer: Synthesizer) -> None:
    """The counterexample is one: the model agrees with the sound unit."""
    sound = _unit("e2m1", "int3", 2, style, pipeline=pipeline)
    broken = _Broken(
        weights=sound.weights,
        activations=sound.activations,
        lanes=2,
        architecture=sound.architecture,
        pipeline=pipeline,
    )
    for pair in ((sound, broken), (broken, sound)):
        found = prove_equal(*pair, synthesizer=synthesizer)
        case = found.counterexample
        assert case is not None
        assert not found.proven
        wanted = sound.model(case.weights, case.activations, accumulator=case.accumulator)
        right, wrong = (case.one, case.other) if pair[0] is sound else (case.other, case.one)
        assert case.control == {"rst": 0}
        assert right == wanted
        assert wrong == (wanted - 1 + (1 << 16)) % (1 << 17) - (1 << 16) != right
        assert str(case) == (
            f"w={list(case.weights)}, a={list(case.activations)}, rst=0, "
            f"acc={case.accumulator}: {case.one} and {case.other}"
        )


class _Gated(DotProduct):
    """A unit that takes the most negative code of a narrow integer for zero."""

    def emit(self, *, module: str = "dot_product") -> str:
        text = super().emit(module=module)
        found = text.replace("= w[0+:3];", "= w[0+:3] == 3'b100 ? 3'b000 : w[0+:3];")
        assert found != text
        return found


@pytest.mark.rtl
@pytest.mark.parametrize("narrow", [True, False])
def test_codes_that_are_no_numbers_prove_nothing(narrow: bool, synthesizer: Synthesizer) -> None:
    arguments: dict[str, Any] = {
        "weights": parse_weight("int3", narrow=narrow),
        "activations": parse_element("uint3"),
        "lanes": 1,
        "architecture": Architecture.parse("chain-w"),
    }
    found = prove_equal(DotProduct(**arguments), _Gated(**arguments), synthesizer=synthesizer)
    assert found.proven == narrow
    if found.counterexample is not None:
        assert found.counterexample.weights == (0b100,)


@pytest.mark.parametrize(
    "changes",
    [
        {"lanes": 3},
        {"activations": parse_element("uint3")},
        {"weights": parse_weight("int3")},
        {"length": 4096},
        {"pipeline": True},
        {"restart": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_units_for_different_tasks_are_not_compared(changes: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "weights": parse_weight("int4"),
        "activations": parse_element("uint4"),
        "lanes": 2,
        "architecture": Architecture.parse("chain-a"),
    }
    with pytest.raises(ConfigError, match="differ in more than their architecture"):
        prove_equal(DotProduct(**arguments), DotProduct(**(arguments | changes)))


def test_registers_that_stand_still_are_out_of_reach() -> None:
    unit = _unit("int4", "uint4", 2, "table", restart=True, pipeline=True)
    with pytest.raises(ConfigError, match="out of reach"):
        prove_equal(unit, unit)


@pytest.mark.rtl
def test_a_hard_proof_stops_at_the_time_limit(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = [_unit("int8", "uint8", 2, style) for style in ("chain-a", "plain")]
    monkeypatch.setattr(synthesizer, "time_limit_s", 1.0)
    with pytest.raises(ToolError, match="no answer within 1 s"):
        prove_equal(*units, synthesizer=synthesizer)
