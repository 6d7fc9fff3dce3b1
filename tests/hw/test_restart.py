# SPDX-License-Identifier: Apache-2.0
"""Dot products that begin anew, wait and are pipelined, and the small modules of layer units:
mapped netlists, clock edge by clock edge, against integers.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lutwise.errors import ConfigError
from lutwise.hw.architecture import PLAIN, Architecture
from lutwise.hw.bounds import exact_integers, legal_codes
from lutwise.hw.dot_product import DotProduct
from lutwise.hw.netlist import bits_of, from_bits
from lutwise.hw.synthesis import Synthesizer
from lutwise.hw.verilog import library
from lutwise.quant.formats import parse_element, parse_weight
from tests.hw.units import Clocked

Numbers = npt.NDArray[Any]

_STREAMS = 192
_EDGES = 14

pytestmark = pytest.mark.rtl


def _unit(
    weights: str,
    activations: str,
    architecture: str,
    lanes: int,
    *,
    restart: bool = True,
    pipeline: bool = False,
    bounds: tuple[int, int] | None = None,
) -> DotProduct:
    return DotProduct(
        weights=parse_weight(weights),
        activations=parse_element(activations),
        lanes=lanes,
        length=64,
        architecture=Architecture.parse(architecture),
        restart=restart,
        pipeline=pipeline,
        bounds=bounds,
    )


def _wrap(numbers: Numbers, unit: DotProduct) -> Numbers:
    modulus = 1 << unit.accumulator_bits
    offset = modulus >> 1 if unit.accumulator_signed else 0
    return (numbers + offset) % modulus - offset


_UNITS = [
    ("int4", "uint4", "chain-w", 4),
    ("int4", "uint4", "magnitude-table", 1),
    ("int8", "int8", "chain-a", 1),
    ("int3", "int5", "chain-a", 9),
    ("uint4", "uint4", "table", 3),
    ("uint3", "uint2", "table", 1),
    ("e2m1", "ue2m2", "table", 3),
    ("e2m1", "e2m1", "array-digits-3", 2),
    ("e3m0", "int4", "array-digits-4", 2),
]


@pytest.mark.parametrize("pipeline", [False, True], ids=["short", "pipeline"])
@pytest.mark.parametrize(("weights", "activations", "architecture", "lanes"), _UNITS, ids=str)
def test_sums_begin_anew_wait_and_skip(
    weights: str,
    activations: str,
    architecture: str,
    lanes: int,
    pipeline: bool,
    synthesizer: Synthesizer,
) -> None:
    unit = _unit(weights, activations, architecture, lanes, pipeline=pipeline)
    assert unit.latency == (2 if pipeline else 1)
    netlist = synthesizer.map(unit.emit(), "dot_product", flow=unit.architecture.flow)
    _compare(unit, Clocked(netlist), seed=3)


def _compare(unit: DotProduct, circuit: Clocked, seed: int) -> None:
    """Apply random operands and controls, and compare the accumulator at every edge."""
    random = np.random.default_rng(seed)
    shape = (_STREAMS, unit.lanes)
    acc = np.zeros(_STREAMS, dtype=np.int64)
    staged = (acc, acc > 0, acc > 0)
    for edge in range(_EDGES):
        w = random.choice(legal_codes(unit.weights), shape)
        a = random.choice(legal_codes(unit.activations), shape)
        ce, take, first = (random.random(_STREAMS) < share for share in (0.8, 0.75, 0.3))
        outputs = circuit.step(
            ce=ce.astype(np.int64),
            take=take.astype(np.int64),
            first=first.astype(np.int64),
            w=_joined(unit.weight_bits(w), unit.weights.bits),
            a=_joined(a, unit.activations.bits),
        )
        got = _wrap(outputs["acc"].astype(np.int64), unit)
        assert list(got) == list(acc), f"before edge {edge}"
        products = exact_integers(unit.weights, w) * exact_integers(unit.activations, a)
        now = (products.sum(axis=1).astype(np.int64), first, take)
        total, begins, counts = staged if unit.pipeline else now
        following = _wrap(np.where(begins, 0, acc) + total, unit)
        acc = np.where(ce & counts, following, acc)
        staged = tuple(  # type: ignore[assignment]
            np.where(ce, fresh, old) for fresh, old in zip(now, staged, strict=True)
        )


def _joined(codes: Numbers, bits: int) -> Numbers:
    """Return port values, lane 0 lowest, for codes of shape (streams, lanes)."""
    shifts = np.array([1 << (bits * lane) for lane in range(codes.shape[1])], dtype=object)
    joined: Numbers = (codes.astype(object) * shifts).sum(axis=1)
    return joined


def test_sums_with_bounds_are_as_wide_as_these(synthesizer: Synthesizer) -> None:
    unit = _unit("int4", "uint4", "chain-a", 3, bounds=(-(1 << 8), (1 << 8) - 1))
    assert (unit.accumulator_bits, unit.accumulator_signed) == (9, True)
    netlist = synthesizer.map(unit.emit(), "dot_product", flow=unit.architecture.flow)
    _compare(unit, Clocked(netlist), seed=4)


def test_one_set_of_operands_per_edge_with_a_latency_of_two(synthesizer: Synthesizer) -> None:
    unit = _unit("int4", "uint4", "chain-a", 4, restart=False, pipeline=True)
    circuit = Clocked(synthesizer.map(unit.emit(), "dot_product", flow=unit.architecture.flow))
    random = np.random.default_rng(5)
    sums = [np.zeros(_STREAMS, dtype=np.int64)] * 2
    for edge in range(_EDGES):
        w = random.choice(legal_codes(unit.weights), (_STREAMS, 4))
        a = random.choice(legal_codes(unit.activations), (_STREAMS, 4))
        reset = random.random(_STREAMS) < 0.1
        outputs = circuit.step(
            rst=reset.astype(np.int64), w=_joined(unit.weight_bits(w), 4), a=_joined(a, 4)
        )
        if edge:  # the first edge only fills the registers
            assert list(_wrap(outputs["acc"].astype(np.int64), unit)) == list(sums[-2])
        sums.append(np.where(reset, 0, unit.model(w, a, accumulator=sums[-1])))


def test_plain_units_neither_restart_nor_pipeline() -> None:
    for restart, pipeline in ((True, False), (False, True)):
        with pytest.raises(ConfigError, match="neither restart nor pipeline"):
            _unit("int4", "uint4", str(PLAIN), 2, restart=restart, pipeline=pipeline)


_BRANCHES = {"luts": "", "plain": "`undef LUTWISE_ALU\n"}


@pytest.mark.parametrize("branch", _BRANCHES)
@pytest.mark.parametrize("bits", [1, 3, 8, 9, 17])
def test_accumulators_of_two_terms(bits: int, branch: str, synthesizer: Synthesizer) -> None:
    span = f"[{bits - 1}:0]"
    verilog = f"""{_BRANCHES[branch]}{library("lw_accumulate3")}
