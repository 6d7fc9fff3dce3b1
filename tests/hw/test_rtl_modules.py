# SPDX-License-Identifier: Apache-2.0
"""The hand-written modules that dot products are made of, in both of their branches.

Yosys maps the branch with cells and the behavioural one; Verilator reads the latter.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest

from lutwise.hw.architecture import Architecture
from lutwise.hw.bounds import legal_codes
from lutwise.hw.dot_product import DotProduct
from lutwise.hw.netlist import bits_of, from_bits
from lutwise.hw.simulator import simulate_stream
from lutwise.hw.synthesis import Synthesizer
from lutwise.hw.verilog import library
from lutwise.quant.formats import parse_element, parse_weight
from tests.hw.units import needs_simulator

_BRANCHES = {"cells": "", "behavioural": "`undef LUTWISE_ALU\n"}
_LIBRARY = ("lw_add", "lw_add3", "lw_booth", "lw_decode", "lw_lut", "lw_table")
_WIDTHS = (1, 7, 8, 9, 17)


@dataclass(frozen=True, kw_only=True)
class _Case:
    """An instance of a module: inputs with widths, output pin and width, and its function."""

    module: str
    parameters: str
    inputs: dict[str, int]
    output: str
    bits: int
    function: Callable[..., int]

    @property
    def in_bits(self) -> int:
        return sum(self.inputs.values())

    def instance(self, word: str, result: str, name: str) -> str:
        """Connect the instance to slices of a word, first input lowest."""
        pins, low = [], 0
        for pin, bits in self.inputs.items():
            pins.append(f".{pin}({word}[{low}+:{bits}])")
            low += bits
        pins.append(f".{self.output}({result})")
        return f"{self.module} #({self.parameters}) {name} ({', '.join(pins)});"

    def wanted(self, word: int) -> int:
        numbers = {}
        for pin, bits in self.inputs.items():
            numbers[pin] = word & ((1 << bits) - 1)
            word >>= bits
        return self.function(**numbers) % (1 << self.bits)


def _look_up(x: int, *, table: int) -> int:
    return table >> x & 1


def _tables() -> list[_Case]:
    rng = random.Random(6)
    cases = []
    for module, sizes in (("lw_lut", range(1, 7)), ("lw_table", range(1, 9))):
        for inputs in sizes:
            table = rng.getrandbits(1 << inputs)
            cases.append(
                _Case(
                    module=module,
                    parameters=f".N({inputs}), .T({1 << inputs}'h{table:x})",
                    inputs={"x": inputs},
                    output="y",
                    bits=1,
                    function=partial(_look_up, table=table),
                )
            )
    return cases


def _product(x: int, b: int, *, x_sign: int, b_sign: int) -> int:
    """Multiply two numbers whose highest bits have these negative weights, or none."""
    return (x - (x & x_sign) * 2) * (b - (b & b_sign) * 2)


def _booths() -> list[_Case]:
    return [
        _Case(
            module="lw_booth",
            parameters=f".X({x}), .X_SIGNED({x_signed}), .B({b}), .B_SIGNED({b_signed})",
            inputs={"x": x, "b": b},
            output="p",
            bits=x + b,
            function=partial(_product, x_sign=x_signed << (x - 1), b_sign=b_signed << (b - 1)),
        )
        for x, b in ((2, 2), (3, 4), (4, 3), (5, 6))
        for x_signed in (0, 1)
        for b_signed in (0, 1)
    ]


_CASES = {
    "lw_add": [
        _Case(
            module="lw_add",
            parameters=f".W({bits})",
            inputs={"a": bits, "b": bits, "cin": 1},
            output="y",
            bits=bits,
            function=lambda a, b, cin: a + b + cin,
        )
        for bits in _WIDTHS
    ],
    "lw_add3": [
        _Case(
            module="lw_add3",
            parameters=f".W({bits})",
            inputs={"a": bits, "b": bits, "c": bits, "cin0": 1, "cin1": 1},
            output="y",
            bits=bits,
            function=lambda a, b, c, cin0, cin1: a + b + c + cin0 + cin1,
        )
        for bits in _WIDTHS
    ],
    "tables": _tables(),
    "lw_booth": _booths(),
}


def _words(case: _Case, count: int) -> list[int]:
    """Return all words, or the extremes of every input, then random ones."""
    if case.in_bits <= 11:
        return [word % (1 << case.in_bits) for word in range(max(count, 1 << case.in_bits))]
    rng = random.Random(case.in_bits)
    corners, low = [0], 0
    for bits in case.inputs.values():
        ends = {0, 1, (1 << bits) - 1, 1 << (bits - 1)}
        corners = [word | end << low for word in corners for end in ends]
        low += bits
    return corners + [rng.getrandbits(case.in_bits) for _ in range(count - len(corners))]


@pytest.mark.rtl
@pytest.mark.parametrize("branch", _BRANCHES)
@pytest.mark.parametrize("cases", _CASES)
def test_modules_compute_their_function(cases: str, branch: str, synthesizer: Synthesizer) -> None:
    ports, body, inputs, wanted = [], [], {}, {}
    for index, case in enumerate(_CASES[cases]):
        ports.append(f"input [{case.in_bits - 1}:0] i{index}")
        ports.append(f"output [{case.bits - 1}:0] o{index}")
        body.append(case.instance(f"i{index}", f"o{index}", f"unit{index}"))
        words = _words(case, 2048)
        inputs[f"i{index}"] = bits_of(words, case.in_bits)
        wanted[f"o{index}"] = [case.wanted(word) for word in words]
    text = "\n".join(
        [_BRANCHES[branch], library(*_LIBRARY), f"module top ({', '.join(ports)});", *body]
    )
    netlist = synthesizer.map(text + "\nendmodule\n", "top")
    outputs, _ = netlist.simulate(inputs)
    for name, numbers in wanted.items():
        assert list(from_bits(outputs[name])) == numbers, name
    if cases == "lw_add3":
        placed = sum(_WIDTHS) if branch == "cells" else 0
        assert netlist.count()["LUT6_2"] == placed


@pytest.mark.rtl
@needs_simulator
def test_verilator_reads_the_same_functions() -> None:
    every = [case for cases in _CASES.values() for case in cases]
    widest = max(case.in_bits for case in every)
    total = sum(case.bits for case in every)
    body, low = ["assign out_valid = in_valid;"], 0
    for index, case in enumerate(every):
        body.append(case.instance("in_data", f"out_data[{low}+:{case.bits}]", f"unit{index}"))
        low += case.bits
    rng = random.Random(8)
    words = [0, (1 << widest) - 1, *(rng.getrandbits(widest) for _ in range(2000))]
    results = _streamed(library(*_LIBRARY), body, words, widest, total)
    for word, result in zip(words, results, strict=True):
        low = 0
        for case in every:
            got = result >> low & ((1 << case.bits) - 1)
            assert got == case.wanted(word), f"{case.module} {case.parameters} {word:#x}"
            low += case.bits


def _streamed(
    modules: str, body: list[str], words: list[int], in_bits: int, out_bits: int
) -> list[int]:
    """Put instances in a module with the ports of a stream, and stream words without pauses."""
    text = f"""{modules}
