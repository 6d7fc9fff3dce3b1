# SPDX-License-Identifier: Apache-2.0
"""Verilog of requantizers: Booth multiplier, one rounding adder, saturation."""

from typing import Final

from lutwise.hw.bounds import code_integers, legal_codes
from lutwise.hw.multiplier import booth_rows
from lutwise.hw.ports import Direction, Port
from lutwise.hw.verilog import extend, module_text
from lutwise.quant.formats import FloatFormat, Format, IntFormat

__all__ = ["REQUANTIZER_PARTS", "write_requantizer"]

REQUANTIZER_PARTS: Final = ("lw_add", "lw_booth")
"""Modules of the library that a requantizer needs."""

_ZERO = "1'b0"


def write_requantizer(
    output: Format,
    *,
    accumulator_bits: int,
    multiplier_bits: int,
    shift: int,
    never_negative: bool,
    module: str,
) -> str:
    """Write a requantizer, without ``REQUANTIZER_PARTS``.

    Args:
        output: Format of the result.
        accumulator_bits: Width of the accumulator.
        multiplier_bits: Width of the multiplier.
        shift: Bits dropped after the multiplication.
        never_negative: Whether negative numbers become zero.
        module: Name of the module.
    """
    magnitude = never_negative or isinstance(output, FloatFormat)
    body = [f"wire s = acc[{accumulator_bits - 1}];"]
    if not magnitude:
        factor, factor_bits = "acc", accumulator_bits
    elif never_negative:
        factor, factor_bits = f"acc[{accumulator_bits - 2}:0]", accumulator_bits - 1
    else:
        factor, factor_bits = "absolute", accumulator_bits
        body += [
            f"wire [{factor_bits - 1}:0] absolute;",
            f"lw_add #(.W({factor_bits})) negate (.a({factor_bits}'d0), "
            f".b(acc ^ {{{factor_bits}{{s}}}}), .cin(s), .y(absolute));",
        ]
    p_bits = factor_bits + multiplier_bits
    body.append(f"wire [{p_bits - 1}:0] p;")
    body.append(_multiply(factor, factor_bits, multiplier_bits, factor_signed=not magnitude))
    if isinstance(output, IntFormat):
        body += _round_integer(
            output, p_bits, shift, signed=not magnitude, never_negative=never_negative
        )
    else:
        body += _round_minifloat(output, p_bits, shift, never_negative=never_negative)
    ports = (
        Port(name="acc", bits=accumulator_bits, direction=Direction.INPUT),
        Port(name="m", bits=multiplier_bits, direction=Direction.INPUT),
        Port(name="y", bits=output.bits, direction=Direction.OUTPUT),
    )
    return module_text(module, ports, body)


def _multiply(factor: str, bits: int, multiplier_bits: int, *, factor_signed: bool) -> str:
    """Write the product, with the operand that makes fewer rows as the Booth multiplier."""
    s = int(factor_signed)
    factor_rows = booth_rows(bits, signed=factor_signed) * (multiplier_bits + 3)
    multiplier_rows = booth_rows(multiplier_bits, signed=False) * (bits + 2 + (1 - s))
    if multiplier_rows <= factor_rows:
        return (
            f"lw_booth #(.X({bits}), .X_SIGNED({s}), .B({multiplier_bits}), .B_SIGNED(0)) "
            f"mul (.x({factor}), .b(m), .p(p));"
        )
    return (
        f"lw_booth #(.X({multiplier_bits}), .X_SIGNED(0), .B({bits}), .B_SIGNED({s})) "
        f"mul (.x(m), .b({factor}), .p(p));"
    )


def _bit(index: int, bits: int, above: str) -> str:
    if index < 0:
        return _ZERO
    return f"p[{index}]" if index < bits else above


def _any(high: int, bits: int) -> str:
    """Write whether any of the bits 0..high is set."""
    return _ZERO if high < 0 else f"|p[{min(high, bits - 1)}:0]"


