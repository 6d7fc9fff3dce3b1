# SPDX-License-Identifier: Apache-2.0
"""Verilog of constant units: numbers of codes, shared sums, one heap per output, its results."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from lutwise.hw.bounds import code_integers, is_legal, width_of_range
from lutwise.hw.circuit import Circuit, Part, lut_sites
from lutwise.hw.constant_delays import ONE, ZERO, Delays, joined, write_chain
from lutwise.hw.constant_heap import Chain, Columns, HeapBit, Position, compress
from lutwise.hw.constant_number import number_sites
from lutwise.hw.constant_output import (
    MOST_CHOICES,
    level_positions,
    pair_positions,
    rounding_sites,
    search_levels,
)
from lutwise.hw.constant_terms import Signal, Terms, signed_digits, table_sites
from lutwise.hw.output_stage import Form, OutputStage, result_codes
from lutwise.hw.requantizer_rtl import REQUANTIZER_PARTS
from lutwise.hw.verilog import library, module_text
from lutwise.quant.formats import IntFormat

if TYPE_CHECKING:
    from lutwise.hw.constant_unit import ConstantUnit

__all__ = ["ConstantEmitted", "ConstantSites", "write_constant_unit"]

_Weighted: TypeAlias = tuple[int, str, bool]
"""Power of two of a bit, its wire, and whether it counts negative."""

_ROUNDING_BITS: Final = 2
_MODULES: Final = ("lw_carry", "lw_table", *REQUANTIZER_PARTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantSites:
    """LUT sites by part, counted.

    Args:
        numbers: From codes to integers.
        shared: Sums and multiples that several outputs use.
        sums: The outputs' sums.
        results: From sums to codes.
    """

    numbers: float
    shared: float
    sums: float
    results: float

    @property
    def total(self) -> float:
        """All parts together."""
        return self.numbers + self.shared + self.sums + self.results


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantEmitted:
    """A unit as text.

    Args:
        text: Verilog with all modules that it needs.
        sites: LUT sites, counted.
        latency: Rising edges from a vector to its results.
    """

    text: str
    sites: ConstantSites
    latency: int


def write_constant_unit(unit: "ConstantUnit") -> ConstantEmitted:
    """Write a constant unit and all modules that it needs."""
    writer = _Writer(unit)
    results = [writer.result(channel) for channel in range(unit.channels)]
    latency = writer.drive(results)
    sites = writer.circuit.sites
    text = module_text(unit.name, unit.ports, writer.circuit.lines)
    return ConstantEmitted(
        text="\n".join([library(*_MODULES), *writer.rounding.values(), text]),
        sites=ConstantSites(
            numbers=sites[Part.EXPONENT],
            shared=sites[Part.MULTIPLY],
            sums=sites[Part.ADD],
            results=writer.result_sites,
        ),
        latency=latency,
    )


class _Writer:
    """Writes a unit."""

    def __init__(self, unit: "ConstantUnit") -> None:
        self.circuit = Circuit()
        self.rounding: dict[str, str] = {}
        """Modules that round products, by their name."""
        self.result_sites = 0.0
        self._unit = unit
        self._delays = Delays(self.circuit, pipelined=unit.registers.value == "stages")
        numbers = self._numbers()
        self._signals = [
            self._signals_of(terms, numbers[group]) for group, terms in enumerate(unit.terms)
        ]

    def result(self, channel: int) -> list[str]:
        """Write a channel; return the wires of its result."""
        unit = self._unit
        if unit.stage is not None and unit.stage.form is Form.THRESHOLDS:
            return self._delays.after(self._searched(unit.stage, channel))
        low, high = unit.biased_range(channel)
        if unit.stage is not None:
            bits = max(3, width_of_range(min(low, -1), high))
            wires = self._sum(channel, bits, unit.added(channel))
            return self._delays.after(self._requantized(unit.stage, channel, wires))
        bits = width_of_range(low, max(low, high))
        wires = self._sum(channel, bits, unit.added(channel))
        above = wires[-1] if low < 0 else ZERO
        return [*wires, *[above] * (unit.accumulator_bits - bits)]

    def drive(self, results: list[list[str]]) -> int:
        """Write the output; return the latency."""
        unit = self._unit
        wires = [wire for result in results for wire in result]
        level = self._delays.level(wires) if unit.registers.value == "stages" else 0
        text = ", ".join(reversed([self._delays.at(wire, level) for wire in wires]))
        if unit.registers.value != "output":
            self.circuit.write(f"assign y = {{{text}}};")
            return level
        self.circuit.write(f"reg [{len(wires) - 1}:0] results;")
        self.circuit.write(f"always @(posedge clk) results <= {{{text}}};")
        self.circuit.write("assign y = results;")
        return 1

    def _searched(self, stage: OutputStage, channel: int) -> list[str]:
        """Write a search among thresholds, with all constants of the sum in them."""
        constant = _missing(self._weighted(channel))
        # What the heap holds is never negative: the sum less its constants.
        highest = self._unit.sum_ranges[channel][1] - constant
        wires = self._sum(channel, max(1, highest.bit_length()), None)
        level = self._delays.level(wires)
        thresholds = [threshold - constant for threshold in stage.thresholds[channel]]
        reached: list[str] = []
        for constants in search_levels(thresholds, highest):
            positions = self._level(wires, reached, constants)
            reached.append(write_chain(self.circuit, positions, ONE)[-1])
            self.result_sites += len(positions)
        codes = stage.codes
        bus, support = self.circuit.table(
            [("{" + ", ".join(reached) + "}", len(reached))],
            lambda place: codes[min(place[0], len(codes) - 1)],
            stage.output.bits,
            part=None,
            stem="code",
        )
        self.result_sites += sum(map(lut_sites, support))
        found = [bus[bit] for bit in range(bus.bits)]
        self._delays.made(found, level)
        return found

    def _level(self, wires: list[str], reached: list[str], constants: list[int]) -> list[Position]:
        """Return what compares a sum with one of many constants; write these where they need it."""
        if len(reached) <= MOST_CHOICES:
            return level_positions(wires, reached, constants)
        bits = max(len(wires), *(constant.bit_length() for constant in constants))
        bus, support = self.circuit.table(
            [("{" + ", ".join(reached) + "}", len(reached))],
            lambda place: constants[place[0]],
            bits,
            part=None,
            stem="threshold",
        )
        self.result_sites += sum(map(lut_sites, support))
        wide = [*wires, *[ZERO] * (bits - len(wires))]
        return pair_positions(wide, [bus[bit] for bit in range(bits)])

    def _requantized(self, stage: OutputStage, channel: int, wires: list[str]) -> list[str]:
        """Write the product with a constant multiplier, then what rounds and saturates it."""
        low, high = self._unit.biased_range(channel)
        multiplier, shift = stage.multipliers[channel], stage.shift
        while shift and multiplier % 2 == 0:
            multiplier, shift = multiplier >> 1, shift - 1
        unit = stage.requantizer(len(wires))
        # The rounding unit has a multiplier of its own; it is one, and vanishes.
        bits = max(
            3, shift - _ROUNDING_BITS, width_of_range(min(-1, low * multiplier), high * multiplier)
        )
        unit = replace(unit, accumulator_bits=bits, shift=shift, multiplier_bits=_ROUNDING_BITS)
        weighted = [
            (power + at, wire, negative != (at == len(wires) - 1))
            for power, negative in signed_digits(multiplier)
            for at, wire in enumerate(wires)
        ]
        product, sites = self._heap(weighted, bits, 0)
        level = self._delays.level(product)
        module = f"{self._unit.name}_round{bits}_{shift}"
        self.rounding.setdefault(module, unit.emit_alone(module=module))
        self.result_sites += sites + rounding_sites(unit)
        output = stage.output
        rounded = self.circuit.wire("rounded", output.bits)
        self.circuit.write(
            f"{module} {self.circuit.name('round')} (.acc({joined(product, bits)}), "
            f".m({_ROUNDING_BITS}'d1), .y({rounded.name}));"
        )
        text, top = rounded.name, stage.codes[-1]
        if top != max(result_codes(output), key=lambda code: int(code_integers(output)[code])):
            # Codes of positive numbers rise with the numbers.
            positive = f"~{rounded[output.bits - 1]} & " if output.signed else ""
            most = f"{output.bits}'d{top}"
            text = f"({positive}({rounded.name} > {most})) ? {most} : {rounded.name}"
        bus = self.circuit.wire("code", output.bits, text)
        found = [bus[bit] for bit in range(bus.bits)]
        self._delays.made(found, level)
        return found

    def _weighted(self, channel: int) -> list[_Weighted]:
        """Return the bits of a channel's sum."""
        unit = self._unit
        group, output = divmod(channel, unit.outputs)
        terms = unit.terms[group]
        return [
            # The highest bit of two's complement counts negative.
            (row.shift + at, wire, row.negative != (signal.signed and at == signal.bits - 1))
            for row in terms.rows[output]
            for signal in [terms.signals[row.signal]]
            for at, wire in enumerate(self._signals[group][row.signal])
        ]

    def _sum(self, channel: int, bits: int, added: int | None) -> list[str]:
        """Write the sum of a channel; arguments as ``_heap``."""
        wires, sites = self._heap(self._weighted(channel), bits, added)
        self.circuit.count(Part.ADD, sites)
        return wires

    def _heap(
        self, weighted: Sequence[_Weighted], bits: int, added: int | None
    ) -> tuple[list[str], int]:
        """Write the sum of some bits, cut to a width; return its wires and the LUT sites.

        Args:
            weighted: The bits.
            bits: Width.
            added: Added to the sum; ``None`` for what the heap holds, without any constant.
        """
        columns: Columns = [[] for _ in range(bits)]
        for power, wire, negative in weighted:
            if power < bits:
                columns[power].append(HeapBit(wire, inverted=negative))
        if added is not None:
            constant = _missing(weighted) + added
            for power, column in enumerate(columns):
                if constant >> power & 1:
                    column.append(HeapBit(ONE))
        return self._compressed(columns)

    def _numbers(self) -> list[list[list[str]]]:
        """Write the numbers of the inputs; wires per group, input and bit."""
        unit = self._unit
        fmt = unit.activations
        found = []
        for group in range(unit.groups):
            numbers = []
            for product in range(unit.products):
                first = (group * unit.products + product) * fmt.bits
                wires = [f"a[{first + bit}]" for bit in range(fmt.bits)]
                self._delays.made(wires, 0)
                if not isinstance(fmt, IntFormat):
                    signal = unit.terms[group].signals[product]
                    wires = self._decoded(f"a[{first}+:{fmt.bits}]", signal)
                numbers.append(wires)
            found.append(numbers)
        return found

    def _decoded(self, code: str, signal: Signal) -> list[str]:
        fmt = self._unit.activations
        numbers = code_integers(fmt)
        legal = is_legal(fmt)
        mask = (1 << signal.bits) - 1
        bus, _ = self.circuit.table(
            [(code, fmt.bits)],
            lambda codes: int(numbers[codes[0]]) & mask if legal[codes[0]] else 0,
            signal.bits,
            part=None,
            stem="number",
        )
        self.circuit.count(Part.EXPONENT, number_sites(fmt))
        wires = [bus[bit] for bit in range(bus.bits)]
        self._delays.made(wires, 0)
        return self._delays.after(wires)

    def _signals_of(self, terms: Terms, inputs: list[list[str]]) -> list[list[str]]:
        """Write the sums of a group that are made once; wires per signal and bit."""
        found = [wires[: terms.signals[at].bits] for at, wires in enumerate(inputs)]
        for signal in terms.signals[len(inputs) :]:
            table = table_sites(terms.signals, signal)
            if table is not None and table <= signal.bits:
                wires = self._table(terms, signal, found)
            else:
                wires = self._added(terms, signal, found)
            found.append(self._delays.after(wires))
        return found

    def _table(self, terms: Terms, signal: Signal, found: list[list[str]]) -> list[str]:
        """Write a sum as a table of the inputs that it depends on."""
        level = self._delays.level([wire for at in signal.inputs for wire in found[at]])
        inputs = []
        for at in signal.inputs:
            wires = [self._delays.at(wire, level) for wire in found[at]]
            inputs.append(("{" + ", ".join(reversed(wires)) + "}", len(wires)))
        mask = (1 << signal.bits) - 1

        def value(codes: Sequence[int]) -> int:
            total = 0
            for (at, factor), code in zip(signal.weights, codes, strict=True):
                source = terms.signals[at]
                negative = source.signed and code >> (source.bits - 1)
                total += factor * (code - (1 << source.bits) if negative else code)
            return total & mask

        bus, _ = self.circuit.table(inputs, value, signal.bits, part=Part.MULTIPLY, stem="multiple")
        wires = [bus[bit] for bit in range(bus.bits)]
        self._delays.made(wires, level)
        return wires

    def _added(self, terms: Terms, signal: Signal, found: list[list[str]]) -> list[str]:
        """Write a sum as an adder; what lies below the shifted operand passes it by."""
        pair = signal.pair
        assert pair is not None
        one, other = found[pair.one], found[pair.other]
        level = self._delays.level([*one, *other])
        one = [self._delays.at(wire, level) for wire in one]
        other = [self._delays.at(wire, level) for wire in other]
        one_signed, other_signed = (terms.signals[at].signed for at in (pair.one, pair.other))
        if pair.flipped:
            low: list[str] = []
            bits = signal.bits
            first = joined([*[ZERO] * pair.shift, *other], bits, signed=other_signed)
            second, minus = joined(one, bits, signed=one_signed), True
        else:
            one += [one[-1] if one_signed else ZERO] * (pair.shift + 1 - len(one))
            low = one[: pair.shift]
            bits = signal.bits - pair.shift
            first = joined(one[pair.shift :], bits, signed=one_signed)
            second, minus = joined(other, bits, signed=other_signed), pair.negative
        total = self.circuit.add(
            first,
            f"~{second}" if minus else second,
            ONE if minus else ZERO,
            bits,
            part=Part.MULTIPLY,
            stem="shared",
        )
        wires = [total[bit] for bit in range(bits)]
        self._delays.made(wires, level)
        return [*low, *wires]

    def _compressed(self, columns: Columns) -> tuple[list[str], int]:
        """Write what adds a heap; return the wires of the sum and the LUT sites."""
        delays = self._delays
        level = delays.level([bit.wire for column in columns for bit in column])
        sites = 0

        def moved(heap: Columns) -> Columns:
            return [
                [HeapBit(delays.at(bit.wire, level), bit.inverted) for bit in column]
                for column in heap
            ]

        def settle(heap: Columns) -> Columns:
            nonlocal level
            level += 1
            return moved(heap)

        def write(chain: Chain) -> list[str]:
            nonlocal sites
            sites += len(chain.positions)
            wires = write_chain(self.circuit, chain.positions, chain.carry)
            delays.made(wires, level)
            return wires

        wires = []
        for bit in compress(moved(columns), write, settle):
            if bit is not None and bit.inverted:
                wires.append(self.circuit.wire("inverse", 1, f"~{bit.wire}").name)
                delays.made(wires[-1:], level)
            else:
                wires.append(ZERO if bit is None else bit.wire)
        return delays.after(wires), sites


def _missing(weighted: Sequence[_Weighted]) -> int:
    """Return what a heap lacks.

    A bit that counts negative is in it as its complement, which is one too many.
    """
    return -sum(1 << power for power, _, negative in weighted if negative)
