# SPDX-License-Identifier: Apache-2.0
"""From the sum of an output channel to its code, with the numbers of all channels in ROM.

Two forms compute the same ``clamp(round((sum + bias) * multiplier * 2**-shift))``:

- *multiply*: bias adder, multiplier, one rounding, saturation (`lutwise.hw.requantizer`);
- *thresholds*: a binary search among the sums from which on the result rises, one comparison per
  bit of the output; bias and scale are in the thresholds.
"""

from bisect import bisect_right
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from lutwise.errors import ConfigError
from lutwise.hw.bounds import code_integers, legal_codes
from lutwise.hw.output_stage_rtl import OUTPUT_STAGE_PARTS, write_output_stage
from lutwise.hw.requantizer import Requantizer
from lutwise.hw.requantizer_rtl import REQUANTIZER_PARTS
from lutwise.hw.verilog import library
from lutwise.quant.formats import FloatFormat, Format, values
from lutwise.quant.numerics import quantize

__all__ = ["Form", "OutputStage", "form_for", "result_codes"]

_MOST_CONSTANT_RESULTS = 16

_MOST_THRESHOLDS = 960
"""In one lane's ROMs: where both forms take about as many LUTs, at any width of the sums."""


class Form(Enum):
    """How a sum becomes a code."""

    MULTIPLY = "multiply"
    THRESHOLDS = "thresholds"


