# SPDX-License-Identifier: Apache-2.0
"""Verilog of dot-product units: products, two chains of adders and one accumulator for both.

Lanes are split in two groups. Each group is a chain of adders that also make what is left of
their products (see ``lutwise.hw.product``), and the accumulator takes in both groups with one
LUT per bit, since it is the one adder that ends in registers. The sign of a sign-magnitude
product costs no adder: its bits are complemented on the way in, and the "+ 1" that completes the
negation goes to the carry input of an adder. With the two of the accumulator there are as many
carry inputs as lanes.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Final

from lutwise.hw.architecture import Architecture, Kind, as_magnitude
from lutwise.hw.booth_chain import Sum, write_booth_chain
from lutwise.hw.bounds import product_range, width_of_range
from lutwise.hw.circuit import Bus, Circuit, Part, Term, mux_sites
from lutwise.hw.operand import Operand, operand_of
from lutwise.hw.ports import Port
from lutwise.hw.product import write_product
from lutwise.hw.verilog import library, module_text
from lutwise.quant.formats import Format

__all__ = ["LONGEST_CHAIN", "Emitted", "write_dot_product"]

LONGEST_CHAIN: Final = {Kind.CHAIN: 4, Kind.TABLE: 8, Kind.ARRAY: 8}
"""Lanes on one chain of adders: sums grow along it, and longer ones take longer."""

_MERGED_INPUTS: Final = 5
_ZERO: Final = "1'b0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """A module and what it should take.

    Args:
        text: Verilog with all modules that it needs.
        sites: LUT sites per part, counted.
    """

    text: str
    sites: dict[Part, float]


def write_dot_product(
    weights: Format,
    activations: Format,
    *,
    ports: tuple[Port, ...],
    lanes: int,
    accumulator_bits: int,
    architecture: Architecture,
    restart: bool,
    pipeline: bool,
    module: str,
) -> Emitted:
    """Write a dot-product unit and all modules that it needs.

    Args:
        weights: Format of the weights.
        activations: Format of the activations.
        ports: Ports of the module.
        lanes: Products per cycle.
        accumulator_bits: Width of the accumulator.
        architecture: How products are built.
        restart: Begin sums anew with the operands that ``first`` comes with, take operands with
            ``take`` only and stand still without ``ce``, instead of a reset.
        pipeline: Registers between the products' sums and the accumulator.
        module: Name of the top module.
    """
    circuit = Circuit()
    operands = [
        (
            circuit.wire("w", weights.bits, f"w[{lane * weights.bits}+:{weights.bits}]"),
            circuit.wire(
                "a", activations.bits, f"a[{lane * activations.bits}+:{activations.bits}]"
            ),
        )
        for lane in range(lanes)
    ]
    on_wire = as_magnitude(weights) if architecture.magnitude else weights
    assert on_wire is not None
    if architecture.kind is Kind.PLAIN:
        parts = _write_plain(circuit, on_wire, activations, operands, accumulator_bits)
    else:
        last = "lw_accumulate3" if restart else "lw_add3"
        parts = ("lw_add", last, "lw_booth", "lw_lut", "lw_table")
        signed = product_range(weights, activations)[0] < 0
        total = _Reduction(
            circuit, bits=accumulator_bits, signed=signed, restart=restart, pipeline=pipeline
        )
        if architecture.kind is Kind.CHAIN:
            for group in _groups(operands, LONGEST_CHAIN[architecture.kind]):
                total.sums.append(
                    write_booth_chain(
                        circuit, on_wire, activations, group, recoded=architecture.recoded
                    )
                )
        else:
            for group in _groups(operands, LONGEST_CHAIN[architecture.kind]):
                terms = [
                    write_product(circuit, on_wire, activations, w, a, architecture)
                    for w, a in group
                ]
                if lanes == 1 and not pipeline:
                    total.accumulate_term(*terms)
                else:
                    total.chain(terms)
        if total.sums:
            total.accumulate()
    if restart:
        take = "take_q" if pipeline else "take"
        circuit.write(f"always @(posedge clk) if (ce & {take}) acc <= following;")
    else:
        reset = "first_q" if pipeline else "rst"
        circuit.write(f"always @(posedge clk) if ({reset}) acc <= 0; else acc <= following;")
    text = module_text(module, ports, circuit.lines, registered="acc")
    return Emitted(text="\n".join([library(*parts), text]), sites=circuit.sites)


def _groups(operands: list[tuple[Bus, Bus]], longest: int) -> list[list[tuple[Bus, Bus]]]:
    """Split lanes in an even number of groups of nearly equal size, or leave the only one."""
    lanes = len(operands)
    count = min(lanes, 2 * ceil(lanes / (2 * longest)))
    ends = [round(lanes * index / count) for index in range(count + 1)]
    return [operands[start:end] for start, end in pairwise(ends)]


class _Reduction:
    """Adds terms, with the carries that complete negations wherever an adder has room."""

    def __init__(
        self, circuit: Circuit, *, bits: int, signed: bool, restart: bool, pipeline: bool
    ) -> None:
        self.circuit = circuit
        self.bits = bits
        self.signed = signed
        self.restart = restart
        self.pipeline = pipeline
        self.sums: list[Sum] = []

    def chain(self, terms: list[Term]) -> None:
        """Write the chain of one group."""
        total: Sum | None = None
        for term in terms:
            total = self._first(term) if total is None else self._next(total, term)
        assert total is not None
        self.sums.append(total)

    def accumulate(self) -> None:
        """Write the tree over all groups and the accumulator's adder as ``following``."""
        while len(self.sums) > 2:
            pairs = [self.sums[i : i + 2] for i in range(0, len(self.sums), 2)]
            self.sums = [self._join(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
        if self.pipeline:
            self._register()
        texts = [self._extend(found, self.bits) for found in self.sums]
        pending = [wire for found in self.sums for wire in found.pending]
        self._accumulate(texts, pending)

    def accumulate_term(self, term: Term) -> None:
        """Write the accumulator's adder for the only term of a unit."""
        self._count_merged(term, self.bits)
        self._accumulate([term.text(self.bits)], [term.negate] if term.negate else [])

    def _register(self) -> None:
        """Put registers behind the sums, and behind what tells the accumulator to begin anew."""
        circuit = self.circuit
        enable = "if (ce) " if self.restart else ""
        self.sums = [
            Sum(
                bus=self._registered(found.bus, enable),
                low=found.low,
                high=found.high,
                pending=tuple(self._registered(Bus(w, 1), enable).name for w in found.pending),
            )
            for found in self.sums
        ]
        circuit.write("reg first_q;")
        circuit.write(
            f"always @(posedge clk) {enable}first_q <= {'first' if self.restart else 'rst'};"
        )
        if self.restart:
            circuit.write("reg take_q;")
            circuit.write("always @(posedge clk) if (ce) take_q <= take;")

    def _registered(self, bus: Bus, enable: str) -> Bus:
        found = Bus(self.circuit.name("stage"), bus.bits)
        self.circuit.write(f"reg [{bus.bits - 1}:0] {found.name};")
        self.circuit.write(f"always @(posedge clk) {enable}{found.name} <= {bus.name};")
        return found

    def _accumulate(self, texts: list[str], pending: list[str]) -> None:
        assert len(texts) <= 2
        assert len(pending) <= len(texts)
        bits = self.bits
        carries = [*pending, _ZERO, _ZERO]
        self.circuit.count(Part.ADD, bits)
        self.circuit.write(f"wire [{bits - 1}:0] following;")
        begin = ("first_q" if self.pipeline else "first") if self.restart else ""
        if len(texts) == 1:
            before = f"acc & {{{bits}{{~{begin}}}}}" if begin else "acc"
            self.circuit.write(
                f"lw_add #(.W({bits})) accumulate (.a({before}), .b({texts[0]}), "
                f".cin({carries[0]}), .y(following));"
            )
            return
        module, before = "lw_add3", ".a(acc)"
        if begin:
            module, before = "lw_accumulate3", f".acc(acc), .restart({begin})"
        names = ".b({}), .c({})".format(*texts)
        self.circuit.write(
            f"{module} #(.W({bits})) accumulate ({before}, {names}, "
            f".cin0({carries[0]}), .cin1({carries[1]}), .y(following));"
        )

    def _first(self, term: Term) -> Sum:
        """Write the first term of a chain out: it has no adder to merge with."""
        negated = term.negate is not None
        bits = min(self.bits, len(term.bits) + (negated and not term.signed))
        for index in range(bits):
            self.circuit.count(Part.MULTIPLY, mux_sites(term.bit(index).inputs))
        return Sum(
            bus=self.circuit.wire("first", bits, term.text(bits)),
            low=term.low,
            high=term.high,
            pending=(term.negate,) if term.negate is not None else (),
        )

    def _next(self, total: Sum, term: Term) -> Sum:
        carry, *pending = [*total.pending, *([term.negate] if term.negate else [])] or [_ZERO]
        low, high = total.low + term.low, total.high + term.high
        bits = min(self.bits, width_of_range(low - len(pending), high))
        self._count_merged(term, bits)
        return Sum(
            bus=self.circuit.add(self._extend(total, bits), term.text(bits), carry, bits),
            low=low,
            high=high,
            pending=tuple(pending),
        )

    def _join(self, one: Sum, other: Sum) -> Sum:
        carry, *pending = [*one.pending, *other.pending] or [_ZERO]
        low, high = one.low + other.low, one.high + other.high
        bits = min(self.bits, width_of_range(low - len(pending), high))
        bus = self.circuit.add(self._extend(one, bits), self._extend(other, bits), carry, bits)
        return Sum(bus=bus, low=low, high=high, pending=tuple(pending))

    def _extend(self, total: Sum, bits: int) -> str:
        return self.circuit.extend(total.bus, bits, signed=self.signed)

    def _count_merged(self, term: Term, bits: int) -> None:
        """Count the bits of a term that have too many inputs for the adder's LUT."""
        for index in range(min(bits, len(term.bits))):
            inputs = term.bit(index).inputs
            if inputs > _MERGED_INPUTS:
                self.circuit.count(Part.SHIFT, mux_sites(inputs - (term.negate is not None)))


def _write_plain(
    circuit: Circuit,
    weights: Format,
    activations: Format,
    operands: list[tuple[Bus, Bus]],
    accumulator_bits: int,
) -> tuple[str, ...]:
    """Write what a designer without further thought would; return the modules that it needs."""
    w, a = operand_of(weights), operand_of(activations)
    signed = w.twos_complement or a.twos_complement
    low, high = product_range(weights, activations)
    bits = width_of_range(low, high) if signed else width_of_range(0, max(-low, high))
    sums = []
    for lane, (w_bus, a_bus) in enumerate(operands):
        circuit.lines += [*_decode(w_bus, w), *_decode(a_bus, a)]
        factors = [
            _factor(bus, operand, signed=signed) for bus, operand in ((w_bus, w), (a_bus, a))
        ]
        sign = "signed " if signed else ""
        shifts = [f"{bus.name}_sh" for bus, o in ((w_bus, w), (a_bus, a)) if o.max_shift]
        m_bits = w.significand_bits + a.significand_bits
        circuit.write(f"wire {sign}[{m_bits - 1}:0] m{lane} = {' * '.join(factors)};")
        circuit.write(f"wire {sign}[{bits - 1}:0] wide{lane} = m{lane};")
        if shifts:
            sh_bits = width_of_range(0, w.max_shift + a.max_shift)
            circuit.write(f"wire [{sh_bits - 1}:0] sh{lane} = {' + '.join(shifts)};")
            circuit.write(f"wire {sign}[{bits - 1}:0] p{lane} = wide{lane} << sh{lane};")
        else:
            circuit.write(f"wire {sign}[{bits - 1}:0] p{lane} = wide{lane};")
        term = f"p{lane}" if signed else f"$signed({{1'b0, p{lane}}})"
        circuit.write(f"wire signed [{accumulator_bits - 1}:0] z{lane} = {term};")
        signs = [bus[o.bits - 1] for bus, o in ((w_bus, w), (a_bus, a)) if o.sign_bit]
        value = f"({' ^ '.join(signs)}) ? -z{lane} : z{lane}" if signs else f"z{lane}"
        circuit.write(f"wire signed [{accumulator_bits - 1}:0] y{lane} = {value};")
        sums.append(f"y{lane}")
    circuit.write(
        f"wire signed [{accumulator_bits - 1}:0] following = $signed(acc) + {' + '.join(sums)};"
    )
    return ("lw_decode",)


def _decode(bus: Bus, operand: Operand) -> list[str]:
    name = bus.name
    if not operand.exponent_bits:
        return [f"wire [{operand.bits - 1}:0] {name}_sig = {name};"]
    e, m = operand.exponent_bits, operand.mantissa_bits
    return [
        f"wire [{m}:0] {name}_sig;",
        f"wire [{e - 1}:0] {name}_sh;",
        f"lw_decode #(.E({e}), .M({m})) {name}_decode "
        f"(.x({name}[{e + m - 1}:0]), .sig({name}_sig), .sh({name}_sh));",
    ]


def _factor(bus: Bus, operand: Operand, *, signed: bool) -> str:
    if operand.twos_complement:
        return f"$signed({bus.name}_sig)"
    return f"$signed({{1'b0, {bus.name}_sig}})" if signed else f"{bus.name}_sig"
