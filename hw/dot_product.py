# SPDX-License-Identifier: Apache-2.0
"""Dot-product units: one parameter object gives ports, exact model and Verilog.

A unit multiplies ``lanes`` weights with as many activations in one cycle and adds the products
to an accumulator that is wide enough for the exact sum of ``length`` products: nothing is ever
rounded. The numbers are integers in units of ``2**unit_exponent``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lutwise.errors import ConfigError
from lutwise.hw.architecture import Architecture, Kind, architectures, as_magnitude
from lutwise.hw.bounds import (
    accumulator_range,
    code_integers,
    exact_integers,
    product_range,
    width_of_range,
)
from lutwise.hw.circuit import Part
from lutwise.hw.dot_product_rtl import Emitted, write_dot_product
from lutwise.hw.ports import Direction, Port
from lutwise.quant.formats import Format

__all__ = [
    "LENGTH",
    "MOST_ACCUMULATOR_BITS",
    "DotProduct",
    "counted_sites",
    "smallest_architecture",
    "smallest_units",
]

LENGTH: Final = 1024
"""Products of the longest dot product, where nobody says otherwise; sizes the accumulators."""

MOST_ACCUMULATOR_BITS: Final = 64
"""Wider accumulators are refused: nothing that runs a network holds such sums."""

_MOST_CANDIDATES: Final = 3
_CANDIDATE_MARGIN: Final = 1.04


@dataclass(frozen=True, slots=True, kw_only=True)
class DotProduct:
    """A multiply-accumulate unit with exact arithmetic.

    Ports: ``clk``; ``rst``, synchronous, clears the accumulator; ``w`` and ``a``, lane 0 in
    the lowest bits; ``acc``, the accumulator register. Each rising edge without ``rst`` adds
    the sum of the lane products: latency one cycle, one new set of operands per cycle. With
    ``pipeline`` operands and ``rst`` take effect one cycle later.

    Codes that are no number of a format (Inf, NaN, the most negative code of a narrow
    integer) must not be applied: ``model`` refuses them and the circuit's answer is not
    specified.

    Args:
        weights: Format of the weights.
        activations: Format of the activations.
        lanes: Products per cycle.
        architecture: How products are built.
        length: Products of the longest dot product; sizes the accumulator.
        bounds: Least and greatest sum, where more is known than formats and length.
        restart: Instead of ``rst`` the unit has ``ce``, without which it stands still, ``take``,
            without which operands do not count, and ``first``, with which the sum begins anew
            with the operands of that cycle.
        pipeline: Registers in front of the accumulator: a latency of two cycles and a shorter
            longest path; still one new set of operands per cycle.

    Raises:
        ConfigError: Lanes or length out of range, an architecture that the formats do not
            allow, or an accumulator of more than ``MOST_ACCUMULATOR_BITS``.
    """

    weights: Format
    activations: Format
    lanes: int
    architecture: Architecture
    length: int = LENGTH
    bounds: tuple[int, int] | None = None
    restart: bool = False
    pipeline: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.lanes <= self.length:
            raise ConfigError(
                f"a unit has 1..length lanes, got {self.lanes} lanes and length {self.length}"
            )
        allowed = architectures(self.weights, self.activations)
        if self.architecture.kind is not Kind.PLAIN and self.architecture not in allowed:
            raise ConfigError(
                f"architecture {self.architecture} does not fit {self.weights} x "
                f"{self.activations}; wanted plain or one of "
                f"{', '.join(str(architecture) for architecture in allowed)}"
            )
        if self.architecture.kind is Kind.PLAIN and (self.restart or self.pipeline):
            raise ConfigError("the plain unit is a reference: it has neither restart nor pipeline")
        if self.accumulator_bits > MOST_ACCUMULATOR_BITS:
            raise ConfigError(
                f"the sum of {self.length} products of {self.weights} x {self.activations} "
                f"takes {self.accumulator_bits} bits, a unit has {MOST_ACCUMULATOR_BITS} at "
                "most; give fewer products, tighter bounds or formats with less exponent"
            )

    @property
    def name(self) -> str:
        """Readable identification of the unit."""
        return (
            f"{self.weights.name}x{self.activations.name} lanes={self.lanes} "
            f"acc={self.accumulator_bits} {self.architecture}"
            f"{' restart' if self.restart else ''}{' pipeline' if self.pipeline else ''}"
        )

    @property
    def latency(self) -> int:
        """Clock edges from operands to the accumulator that holds them."""
        return 2 if self.pipeline else 1

    @property
    def unit_exponent(self) -> int:
        """Power of two that one step of the accumulator is worth."""
        return self.weights.unit_exponent + self.activations.unit_exponent

    @property
    def product_bits(self) -> int:
        """Width of one exact product."""
        return width_of_range(*product_range(self.weights, self.activations))

    @property
    def accumulator_signed(self) -> bool:
        """Whether the accumulator is two's complement: some sum can be negative."""
        return self._range[0] < 0

    @property
    def accumulator_bits(self) -> int:
        """Width of the exact sum of ``length`` products, or of the given bounds."""
        return width_of_range(*self._range)

    @property
    def _range(self) -> tuple[int, int]:
        return self.bounds or accumulator_range(self.weights, self.activations, self.length)

    @property
    def ports(self) -> tuple[Port, ...]:
        """Ports of the emitted module, in order."""
        control = ("ce", "take", "first") if self.restart else ("rst",)
        return (
            Port(name="clk", bits=1, direction=Direction.INPUT),
            *(Port(name=name, bits=1, direction=Direction.INPUT) for name in control),
            Port(name="w", bits=self.lanes * self.weights.bits, direction=Direction.INPUT),
            Port(name="a", bits=self.lanes * self.activations.bits, direction=Direction.INPUT),
            Port(
                name="acc",
                bits=self.accumulator_bits,
                direction=Direction.OUTPUT,
                signed=self.accumulator_signed,
            ),
        )

    def model(
        self,
        weight_codes: npt.ArrayLike,
        activation_codes: npt.ArrayLike,
        *,
        accumulator: npt.ArrayLike = 0,
    ) -> npt.NDArray[Any]:
        """Compute what the accumulator holds after one cycle.

        Args:
            weight_codes: Bit patterns, shape (..., lanes).
            activation_codes: Bit patterns, shape (..., lanes).
            accumulator: What it held before, as integers, shape (...) or scalar.

        Returns:
            Integers in units of ``2**unit_exponent``, shape (...), int64 or, for accumulators
            of more than 62 bits, object; wrapped to the accumulator's width, as the register
            does (only sums of more than ``length`` products reach that).

        Raises:
            ConfigError: The last axis does not have ``lanes`` entries.
            FormatError: A code is not a number of its format.
        """
        w = exact_integers(self.weights, weight_codes)
        a = exact_integers(self.activations, activation_codes)
        for label, found in (("weights", w), ("activations", a)):
            if found.ndim == 0 or found.shape[-1] != self.lanes:
                raise ConfigError(
                    f"wanted {label} of shape (..., {self.lanes}), got shape {found.shape}"
                )
        modulus = 1 << self.accumulator_bits
        if self.accumulator_bits <= 62:
            # The remainder is all that counts, and words of 64 bits wrap around without harm to it.
            w, a = ((found % modulus).astype(np.int64) for found in (w, a))
        total = (w * a).sum(axis=-1) + np.asarray(accumulator, dtype=w.dtype)
        offset = modulus >> 1 if self.accumulator_signed else 0
        return np.asarray((total + offset) % modulus - offset, dtype=w.dtype)

    def weight_bits(self, weight_codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return what the port ``w`` wants for codes of the weights' format, same shape.

        These are the codes, but for architectures that store integers as sign and magnitude.
        """
        recoded = as_magnitude(self.weights) if self.architecture.magnitude else None
        if recoded is None:
            return weight_codes
        numbers = code_integers(self.weights)[weight_codes].astype(np.int64)
        found: npt.NDArray[np.int64] = np.abs(numbers) | (numbers < 0) << (recoded.bits - 1)
        return found

    def emit(self, *, module: str = "dot_product") -> str:
        """Write the unit as Verilog, with all modules that it needs.

        Args:
            module: Name of the module.
        """
        return self._emitted(module).text

    def counted_sites(self) -> dict[Part, float]:
        """Count what LUT sites each part should take, from the structure alone."""
        return self._emitted("dot_product").sites

    def _emitted(self, module: str) -> Emitted:
        return write_dot_product(
            self.weights,
            self.activations,
            ports=self.ports,
            lanes=self.lanes,
            accumulator_bits=self.accumulator_bits,
            architecture=self.architecture,
            restart=self.restart,
            pipeline=self.pipeline,
            module=module,
        )


def smallest_units(
    weights: Format,
    activations: Format,
    lanes: int,
    *,
    length: int = LENGTH,
    most: int = _MOST_CANDIDATES,
) -> tuple[DotProduct, ...]:
    """Return the units worth building: those with the fewest counted sites, best first.

    A count is not synthesis, so units that come within 4 % of the best count are returned too.

    Args:
        weights: Format of the weights.
        activations: Format of the activations.
        lanes: Products per cycle.
        length: Products of the longest dot product.
        most: Units to return at most.

    Raises:
        ConfigError: As ``DotProduct``.
    """
    units = [
        DotProduct(
            weights=weights,
            activations=activations,
            lanes=lanes,
            length=length,
            architecture=architecture,
        )
        for architecture in architectures(weights, activations)
    ]
    counted = sorted((sum(unit.counted_sites().values()), at) for at, unit in enumerate(units))
    limit = counted[0][0] * _CANDIDATE_MARGIN
    return tuple(units[at] for sites, at in counted[:most] if sites <= limit)


@cache
def counted_sites(
    weights: Format, activations: Format, lanes: int, architecture: Architecture
) -> Mapping[Part, float]:
    """Count the sites of a unit for 1024 products, with an accumulator of any width.

    Args:
        weights: Format of the weights.
        activations: Format of the activations.
        lanes: Products per cycle.
        architecture: How products are built.

    Raises:
        ConfigError: Fewer than one lane.
    """
    if lanes < 1:
        raise ConfigError(f"a unit has at least one lane, got {lanes}")
    # The unit itself would refuse accumulators of more than 64 bits, which still have a price.
    return write_dot_product(
        weights,
        activations,
        ports=(),
        lanes=lanes,
        accumulator_bits=width_of_range(*accumulator_range(weights, activations, LENGTH)),
        architecture=architecture,
        restart=False,
        pipeline=False,
        module="counted",
    ).sites


@cache
def smallest_architecture(weights: Format, activations: Format, lanes: int) -> Architecture:
    """Return the architecture with the fewest counted sites.

    Args:
        weights: Format of the weights.
        activations: Format of the activations.
        lanes: Products per cycle.
    """
    return min(
        architectures(weights, activations),
        key=lambda one: sum(counted_sites(weights, activations, lanes, one).values()),
    )