@dataclass(frozen=True, kw_only=True)
class OutputStage:
    """What follows the accumulator, for all channels of a layer.

    Sums are integers in the accumulator's unit; results are integers in the output's unit.

    Args:
        output: Format of the results.
        bias: Added to the sum, per channel.
        multipliers: Positive integers, per channel.
        shift: Bits dropped after the multiplication.
        low: Least result, in units of the output.
        high: Greatest result, in units of the output.
        lane_channels: Channels that one lane serves in turn, its numbers in ROM; ``None`` for one
            channel whose numbers are constants.
        wanted: The form to build; the one that takes fewer LUTs if ``None``.

    Raises:
        ConfigError: The channels do not match, no result lies between the bounds, or the *multiply*
            form cannot clamp as wanted.
    """

    output: Format
    bias: tuple[int, ...]
    multipliers: tuple[int, ...]
    shift: int
    low: int
    high: int
    lane_channels: int | None = None
    wanted: Form | None = None

    def __post_init__(self) -> None:
        if len(self.bias) != len(self.multipliers) or not self.bias:
            raise ConfigError(
                f"wanted a bias and a multiplier per channel, got {len(self.bias)} and "
                f"{len(self.multipliers)}"
            )
        if min(self.multipliers) < 1 or self.shift < 0:
            raise ConfigError("multipliers are positive and the shift is not negative")
        if len(self.codes) < 2:
            raise ConfigError(f"{self.output} has no two values in {self.low}..{self.high}")
        if self.wanted is Form.MULTIPLY and not self._multiplies:
            raise ConfigError(f"a requantizer to {self.output} does not clamp at {self.low}")

    @property
    def form(self) -> Form:
        """The form wanted, or the one that takes fewer LUTs."""
        if self.wanted is not None:
            return self.wanted
        if not self._multiplies:
            return Form.THRESHOLDS
        return form_for(len(self.codes), self.lane_channels)

    @property
    def _multiplies(self) -> bool:
        """Whether clamping is what a requantizer does: at zero or the format's least number."""
        numbers = code_integers(self.output)[legal_codes(self.output)]
        return self.low in {0, int(min(numbers))}

    @cached_property
    def codes(self) -> tuple[int, ...]:
        """Codes of all results, by ascending result."""
        return result_codes(self.output, self.low, self.high)

    @cached_property
    def thresholds(self) -> tuple[tuple[int, ...], ...]:
        """Per channel the least sum of every result but the first, ascending."""
        numbers = code_integers(self.output)
        grid = [int(numbers[code]) for code in self.codes]
        middles = [Fraction(a + b, 2) for a, b in pairwise(grid)]
        unit = self.output.unit_exponent
        ends = np.array([float(middle) for middle in middles]) * 2.0**unit
        ups = quantize(self.output, ends) * 2.0**-unit
        found = []
        for bias, multiplier in zip(self.bias, self.multipliers, strict=True):
            row = []
            for middle, up, upper in zip(middles, ups, grid[1:], strict=True):
                at = middle * (1 << self.shift) / multiplier
                first = -(-at.numerator // at.denominator)
                if at.denominator == 1 and up != upper:
                    first += 1
                row.append(first - bias)
            found.append(tuple(row))
        return tuple(found)

    def requantizer(self, accumulator_bits: int) -> Requantizer:
        """Return the unit of the *multiply* form, for the sum with its bias.

        Args:
            accumulator_bits: Two's complement width of that sum.

        Raises:
            ConfigError: The output is not clamped as the unit does it.
        """
        if not self._multiplies:
            raise ConfigError(f"a requantizer to {self.output} does not clamp at {self.low}")
        # A unit drops no more bits than its product has.
        bits = max(2, self.shift - accumulator_bits, *(m.bit_length() for m in self.multipliers))
        return Requantizer(
            accumulator_bits=accumulator_bits,
            output=self.output,
            shift=self.shift,
            multiplier_bits=bits,
            relu=self.low == 0,
        )

    def emit(self, accumulator_bits: int, *, module: str = "output_stage") -> str:
        """Write the stage of one output lane that serves all channels in turn.

        Ports: ``acc``, a sum without its bias; ``channel``; ``y``, the code. Combinational.

        Args:
            accumulator_bits: Two's complement width of the sum, and of the sum with its bias.
            module: Name of the module.

        Returns:
            Verilog with all modules that it needs.
        """
        name = f"{module}_requantizer" if self.form is Form.MULTIPLY else None
        parts = [library(*OUTPUT_STAGE_PARTS)]
        if name is not None:
            parts = [library("lw_rom", *REQUANTIZER_PARTS)]
            parts.append(self.requantizer(accumulator_bits).emit_alone(module=name))
        channels = range(len(self.bias))
        text = write_output_stage(
            self, channels, accumulator_bits=accumulator_bits, module=module, requantizer=name
        )
        return "\n".join([*parts, text])

    def model(
        self, sums: npt.NDArray[np.int64], channels: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Return the codes of sums, as the form of the stage gives them.

        Of the two zeros of a minifloat that is the positive one, but where the *multiply* form
        rounds a negative number.

        Args:
            sums: Integers, any shape.
            channels: Of each, the same shape.
        """
        minus_zero = 0
        if self.form is Form.MULTIPLY and isinstance(self.output, FloatFormat) and self.low < 0:
            minus_zero = 1 << (self.output.bits - 1)
        flat = []
        for total, channel in zip(sums.ravel().tolist(), channels.ravel().tolist(), strict=True):
            code = self.codes[bisect_right(self.thresholds[channel], total)]
            negative = code == 0 and total + self.bias[channel] < 0
            flat.append(minus_zero if negative else code)
        return np.array(flat, dtype=np.int64).reshape(sums.shape)


def form_for(results: int, lane_channels: int | None = None) -> Form:
    """Return the form that takes fewer LUTs.

    Thresholds of one more channel or result take a word of ROM each; a requantizer is hardly
    larger for more of them.

    Args:
        results: Different results.
        lane_channels: Channels that share the lane; ``None`` for one whose numbers are constants.
    """
    if lane_channels is None:
        few = results <= _MOST_CONSTANT_RESULTS
    else:
        few = (results - 1) * lane_channels <= _MOST_THRESHOLDS
    return Form.THRESHOLDS if few else Form.MULTIPLY


def result_codes(
    output: Format, low: int | None = None, high: int | None = None
) -> tuple[int, ...]:
    """Return the codes of a format's numbers between two bounds, by ascending number.

    Of two zeros it is the positive one.
    """
    numbers = code_integers(output)
    by_number: dict[int, int] = {}
    for code in legal_codes(output):
        by_number.setdefault(int(numbers[code]), int(code))
    assert len(by_number) == len(values(output))
    first = min(by_number) if low is None else low
    last = max(by_number) if high is None else high
    return tuple(by_number[number] for number in sorted(by_number) if first <= number <= last)
