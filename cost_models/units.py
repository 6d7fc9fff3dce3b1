# SPDX-License-Identifier: Apache-2.0
"""Which dot-product units the atlas holds."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from lutwise.hw.bounds import accumulator_range, width_of_range
from lutwise.hw.dot_product import LENGTH, MOST_ACCUMULATOR_BITS
from lutwise.quant.formats import (
    FloatFormat,
    Format,
    IntFormat,
    all_formats,
    parse_element,
    parse_weight,
)

__all__ = [
    "LANES",
    "LENGTH",
    "UnitKey",
    "activation_formats",
    "atlas_units",
    "diagonal_units",
    "one_format",
    "weight_formats",
]

LANES: Final = (1, 8, 32)
"""Lanes of the units of the atlas."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class UnitKey:
    """What identifies a unit of the atlas.

    Args:
        weights: Spelling of the weights' format; signed integers have the narrow range.
        activations: Spelling of the activations' format.
        lanes: Products per cycle.
    """

    weights: str
    activations: str
    lanes: int

    @property
    def weight_format(self) -> Format:
        """Format of the weights."""
        return parse_weight(self.weights)

    @property
    def activation_format(self) -> Format:
        """Format of the activations."""
        return parse_element(self.activations)


def weight_formats() -> tuple[Format, ...]:
    """List the formats that weights can have: signed, 2 to 8 bits, and OCP FP8."""
    found: list[Format] = [IntFormat(bits=bits, narrow=True) for bits in range(2, 9)]
    for bits in range(2, 9):
        found += [FloatFormat(exponent_bits=e, mantissa_bits=bits - 1 - e) for e in range(1, bits)]
    return (*found, parse_element("fp8_e4m3"), parse_element("fp8_e5m2"))


def activation_formats() -> tuple[Format, ...]:
    """List the formats that activations can have: 2 to 8 bits, signed and not, and OCP FP8."""
    return (*all_formats(), parse_element("fp8_e4m3"), parse_element("fp8_e5m2"))


def diagonal_units() -> Iterator[UnitKey]:
    """List the units with one format for weights and activations."""
    for fmt in weight_formats():
        if _fits(fmt, fmt):
            for lanes in LANES:
                yield UnitKey(weights=fmt.name, activations=fmt.name, lanes=lanes)


def atlas_units() -> Iterator[UnitKey]:
    """List all units of the atlas: every pair of formats whose sums a unit can hold."""
    for lanes in (8, 1, 32):
        for weights in weight_formats():
            for activations in activation_formats():
                if _fits(weights, activations):
                    yield UnitKey(weights=weights.name, activations=activations.name, lanes=lanes)


def one_format(weights: Format, activations: Format) -> bool:
    """Tell whether activations have the weights' format, or the unsigned one of its width."""
    return activations.name in {weights.name, weights.as_unsigned().name}


def _fits(weights: Format, activations: Format) -> bool:
    bounds = accumulator_range(weights, activations, LENGTH)
    return width_of_range(*bounds) <= MOST_ACCUMULATOR_BITS
