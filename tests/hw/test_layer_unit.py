# SPDX-License-Identifier: Apache-2.0
"""Layer units: models, memories and streams; then mapped netlists and RTL against the models."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lutwise.errors import ConfigError
from lutwise.hw.layer_unit import LayerUnit
from lutwise.hw.output_stage import Form
from lutwise.hw.simulator import Simulation, simulate_stream
from lutwise.hw.synthesis import Flow, Synthesizer
from lutwise.quant import reference
from lutwise.quant.formats import parse_element
from tests.hw.units import Clocked, needs_simulator, random_unit, random_vectors, stream


def _reference(unit: LayerUnit, vector: npt.NDArray[np.int64], channel: int) -> Fraction:
    """Return one result, as a number of the output or in units of the sum, with fractions."""
    group, output = divmod(channel, unit.outputs)
    total = Fraction(0)
    for w, a in zip(unit.weight_codes[group, output], vector[group], strict=True):
        values = reference.decode(unit.weights, int(w)), reference.decode(unit.activations, int(a))
        assert None not in values
        total += values[0] * values[1]  # type: ignore[operator]
    total /= Fraction(2) ** (unit.weights.unit_exponent + unit.activations.unit_exponent)
    total += unit.bias[channel]
    stage = unit.stage
    if stage is None:
        return total
    unit_out = Fraction(2) ** stage.output.unit_exponent
    scaled = total * stage.multipliers[channel] / (1 << stage.shift) * unit_out
    value = reference.quantize(stage.output, scaled)
    return min(max(value, stage.low * unit_out), stage.high * unit_out)


_SHAPES: list[dict[str, Any]] = [
    {"weights": "int4", "activations": "uint4", "output": "uint4"},
    {"weights": "e2m1", "activations": "ue2m2", "output": "ue2m2", "groups": 3, "outputs": 2},
    {"weights": "int8", "activations": "int8", "output": "int8", "outputs": 3, "high": 77},
    {"weights": "int3", "activations": "e2m1", "output": None, "groups": 2, "outputs": 3, "pe": 2},
]


@pytest.mark.parametrize("shape", _SHAPES, ids=lambda shape: shape["weights"])
def test_model_is_the_sum_of_values(shape: dict[str, Any]) -> None:
    unit = random_unit(**shape)
    vectors = random_vectors(unit, 12)
    found = unit.model(vectors)
    assert found.shape == (12, unit.channels)
    for at, code in np.ndenumerate(found):
        number: Fraction | None = Fraction(int(code))
        if unit.stage is not None:
            number = reference.decode(unit.stage.output, int(code))
        assert number == _reference(unit, vectors[at[0]], at[1]), at
    assert len(np.unique(found)) > 6, "results spread"


_FOLDINGS = [(1, 1), (2, 4), (3, 11), (5, 3), (4, 10)]


@pytest.mark.parametrize(("pe", "simd"), _FOLDINGS)
def test_memories_and_streams_hold_every_code_once(pe: int, simd: int) -> None:
    unit = random_unit("int4", "ue2m2", "uint4", groups=2, pe=pe, simd=simd,
                       architecture="magnitude-array-digits-2")  # fmt: skip
    folds, beats = -(-5 // pe), -(-11 // simd)
    assert (unit.folds, unit.input_beats, unit.cycles) == (folds, beats, folds * beats)
    assert len(unit.weight_words) == 2 * folds * beats
    stored = unit.dot.weight_bits(unit.weight_codes)
    assert not (stored == unit.weight_codes).all(), "integers are stored as sign and magnitude"
    for group, fold, beat, p, s in np.ndindex(2, folds, beats, pe, simd):
        word = unit.weight_words[(group * folds + fold) * beats + beat]
        output, product = fold * pe + p, beat * simd + s
        inside = output < 5 and product < 11
        assert word >> 4 * (p * simd + s) & 15 == (stored[group, output, product] if inside else 0)
    vectors = random_vectors(unit, 3)
    words = unit.input_words(vectors)
    assert len(words) == 3 * 2 * beats
    for vector, group, beat, s in np.ndindex(3, 2, beats, simd):
        word = words[(vector * 2 + group) * beats + beat]
        product = beat * simd + s
        assert word >> 4 * s & 15 == (vectors[vector, group, product] if product < 11 else 0)


@pytest.mark.parametrize("output", ["e2m1", None])
@pytest.mark.parametrize("pe", [1, 2, 3, 5])
def test_results_are_read_from_words(pe: int, output: str | None) -> None:
    unit = random_unit("int4", "int4", output, groups=2, pe=pe)
    random = np.random.default_rng(pe)
    bits = unit.output_bits
    assert bits == (4 if output else unit.accumulator_bits)
    low = 0 if output else -(1 << (bits - 1))
    wanted = random.integers(low, low + (1 << bits), (4, 10))
    words = []
    for row, group, fold in np.ndindex(4, 2, unit.folds):
        lanes = [wanted[row, group * 5 + fold * pe + p] if fold * pe + p < 5 else 1
                 for p in range(pe)]  # fmt: skip
        words.append(sum((int(n) & ((1 << bits) - 1)) << (bits * p) for p, n in enumerate(lanes)))
    assert unit.results(words).tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pe": 0}, r"pe is 1\.\.5 and simd 1\.\.11, got pe=0, simd=4"),
        ({"pe": 6}, "got pe=6"),
        ({"simd": 0}, "simd=0"),
        ({"simd": 12}, "simd=12"),
        ({"accumulator_bits": 2}, r"an accumulator has 3\.\.62 bits, got 2"),
        ({"accumulator_bits": 63}, "got 63"),
        ({"weight_codes": np.zeros((5, 11), dtype=np.int64)}, r"got \(5, 11\)"),
        ({"weight_codes": np.zeros((1, 0, 11), dtype=np.int64)}, r"got \(1, 0, 11\)"),
        ({"weight_codes": np.zeros((2, 5, 11), dtype=np.int64)}, "10 channels, but 5 biases"),
        ({"stage": None, "bias": (1, 2)}, "5 channels, but 2 biases"),
    ],
)
def test_impossible_units_are_refused(changes: dict[str, Any], message: str) -> None:
    unit = random_unit("int4", "uint4", "uint4")
    with pytest.raises(ConfigError, match=message):
        replace(unit, **changes)


def test_model_refuses_other_shapes() -> None:
    unit = random_unit("int4", "uint4", "uint4", groups=2)
    with pytest.raises(ConfigError, match=r"wanted inputs of shape \(n, 2, 11\), got \(3, 22\)"):
        unit.model(np.zeros((3, 22), dtype=np.int64))


def _wanted_edges(unit: LayerUnit, vectors: int) -> int:
    return vectors * unit.groups * unit.cycles + unit.latency


_SINGLE_FOLDS: list[dict[str, Any]] = [
    {"weights": "int4", "activations": "uint4", "output": "uint4", "groups": 3, "outputs": 2},
    {"weights": "e2m1", "activations": "ue2m2", "output": "e2m1", "pipeline": True, "outputs": 2},
    {"weights": "int5", "activations": "int4", "output": "int6", "high": 29, "outputs": 2,
     "pipeline": True},
    {"weights": "int4", "activations": "uint4", "output": None, "outputs": 1, "pe": 1, "simd": 11},
    {"weights": "uint3", "activations": "uint3", "output": "uint8", "low": 9, "outputs": 1, "pe": 1,
     "products": 4, "simd": 2},
    {"weights": "e2m1", "activations": "e2m1", "output": "e3m2", "outputs": 1, "pe": 1,
     "groups": 2, "products": 3, "simd": 3},
]  # fmt: skip


@pytest.mark.rtl
@pytest.mark.parametrize("shape", _SINGLE_FOLDS, ids=lambda s: f"{s['weights']} {s['output']}")
def test_netlist_is_the_model(shape: dict[str, Any], synthesizer: Synthesizer) -> None:
    unit = random_unit(**shape)
    assert unit.folds == 1
    netlist = synthesizer.map(unit.emit(), unit.name, flow=Flow.LEAN)
    vectors = [random_vectors(unit, 3, seed) for seed in range(64)]
    words = [unit.input_words(part) for part in vectors]
    wanted = [unit.model(part).tolist() for part in vectors]
    found, last = stream(netlist, words, pressure=False)
    assert [unit.results(part).tolist() for part in found] == wanted
    assert set(last) == {_wanted_edges(unit, 3)}
    found, last = stream(netlist, words, pressure=True, resets=2)
    assert [unit.results(part).tolist() for part in found] == wanted
    assert max(last) > _wanted_edges(unit, 3)


@pytest.mark.rtl
def test_a_result_does_not_wait_for_its_reader(synthesizer: Synthesizer) -> None:
    unit = random_unit("int4", "uint4", "uint4", outputs=2, products=8)
    circuit = Clocked(synthesizer.map(unit.emit(), unit.name, flow=Flow.LEAN))
    one = np.ones(1, dtype=np.int64)
    first, second, *_ = unit.input_words(random_vectors(unit, 2))
    circuit.step(rst=one, in_data=0 * one, in_valid=0 * one, out_ready=0 * one)
    seen = []
    for word in (first, second, *[first] * 8):
        outputs = circuit.step(rst=0 * one, in_data=word * one, in_valid=one, out_ready=0 * one)
        seen.append((int(outputs["in_ready"][0]), int(outputs["out_valid"][0])))
    shown = 1 + unit.latency  # edges after the first word
    assert seen == [(1, 0)] * shown + [(0, 1)] * (10 - shown)


@pytest.mark.rtl
def test_netlist_of_a_wrong_unit_differs(synthesizer: Synthesizer) -> None:
    unit = random_unit("int4", "uint4", "uint4", outputs=2)
    broken = unit.emit().replace("first <= beat == ", "first <= beat != ")
    vectors = random_vectors(unit, 8)
    netlist = synthesizer.map(broken, unit.name)
    ((words), *_), _ = stream(netlist, [unit.input_words(vectors)], pressure=False)
    assert (unit.results(words) != unit.model(vectors)).mean() > 0.3


def _simulated(unit: LayerUnit, vectors: npt.NDArray[np.int64], **more: Any) -> Simulation:
    return simulate_stream(
        more.pop("verilog", unit.emit()),
        more.pop("top", unit.name),
        unit.input_words(vectors),
        in_bits=unit.simd * unit.activations.bits,
        out_bits=unit.pe * unit.output_bits,
        results=len(vectors) * unit.groups * unit.folds,
        patience=100 + 4 * unit.cycles,
        **more,
    )


_UNITS: list[dict[str, Any]] = [
    {"weights": "int4", "activations": "uint4", "output": "uint4", "outputs": 5, "pe": 2},
    {"weights": "e2m1", "activations": "ue2m2", "output": "ue2m2", "outputs": 6, "pe": 4,
     "architecture": "array-digits-3"},
    {"weights": "int8", "activations": "int8", "output": "int8", "pipeline": True, "high": 100},
    {"weights": "e2m1", "activations": "int8", "output": "fp8_e4m3", "groups": 5, "outputs": 1,
     "products": 9, "pe": 1, "simd": 3},
    {"weights": "int4", "activations": "uint4", "output": None, "outputs": 9, "pe": 4, "simd": 1,
     "groups": 8, "pipeline": True},
]  # fmt: skip


@needs_simulator
@pytest.mark.rtl
@pytest.mark.parametrize("pressure", [False, True], ids=["free", "pressure"])
@pytest.mark.parametrize("shape", _UNITS, ids=lambda s: f"{s['weights']} {s['output']}")
def test_rtl_is_the_model(shape: dict[str, Any], pressure: bool) -> None:
    unit = random_unit(**shape)
    vectors = random_vectors(unit, 24)
    found = _simulated(unit, vectors, pressure=pressure)
    wanted = unit.model(vectors)
    assert unit.results(found.words).tolist() == wanted.tolist()
    assert len(np.unique(wanted)) > 7
    if pressure:
        assert found.cycles > _wanted_edges(unit, 24)
    else:
        assert found.cycles == _wanted_edges(unit, 24)


def test_the_units_above_take_every_path() -> None:
    units = [random_unit(**shape) for shape in _UNITS]
    forms = {unit.stage.form if unit.stage else None for unit in units}
    assert forms == {*Form, None}
    assert any(len(unit.weight_words) > 256 for unit in units), "an array for the simulator"
    assert any("lw_buffer #" in unit.emit() for unit in units)
    assert {unit.latency for unit in units} == {3, 4}


@needs_simulator
@pytest.mark.rtl
def test_weights_may_lie_outside() -> None:
    unit = random_unit("int4", "uint4", "uint4", groups=2, weights_inside=False)
    verilog = unit.emit()
    assert "stored" not in verilog
    depth, bits = len(unit.weight_words), unit.pe * unit.simd * 4
    fill = "\n".join(f"words[{i}] = {bits}'h{word:x};" for i, word in enumerate(unit.weight_words))
    address_bits = (depth - 1).bit_length()
    verilog += f"""
