# SPDX-License-Identifier: Apache-2.0
"""Wires of a pipeline that know which clock edge they belong to, and carry chains of tables."""

from collections.abc import Sequence
from typing import Final

from lutwise.hw.circuit import LUT_INPUTS, Circuit
from lutwise.hw.constant_heap import Position

__all__ = ["ONE", "ZERO", "Delays", "joined", "write_chain"]

ZERO: Final = "1'b0"
ONE: Final = "1'b1"


class Delays:
    """Wires and the clock edge that they belong to, counted from the inputs'."""

    def __init__(self, circuit: Circuit, *, pipelined: bool) -> None:
        self._circuit = circuit
        self._pipelined = pipelined
        self._level: dict[str, int] = {ZERO: 0, ONE: 0}
        self._late: dict[str, str] = {}

    def made(self, wires: Sequence[str], level: int) -> None:
        """Say that wires are of a level."""
        self._level.update(dict.fromkeys(wires, level))

    def level(self, wires: Sequence[str]) -> int:
        """Return the level at which all of some wires are there."""
        return max((self._level[wire] for wire in wires), default=0)

    def at(self, wire: str, level: int) -> str:
        """Return a wire as it is at a later level."""
        if not self._pipelined or wire in {ZERO, ONE}:
            return wire
        for _ in range(self._level[wire], level):
            wire = self._registered(wire)
        return wire

    def after(self, wires: Sequence[str]) -> list[str]:
        """Return wires one level on: what a register behind a step gives."""
        return [self.at(wire, self._level[wire] + 1) for wire in wires]

    def _registered(self, wire: str) -> str:
        late = self._late.get(wire)
        if late is None:
            late = self._circuit.name("late")
            self._circuit.write(f"reg {late};")
            self._circuit.write(f"always @(posedge clk) {late} <= {wire};")
            self._late[wire] = late
            self._level[late] = self._level[wire] + 1
        return late


def write_chain(circuit: Circuit, positions: Sequence[Position], carry: str) -> list[str]:
    """Write a carry chain; return the wires of its sum. The caller counts its sites."""
    count = len(positions)
    select = sum(position.select << (64 * at) for at, position in enumerate(positions))
    data = sum(position.data << (32 * at) for at, position in enumerate(positions))
    bypass = sum(position.bypass << at for at, position in enumerate(positions))
    wires = [wire for position in positions for wire in _padded(position)]
    bus = circuit.wire("row", count)
    circuit.write(
        f"lw_carry #(.N({count}), .SELECT({64 * count}'h{select:x}), "
        f".DATA({32 * count}'h{data:x}), .BYPASS({count}'h{bypass:x})) {circuit.name('carry')} "
        f"(.x({{{', '.join(reversed(wires))}}}), .cin({carry}), .y({bus.name}));"
    )
    return [bus[at] for at in range(count)]


def _padded(position: Position) -> tuple[str, ...]:
    return (*position.wires, *[ZERO] * (LUT_INPUTS - len(position.wires)))


def joined(wires: Sequence[str], bits: int, *, signed: bool = False) -> str:
    """Return an expression that cuts or extends bits, lowest first."""
    above = wires[-1] if signed else ZERO
    wires = [*wires, *[above] * (bits - len(wires))][:bits]
    return "{" + ", ".join(reversed(wires)) + "}"
