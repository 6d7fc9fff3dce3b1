# SPDX-License-Identifier: Apache-2.0
"""Constant units: netlists, simulation and proofs against models and plain Verilog."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lutwise.errors import ConfigError, FormatError
from lutwise.hw.bounds import accumulator_range, code_integers, width_of_range
from lutwise.hw.constant_number import number_bits, number_range
from lutwise.hw.constant_unit import ConstantUnit, Registers
from lutwise.hw.constant_verify import constant_vectors, verify_constant_unit
from lutwise.hw.output_stage import Form
from lutwise.hw.packing import pack
from lutwise.hw.simulator import simulate_stream
from lutwise.hw.synthesis import Flow, Synthesizer
from lutwise.hw.weighted_layer import MOST_SUM_BITS
from lutwise.quant.formats import Format, IntFormat, parse_element
from tests.hw.units import needs_simulator, random_unit
from tests.strategies import formats


def _unit(
    weights: str,
    activations: str,
    output: str | None = None,
    *,
    registers: Registers = Registers.NONE,
    share: bool = True,
    **sizes: Any,
) -> ConstantUnit:
    """Return a unit with random weights and biases, whose results spread over all there are."""
    layer = random_unit(weights, activations, output, pe=1, simd=1, **sizes)
    return ConstantUnit(
        name="unit_under_test",
        weights=layer.weights,
        activations=layer.activations,
        weight_codes=layer.weight_codes,
        accumulator_bits=layer.accumulator_bits,
        stage=layer.stage,
        bias=layer.bias,
        registers=registers,
        share=share,
    )


@pytest.mark.rtl
@pytest.mark.parametrize(
    ("weights", "activations", "output", "sizes"),
    [
        ("int4", "uint4", None, {"products": 4, "outputs": 3}),
        ("int4", "int4", None, {"products": 3, "outputs": 3}),
        ("int2", "uint2", None, {"products": 7, "outputs": 4}),
        ("e2m1", "ue2m2", None, {"products": 3, "outputs": 2}),
        ("e2m1", "e2m1", "e2m1", {"products": 4, "outputs": 2}),
        ("int8", "int8", None, {"products": 5, "outputs": 6}),
        ("e4m3", "fp8_e4m3", None, {"products": 2, "outputs": 2}),
        ("e3m0", "int3", "int4", {"products": 5, "outputs": 3}),
        ("int4", "uint4", "uint4", {"products": 9, "outputs": 4}),
        ("int5", "int8", "uint8", {"products": 4, "outputs": 2}),
        ("int4", "int4", "int8", {"products": 3, "outputs": 1, "low": -20, "high": 60}),
        ("int4", "uint4", "ue2m2", {"products": 3, "outputs": 2, "groups": 3}),
        ("int6", "uint6", "int6", {"products": 3, "outputs": 1, "groups": 2, "low": 0, "high": 20}),
    ],
    ids=lambda value: str(value),
)
def test_netlists_compute_the_model(
    weights: str,
    activations: str,
    output: str | None,
    sizes: dict[str, Any],
    synthesizer: Synthesizer,
) -> None:
    unit = _unit(weights, activations, output, **sizes)
    netlist = synthesizer.map(unit.emit(), unit.name, flow=Flow.AREA)
    found = verify_constant_unit(unit, netlist)
    assert found.passed, found.first_mismatch
    assert netlist.flip_flops == 0
    assert unit.latency == 0


@pytest.mark.rtl
@pytest.mark.parametrize("registers", [Registers.OUTPUT, Registers.STAGES])
@pytest.mark.parametrize(("activations", "output"), [("uint4", None), ("e2m1", "int4")])
def test_registers_take_a_vector_each_cycle(
    activations: str, output: str | None, registers: Registers, synthesizer: Synthesizer
) -> None:
    unit = _unit("int4", activations, output, registers=registers, products=9, outputs=3)
    netlist = synthesizer.map(unit.emit(), unit.name, flow=Flow.AREA)
    found = verify_constant_unit(unit, netlist)
    assert found.passed, found.first_mismatch
    assert unit.interval == 1
    assert unit.latency == 1 if registers is Registers.OUTPUT else unit.latency > 3
    if registers is Registers.STAGES and output is None:
        assert netlist.depth() == 1


@pytest.mark.rtl
@pytest.mark.parametrize("share", [True, False])
def test_counted_sites_are_what_synthesis_finds(share: bool, synthesizer: Synthesizer) -> None:
    unit = _unit("int4", "uint4", "uint4", products=12, outputs=8, share=share)
    netlist = synthesizer.map(unit.emit(), unit.name, flow=Flow.AREA)
    counted = unit.counted_sites()
    assert counted.total == pytest.approx(pack(netlist).luts, rel=0.02)
    assert counted.numbers == 0
    assert (counted.shared > 0) == share


def test_sharing_saves_sites() -> None:
    alone, shared = (
        _unit("int4", "uint4", products=24, outputs=24, share=share).counted_sites().total
        for share in (False, True)
    )
    assert shared < 0.95 * alone


def _plain(unit: ConstantUnit) -> str:
    """Write the sums of integers as a designer would."""
    bits, width = unit.activations.bits, unit.accumulator_bits
    signed = unit.activations.signed
    lines = []
    for group in range(unit.groups):
        for output in range(unit.outputs):
            channel = group * unit.outputs + output
            terms = [f"{width}'sd0 + $signed({unit.bias[channel]})"]
            for at, weight in enumerate(unit.weight_integers[group, output]):
                code = f"a[{(group * unit.products + at) * bits}+:{bits}]"
                number = f"$signed({code})" if signed else f"$signed({{1'b0, {code}}})"
                terms.append(f"$signed({int(weight)}) * {number}")
            lines += [
                f"wire signed [{width - 1}:0] y{channel} = {' + '.join(terms)};",
                f"assign y[{channel * width}+:{width}] = y{channel};",
            ]
    ports = f"input [{unit.ports[0].bits - 1}:0] a, output [{unit.ports[1].bits - 1}:0] y"
    return "\n".join([f"module plain({ports});", *lines, "endmodule", ""])


@pytest.mark.rtl
@pytest.mark.parametrize(
    ("weights", "activations", "sizes"),
    [
        ("int4", "uint4", {"products": 3, "outputs": 3}),
        ("int3", "int3", {"products": 4, "outputs": 2}),
        ("int2", "uint2", {"products": 6, "outputs": 3}),
        ("e2m1", "int3", {"products": 2, "outputs": 2, "groups": 2}),
    ],
)
def test_units_are_proven_equal_to_plain_verilog(
    weights: str, activations: str, sizes: dict[str, Any], synthesizer: Synthesizer
) -> None:
    unit = replace(_unit(weights, activations, **sizes), name="constant")
    a, y = (port.bits for port in unit.ports)
    # The induction begins in a state that is called equal: one in which nothing is asked yet.
    miter = f"""
    module miter(input clk, input ask, input [{a - 1}:0] a, output equal, output legal);
      wire [{y - 1}:0] y0, y1;
      reg asked;
      always @(posedge clk) asked <= ask;
      constant one(.a(a), .y(y0));
      plain other(.a(a), .y(y1));
      assign equal = ~asked | (y0 == y1);
      assign legal = 1'b1;
    endmodule
    """
    texts = {"constant": unit.emit(), "plain": _plain(unit)}
    assert synthesizer.prove(miter, "miter", texts) is None
    wrong = replace(unit, bias=(unit.bias[0] + 1, *unit.bias[1:]))
    assert synthesizer.prove(miter, "miter", texts | {"constant": wrong.emit()}) is not None


def _stream(unit: ConstantUnit) -> str:
    """Put a unit into a stream that is always ready."""
    a, y = (port.bits for port in unit.ports if port.name != "clk")
    return f"""{unit.emit()}
    module stream(input clk, input rst, input [{a - 1}:0] in_data, input in_valid, output in_ready,
                  output [{y - 1}:0] out_data, output out_valid, input out_ready);
      reg [{unit.latency}:0] valid;
      assign in_ready = 1'b1;
      always @(posedge clk) valid <= rst ? 0 : {{valid, in_valid}};
      wire [{unit.latency}:0] seen = {{valid, in_valid}};
      assign out_valid = ~rst & seen[{unit.latency}];
      {unit.name} unit({".clk(clk), " if unit.latency else ""}.a(in_data), .y(out_data));
    endmodule
    """


@needs_simulator
@pytest.mark.rtl
@pytest.mark.parametrize(
    ("registers", "output"), [(Registers.STAGES, "uint4"), (Registers.OUTPUT, "uint8")]
)
def test_the_simulator_agrees(registers: Registers, output: str) -> None:
    unit = _unit("int4", "e2m1", output, registers=registers, products=6, outputs=2)
    vectors, _ = constant_vectors(unit, vectors=200)
    found = simulate_stream(
        _stream(unit),
        "stream",
        unit.input_words(vectors),
        in_bits=unit.products * unit.activations.bits,
        out_bits=unit.channels * unit.output_bits,
        results=len(vectors),
        patience=unit.latency + 8,
    )
    assert np.array_equal(unit.results(found.words), unit.model(vectors))
    assert found.cycles == len(vectors) + unit.latency


@pytest.mark.property
@settings(max_examples=25)
@given(formats(), formats(), st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers())
def test_any_formats_make_a_unit_that_counts_its_sites(
    weights: Format, activations: Format, groups: int, outputs: int, products: int, seed: int
) -> None:
    sizes: dict[str, Any] = {
        "groups": groups,
        "outputs": outputs,
        "products": products,
        "seed": abs(seed),
    }
    sums = width_of_range(*accumulator_range(weights, activations, products + 1))
    assume(sums < MOST_SUM_BITS - 2)
    unit = _unit(weights.name, activations.name, **sizes)
    assert unit.emit().count("module unit_under_test ") == 1
    sites = unit.counted_sites()
    assert sites.numbers == 0 or not isinstance(activations, IntFormat)
    assert sites.results == 0


def _model(unit: ConstantUnit, vectors: npt.NDArray[np.int64]) -> list[list[int]]:
    numbers = unit.weight_integers
    table = code_integers(unit.activations)
    found = []
    for vector in vectors:
        row = []
        for group in range(unit.groups):
            for output in range(unit.outputs):
                total = unit.bias[group * unit.outputs + output]
                for at, code in enumerate(vector[group]):
                    total += int(numbers[group, output, at]) * int(table[code])
                row.append(total)
        found.append(row)
    return found


def test_the_model_is_the_sum_of_products() -> None:
    unit = _unit("e2m1", "int4", groups=2, outputs=3, products=4)
    vectors, exhaustive = constant_vectors(unit, vectors=40)
    assert not exhaustive
    assert unit.model(vectors).tolist() == _model(unit, vectors)


def test_vectors_reach_the_ends_of_each_sum() -> None:
    unit = _unit("int4", "uint4", outputs=3, products=20)
    vectors, _ = constant_vectors(unit, vectors=16)
    sums = unit.model(vectors) - np.array(unit.bias)
    assert list(zip(sums.min(axis=0), sums.max(axis=0), strict=True)) == list(unit.sum_ranges)
    small, exhaustive = constant_vectors(_unit("int4", "uint2", outputs=2, products=3))
    assert exhaustive
    assert len(np.unique(small.reshape(len(small), -1), axis=0)) == len(small) == 4**3


def test_words_carry_vectors_and_results() -> None:
    unit = _unit("int4", "uint4", outputs=2, products=3)
    assert unit.input_words(np.array([[[1, 2, 15]]])) == [0xF21]
    mask = (1 << unit.accumulator_bits) - 1
    words = [(-3 & mask) << unit.accumulator_bits | 5]
    assert unit.results(words).tolist() == [[5, -3]]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"weight_codes": np.zeros((2, 3), dtype=np.int64)}, "shape"),
        ({"accumulator_bits": 63}, "3..62 bits"),
        ({"accumulator_bits": 4}, "which 4 bits do not hold"),
        ({"bias": (0,)}, "5 channels, but 1 biases"),
    ],
)
def test_units_that_make_no_sense_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        replace(_unit("int4", "uint4"), **changes)


def test_illegal_codes_are_refused() -> None:
    unit = _unit("int4", "uint4", products=2, outputs=1)
    with pytest.raises(ConfigError, match="wanted inputs of shape"):
        unit.model(np.zeros((1, 1, 3), dtype=np.int64))
    with pytest.raises(FormatError):
        unit.model(np.full((1, 1, 2), 16))
    with pytest.raises(FormatError):
        replace(unit, weight_codes=np.full((1, 1, 2), 8))


@pytest.mark.parametrize(
    ("fmt", "low", "high", "bits"),
    [("uint4", 0, 15, 4), ("int4", -8, 7, 4), ("e2m1", -12, 12, 5), ("ue2m1", 0, 12, 4)],
)
def test_numbers_of_formats(fmt: str, low: int, high: int, bits: int) -> None:
    found = parse_element(fmt)
    assert number_range(found) == (low, high)
    assert number_bits(found) == bits


def test_stages_choose_their_form() -> None:
    few, many = (_unit("int4", "uint4", output) for output in ("uint4", "uint8"))
    assert few.stage is not None
    assert many.stage is not None
    assert (few.stage.form, many.stage.form) == (Form.THRESHOLDS, Form.MULTIPLY)
    assert 0 < few.counted_sites().results < 0.5 * many.counted_sites().results
    assert f"module {many.name}_round" in many.emit()
