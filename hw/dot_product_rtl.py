# SPDX-License-Identifier: Apache-2.0
"""Verilog of dot-product units: a product module per unit and a tree of carry-chain adders.

The sign of a sign-magnitude product costs no LUT of its own. The magnitude is complemented
inside the LUTs of the adder that takes it in, and the "+ 1" that completes the negation goes
to the carry input of an adder. There are as many adders as lanes (the tree and the
accumulator), so every lane finds one; sums are exact once all of them have been added.
"""

from lutwise.hw.bounds import code_integers, is_legal, product_range, width_of_range
from lutwise.hw.operand import Operand, ProductStyle, operand_of
from lutwise.hw.ports import Direction, Port
from lutwise.hw.verilog import extend, library, module_text
from lutwise.quant.formats import Format

__all__ = ["write_dot_product"]


def write_dot_product(
    weights: Format,
    activations: Format,
    *,
    lanes: int,
    accumulator_bits: int,
    style: ProductStyle,
    module: str,
) -> str:
    """Write a dot-product unit and all modules that it needs.

    Args:
        weights: Format of the weights.
        activations: Format of the activations.
        lanes: Products per cycle.
        accumulator_bits: Width of the accumulator.
        style: How a product is built.
        module: Name of the top module.
    """
    product = _Product(weights, activations, style)
    w_bits, a_bits = product.w.bits, product.a.bits
    body: list[str] = []
    for lane in range(lanes):
        body.append(f"wire [{product.bits - 1}:0] p{lane};")
        body.append(f"wire n{lane};")
        body.append(
            f"{module}_product u{lane} (.w(w[{lane * w_bits}+:{w_bits}]), "
            f".a(a[{lane * a_bits}+:{a_bits}]), .p(p{lane}), .n(n{lane}));"
        )
    if style is ProductStyle.PLAIN:
        body += _plain_sum(product, lanes, accumulator_bits)
    else:
        body += _tree(product, lanes, accumulator_bits)
    ports = (
        Port(name="clk", bits=1, direction=Direction.INPUT),
        Port(name="rst", bits=1, direction=Direction.INPUT),
        Port(name="w", bits=lanes * w_bits, direction=Direction.INPUT),
        Port(name="a", bits=lanes * a_bits, direction=Direction.INPUT),
        Port(name="acc", bits=accumulator_bits, direction=Direction.OUTPUT),
    )
    return "\n".join(
        [
            library(*product.parts),
            product.text(f"{module}_product"),
            module_text(module, ports, body, registered="acc"),
        ]
    )


