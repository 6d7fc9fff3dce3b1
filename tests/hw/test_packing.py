# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest

from lutwise.hw.netlist import Netlist
from lutwise.hw.packing import Packing, pack
from lutwise.hw.synthesis import Synthesizer
from lutwise.hw.verilog import library


def _ternary(readers: list[str]) -> Netlist:
    """Give LUTs with two outputs in front of a carry chain, and who reads each sum.

    ``q`` is a flip-flop, ``o`` a port, ``both`` both of them, ``lut`` a LUT that leaves through
    a port.
    """
    bits = len(readers)
    nets = iter(range(10, 1000))
    a, b, c, select, sums = ([next(nets) for _ in range(bits)] for _ in range(5))
    majority = [next(nets) for _ in range(bits + 1)]
    carries = [next(nets) for _ in range(8)]
    cells: dict[str, Any] = {}
    outputs = []
    for i, reader in enumerate(readers):
        pins = {"I0": [a[i]], "I1": [b[i]], "I2": [c[i]], "I3": [majority[i]], "I4": ["0"]}
        cells[f"lut{i}"] = {
            "type": "LUT6_2",
            "connections": {**pins, "I5": ["1"], "O5": [majority[i + 1]], "O6": [select[i]]},
            "parameters": {"INIT": f"{0x69966996E8E8E8E8:064b}"},
        }
        if reader in {"q", "both"}:
            outputs.append(next(nets))
            cells[f"q{i}"] = {"type": "FDRE", "connections": {"D": [sums[i]], "Q": [outputs[-1]]}}
        if reader in {"o", "both"}:
            outputs.append(sums[i])
        if reader == "lut":
            outputs.append(next(nets))
            cells[f"more{i}"] = {
                "type": "LUT2",
                "connections": {"I0": [sums[i]], "I1": [a[i]], "O": [outputs[-1]]},
                "parameters": {"INIT": "1000"},
            }
    unused = ["0"] * (8 - bits)
    cells["carry"] = {
        "type": "CARRY8",
        "connections": {
            "CI": ["0"],
            "S": select + unused,
            "DI": majority[:bits] + unused,
            "O": sums + [next(nets) for _ in unused],
            "CO": carries,
        },
    }
    ports = {
        "i": {"direction": "input", "bits": [*a, *b, *c, majority[0]]},
        "y": {"direction": "output", "bits": outputs},
    }
    return Netlist.from_json({"modules": {"top": {"ports": ports, "cells": cells}}}, "top")


@pytest.mark.parametrize(
    ("readers", "sites"),
    [
        (["q", "q", "q"], 3),
        (["o", "o", "o"], 6),
        (["q", "o", "q"], 4),
        (["q", "both", "q"], 4),
        (["q", "q", "lut"], 5),
        (["q"] * 8, 8),
    ],
    ids=str,
)
def test_the_second_output_is_free_in_front_of_a_register(readers: list[str], sites: int) -> None:
    functions = 2 * len(readers) + readers.count("lut")
    assert pack(_ternary(readers)) == Packing(luts=sites, luts_raw=functions, carry8=1)


@pytest.mark.rtl
@pytest.mark.parametrize(("bits", "carry8"), [(1, 1), (7, 1), (8, 1), (9, 2), (17, 3)])
@pytest.mark.parametrize("registered", [True, False])
def test_an_accumulator_of_three_summands(
    bits: int, carry8: int, registered: bool, synthesizer: Synthesizer
) -> None:
    """One site per bit where the sum is a register, two where it is not."""
    keep = "always @(posedge clk) y <= sum;" if registered else "assign y = sum;"
    text = library("lw_add3") + (
        f"module top (input clk, input [{bits - 1}:0] b, c, input cin0, cin1, "
        f"output {'reg' if registered else 'wire'} [{bits - 1}:0] y);\n"
        f"wire [{bits - 1}:0] sum;\n"
        f"lw_add3 #(.W({bits})) adder (.a({'y' if registered else 'b ^ c'}), .b(b), .c(c), "
        f".cin0(cin0), .cin1(cin1), .y(sum));\n{keep}\nendmodule\n"
    )
    result = synthesizer.synthesize(text, "top")
    assert result.carry8 == carry8
    if registered:
        assert result.luts == bits
        assert result.ffs == bits
    else:
        assert result.luts >= 2 * bits
