# SPDX-License-Identifier: Apache-2.0
"""Mapped netlists of UltraScale+ cells: reading, logic levels and bit-parallel simulation.

The netlist comes as Yosys JSON. Look-up tables, wide multiplexers, inverters and carry cells
all become small truth tables, one per net, so that levels and values follow from one graph.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lutwise.errors import ToolError

__all__ = [
    "CARRY_WIDTH",
    "FLIP_FLOPS",
    "LUT_PINS",
    "MEMORY_LUTS",
    "Cell",
    "Netlist",
    "bits_of",
    "from_bits",
]

LUT_PINS: Final = ("I0", "I1", "I2", "I3", "I4", "I5")
CARRY_WIDTH: Final = {"CARRY4": 4, "CARRY8": 8}
MEMORY_LUTS: Final = {"RAM32M16": 8, "RAM64M8": 8}
"""LUTs of small memories. They are counted; a netlist with one cannot be simulated."""

FLIP_FLOPS: Final = frozenset({"FDRE", "FDSE", "FDCE", "FDPE"})
_OUTPUT_PINS = frozenset({"O", "O5", "O6", "CO", "Q", *(f"DO{port}" for port in "ABCDEFGH")})
_CONSTANTS = frozenset({"GND", "VCC"})

_WORD_BITS: Final = 62

# Nanoseconds, with the wire in front: a LUT, a wide multiplexer, a carry position, a sum's exit.
_LUT_NS: Final = 0.45
_MUX_NS: Final = 0.15
_CARRY_NS: Final = 0.015
_SUM_NS: Final = 0.1

# Truth tables; the first input is the lowest bit of the index.
_INVERT = 0b01
_OR = 0b1110
_XOR = 0b0110
_MULTIPLEX = 0b11001010  # inputs: when 0, when 1, select

Net = int | str
"""A Yosys net number, a constant ``"0"``/``"1"``/``"x"``, or the name of a carry inside a cell."""

Bits = npt.NDArray[np.bool_]
"""Values of a port: shape (bits, vectors), lowest bit first."""


def bits_of(numbers: Iterable[int] | npt.NDArray[Any], bits: int) -> Bits:
    """Spread integers (two's complement when negative) over ``bits`` rows.

    Args:
        numbers: Integers, shape (vectors,).
        bits: Width.

    Returns:
        Shape (bits, vectors).
    """
    if bits <= _WORD_BITS and isinstance(numbers, np.ndarray) and numbers.dtype == np.int64:
        return ((numbers[None, :] >> np.arange(bits)[:, None]) & 1).astype(np.bool_)
    column = np.array([int(number) for number in numbers], dtype=object)
    if bits <= _WORD_BITS:
        return bits_of((column & ((1 << bits) - 1)).astype(np.int64), bits)
    return np.array([(column >> bit) & 1 for bit in range(bits)], dtype=np.bool_)


def from_bits(values: Bits, *, signed: bool = False) -> npt.NDArray[Any]:
    """Collect rows of bits to integers, shape (vectors,), int64 or, above 62 bits, object."""
    if len(values) <= _WORD_BITS:
        words = np.zeros(values.shape[1], dtype=np.int64)
        for bit, row in enumerate(values):
            words |= row.astype(np.int64) << bit
        return words - (values[-1].astype(np.int64) << len(values)) if signed else words
    total = np.zeros(values.shape[1], dtype=object)
    for bit, row in enumerate(values):
        weight = -(1 << bit) if signed and bit == len(values) - 1 else 1 << bit
        total = total + row.astype(object) * weight
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One primitive: its type, its nets per pin and its truth table (0 when it has none)."""

    kind: str
    pins: dict[str, list[Net]]
    init: int = 0

    def pin(self, name: str, index: int = 0) -> Net:
        """Return a net; pins that are not connected read 0."""
        nets = self.pins.get(name, [])
        return nets[index] if index < len(nets) else "0"


@dataclass(frozen=True, slots=True)
class _Gate:
    """A truth table; ``level`` is 1 for a LUT, 0 for what is part of a carry chain."""

    inputs: tuple[Net, ...]
    table: int
    level: int
    delay_ns: float


@dataclass(slots=True)
class Netlist:
    """A flat netlist of primitives.

    Args:
        cells: The primitives.
        ports: Direction and nets of every port.
        driver: Index of the cell and pin that drive a net.
        readers: Cells (index, pin) and ports (-1, name) that read a net.
    """

    cells: list[Cell]
    ports: dict[str, tuple[str, list[Net]]]
    driver: dict[Net, tuple[int, str]] = field(default_factory=dict)
    readers: dict[Net, list[tuple[int, str]]] = field(default_factory=dict)
    _gates: dict[Net, _Gate] = field(default_factory=dict)
    _order: list[Net] = field(default_factory=list)

    @classmethod
    def from_json(cls, document: Mapping[str, Any], top: str) -> "Netlist":
        """Read what Yosys ``write_json`` wrote.

        Raises:
            ToolError: The module is missing, a primitive is unknown, or logic forms a loop.
        """
        try:
            module = document["modules"][top]
        except (KeyError, TypeError) as error:
            raise ToolError("yosys", "unknown", f"its output has no module {top!r}") from error
        cells = []
        for entry in module["cells"].values():
            if entry["type"] == "$scopeinfo":
                continue
            init = entry.get("parameters", {}).get("INIT", "0")
            cells.append(
                Cell(
                    kind=entry["type"],
                    pins=entry["connections"],
                    init=_number(init),
                )
            )
        ports = {name: (p["direction"], p["bits"]) for name, p in module["ports"].items()}
        netlist = cls(cells, ports)
        netlist._connect()
        netlist._build()
        return netlist

    def count(self) -> Counter[str]:
        """Count the primitives of every type."""
        return Counter(cell.kind for cell in self.cells)

    @property
    def flip_flops(self) -> int:
        """Number of flip-flops."""
        return sum(cell.kind in FLIP_FLOPS for cell in self.cells)

    def lut_inputs(self, index: int) -> frozenset[Net]:
        """Return the distinct nets that a LUT reads, constants left out."""
        nets = (self.cells[index].pin(name) for name in LUT_PINS)
        return frozenset(net for net in nets if not isinstance(net, str))

    def depth(self) -> int:
        """Count the LUTs on the longest path between registers or ports."""
        return int(self._longest(lambda gate: gate.level))

    def delay_ns(self) -> float:
        """Estimate the longest path between registers or ports, in nanoseconds.

        Typical delays of cells and wires; they rank circuits and are no timing analysis.
        """
        return self._longest(lambda gate: gate.delay_ns)

    def _longest(self, weight: Callable[[_Gate], float]) -> float:
        at: dict[Net, float] = {}
        for net in self._order:
            gate = self._gates[net]
            at[net] = weight(gate) + max((at.get(n, 0.0) for n in gate.inputs), default=0.0)
        ends = [cell.pin("D") for cell in self.cells if cell.kind in FLIP_FLOPS]
        for direction, nets in self.ports.values():
            ends += nets if direction == "output" else []
        return max((at.get(net, 0.0) for net in ends), default=0.0)

    def simulate(
        self, inputs: Mapping[str, Bits], state: Mapping[Net, Bits] | None = None
    ) -> tuple[dict[str, Bits], dict[Net, Bits]]:
        """Evaluate many input vectors at once.

        Args:
            inputs: Per input port, shape (bits, vectors); missing ports read 0.
            state: Per flip-flop output net, shape (vectors,); missing ones read 0.

        Returns:
            Per output port its values in this cycle, shape (bits, vectors), and per flip-flop
            output net its value after the next clock edge, shape (vectors,). ``CE``, ``R`` and
            ``S`` act as inputs of the register.
        """
        if any(cell.kind in MEMORY_LUTS for cell in self.cells):
            raise ToolError("netlist", "unknown", "a netlist with memories is not simulated")
        vectors = next(values.shape[1] for values in inputs.values())
        zero = np.zeros((vectors + 63) // 64, dtype=np.uint64)
        words: dict[Net, npt.NDArray[np.uint64]] = {"0": zero, "x": zero, "z": zero, "1": ~zero}
        for name, values in inputs.items():
            for net, row in zip(self.ports[name][1], values, strict=True):
                words[net] = _pack(row, len(zero))
        for net, row in (state or {}).items():
            words[net] = _pack(row, len(zero))
        for net in self._order:
            gate = self._gates[net]
            words[net] = _look_up(gate.table, [words.get(n, zero) for n in gate.inputs], zero)
        outputs = {
            name: np.array([_unpack(words.get(net, zero), vectors) for net in nets])
            for name, (direction, nets) in self.ports.items()
            if direction == "output"
        }
        following: dict[Net, Bits] = {}
        for cell in self.cells:
            if cell.kind in FLIP_FLOPS:
                d, q = (words.get(cell.pin(name), zero) for name in ("D", "Q"))
                enable = words.get(cell.pin("CE"), zero) if "CE" in cell.pins else ~zero
                value = (d & enable) | (q & ~enable)
                if cell.kind in {"FDRE", "FDCE"}:
                    value = value & ~words.get(cell.pin("R" if "R" in cell.pins else "CLR"), zero)
                else:
                    value = value | words.get(cell.pin("S" if "S" in cell.pins else "PRE"), zero)
                following[cell.pin("Q")] = _unpack(value, vectors)
        return outputs, following

    def _connect(self) -> None:
        for index, cell in enumerate(self.cells):
            for name, nets in cell.pins.items():
                for net in nets:
                    if isinstance(net, str):
                        continue
                    if name in _OUTPUT_PINS:
                        self.driver[net] = (index, name)
                    else:
                        self.readers.setdefault(net, []).append((index, name))
        for name, (direction, nets) in self.ports.items():
            if direction == "output":
                for net in nets:
                    if not isinstance(net, str):
                        self.readers.setdefault(net, []).append((-1, name))

    def _build(self) -> None:
        for index, cell in enumerate(self.cells):
            if cell.kind == "LUT6_2":
                self._gates[cell.pin("O6")] = self._lut(cell, 6)
                self._gates[cell.pin("O5")] = self._lut(cell, 5)
            elif cell.kind.startswith("LUT"):
                self._gates[cell.pin("O")] = self._lut(cell, int(cell.kind[3:4]))
            elif cell.kind == "INV":
                self._gates[cell.pin("O")] = _Gate((cell.pin("I"),), _INVERT, 1, _LUT_NS)
            elif cell.kind.startswith("MUXF"):
                pins = (cell.pin("I0"), cell.pin("I1"), cell.pin("S"))
                self._gates[cell.pin("O")] = _Gate(pins, _MULTIPLEX, 0, _MUX_NS)
            elif cell.kind in CARRY_WIDTH:
                self._build_carry(index, cell)
            elif cell.kind in _CONSTANTS:
                self._gates[cell.pin("P" if cell.kind == "VCC" else "G")] = _Gate(
                    (), int(cell.kind == "VCC"), 0, 0.0
                )
            elif cell.kind not in FLIP_FLOPS and cell.kind not in MEMORY_LUTS:
                raise ToolError("yosys", "unknown", f"unexpected primitive {cell.kind!r}")
        self._sort()

    @staticmethod
    def _lut(cell: Cell, size: int) -> _Gate:
        """Return the function of the lowest inputs, without those that change nothing."""
        table = cell.init & ((1 << (1 << size)) - 1)
        pins: list[Net] = []
        for position in range(size):
            half = 1 << len(pins)
            low, high = _halves(table, half, size - position)
            net = cell.pin(LUT_PINS[position])
            if low == high or net == "0":
                table = low
            elif net == "1":
                table = high
            else:
                pins.append(net)
        return _Gate(tuple(pins), table, 1, _LUT_NS)

    def _build_carry(self, index: int, cell: Cell) -> None:
        carry: Net = f"carry {index}"
        self._gates[carry] = _Gate((cell.pin("CI"), cell.pin("CYINIT")), _OR, 0, 0.0)
        for bit in range(CARRY_WIDTH[cell.kind]):
            select, data = cell.pin("S", bit), cell.pin("DI", bit)
            output, out_carry = cell.pin("O", bit), cell.pin("CO", bit)
            if not isinstance(output, str):
                self._gates[output] = _Gate((select, carry), _XOR, 0, _SUM_NS)
            following: Net = out_carry if not isinstance(out_carry, str) else f"{index}.{bit}"
            self._gates[following] = _Gate((data, carry, select), _MULTIPLEX, 0, _CARRY_NS)
            carry = following

    def _sort(self) -> None:
        done: dict[Net, bool] = {}
        for root in self._gates:
            if root in done:
                continue
            done[root] = False
            stack = [(root, iter(self._gates[root].inputs))]
            while stack:
                net, pending = stack[-1]
                for source in pending:
                    if source in self._gates and source not in done:
                        done[source] = False
                        stack.append((source, iter(self._gates[source].inputs)))
                        break
                    if done.get(source) is False:
                        raise ToolError("yosys", "unknown", f"combinational loop at {source!r}")
                else:
                    done[net] = True
                    self._order.append(net)
                    stack.pop()


def _halves(table: int, half: int, inputs: int) -> tuple[int, int]:
    """Split a table by one of its inputs, which comes after ``log2(half)`` others.

    Args:
        table: Truth table.
        half: Entries of each block of equal value of the input.
        inputs: The input and those above it.

    Returns:
        The tables where the input is 0 and where it is 1.
    """
    low = high = 0
    mask = (1 << half) - 1
    for block in range(1 << (inputs - 1)):
        low |= (table >> (2 * block * half) & mask) << (block * half)
        high |= (table >> ((2 * block + 1) * half) & mask) << (block * half)
    return low, high


def _number(text: str | int) -> int:
    if isinstance(text, int):
        return text
    return int(text.replace("x", "0") or "0", 2)


def _pack(row: npt.NDArray[np.bool_], words: int) -> npt.NDArray[np.uint64]:
    padded = np.zeros(words * 64, dtype=np.uint8)
    padded[: len(row)] = row
    return np.packbits(padded, bitorder="little").view(np.uint64)


def _unpack(words: npt.NDArray[np.uint64], vectors: int) -> npt.NDArray[np.bool_]:
    found = np.unpackbits(words.view(np.uint8), bitorder="little")[:vectors]
    return found.astype(np.bool_)


def _look_up(
    table: int, inputs: list[npt.NDArray[np.uint64]], zero: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Evaluate a truth table on words by Shannon expansion, highest input first."""
    if table == 0:
        return zero
    if table == (1 << (1 << len(inputs))) - 1:
        return ~zero
    half = 1 << (len(inputs) - 1)
    low, high = table & ((1 << half) - 1), table >> half
    rest, select = inputs[:-1], inputs[-1]
    if low == high:
        return _look_up(low, rest, zero)
    when_low, when_high = _look_up(low, rest, zero), _look_up(high, rest, zero)
    return when_low ^ ((when_low ^ when_high) & select)