class _Product:
    """The module of one product: ``p`` is the number, negated where ``n`` is set."""

    def __init__(self, weights: Format, activations: Format, style: ProductStyle) -> None:
        self.formats = (weights, activations)
        self.w, self.a = operand_of(weights), operand_of(activations)
        self.style = style
        low, high = product_range(weights, activations)
        self.signed = self.w.twos_complement or self.a.twos_complement
        self.negated = self.w.sign_bit or self.a.sign_bit
        self.full_bits = width_of_range(low, high)
        self.never_negative = low >= 0
        self.bits = self.full_bits if self.signed else width_of_range(0, max(-low, high))
        parts = {"lw_add"}
        if style is ProductStyle.TABLE:
            parts.add("lw_table")
        else:
            if self.w.exponent_bits or self.a.exponent_bits:
                parts.add("lw_decode")
            if style is ProductStyle.BOOTH:
                parts.add("lw_booth")
            elif style is ProductStyle.ROWS:
                parts.add("lw_rows")
        self.parts = tuple(sorted(parts))

    def text(self, name: str) -> str:
        """Write the module."""
        ports = (
            Port(name="w", bits=self.w.bits, direction=Direction.INPUT),
            Port(name="a", bits=self.a.bits, direction=Direction.INPUT),
            Port(name="p", bits=self.bits, direction=Direction.OUTPUT),
            Port(name="n", bits=1, direction=Direction.OUTPUT),
        )
        signs = [f"{x}[{o.bits - 1}]" for x, o in (("w", self.w), ("a", self.a)) if o.sign_bit]
        zero = "1'b0"
        body = [f"assign n = {' ^ '.join(signs) if signs else zero};"]
        body += self._table() if self.style is ProductStyle.TABLE else self._arithmetic()
        return module_text(name, ports, body)

    def _table(self) -> list[str]:
        w_bits, a_bits = self.w.magnitude_bits, self.a.magnitude_bits
        w_numbers, a_numbers = (code_integers(fmt) for fmt in self.formats)
        w_legal, a_legal = (is_legal(fmt) for fmt in self.formats)
        inputs = w_bits + a_bits
        tables = [0] * self.bits
        for index in range(1 << inputs):
            w_code, a_code = index & ((1 << w_bits) - 1), index >> w_bits
            if w_legal[w_code] and a_legal[a_code]:
                product = int(w_numbers[w_code]) * int(a_numbers[a_code])
                for bit in range(self.bits):
                    tables[bit] |= ((product >> bit) & 1) << index
        body = [f"wire [{inputs - 1}:0] x = {{a[{a_bits - 1}:0], w[{w_bits - 1}:0]}};"]
        body += [
            f"lw_table #(.N({inputs}), .T({1 << inputs}'h{table:x})) t{bit} (.x(x), .y(p[{bit}]));"
            for bit, table in enumerate(tables)
        ]
        return body

    def _arithmetic(self) -> list[str]:
        body = _decode("w", self.w) + _decode("a", self.a)
        m_bits = self.w.significand_bits + self.a.significand_bits
        if not self.signed and min(self.w.significand_bits, self.a.significand_bits) == 1:
            m_bits = max(self.w.significand_bits, self.a.significand_bits)
        sign = "signed " if self.signed else ""
        body.append(f"wire {sign}[{m_bits - 1}:0] m;")
        body.append(self._significand_product())
        shifted = [(x, o) for x, o in (("w", self.w), ("a", self.a)) if o.max_shift]
        if not shifted:
            body.append("assign p = m;")
        elif self.style is ProductStyle.TWO_SHIFT:
            (first, first_operand), (second, _) = shifted
            q_bits = m_bits + first_operand.max_shift
            body.append(f"wire [{q_bits - 1}:0] q = m << {first}_sh;")
            body.append(f"assign p = q << {second}_sh;")
        else:
            sh_bits = width_of_range(0, sum(o.max_shift for _, o in shifted))
            total = " + ".join(f"{x}_sh" for x, _ in shifted)
            body.append(f"wire [{sh_bits - 1}:0] sh = {total};")
            body.append(f"wire {sign}[{self.bits - 1}:0] wide = m;")
            body.append("assign p = wide << sh;")
        return body

    def _significand_product(self) -> str:
        w, a = self.w, self.a
        if self.style is ProductStyle.BOOTH:
            (x, xo), (b, bo) = ("w", w), ("a", a)
            if _booth_size(xo, bo) > _booth_size(bo, xo):
                (x, xo), (b, bo) = (b, bo), (x, xo)
            return (
                f"lw_booth #(.X({xo.significand_bits}), .X_SIGNED({int(xo.twos_complement)}), "
                f".B({bo.significand_bits}), .B_SIGNED({int(bo.twos_complement)})) "
                f"mul (.x({x}_sig), .b({b}_sig), .p(m));"
            )
        if self.style is ProductStyle.ROWS:
            (x, xo), (b, bo) = ("w", w), ("a", a)
            if xo.significand_bits < bo.significand_bits:
                (x, xo), (b, bo) = (b, bo), (x, xo)
            return (
                f"lw_rows #(.X({xo.significand_bits}), .B({bo.significand_bits})) "
                f"mul (.x({x}_sig), .b({b}_sig), .p(m));"
            )
        return f"assign m = {self._factor('w', w)} * {self._factor('a', a)};"

    def _factor(self, name: str, operand: Operand) -> str:
        if operand.twos_complement:
            return f"$signed({name}_sig)"
        return f"$signed({{1'b0, {name}_sig}})" if self.signed else f"{name}_sig"


