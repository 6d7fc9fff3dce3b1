# SPDX-License-Identifier: Apache-2.0
"""LUTs of a dot-product unit from its structure, for units outside the atlas.

A unit costs

    multiply * c_multiply + shift * c_shift + exponent * c_exponent + sign * c_sign + add

where the five terms are LUT sites that ``lutwise.hw`` counts while it writes the unit's Verilog,
before any synthesis. A coefficient is what the synthesizer makes of a counted site: below 1 it
finds functions that the count did not merge, above 1 it misses some. Adders are their exact
widths at one LUT per bit and have no coefficient. Of the architectures that fit the formats the
one with the lowest price counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from lutwise.errors import ConfigError
from lutwise.hw.architecture import Architecture, architectures
from lutwise.hw.circuit import Part
from lutwise.hw.dot_product import counted_sites
from lutwise.quant.formats import Format

__all__ = [
    "COEFFICIENTS",
    "COUNTED",
    "Coefficients",
    "Observation",
    "counted_sites",
    "fit",
    "formula_luts",
]

_CHOICE_LANES: Final = 8
"""The best architecture of a wider unit is that of this one: 2.6 % more sites at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """LUTs that the synthesizer needs per counted LUT site, by part.

    Args:
        multiply: Products of significands, and tables of products.
        shift: Moving products.
        exponent: Reading and adding exponents.
        sign: Signs of sign-magnitude products.
    """

    multiply: float
    shift: float
    exponent: float
    sign: float

    def luts(self, sites: Mapping[Part, float]) -> float:
        """Price a unit with so many counted sites."""
        return (
            self.multiply * sites[Part.MULTIPLY]
            + self.shift * sites[Part.SHIFT]
            + self.exponent * sites[Part.EXPONENT]
            + self.sign * sites[Part.SIGN]
            + sites[Part.ADD]
        )


COUNTED: Final = Coefficients(multiply=1.0, shift=1.0, exponent=1.0, sign=1.0)
"""Counted sites as they are: nothing fitted."""

COEFFICIENTS: Final = Coefficients(multiply=0.969, shift=1.018, exponent=1.030, sign=1.560)
"""Fitted on a part of the atlas (``lutwise.cost_models.library.fit_coefficients``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A synthesized unit to fit on.

    Args:
        sites: Its counted sites.
        luts: What it took.
    """

    sites: Mapping[Part, float]
    luts: float


@cache
def formula_luts(
    weights: Format,
    activations: Format,
    lanes: int,
    coefficients: Coefficients = COEFFICIENTS,
) -> float:
    """Price a unit whose accumulator holds 1024 products, in LUT sites of the whole unit.

    Args:
        weights: Format of the weights.
        activations: Format of the activations.
        lanes: Products per cycle.
        coefficients: What a counted site costs.

    Raises:
        ConfigError: Fewer than one lane.
    """

    def luts(architecture: Architecture, lanes: int) -> float:
        return coefficients.luts(counted_sites(weights, activations, lanes, architecture))

    few = min(lanes, _CHOICE_LANES)
    best = min(architectures(weights, activations), key=lambda one: luts(one, few))
    return luts(best, lanes)


def fit(observations: Sequence[Observation]) -> Coefficients:
    """Fit the four coefficients by least squares on relative errors.

    Raises:
        ConfigError: Fewer than four observations.
    """
    if len(observations) < 4:
        raise ConfigError(f"four coefficients need four units or more, got {len(observations)}")
    parts = (Part.MULTIPLY, Part.SHIFT, Part.EXPONENT, Part.SIGN)
    sites = np.array([[o.sites[part] for part in parts] for o in observations])
    luts = np.array([o.luts for o in observations])
    rest = luts - np.array([o.sites[Part.ADD] for o in observations])
    solution, *_ = np.linalg.lstsq(sites / luts[:, None], rest / luts, rcond=None)
    multiply, shift, exponent, sign = (float(value) for value in solution)
    return Coefficients(multiply=multiply, shift=shift, exponent=exponent, sign=sign)
