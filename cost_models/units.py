# SPDX-License-Identifier: Apache-2.0
"""Which dot-product units the library holds."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

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
    "SWEEP_LANES",
    "UnitKey",
    "diagonal_units",
    "held_out_units",
    "library_units",
    "weight_formats",
]

LANES: Final = (1, 8, 32)
"""Lanes of the units of equal or matching formats."""

SWEEP_LANES: Final = 8
"""Lanes of the units that put a weight format beside 8-bit integers."""

_HELD_OUT_SEED: Final = 2026
_HELD_OUT_UNITS: Final = 64


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


def held_out_units() -> Iterator[UnitKey]:
    """List a random sample of pairs outside the library, to judge the formula on.

    Exponents of up to five bits; three units of eight lanes for each of one lane.
    """
    weights = [fmt for fmt in weight_formats() if _narrow_exponent(fmt)]
    activations = [fmt for fmt in all_formats() if _narrow_exponent(fmt)]
    known = {(unit.weights, unit.activations) for unit in library_units()}
    pairs = [
        (w.name, a.name) for w in weights for a in activations if (w.name, a.name) not in known
    ]
    sample = random.Random(_HELD_OUT_SEED).sample(pairs, _HELD_OUT_UNITS)
    for index, (w_name, a_name) in enumerate(sample):
        yield UnitKey(weights=w_name, activations=a_name, lanes=1 if index % 4 == 3 else 8)


def _narrow_exponent(fmt: Format) -> bool:
    return isinstance(fmt, IntFormat) or fmt.exponent_bits <= 5
