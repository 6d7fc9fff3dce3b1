# SPDX-License-Identifier: Apache-2.0
"""Random layer units, and what tests do with circuits and simulators."""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lutwise.hw.architecture import Architecture, architectures
from lutwise.hw.bounds import (
    code_integers,
    exact_integers,
    legal_codes,
    weight_bounded_range,
    width_of_range,
)
from lutwise.hw.layer_unit import LayerUnit
from lutwise.hw.netlist import Bits, Net, Netlist, bits_of, from_bits
from lutwise.hw.output_stage import OutputStage
from lutwise.hw.simulator import simulator_available
from lutwise.quant.formats import Format, parse_element, parse_weight

_MOST_EDGES = 1000
_QUIET = 12
"""Edges without a transfer in any stream after which nothing more is waited for."""

needs_simulator = pytest.mark.skipif(
    not simulator_available(), reason="Verilator 5 or a C++ compiler is not installed"
)

_PYOSYS = importlib.util.find_spec("pyosys")
_CELLS_FILE = (
    Path(str(_PYOSYS.origin)).parent / "share" / "xilinx" / "cells_sim.v" if _PYOSYS else None
)
needs_lut_models = pytest.mark.skipif(_CELLS_FILE is None, reason="pyosys is not installed")


def random_unit(
    weights: str,
    activations: str,
    output: str | None,
    *,
    groups: int = 1,
    outputs: int = 5,
    products: int = 11,
    pe: int = 2,
    simd: int = 4,
    architecture: str | None = None,
    pipeline: bool = False,
    weights_inside: bool = True,
    low: int | None = None,
    high: int | None = None,
    seed: int = 0,
) -> LayerUnit:
    """Return a unit with random weights, whose results spread over all that there are."""
    random = np.random.default_rng(seed)
    w, a = parse_weight(weights), parse_element(activations)
    codes = random.choice(legal_codes(w), (groups, outputs, products))
    rows = exact_integers(w, codes).reshape(-1, products)
    inputs = exact_integers(a, random.choice(legal_codes(a), (200, products)))
    sums = (inputs @ rows.T).astype(np.float64)
    bias = tuple(int(b) for b in np.rint(random.normal(0, sums.std() / 3, len(rows))))
    ranges = [weight_bounded_range(row, a) for row in rows]
    ends = [end + b * on for pair, b in zip(ranges, bias, strict=True) for end in pair
            for on in (0, 1)]  # fmt: skip
    usual = float(np.quantile(np.abs(sums + np.array(bias)), 0.9))
    return LayerUnit(
        name="unit_under_test",
        weights=w,
        activations=a,
        weight_codes=codes,
        accumulator_bits=max(3, width_of_range(min(-1, *ends), max(ends))),
        stage=None if output is None else _stage(parse_element(output), bias, usual, low, high),
        bias=bias,
        pe=pe,
        simd=simd,
        architecture=Architecture.parse(architecture) if architecture else architectures(w, a)[0],
        pipeline=pipeline,
        weights_inside=weights_inside,
    )


def _stage(
    output: Format, bias: tuple[int, ...], usual: float, low: int | None, high: int | None
) -> OutputStage:
    """Return a stage whose greatest result belongs to about a usual sum."""
    random = np.random.default_rng(len(bias))
    numbers = code_integers(output)[legal_codes(output)]
    least, most = int(min(numbers)), int(max(numbers))
    shift = max(0, (int(usual) << 12).bit_length() - most.bit_length())
    wanted = most / max(usual, 1) * 2.0**shift
    return OutputStage(
        output=output,
        bias=bias,
        multipliers=tuple(max(1, int(wanted * random.uniform(0.7, 1.4))) for _ in bias),
        shift=shift,
        low=least if low is None else low,
        high=most if high is None else high,
    )


def random_vectors(unit: LayerUnit, count: int, seed: int = 1) -> npt.NDArray[np.int64]:
    """Return codes of inputs, the extremes first."""
    random = np.random.default_rng(seed)
    legal = legal_codes(unit.activations)
    vectors = random.choice(legal, (count, unit.groups, unit.products))
    numbers = code_integers(unit.activations)[legal].astype(np.float64)
    vectors[0], vectors[1] = legal[numbers.argmax()], legal[numbers.argmin()]
    return vectors