def _round_integer(
    output: IntFormat, p_bits: int, shift: int, *, signed: bool, never_negative: bool
) -> list[str]:
    above = f"p[{p_bits - 1}]" if signed else _ZERO
    kept = max(1, p_bits - shift)
    floor = [_bit(shift + index, p_bits, above) for index in reversed(range(kept))]
    sticky = f"({_any(shift - 2, p_bits)})"
    q_bits = kept + 1
    body = [
        f"wire [{kept - 1}:0] floor_p = {{{', '.join(floor)}}};",
        f"wire up = {_bit(shift - 1, p_bits, above)} & ({sticky} | floor_p[0]);",
        f"wire [{q_bits - 1}:0] q;",
        f"lw_add #(.W({q_bits})) round "
        f"(.a({extend('floor_p', kept, signed=signed, to=q_bits)}), .b({q_bits}'d0), "
        ".cin(up), .y(q));",
    ]
    n = output.bits
    numbers = code_integers(output)[legal_codes(output)]
    high = int(max(numbers))
    value_bits = high.bit_length()
    if signed:
        low = int(min(numbers)) & ((1 << n) - 1)
        wide = extend("q", q_bits, signed=True, to=max(n, q_bits))
        total = max(n, q_bits)
        body.append(f"wire [{total - 1}:0] r = {wide};")
        body.append(f"wire negative = r[{total - 1}];")
        body.append(f"wire over = r[{total - 1}:{n - 1}] != {{{total - n + 1}{{negative}}}};")
        if output.narrow:
            body.append(f"wire least = negative & (r[{n - 1}:0] == {n}'d{1 << (n - 1)});")
        else:
            body.append("wire least = 1'b0;")
        body.append(
            f"assign y = (over | least) ? (negative ? {n}'d{low} : {n}'d{high}) : r[{n - 1}:0];"
        )
        return body
    beyond = f"|q[{q_bits - 1}:{value_bits}]" if q_bits > value_bits else _ZERO
    body.append(f"wire over = {beyond};")
    value = f"(over ? {n}'d{high} : {extend('q', q_bits, signed=False, to=n)})"
    body.append(f"assign y = s ? {n}'d0 : {value};" if never_negative else f"assign y = {value};")
    return body


def _round_minifloat(
    output: FloatFormat, p_bits: int, shift: int, *, never_negative: bool
) -> list[str]:
    """Write leading-one detection, rounding and saturation of the magnitude ``p``."""
    e_bits, m_bits = output.exponent_bits, output.mantissa_bits
    numbers = code_integers(output)
    largest = int(max(legal_codes(output), key=lambda index: int(numbers[index])))
    top = largest >> m_bits
    body = [
        f"reg [{e_bits - 1}:0] e;",
        f"reg [{m_bits}:0] sig;",
        "reg guard;",
        "reg sticky;",
        "always @* begin",
    ]
    branch = ""
    for exponent in range(top, 0, -1):
        low = shift + exponent - 1
        lead = low + m_bits
        if exponent > 1 and lead >= p_bits:
            continue
        if exponent == 1:
            condition = "else " if branch else ""
        elif exponent == top:
            condition = f"if (|p[{p_bits - 1}:{lead}]) "
        else:
            condition = f"{branch}if (p[{lead}]) "
        sig = ", ".join(_bit(low + index, p_bits, _ZERO) for index in range(m_bits, -1, -1))
        body.append(
            f"  {condition}begin e = {e_bits}'d{exponent}; sig = {{{sig}}}; "
            f"guard = {_bit(low - 1, p_bits, _ZERO)}; sticky = {_any(low - 2, p_bits)}; end"
        )
        branch = "else "
    width = e_bits + m_bits
    fraction = f", sig[{m_bits - 1}:0]" if m_bits else ""
    high_field = f"e[{e_bits - 1}:1], " if e_bits > 1 else ""
    beyond_bit = shift + top + m_bits
    beyond = f"|p[{p_bits - 1}:{beyond_bit}]" if beyond_bit < p_bits else _ZERO
    code = f"over ? {width}'d{largest & ((1 << width) - 1)} : rounded[{width - 1}:0]"
    if output.signed:
        code = f"s ? {width + 1}'d0 : {{1'b0, {code}}}" if never_negative else f"{{s, {code}}}"
    elif never_negative:
        code = f"s ? {width}'d0 : ({code})"
    body += [
        "end",
        f"wire [{width - 1}:0] code = {{{high_field}e[0] & sig[{m_bits}]{fraction}}};",
        f"wire [{width}:0] rounded;",
        f"lw_add #(.W({width + 1})) round (.a({{1'b0, code}}), .b({width + 1}'d0), "
        ".cin(guard & (sticky | sig[0])), .y(rounded));",
        f"wire over = ({beyond}) | (rounded > {width + 1}'d{largest});",
        f"assign y = {code};",
    ]
    return body