def _decode(name: str, operand: Operand) -> list[str]:
    if not operand.exponent_bits:
        return [f"wire [{operand.bits - 1}:0] {name}_sig = {name};"]
    e, m = operand.exponent_bits, operand.mantissa_bits
    return [
        f"wire [{m}:0] {name}_sig;",
        f"wire [{e - 1}:0] {name}_sh;",
        f"lw_decode #(.E({e}), .M({m})) {name}_decode "
        f"(.x({name}[{e + m - 1}:0]), .sig({name}_sig), .sh({name}_sh));",
    ]


def _booth_size(multiplicand: Operand, multiplier: Operand) -> int:
    """Count LUTs of the rows when the operands are used this way round."""
    bits = multiplier.significand_bits
    rows = (bits + 1) // 2 if multiplier.twos_complement else (bits + 2) // 2
    return rows * (multiplicand.significand_bits + 2 + (not multiplicand.twos_complement))


def _plain_sum(product: _Product, lanes: int, accumulator_bits: int) -> list[str]:
    body = []
    for lane in range(lanes):
        term = f"$signed(p{lane})" if product.signed else f"$signed({{1'b0, p{lane}}})"
        body.append(f"wire signed [{accumulator_bits - 1}:0] z{lane} = {term};")
        value = f"n{lane} ? -z{lane} : z{lane}" if product.negated else f"z{lane}"
        body.append(f"wire signed [{accumulator_bits - 1}:0] y{lane} = {value};")
    total = " + ".join(f"y{lane}" for lane in range(lanes))
    body.append(f"always @(posedge clk) if (rst) acc <= 0; else acc <= $signed(acc) + {total};")
    return body


def _tree(product: _Product, lanes: int, accumulator_bits: int) -> list[str]:
    body: list[str] = []
    carries = [f"n{lane}" for lane in range(lanes)] if product.negated else []
    terms: list[tuple[str, int]] = []
    signed = not product.never_negative
    for lane in range(lanes):
        if product.negated:
            bits = product.full_bits
            wide = extend(f"p{lane}", product.bits, signed=product.signed, to=bits)
            body.append(f"wire [{bits - 1}:0] x{lane} = {wide} ^ {{{bits}{{n{lane}}}}};")
            terms.append((f"x{lane}", bits))
        else:
            terms.append((f"p{lane}", product.bits))
    level = 0
    while len(terms) > 1:
        sums = []
        for index in range(0, len(terms) - 1, 2):
            (left, left_bits), (right, right_bits) = terms[index : index + 2]
            bits = min(max(left_bits, right_bits) + 1, accumulator_bits)
            name = f"s{level}_{index // 2}"
            carry = carries.pop(0) if carries else "1'b0"
            body.append(f"wire [{bits - 1}:0] {name};")
            body.append(
                f"lw_add #(.W({bits})) add_{name} "
                f"(.a({extend(left, left_bits, signed=signed, to=bits)}), "
                f".b({extend(right, right_bits, signed=signed, to=bits)}), "
                f".cin({carry}), .y({name}));"
            )
            sums.append((name, bits))
        terms = sums + terms[len(terms) - len(terms) % 2 :]
        level += 1
    (total, bits), carry = terms[0], carries.pop(0) if carries else "1'b0"
    body.append(f"wire [{accumulator_bits - 1}:0] acc_next;")
    body.append(
        f"lw_add #(.W({accumulator_bits})) add_acc "
        f"(.a(acc), .b({extend(total, bits, signed=signed, to=accumulator_bits)}), "
        f".cin({carry}), .y(acc_next));"
    )
    body.append("always @(posedge clk) if (rst) acc <= 0; else acc <= acc_next;")
    return body