module top (input {span} acc, b, c, input restart, cin0, cin1, output {span} y);
  lw_accumulate3 #(.W({bits})) add (.acc(acc), .restart(restart), .b(b), .c(c), .cin0(cin0),
      .cin1(cin1), .y(y));
endmodule
"""
    random = np.random.default_rng(bits)
    names = {"acc": bits, "b": bits, "c": bits, "restart": 1, "cin0": 1, "cin1": 1}
    inputs = {name: random.integers(0, 1 << width, 4096) for name, width in names.items()}
    netlist = synthesizer.map(verilog, "top")
    outputs, _ = netlist.simulate({n: bits_of(inputs[n], names[n]) for n in names})
    kept = np.where(inputs["restart"] == 1, 0, inputs["acc"])
    wanted = kept + inputs["b"] + inputs["c"] + inputs["cin0"] + inputs["cin1"]
    assert list(from_bits(outputs["y"])) == list(wanted % (1 << bits))


@pytest.mark.parametrize(
    ("bits", "branch"),
    [(bits, "luts") for bits in (2, 3, 4, 9, 16, 17, 33)] + [(bits, "plain") for bits in (3, 16)],
)
def test_comparisons(bits: int, branch: str, synthesizer: Synthesizer) -> None:
    span = f"[{bits - 1}:0]"
    verilog = f"""{_BRANCHES[branch]}{library("lw_at_least")}
module top (input {span} a, b, output y);
  lw_at_least #(.W({bits})) compare (.a(a), .b(b), .y(y));
endmodule
"""
    random = np.random.default_rng(bits)
    half = 1 << (bits - 1)
    a = random.integers(-half, half, 6000)
    near = random.integers(-2, 3, 6000)
    b = np.where(near < 2, np.clip(a + near, -half, half - 1), random.integers(-half, half, 6000))
    if bits <= 4:
        a, b = (
            np.repeat(np.arange(-half, half), 2 * half),
            np.tile(np.arange(-half, half), 2 * half),
        )
    netlist = synthesizer.map(verilog, "top")
    outputs, _ = netlist.simulate({"a": bits_of(a, bits), "b": bits_of(b, bits)})
    assert list(from_bits(outputs["y"])) == list((a >= b).astype(np.int64))


@pytest.mark.parametrize(
    ("depth", "branch"),
    [(depth, "luts") for depth in (1, 2, 5, 32, 64, 65, 129, 200, 256, 300, 1000)]
    + [(depth, "plain") for depth in (1, 5, 300)],
)
def test_memories_of_constants(depth: int, branch: str, synthesizer: Synthesizer) -> None:
    bits = max(1, (depth - 1).bit_length())
    random = np.random.default_rng(depth)
    words = random.integers(0, 2, depth)
    init = sum(int(word) << place for place, word in enumerate(words))
    verilog = f"""{_BRANCHES[branch]}{library("lw_rom")}
module top (input [{bits - 1}:0] address, output y);
  lw_rom #(.DEPTH({depth}), .A({bits}), .INIT({depth}'h{init:x})) rom (.address(address), .y(y));
endmodule
"""
    netlist = synthesizer.map(verilog, "top")
    outputs, _ = netlist.simulate({"address": bits_of(np.arange(depth), bits)})
    assert list(from_bits(outputs["y"])) == list(words)
    if branch == "luts" and depth > 64:
        assert netlist.count()["LUT6"] <= -(-depth // 64) + 2, "64 words to a LUT"
