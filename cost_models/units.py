# SPDX-License-Identifier: Apache-2.0
"""Which dot-product units the library holds."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from lutwise.quant.formats import FloatFormat, Format, IntFormat, parse_element, parse_weight

__all__ = ["LANES", "SWEEP_LANES", "UnitKey", "diagonal_units", "library_units", "weight_formats"]

LANES: Final = (1, 8, 32)
"""Lanes of the units of equal or matching formats."""

SWEEP_LANES: Final = 8
"""Lanes of the units that put a weight format beside 8-bit integers."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class UnitKey:
    """What identifies a unit of the library.

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


def diagonal_units() -> Iterator[UnitKey]:
    """List the units with one format for weights and activations."""
    for fmt in weight_formats():
        for lanes in LANES:
            yield UnitKey(weights=fmt.name, activations=fmt.name, lanes=lanes)


def library_units() -> Iterator[UnitKey]:
    """List all units of the library, each once.

    The diagonal; weights beside unsigned activations of the same width (after a ReLU); and
    weights beside ``int8`` and ``uint8`` activations (first layers, weight-only settings).
    """
    wanted = [
        *diagonal_units(),
        *(
            UnitKey(weights=fmt.name, activations=fmt.as_unsigned().name, lanes=lanes)
            for fmt in weight_formats()
            for lanes in LANES
        ),
        *(
            UnitKey(weights=fmt.name, activations=other, lanes=SWEEP_LANES)
            for other in ("int8", "uint8")
            for fmt in weight_formats()
        ),
    ]
    yield from dict.fromkeys(wanted)