@dataclass(slots=True)
class Clocked:
    """A netlist with its registers, for many vectors side by side.

    Args:
        netlist: The netlist.
        state: Of the registers; missing ones hold 0.
    """

    netlist: Netlist
    state: Mapping[Net, Bits] | None = None

    def step(self, **inputs: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs before a clock edge, and take the edge.

        Args:
            **inputs: Unsigned integers per port, shape (vectors,).
        """
        bits = {
            name: bits_of(numbers, len(self.netlist.ports[name][1]))
            for name, numbers in inputs.items()
        }
        outputs, self.state = self.netlist.simulate(bits, self.state)
        return {name: from_bits(rows).astype(object) for name, rows in outputs.items()}


def stream(
    netlist: Netlist, words: list[list[int]], *, pressure: bool, resets: int = 0, seed: int = 0
) -> tuple[list[list[int]], list[int]]:
    """Stream words through a netlist of a unit, many streams side by side.

    Args:
        netlist: Of a unit.
        words: Of each stream, equally many.
        pressure: Let writers and readers pause at random.
        resets: How often units are reset, at random times before the streams begin, while they
            are fed with noise.
        seed: Of all that is random.

    Returns:
        Words out of each stream, and the edge that moved the last of them.
    """
    random = np.random.default_rng(seed)
    streams, count = len(words), len(words[0])
    width = len(netlist.ports["in_data"][1])
    unit = Clocked(netlist)
    always = np.ones(streams, dtype=np.int64)
    for _ in range(resets):
        for _ in range(int(random.integers(1, 12))):
            unit.step(
                rst=0 * always,
                in_data=_noise(random, width, streams),
                in_valid=random.integers(0, 2, streams),
                out_ready=random.integers(0, 2, streams),
            )
        unit.step(rst=always, in_data=0 * always, in_valid=0 * always, out_ready=0 * always)
    taken = np.zeros(streams, dtype=np.int64)
    offered = always > 0
    found: list[list[int]] = [[] for _ in words]
    last = [0] * streams
    waits = np.zeros(streams, dtype=np.bool_)
    waiting = np.zeros(streams, dtype=object)
    quiet = edge = 0
    while quiet < _QUIET:
        edge += 1
        assert edge < _MOST_EDGES, "the unit never comes to rest"
        ready = random.integers(0, 2, streams) > 0 if pressure else always > 0
        valid = offered & (taken < count)
        noise = _noise(random, width, streams)
        data = [
            row[at] if shown else int(other)
            for row, at, shown, other in zip(words, taken, valid, noise, strict=True)
        ]
        outputs = unit.step(
            rst=0 * always,
            in_data=np.array(data, dtype=object),
            in_valid=valid.astype(np.int64),
            out_ready=ready.astype(np.int64),
        )
        out_valid = outputs["out_valid"].astype(np.bool_)
        assert not (waits & ~(out_valid & (outputs["out_data"] == waiting))).any()
        waits, waiting = out_valid & ~ready, outputs["out_data"]
        moves_in = valid & outputs["in_ready"].astype(np.bool_)
        taken += moves_in
        offered = np.where(valid & ~moves_in, True, random.integers(0, 2, streams) > 0)
        if not pressure:
            offered = always > 0
        moves_out = out_valid & ready
        for index in np.flatnonzero(moves_out):
            found[index].append(int(outputs["out_data"][index]))
            last[index] = edge
        quiet = 0 if (moves_in | moves_out).any() else quiet + 1
    return found, last


def _noise(random: np.random.Generator, bits: int, count: int) -> npt.NDArray[np.object_]:
    rows = random.integers(0, 2, (bits, count)).astype(np.bool_)
    return from_bits(rows).astype(object)


_LUT_CELLS = ("LUT6_2", "CARRY8", "MUXF7", "MUXF8", "RAM32M16", "RAM64M8")
_YOSYS_CELLS = r"""
module \$lut #(parameter WIDTH = 1, parameter LUT = 0) (input [WIDTH-1:0] A, output Y);
  wire [(1<<WIDTH)-1:0] words = LUT;
  assign Y = words[A];
endmodule
module \$alu #(parameter A_SIGNED = 0, B_SIGNED = 0, A_WIDTH = 1, B_WIDTH = 1, Y_WIDTH = 1) (
    input [A_WIDTH-1:0] A, input [B_WIDTH-1:0] B, input CI, BI,
    output [Y_WIDTH-1:0] X, Y, CO);
  assign Y = A + B + {{Y_WIDTH-1{1'b0}}, CI};
endmodule
"""


def lut_models() -> str:
    """Return what puts Verilog before it in the form for synthesis, with the cells as models."""
    assert _CELLS_FILE is not None
    text = _CELLS_FILE.read_text(encoding="utf-8")
    found = [re.search(rf"^module {name}\b.*?^endmodule\n", text, re.M | re.S)
             for name in _LUT_CELLS]  # fmt: skip
    return "`define LUTWISE_ALU\n" + "".join(m[0] for m in found if m) + _YOSYS_CELLS
