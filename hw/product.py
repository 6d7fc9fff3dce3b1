# SPDX-License-Identifier: Apache-2.0
"""Products of one lane: tables, and significand arrays with a shift in two steps.

The second step of the shift is left to the adder that takes the product in. A bit of the shifted
product then has few sources, each with a wire that selects it: with the sign and the adder's
other operand they fit one LUT, so the last and widest multiplexer of a shifter costs nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lutwise.hw.architecture import Architecture, Kind
from lutwise.hw.bounds import code_integers, is_legal, product_range, width_of_range
from lutwise.hw.circuit import LUT_INPUTS, Bit, Bus, Circuit, Part, Term, lut_sites, mux_sites
from lutwise.hw.multiplier import Factor, write_array
from lutwise.hw.operand import Operand, operand_of
from lutwise.quant.formats import Format

__all__ = ["write_product"]

_ZERO = Bit("1'b0", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """An operand of a lane and its wire."""

    fmt: Format
    operand: Operand
    bus: Bus

    @property
    def magnitude(self) -> tuple[str, int]:
        bits = self.operand.magnitude_bits
        return f"{self.bus.name}[{bits - 1}:0]", bits

    @property
    def exponent(self) -> tuple[str, int]:
        o = self.operand
        return f"{self.bus.name}[{o.magnitude_bits - 1}:{o.mantissa_bits}]", o.exponent_bits


def write_product(
    circuit: Circuit,
    weights: Format,
    activations: Format,
    w: Bus,
    a: Bus,
    architecture: Architecture,
) -> Term:
    """Write the product of one weight and one activation.

    Args:
        circuit: Where to.
        weights: Format of the weight, as on its wire.
        activations: Format of the activation.
        w: The weight.
        a: The activation.
        architecture: ``TABLE`` or ``ARRAY``.
    """
    sides = (
        _Side(fmt=weights, operand=operand_of(weights), bus=w),
        _Side(fmt=activations, operand=operand_of(activations), bus=a),
    )
    low, high = product_range(weights, activations)
    signed = any(side.operand.twos_complement for side in sides)
    bits = width_of_range(low, high) if signed else width_of_range(0, max(-low, high))
    negate = _sign(circuit, sides)
    if architecture.kind is Kind.TABLE:
        found = _table(circuit, sides, bits)
    else:
        found = _array(circuit, sides, bits, architecture, signed=signed)
    return Term(bits=tuple(found), signed=signed, negate=negate, low=low, high=high)


def _sign(circuit: Circuit, sides: Sequence[_Side]) -> str | None:
    signs = [side.bus[side.operand.bits - 1] for side in sides if side.operand.sign_bit]
    if len(signs) < 2:
        return signs[0] if signs else None
    circuit.count(Part.SIGN, lut_sites(2))
    return circuit.wire("negative", 1, " ^ ".join(signs)).name


def _table(circuit: Circuit, sides: Sequence[_Side], bits: int) -> list[Bit]:
    numbers = [code_integers(side.fmt) for side in sides]
    legal = [is_legal(side.fmt) for side in sides]

    def product(codes: Sequence[int]) -> int:
        if not (legal[0][codes[0]] and legal[1][codes[1]]):
            return 0
        return int(numbers[0][codes[0]]) * int(numbers[1][codes[1]]) & ((1 << bits) - 1)

    result, support = circuit.table(
        [side.magnitude for side in sides], product, bits, part=None, stem="product"
    )
    return [_merged(circuit, result[bit], inputs) for bit, inputs in enumerate(support)]


def _merged(circuit: Circuit, wire: str, inputs: int) -> Bit:
    """Return a bit of a table: left to the next LUT while that has room for its inputs."""
    if inputs < LUT_INPUTS - 1:
        return Bit(wire, inputs)
    circuit.count(Part.MULTIPLY, lut_sites(inputs))
    return Bit(wire, 1)


def _array(
    circuit: Circuit,
    sides: Sequence[_Side],
    bits: int,
    architecture: Architecture,
    *,
    signed: bool,
) -> list[Bit]:
    one, other = (_significand(circuit, side) for side in sides)
    product = write_array(circuit, one, other, architecture.array)
    if not any(side.operand.max_shift for side in sides):
        wires = [Bit(product.bus[bit], 1) for bit in range(product.bits)]
        top = wires[-1] if signed else _ZERO
        return (wires + [top] * bits)[:bits]
    shift = _exponents(circuit, sides, architecture.step)
    fine = product.bus
    for place, bit in shift.fine:
        fine = _fine_shift(circuit, fine, bit, place, shift.fine_limit, product)
    return _coarse(fine, bits, architecture.step, shift, signed=signed)


def _significand(circuit: Circuit, side: _Side) -> Factor:
    o = side.operand
    if not o.exponent_bits:
        return Factor(bus=side.bus, signed=o.twos_complement)
    if not o.max_shift and o.exponent_bits == 1:
        text, bits = side.magnitude
        return Factor(bus=circuit.wire("significand", bits, text), signed=False)
    normal = _normal(side)
    circuit.count(Part.EXPONENT, lut_sites(o.exponent_bits))
    mantissa = f", {side.bus.name}[{o.mantissa_bits - 1}:0]" if o.mantissa_bits else ""
    return Factor(
        bus=circuit.wire("significand", o.significand_bits, f"{{{normal}{mantissa}}}"),
        signed=False,
    )


def _normal(side: _Side) -> str:
    return f"(|{side.exponent[0]})"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shift:
    """The wires of a shift.

    Args:
        fine: Of the first step: place of its lowest bit and the wires that select, one or two.
        fine_limit: Largest shift of the first step.
        coarse: Of the second step: expression that selects every multiple of ``step``, and
            how many wires it reads; empty for none.
        offset: Bits that the sum of exponents counts too much.
    """

    fine: tuple[tuple[int, tuple[str, ...]], ...]
    fine_limit: int
    coarse: tuple[tuple[str, int], ...]
    offset: int


def _exponents(circuit: Circuit, sides: Sequence[_Side], step: int) -> _Shift:
    """Write what selects the shift: tables of the exponents, or their sum."""
    shifted = [side for side in sides if side.operand.max_shift]
    reach = sum(side.operand.max_shift for side in shifted)
    if sum(side.operand.exponent_bits for side in shifted) <= LUT_INPUTS:
        return _exponent_tables(circuit, shifted, reach, step)
    return _exponent_sum(circuit, shifted, reach, step)


def _exponent_tables(circuit: Circuit, sides: Sequence[_Side], reach: int, step: int) -> _Shift:
    inputs = [side.exponent for side in sides]

    def total(fields: Sequence[int]) -> int:
        return sum(max(0, number - 1) for number in fields)

    def table(function: Callable[[int], int], bits: int) -> Bus:
        found, _ = circuit.table(
            inputs,
            lambda fields: function(total(fields)),
            bits,
            part=Part.EXPONENT,
            stem="select",
            hard=True,
        )
        return found

    limit = min(step - 1, reach)
    fine = table(lambda shift: shift % step, limit.bit_length()) if limit else None
    places = reach // step + 1
    coarse: tuple[tuple[str, int], ...] = ()
    if places > 1:
        code = (places - 1).bit_length()
        if places <= 4:
            select = table(lambda shift: shift // step, code)
            coarse = _decoded([select[bit] for bit in range(code)], places)
        else:
            lines = table(lambda shift: 1 << shift // step, places)
            coarse = tuple((lines[place], 1) for place in range(places))
    wires = [fine[bit] for bit in range(fine.bits)] if fine else []
    return _Shift(fine=_stages(wires), fine_limit=limit, coarse=coarse, offset=0)


def _exponent_sum(circuit: Circuit, sides: Sequence[_Side], reach: int, step: int) -> _Shift:
    """Write the sum of exponents of at least 1 each, so that nothing is subtracted."""
    offset = len(sides)
    bits = (reach + offset).bit_length()
    clipped = []
    for side in sides:
        width, lowest = side.operand.exponent_bits, side.operand.mantissa_bits
        high = f"{side.bus.name}[{side.operand.magnitude_bits - 1}:{lowest + 1}]"
        low = f"{side.bus[lowest]} | ~{_normal(side)}"
        circuit.count(Part.EXPONENT, lut_sites(width))
        clipped.append(circuit.wire("exponent", width, f"{{{high}, {low}}}"))
    if len(clipped) == 1:
        total = clipped[0]
    else:
        one, other = (circuit.extend(bus, bits, signed=False) for bus in clipped)
        total = circuit.add(one, other, "1'b0", bits, part=Part.EXPONENT, stem="exponent")
    taken = step.bit_length() - 1
    places = (reach + offset) // step + 1
    high_wires = [total[bit] for bit in range(taken, total.bits)]
    if places <= 4:
        coarse = _decoded(high_wires, places)
    else:
        span = f"{total.name}[{total.bits - 1}:{taken}]"
        lines, _ = circuit.table(
            [(span, len(high_wires))],
            lambda numbers: 1 << numbers[0],
            places,
            part=Part.EXPONENT,
            stem="place",
            hard=len(high_wires) <= LUT_INPUTS,
        )
        coarse = tuple((lines[place], 1) for place in range(places))
    return _Shift(
        fine=_stages([total[bit] for bit in range(taken)]),
        fine_limit=min(step - 1, reach + offset),
        coarse=coarse if places > 1 else (),
        offset=offset,
    )


def _decoded(wires: Sequence[str], places: int) -> tuple[tuple[str, int], ...]:
    """Return expressions that are true for one number each."""
    return tuple(
        (
            "("
            + " & ".join(wire if place >> bit & 1 else f"~{wire}" for bit, wire in enumerate(wires))
            + ")",
            len(wires),
        )
        for place in range(places)
    )


def _stages(wires: Sequence[str]) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Split select wires in pairs, lowest first: a four-to-one multiplexer fits one LUT."""
    return tuple((place, tuple(wires[place : place + 2])) for place in range(0, len(wires), 2))