module top (input clk, rst, input [{in_bits - 1}:0] in_data, input in_valid, output in_ready,
    output [{out_bits - 1}:0] out_data, output out_valid, input out_ready);
assign in_ready = out_ready;
{chr(10).join(body)}
endmodule
"""
    found = simulate_stream(
        text, "top", words, in_bits=in_bits, out_bits=out_bits, results=len(words), patience=100
    )
    return found.words


_UNITS = [
    ("e2m1", "e2m1", "table"),
    ("e2m1", "e2m1", "array-digits-3"),
    ("e3m2", "ue3m2", "array-booth-4"),
    ("fp8_e4m3", "int4", "array-booth-8"),
    ("int4", "uint4", "chain-w"),
    ("int4", "uint4", "magnitude-array-digits-1"),
    ("int5", "int4", "chain-a"),
    ("e3m2", "ue3m2", "plain"),
    ("int5", "int4", "plain"),
]


@pytest.mark.rtl
@needs_simulator
@pytest.mark.parametrize("lanes", [1, 3])
def test_verilator_accumulates_like_the_model(lanes: int) -> None:
    """A word is the reset and the operands; one clock later the accumulator has taken it in."""
    units = [
        DotProduct(
            weights=parse_weight(w),
            activations=parse_element(a),
            lanes=lanes,
            architecture=Architecture.parse(style),
        )
        for w, a, style in _UNITS
    ]
    rng = np.random.default_rng(lanes)
    count = 1000
    reset = rng.random(count) < 0.1
    reset[0] = True
    words, wanted = [int(bit) for bit in reset], []
    modules, low, total = [library(*_LIBRARY)], 1, 0
    body = ["reg valid; assign out_valid = valid; always @(posedge clk) valid <= in_valid & ~rst;"]
    for index, unit in enumerate(units):
        before, found, after = unit.emit(module=f"unit{index}").partition(f"module unit{index} (")
        assert before, "the library comes first"
        modules.append(found + after)
        pins = [".clk(clk), .rst(in_data[0])"]
        operands = [
            rng.choice(legal_codes(fmt), (count, lanes)) for fmt in (unit.weights, unit.activations)
        ]
        for port, fmt, codes in (
            ("w", unit.weights, unit.weight_bits(operands[0])),
            ("a", unit.activations, operands[1]),
        ):
            pins.append(f".{port}(in_data[{low}+:{lanes * fmt.bits}])")
            for lane in range(lanes):
                words = [
                    word | int(code) << low
                    for word, code in zip(words, codes[:, lane], strict=True)
                ]
                low += fmt.bits
        pins.append(f".acc(out_data[{total}+:{unit.accumulator_bits}])")
        body.append(f"unit{index} instance{index} ({', '.join(pins)});")
        wanted.append((total, unit, _accumulated(unit, reset, *operands)))
        total += unit.accumulator_bits
    results = _streamed("\n".join(modules), body, words, low, total)
    for place, unit, sums in wanted:
        mask = (1 << unit.accumulator_bits) - 1
        assert [result >> place & mask for result in results] == [s & mask for s in sums], unit.name


def _accumulated(
    unit: DotProduct,
    reset: npt.NDArray[np.bool_],
    w: npt.NDArray[np.int64],
    a: npt.NDArray[np.int64],
) -> list[int]:
    found = [0]
    for cycle, clears in enumerate(reset):
        following = int(unit.model(w[cycle], a[cycle], accumulator=found[-1]))
        found.append(0 if clears else following)
    return found[1:]
