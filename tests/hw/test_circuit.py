# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence

import pytest

from lutwise.hw.circuit import Bit, Bus, Circuit, Part, Term, lut_sites, mux_sites


@pytest.mark.parametrize(
    ("inputs", "alone", "multiplexer"),
    [
        *((0, 0.0, 0.0), (1, 0.0, 0.0), (2, 0.5, 0.5), (3, 0.5, 0.5)),
        *((4, 0.5, 1.0), (5, 0.5, 1.0), (6, 1.0, 1.0), (7, 2.0, 2.0), (8, 4.0, 4.0)),
    ],
)
def test_sites_of_a_function(inputs: int, alone: float, multiplexer: float) -> None:
    """Two functions of five common inputs share a site; multiplexers have other inputs each."""
    assert lut_sites(inputs) == alone
    assert mux_sites(inputs) == multiplexer


def test_names_are_used_once() -> None:
    circuit = Circuit()
    buses = [circuit.wire("x", 2), circuit.wire("x", 2), circuit.add("a", "b", "c", 2, stem="x")]
    assert len({bus.name for bus in buses}) == 3
    assert circuit.lines[0] == f"wire [1:0] {buses[0].name};"
    assert buses[0][1] == f"{buses[0].name}[1]"


def test_an_adder_counts_a_site_per_bit() -> None:
    circuit = Circuit()
    total = circuit.add("a", "b", "1'b0", 7)
    circuit.add("a", "b", "1'b0", 5, part=Part.EXPONENT)
    circuit.add("a", "b", "1'b0", 3, part=None)
    assert total.bits == 7
    counted = {part: sites for part, sites in circuit.sites.items() if sites}
    assert counted == {Part.ADD: 7, Part.EXPONENT: 5}


@pytest.mark.parametrize(
    ("bits", "signed", "text"),
    [
        (4, True, "x"),
        (3, True, "x[2:0]"),
        (6, True, "{{2{x[3]}}, x}"),
        (6, False, "{2'd0, x}"),
    ],
)
def test_extension(bits: int, signed: bool, text: str) -> None:
    assert Circuit().extend(Bus("x", 4), bits, signed=signed) == text


def _mixed(numbers: Sequence[int]) -> int:
    """Bit 0 reads nothing, bit 1 one input, bit 2 two, bit 3 all five."""
    x, y = numbers
    return (x & 1) << 1 | ((x ^ y) & 1) << 2 | ((x + y) & 8)


def test_a_table_knows_what_its_bits_depend_on() -> None:
    circuit = Circuit()
    bus, support = circuit.table([("x", 3), ("y", 2)], _mixed, 4, part=Part.MULTIPLY)
    assert bus.bits == 4
    assert support == (0, 1, 2, 5)
    assert circuit.sites[Part.MULTIPLY] == 0.0 + 0.0 + 0.5 + 0.5
    assert sum("lw_table #(.N(5)" in line for line in circuit.lines) == 4
    assert any(line.endswith("= {y, x};") for line in circuit.lines)


def test_a_table_puts_its_first_input_lowest() -> None:
    circuit = Circuit()
    circuit.table([("x", 1), ("y", 1)], lambda numbers: int(numbers == [1, 0]), 1, part=None)
    assert any(".T(4'h2)" in line for line in circuit.lines)
    assert not any(circuit.sites.values())


def test_a_hard_table_is_one_lut_per_bit() -> None:
    circuit = Circuit()
    circuit.table([("x", 6)], lambda numbers: numbers[0] % 3, 2, part=Part.SHIFT, hard=True)
    assert sum("lw_lut #(.N(6)" in line for line in circuit.lines) == 2
    assert circuit.sites[Part.SHIFT] == 2


def _term(*, signed: bool, negate: str | None) -> Term:
    bits = (Bit("x[0]", 1), Bit("x[1] & y", 2))
    return Term(bits=bits, signed=signed, negate=negate, low=-3, high=3)


@pytest.mark.parametrize(
    ("signed", "negate", "text"),
    [
        (False, None, "{1'b0, x[1] & y, x[0]}"),
        (True, None, "{x[1] & y, x[1] & y, x[0]}"),
        (False, "n", "{(1'b0) ^ n, (x[1] & y) ^ n, (x[0]) ^ n}"),
        (True, "n", "{(x[1] & y) ^ n, (x[1] & y) ^ n, (x[0]) ^ n}"),
    ],
)
def test_a_term_writes_its_complement(signed: bool, negate: str | None, text: str) -> None:
    term = _term(signed=signed, negate=negate)
    assert term.text(3) == text
    assert term.text(1) == "{" + text.split(", ")[-1]
    assert [term.bit(index).inputs for index in range(2)] == ([1, 2] if negate is None else [2, 3])
