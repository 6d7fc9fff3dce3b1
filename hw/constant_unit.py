# SPDX-License-Identifier: Apache-2.0
"""Fully unrolled layers with their weights built in: all outputs of a vector at once.

Weights that never change cost no memory and no multiplier: each is a few shifted copies of its
input (`lutwise.hw.constant_terms`), and an output is the sum of their bits
(`lutwise.hw.constant_heap`). A unit takes one vector per cycle.
"""

from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from lutwise.errors import ConfigError
from lutwise.hw.bounds import weight_bounded_range
from lutwise.hw.constant_number import number_range
from lutwise.hw.constant_rtl import ConstantEmitted, ConstantSites, write_constant_unit
from lutwise.hw.constant_terms import Terms, terms_of
from lutwise.hw.ports import Direction, Port
from lutwise.hw.weighted_layer import WeightedLayer

__all__ = ["ConstantUnit", "Registers"]


class Registers(Enum):
    """Where a unit has registers."""

    NONE = "none"
    """Nowhere: the unit is combinational and has no clock."""

    OUTPUT = "output"
    """At the results."""

    STAGES = "stages"
    """Behind every step: numbers of minifloats, shared sums, each stage of the sums, results."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ConstantUnit(WeightedLayer):
    """A layer as a circuit without memory.

    Ports: ``clk`` where there are registers; ``a``, the codes of a vector, group by group, input 0
    in the lowest bits; ``y``, the results, channel 0 in the lowest bits. Results appear
    ``latency`` rising edges after their vector, and every cycle may bring a new vector.

    Codes that are no number of their format (Inf, NaN, the most negative code of a narrow
    integer) must not be applied: ``model`` refuses them and the circuit's answer is not
    specified.

    Args, beside those of ``WeightedLayer``:
        registers: Where there are registers.
        share: Whether sums that several outputs need are made once.

    Raises:
        ConfigError: A size is out of range, sizes contradict each other, or a sum does not fit.
        FormatError: A weight's code is not a number of its format.
    """

    registers: Registers = Registers.NONE
    share: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        reach = 1 << (self.accumulator_bits - 1)
        for channel, (low, high) in enumerate(self.sum_ranges):
            added = self.added(channel)
            if low + min(added, 0) < -reach or high + max(added, 0) >= reach:
                raise ConfigError(
                    f"unit {self.name!r}: channel {channel} has sums {low}..{high} and a bias of "
                    f"{added}, which {self.accumulator_bits} bits do not hold"
                )

    @property
    def interval(self) -> int:
        """Cycles from one vector to the next."""
        return 1

    @property
    def latency(self) -> int:
        """Rising edges from a vector to its results."""
        return self._emitted.latency

    @property
    def ports(self) -> tuple[Port, ...]:
        """Ports of the emitted module, in order."""
        clock = Port(name="clk", bits=1, direction=Direction.INPUT)
        return (
            *([] if self.registers is Registers.NONE else [clock]),
            Port(
                name="a",
                bits=self.groups * self.products * self.activations.bits,
                direction=Direction.INPUT,
            ),
            Port(name="y", bits=self.channels * self.output_bits, direction=Direction.OUTPUT),
        )

    @cached_property
    def sum_ranges(self) -> tuple[tuple[int, int], ...]:
        """Least and greatest sum per channel, without bias."""
        rows = self.weight_integers.reshape(self.channels, self.products)
        return tuple(weight_bounded_range(row, self.activations) for row in rows)

    def added(self, channel: int) -> int:
        """Return the bias of a channel, in units of the accumulator."""
        return (self.stage.bias if self.stage else self.bias)[channel]

    def biased_range(self, channel: int) -> tuple[int, int]:
        """Return the least and the greatest sum of a channel with its bias."""
        low, high = self.sum_ranges[channel]
        return low + self.added(channel), high + self.added(channel)

    @cached_property
    def terms(self) -> tuple[Terms, ...]:
        """What is added up, per group."""
        ranges = [number_range(self.activations)] * self.products
        return tuple(terms_of(matrix, ranges, share=self.share) for matrix in self.weight_integers)

    def emit(self) -> str:
        """Write the unit as Verilog, with all modules that it needs."""
        return self._emitted.text

    def counted_sites(self) -> ConstantSites:
        """Count what LUT sites each part should take, from the structure alone."""
        return self._emitted.sites

    def input_words(self, vectors: npt.NDArray[np.int64]) -> list[int]:
        """Return what the port ``a`` wants for vectors as ``model`` takes them."""
        bits = self.activations.bits
        flat = vectors.reshape(len(vectors), -1)
        return [sum(int(c) << (bits * lane) for lane, c in enumerate(row)) for row in flat]

    def results(self, words: list[int]) -> npt.NDArray[np.int64]:
        """Return what words of the port ``y`` say, as ``model`` does."""
        bits = self.output_bits
        mask = (1 << bits) - 1
        found = np.array(
            [[word >> (bits * lane) & mask for lane in range(self.channels)] for word in words],
            dtype=np.int64,
        ).reshape(-1, self.channels)
        return found if self.stage else found - ((found >> (bits - 1)) << bits)

    @cached_property
    def _emitted(self) -> ConstantEmitted:
        return write_constant_unit(self)
