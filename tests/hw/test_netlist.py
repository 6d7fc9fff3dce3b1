# SPDX-License-Identifier: Apache-2.0
import random
from typing import Any

import numpy as np
import numpy.typing as npt
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


@pytest.mark.parametrize("bits", [1, 4, 61, 62, 63, 64, 70])
def test_bits_round_trip(bits: int) -> None:
    numbers = [0, -1, (1 << (bits - 1)) - 1, -(1 << (bits - 1))]
    found = from_bits(bits_of(numbers, bits), signed=True)
    assert list(found) == numbers
    assert (found.dtype == np.int64) == (bits <= 62)
    unsigned = from_bits(bits_of(numbers, bits))
    assert list(unsigned) == [number % (1 << bits) for number in numbers]


@pytest.mark.parametrize("bits", [4, 62])
def test_machine_words_and_big_integers_give_the_same_bits(bits: int) -> None:
    numbers = np.array([0, 1, -1, 5, (1 << (bits - 1)) - 1])
    assert np.array_equal(bits_of(numbers, bits), bits_of(numbers.astype(object), bits))


def _single(cell: dict[str, Any], outputs: list[int]) -> Netlist:
    ports = {"i": _port("input", [2, 3, 4, 5, 6, 7]), "o": _port("output", outputs)}
    return Netlist.from_json(_document(ports, {"lut": cell}), "top")


_EVERY = range(64)


def _outputs(netlist: Netlist) -> npt.NDArray[Any]:
    outputs, _ = netlist.simulate({"i": bits_of(_EVERY, 6)})
    return from_bits(outputs["o"])


@pytest.mark.parametrize("seed", range(4))
def test_a_lut_is_its_table(seed: int) -> None:
    table = random.Random(seed).getrandbits(64)
    netlist = _single(_lut([2, 3, 4, 5, 6, 7], 10, f"{table:064b}"), [10])
    assert list(_outputs(netlist)) == [table >> index & 1 for index in _EVERY]


@pytest.mark.parametrize(
    ("pins", "inputs"),
    [
        ([2, 3, 4, 5, 6, 7], 3),
        (["0", 3, 4, 5, 6, 7], 2),
        (["1", 3, 4, 5, 6, 7], 2),
        ([2, 3, 4, 5, 6, "1"], 2),
        ([2, 3, 4, 5, 6, "0"], 2),
        ([2, "0", "1", "0", "1", 7], 2),
    ],
    ids=str,
)
def test_inputs_that_change_nothing_are_pruned(pins: list[Any], inputs: int) -> None:
    """The table reads I0, I4 and I5: I5 ? ~I4 : I0 | I4; constants and the others drop out."""
    table = 0
    for index in range(64):
        i0, i4, i5 = index & 1, index >> 4 & 1, index >> 5 & 1
        table |= ((1 - i4) if i5 else (i0 | i4)) << index
    netlist = _single(_lut(pins, 10, f"{table:064b}"), [10])
    wanted = []
    for number in range(64):
        bits = [int(pin) if isinstance(pin, str) else number >> (pin - 2) & 1 for pin in pins]
        wanted.append(table >> sum(bit << place for place, bit in enumerate(bits)) & 1)
    assert list(_outputs(netlist)) == wanted
    (gate,) = netlist._gates.values()
    assert len(gate.inputs) == inputs


def test_a_lut_with_two_outputs_shares_its_table() -> None:
    table = random.Random(9).getrandbits(64)
    cell = _lut([2, 3, 4, 5, 6, 7], 0, f"{table:064b}")
    cell["type"] = "LUT6_2"
    del cell["connections"]["O"]
    cell["connections"] |= {"O6": [10], "O5": [11]}
    netlist = _single(cell, [10, 11])
    got = _outputs(netlist)
    assert list(got & 1) == [table >> index & 1 for index in _EVERY]
    assert list(got >> 1) == [table >> (index & 31) & 1 for index in _EVERY]


def test_paths_are_weighed_by_their_cells(adder: Netlist) -> None:
    """A LUT, two carry positions and the exit of the last sum."""
    assert adder.delay_ns() == pytest.approx(0.45 + 2 * 0.015 + 0.1)
    assert adder.depth() == 1


def test_an_input_that_changes_nothing_is_no_path() -> None:
    cells = {
        "late": _lut([2, 3], 10, "0110"),
        "blind": _lut([10, 4], 11, "1100"),
    }
    ports = {"i": _port("input", [2, 3, 4]), "o": _port("output", [11])}
    netlist = Netlist.from_json(_document(ports, cells), "top")
    assert netlist.depth() == 1


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