def _fine_shift(
    circuit: Circuit, bus: Bus, select: Sequence[str], place: int, limit: int, product: Factor
) -> Bus:
    """Write one multiplexer stage of the first step."""
    choices = 1 << len(select)
    bits = min(bus.bits + ((choices - 1) << place), product.bits + limit)
    texts = []
    for bit in range(bits):
        sources = [
            _source(bus, bit - (choice << place), signed=product.signed)
            for choice in range(choices)
        ]
        live = {source for source in sources if source != _ZERO.text}
        circuit.count(Part.SHIFT, mux_sites(len(live) + len(select)))
        pairs = [
            f"({select[0]} ? {sources[index + 1]} : {sources[index]})"
            for index in range(0, choices, 2)
        ]
        texts.append(f"({select[1]} ? {pairs[1]} : {pairs[0]})" if len(pairs) > 1 else pairs[0])
    return circuit.wire("shifted", bits, "{" + ", ".join(reversed(texts)) + "}")


def _source(bus: Bus, index: int, *, signed: bool) -> str:
    """Return a bit of a shifted number, zero or a copy of the sign outside of it."""
    if index < 0 or (index >= bus.bits and not signed):
        return _ZERO.text
    return bus[min(index, bus.bits - 1)]


def _coarse(bus: Bus, bits: int, step: int, shift: _Shift, *, signed: bool) -> list[Bit]:
    """Return the bits of the product, each with its sources of the second step."""
    found = []
    for bit in range(shift.offset, bits + shift.offset):
        if not shift.coarse:
            source = _source(bus, bit, signed=signed)
            found.append(Bit(source, int(source != _ZERO.text)))
            continue
        terms, wires, decoders = [], set(), 0
        for place, (select, inputs) in enumerate(shift.coarse):
            source = _source(bus, bit - step * place, signed=signed)
            if source != _ZERO.text:
                terms.append(f"({source} & {select})")
                wires.add(source)
                decoders = inputs if inputs > 1 else decoders + 1
        found.append(Bit(" | ".join(terms) or _ZERO.text, len(wires) + decoders))
    return found
