# SPDX-License-Identifier: Apache-2.0
"""Dot-product units: one parameter object gives ports, exact model and Verilog.

A unit multiplies ``lanes`` weights with as many activations in one cycle and adds the products
to an accumulator that is wide enough for the exact sum of ``length`` products: nothing is ever
rounded. The numbers are integers in units of ``2**unit_exponent``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lutwise.errors import ConfigError
from lutwise.hw.bounds import accumulator_range, exact_integers, product_range, width_of_range
from lutwise.hw.dot_product_rtl import write_dot_product
from lutwise.hw.operand import ProductStyle, applicable_styles
from lutwise.hw.ports import Direction, Port
from lutwise.quant.formats import Format

__all__ = ["DotProduct", "ProductStyle", "applicable_styles"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DotProduct:
    """A multiply-accumulate unit with exact arithmetic.

    Ports: ``clk``; ``rst``, synchronous, clears the accumulator; ``w`` and ``a``, lane 0 in
    the lowest bits; ``acc``, the accumulator register. Each rising edge without ``rst`` adds
    the sum of the lane products: latency one cycle, one new set of operands per cycle.

    Codes that are no number of a format (Inf, NaN, the most negative code of a narrow
    integer) must not be applied: ``model`` refuses them and the circuit's answer is not
    specified.

    Args:
        weights: Format of the weights.
        activations: Format of the activations.
        lanes: Products per cycle.
        length: Products of the longest dot product; sizes the accumulator.
        style: How a product is built.

    Raises:
        ConfigError: Lanes or length out of range, or a style that the formats do not allow.
    """

    weights: Format
    activations: Format
    lanes: int
    length: int = 1024
    style: ProductStyle = ProductStyle.STAR

    def __post_init__(self) -> None:
        if not 1 <= self.lanes <= self.length:
            raise ConfigError(
                f"a unit has 1..length lanes, got {self.lanes} lanes and length {self.length}"
            )
        allowed = applicable_styles(self.weights, self.activations)
        if self.style is not ProductStyle.PLAIN and self.style not in allowed:
            raise ConfigError(
                f"style {self.style.value!r} does not fit {self.weights} x {self.activations}; "
                f"wanted plain or one of {', '.join(style.value for style in allowed)}"
            )

    @property
    def name(self) -> str:
        """Readable identification of the unit."""
        return (
            f"{self.weights.name}x{self.activations.name} lanes={self.lanes} "
            f"length={self.length} style={self.style.value}"
        )

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
        """Whether the accumulator is two's complement: some product can be negative."""
        return product_range(self.weights, self.activations)[0] < 0

    @property
    def accumulator_bits(self) -> int:
        """Width of the exact sum of ``length`` products."""
        return width_of_range(*accumulator_range(self.weights, self.activations, self.length))

    @property
    def ports(self) -> tuple[Port, ...]:
        """Ports of the emitted module, in order."""
        return (
            Port(name="clk", bits=1, direction=Direction.INPUT),
            Port(name="rst", bits=1, direction=Direction.INPUT),
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
            Integers in units of ``2**unit_exponent``, shape (...), dtype object; wrapped to
            the accumulator's width, as the register does (only sums of more than ``length``
            products reach that).

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
        total = (w * a).sum(axis=-1) + np.asarray(accumulator, dtype=object)
        modulus = 1 << self.accumulator_bits
        offset = modulus >> 1 if self.accumulator_signed else 0
        return np.asarray((total + offset) % modulus - offset, dtype=object)

    def emit(self, *, module: str = "dot_product") -> str:
        """Write the unit as Verilog, with all modules that it needs.

        Args:
            module: Name of the top module; also the prefix of its private product module.
        """
        return write_dot_product(
            self.weights,
            self.activations,
            lanes=self.lanes,
            accumulator_bits=self.accumulator_bits,
            style=self.style,
            module=module,
        )
