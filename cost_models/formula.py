# SPDX-License-Identifier: Apache-2.0
"""LUTs of a dot-product unit from its structure, for format pairs outside the library.

One unit of N lanes costs

    N * (c_mul * mul + c_shift * shift + c_exp * exp + c_sign * sign) + tree + accumulator

where ``mul`` counts the LUTs of the cheapest array for the significands (Booth rows or AND
rows), ``shift`` those of a barrel shifter of radix-4 stages, ``exp`` the bits of exponent
decoding and adding, ``sign`` is 1 with a sign-magnitude operand, and ``tree`` and
``accumulator`` are adder bits at one LUT each, not fitted. Where a truth table of the
magnitudes is cheaper than array, shifter and exponent adder together, it stands in for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from lutwise.errors import ConfigError
from lutwise.hw.bounds import accumulator_range, product_range, width_of_range
from lutwise.hw.operand import Operand, operand_of
from lutwise.quant.formats import Format

__all__ = ["COEFFICIENTS", "Coefficients", "Observation", "Structure", "fit", "structure_of"]

_LENGTH: Final = 1024
_TABLE_INPUTS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """LUTs that the synthesizer needs per counted LUT, by part.

    Args:
        mul: Significand array (below 1: rows share and drop positions).
        shift: Shifter stages.
        exp: Exponent decoding and adding.
        sign: Sign-magnitude handling, LUTs per lane.
    """

    mul: float
    shift: float
    exp: float
    sign: float


COEFFICIENTS: Final = Coefficients(mul=0.953, shift=0.992, exp=0.414, sign=0.808)
"""Fitted on the library (``lutwise.cost_models.library.fit_coefficients``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """Counted parts of a unit, in LUTs; the first four per lane.

    Args:
        mul: Significand array, or the truth table that replaces it.
        shift: Barrel shifter.
        exp: Exponent bits.
        sign: 1 with a sign-magnitude operand.
        adders: Bits of the adder tree and the accumulator, of the whole unit.
        lanes: Products per cycle.
    """

    mul: float
    shift: float
    exp: float
    sign: float
    adders: float
    lanes: int

    def luts(self, coefficients: Coefficients = COEFFICIENTS) -> float:
        """Price the unit."""
        c = coefficients
        lane = c.mul * self.mul + c.shift * self.shift + c.exp * self.exp + c.sign * self.sign
        return self.lanes * lane + self.adders


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A synthesized unit to fit on.

    Args:
        structure: Its counted parts.
        luts: What it took.
    """

    structure: Structure
    luts: float


@cache
def structure_of(weights: Format, activations: Format, lanes: int) -> Structure:
    """Count the parts of a unit whose accumulator holds 1024 products.

    Raises:
        ConfigError: Fewer than one lane.
    """
    if lanes < 1:
        raise ConfigError(f"a unit has at least one lane, got {lanes}")
    w, a = operand_of(weights), operand_of(activations)
    low, high = product_range(weights, activations)
    signed = w.twos_complement or a.twos_complement
    full = width_of_range(low, high)
    magnitude = full if signed else width_of_range(0, max(-low, high))
    shift_range = w.max_shift + a.max_shift
    mul = _array_luts(w, a)
    m_bits = w.significand_bits + a.significand_bits
    if not signed and min(w.significand_bits, a.significand_bits) == 1:
        m_bits -= 1
    shift = _shifter_luts(m_bits, shift_range) if shift_range else 0.0
    exp = float(w.exponent_bits + a.exponent_bits) if shift_range else 0.0
    if w.max_shift and a.max_shift:
        exp += max(w.exponent_bits, a.exponent_bits) + 1
    table = _table_luts(w.magnitude_bits + a.magnitude_bits, magnitude)
    if table is not None and table < mul + shift + exp:
        mul, shift, exp = table, 0.0, 0.0
    accumulator = width_of_range(*accumulator_range(weights, activations, _LENGTH))
    return Structure(
        mul=mul,
        shift=shift,
        exp=exp,
        sign=float(w.sign_bit or a.sign_bit),
        adders=_tree_bits(full, lanes) + accumulator,
        lanes=lanes,
    )


def fit(observations: Sequence[Observation]) -> Coefficients:
    """Fit the four coefficients by least squares on relative errors.

    Raises:
        ConfigError: Fewer than four observations.
    """
    if len(observations) < 4:
        raise ConfigError(f"four coefficients need four units or more, got {len(observations)}")
    parts = np.array(
        [[o.structure.lanes * part for part in _lane_parts(o.structure)] for o in observations]
    )
    rest = np.array([o.luts - o.structure.adders for o in observations])
    weight = 1.0 / np.array([o.luts for o in observations])
    solution, *_ = np.linalg.lstsq(parts * weight[:, None], rest * weight, rcond=None)
    mul, shift, exp, sign = (float(value) for value in solution)
    return Coefficients(mul=mul, shift=shift, exp=exp, sign=sign)


def _lane_parts(structure: Structure) -> tuple[float, float, float, float]:
    return structure.mul, structure.shift, structure.exp, structure.sign


def _array_luts(w: Operand, a: Operand) -> float:
    """Count the LUTs of the cheapest array that multiplies the significands."""
    narrow, wide = sorted((w.significand_bits, a.significand_bits))
    if narrow == 1:
        # Gating a two's complement operand does not fit the LUTs of the adder behind it.
        return float(wide) if w.twos_complement or a.twos_complement else 0.0
    choices = [_booth_luts(w, a), _booth_luts(a, w)]
    for multiplicand, multiplier in ((w, a), (a, w)):
        if not multiplier.twos_complement:
            rows = multiplier.significand_bits - 1
            choices.append(rows * (multiplicand.significand_bits + 1))
    return float(min(choices))


def _booth_luts(multiplicand: Operand, multiplier: Operand) -> int:
    bits = multiplier.significand_bits
    rows = (bits + 1) // 2 if multiplier.twos_complement else (bits + 2) // 2
    return rows * (multiplicand.significand_bits + 2 + (not multiplicand.twos_complement)) - 1


def _shifter_luts(bits: int, shift_range: int) -> float:
    """Count a left barrel shifter of 4:1 stages; a bit with one live input costs half a LUT."""
    width, step, left, luts = bits, 1, shift_range.bit_length(), 0.0
    while left > 0:
        taken = min(2, left)
        choices = 1 << taken
        out = min(width + step * (choices - 1), bits + shift_range)
        for position in range(out):
            live = sum(0 <= position - choice * step < width for choice in range(choices))
            luts += 0.5 if taken == 1 or live <= 1 else 1.0
        width, step, left = out, step * choices, left - taken
    return luts


def _table_luts(inputs: int, outputs: int) -> float | None:
    """Count a truth table: two outputs per LUT up to five inputs, then 1, 2, 4 LUTs each."""
    if inputs > _TABLE_INPUTS:
        return None
    return outputs * (0.5 if inputs <= 5 else float(1 << (inputs - 6)))


def _tree_bits(term_bits: int, lanes: int) -> int:
    """Count the bits of a binary adder tree."""
    terms, total = [term_bits] * lanes, 0
    while len(terms) > 1:
        sums = [max(terms[i : i + 2]) + 1 for i in range(0, len(terms) - 1, 2)]
        total += sum(sums)
        terms = sums + terms[len(terms) - len(terms) % 2 :]
    return total