module outside (input clk, rst, input [15:0] in_data, input in_valid, output in_ready,
    output [7:0] out_data, output out_valid, input out_ready);
  wire [{address_bits - 1}:0] address;
  wire enable;
  reg [{bits - 1}:0] data, words[0:{depth - 1}];
  initial begin
{fill}
  end
  always @(posedge clk) if (enable) data <= words[address];
  {unit.name} unit (.clk(clk), .rst(rst), .in_data(in_data), .in_valid(in_valid),
      .in_ready(in_ready), .out_data(out_data), .out_valid(out_valid), .out_ready(out_ready),
      .weight_address(address), .weight_enable(enable), .weight_data(data));
endmodule
"""
    vectors = random_vectors(unit, 16)
    found = _simulated(unit, vectors, verilog=verilog, top="outside", pressure=True)
    assert unit.results(found.words).tolist() == unit.model(vectors).tolist()


def test_memories_of_all_zeros_and_ones_are_wires() -> None:
    unit = random_unit("int4", "uint4", "uint4", outputs=2)
    zeros = replace(unit, weight_codes=np.zeros_like(unit.weight_codes))
    assert "stored_0" not in zeros.emit()
    assert "assign stored[0] = 1'b0;" in zeros.emit()
    assert "stored_0 (" in unit.emit()


def test_modules_have_one_definition() -> None:
    verilog = random_unit("int8", "int8", "int8").emit()
    names = [line.split()[1] for line in verilog.splitlines() if line.startswith("module ")]
    assert len(names) == len(set(names))
    assert "unit_under_test_requantizer" in names
    assert parse_element("int8").bits == 8
