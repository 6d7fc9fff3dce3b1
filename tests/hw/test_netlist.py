# SPDX-License-Identifier: Apache-2.0
from typing import Any

import numpy as np
import pytest

from lutwise.errors import ToolError
from lutwise.hw.netlist import Netlist, bits_of, from_bits
from lutwise.hw.packing import pack


def _document(ports: dict[str, Any], cells: dict[str, Any]) -> dict[str, Any]:
    return {"modules": {"top": {"ports": ports, "cells": cells}}}


def _port(direction: str, bits: list[Any]) -> dict[str, Any]:
    return {"direction": direction, "bits": bits}


def _lut(inputs: list[Any], output: int, init: str) -> dict[str, Any]:
    pins: dict[str, Any] = {f"I{index}": [net] for index, net in enumerate(inputs)}
    return {
        "type": f"LUT{len(inputs)}",
        "connections": {**pins, "O": [output]},
        "parameters": {"INIT": init},
    }


@pytest.fixture
def adder() -> Netlist:
    """Give a registered 3-bit sum: propagate LUTs, one CARRY4, flip-flops with reset."""
    a, b, s, q, p = [2, 3, 4], [5, 6, 7], [8, 9, 10], [11, 12, 13], [14, 15, 16]
    cells: dict[str, Any] = {f"l{i}": _lut([a[i], b[i]], p[i], "0110") for i in range(3)}
    cells["c"] = {
        "type": "CARRY4",
        "connections": {
            "CI": ["0"],
            "CYINIT": ["0"],
            "S": [*p, "0"],
            "DI": [*a, "0"],
            "O": [*s, 20],
            "CO": [21, 22, 23, 24],
        },
    }
    for i in range(3):
        cells[f"f{i}"] = {
            "type": "FDRE",
            "connections": {"D": [s[i]], "Q": [q[i]], "R": [30], "CE": ["1"], "C": [31]},
        }
    ports = {
        "a": _port("input", a),
        "b": _port("input", b),
        "rst": _port("input", [30]),
        "clk": _port("input", [31]),
        "q": _port("output", q),
    }
    return Netlist.from_json(_document(ports, cells), "top")


def test_simulation_adds_and_resets(adder: Netlist) -> None:
    a, b = np.repeat(np.arange(8), 8), np.tile(np.arange(8), 8)
    reset = np.zeros((1, 64), dtype=np.bool_)
    reset[0, 60:] = True
    _, state = adder.simulate({"a": bits_of(a, 3), "b": bits_of(b, 3), "rst": reset})
    got = from_bits(np.array([state[net] for net in (11, 12, 13)]))
    assert list(got[:60]) == list(((a + b) % 8)[:60])
    assert not got[60:].any()


def test_registers_show_their_state(adder: Netlist) -> None:
    one = np.ones(1, dtype=np.bool_)
    outputs, _ = adder.simulate({"a": bits_of([0], 3)}, {11: one, 13: one})
    assert list(from_bits(outputs["q"])) == [5]


def test_counts_levels_and_sites(adder: Netlist) -> None:
    packing = pack(adder)
    assert (packing.luts, packing.luts_raw, packing.carry8) == (3, 3, 1)
    assert (adder.flip_flops, adder.depth()) == (3, 1)
    assert adder.count()["LUT2"] == 3


def test_small_functions_share_a_site() -> None:
    cells = {
        "x": _lut([2, 3], 10, "1000"),
        "y": _lut([3, 4], 11, "1110"),
        "z": _lut([2, 3, 4, 5, 6, 7], 12, "1" + "0" * 63),
    }
    ports = {"i": _port("input", [2, 3, 4, 5, 6, 7]), "o": _port("output", [10, 11, 12])}
    packing = pack(Netlist.from_json(_document(ports, cells), "top"))
    assert (packing.luts, packing.luts_raw) == (2, 3)


@pytest.mark.parametrize("bits", [4, 70])
def test_bits_round_trip(bits: int) -> None:
    numbers = [0, 1, -1, (1 << (bits - 1)) - 1, -(1 << (bits - 1))]
    assert list(from_bits(bits_of(numbers, bits), signed=True)) == numbers


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"x": {"type": "DSP48E2", "connections": {}}}, "unexpected primitive 'DSP48E2'"),
        ({"x": _lut([10], 11, "01"), "y": _lut([11], 10, "01")}, "combinational loop"),
    ],
    ids=["primitive", "loop"],
)
def test_unusable_netlists_are_refused(cells: dict[str, Any], message: str) -> None:
    with pytest.raises(ToolError, match=message):
        Netlist.from_json(_document({}, cells), "top")


def test_missing_module_is_named() -> None:
    with pytest.raises(ToolError, match="no module 'other'"):
        Netlist.from_json(_document({}, {}), "other")
