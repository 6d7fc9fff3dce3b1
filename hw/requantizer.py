# SPDX-License-Identifier: Apache-2.0
"""Requantizers: from an exact accumulator to a code of the next layer's format.

A requantizer computes ``round(acc * m / 2**shift)`` in units of the output format and
saturates. It rounds once, half to even; for minifloats "even" is about the significand in units
of the last place of ``|x|``'s binade. Without mantissa bits every normal significand is 1, so a
tie between ``2**k`` and ``2**(k+1)`` always goes up, and the tie below the smallest number goes
to zero.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lutwise.errors import ConfigError
from lutwise.hw.bounds import code_integers, legal_codes
from lutwise.hw.netlist import Netlist, bits_of, from_bits
from lutwise.hw.ports import Direction, Port
from lutwise.hw.requantizer_rtl import REQUANTIZER_PARTS, write_requantizer
from lutwise.hw.verify import Verification, compare
from lutwise.hw.verilog import library
from lutwise.quant.formats import Format, IntFormat

__all__ = ["Requantizer", "typical_shift", "verify_requantizer"]

_HEADROOM_BITS = 4


def typical_shift(accumulator_bits: int, output: Format, multiplier_bits: int = 16) -> int:
    """Return a shift that uses the multiplier's bits and a realistic part of the accumulator.

    The largest output is reached by a sum ``2**4`` times below the accumulator's bound, with
    the multiplier normalized to its highest bit: worst-case bounds are hardly ever reached.
    """
    largest = int(max(code_integers(output)[legal_codes(output)]))
    product_bits = accumulator_bits - 1 + multiplier_bits
    return max(0, product_bits - _HEADROOM_BITS - largest.bit_length())


@dataclass(frozen=True, slots=True, kw_only=True)
class Requantizer:
    """A combinational unit that scales, rounds and saturates an accumulator.

    Ports: ``acc``, two's complement; ``m``, the unsigned multiplier; ``y``, a code of the
    output format. A negative accumulator that rounds to zero gives the code of -0 where the
    output is a signed minifloat. Codes for Inf and NaN are never produced.

    Args:
        accumulator_bits: Width of the accumulator.
        output: Format of the result.
        shift: Bits dropped after the multiplication, 0 or more.
        multiplier_bits: Width of the multiplier.
        relu: Replace negative numbers by zero; always so for unsigned outputs.

    Raises:
        ConfigError: A width or the shift is out of range.
    """

    accumulator_bits: int
    output: Format
    shift: int
    multiplier_bits: int = 16
    relu: bool = False

    def __post_init__(self) -> None:
        if self.accumulator_bits < 3 or self.multiplier_bits < 2:
            raise ConfigError(
                "a requantizer has an accumulator of 3 bits or more and a multiplier of 2 or "
                f"more, got {self.accumulator_bits} and {self.multiplier_bits}"
            )
        if not 0 <= self.shift <= self.accumulator_bits + self.multiplier_bits:
            raise ConfigError(
                f"a shift is 0..{self.accumulator_bits + self.multiplier_bits} here, "
                f"got {self.shift}"
            )

    @property
    def name(self) -> str:
        """Readable identification of the unit."""
        relu = " relu" if self.relu else ""
        return (
            f"requantizer acc={self.accumulator_bits} m={self.multiplier_bits} "
            f"shift={self.shift} to {self.output}{relu}"
        )

    @property
    def never_negative(self) -> bool:
        """Whether negative numbers become zero."""
        return self.relu or not self.output.signed

    @property
    def ports(self) -> tuple[Port, ...]:
        """Ports of the emitted module, in order."""
        return (
            Port(name="acc", bits=self.accumulator_bits, direction=Direction.INPUT, signed=True),
            Port(name="m", bits=self.multiplier_bits, direction=Direction.INPUT),
            Port(name="y", bits=self.output.bits, direction=Direction.OUTPUT),
        )

    def model(self, accumulator: npt.ArrayLike, multiplier: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Compute the output codes.

        Args:
            accumulator: Integers, any shape.
            multiplier: Integers, 0 .. 2**multiplier_bits - 1, same shape or scalar.

        Returns:
            Codes of the output format, the broadcast shape.

        Raises:
            ConfigError: A number does not fit its port.
        """
        acc, m = np.broadcast_arrays(
            np.asarray(accumulator, dtype=object), np.asarray(multiplier, dtype=object)
        )
        bound = 1 << (self.accumulator_bits - 1)
        if acc.size and not (-bound <= acc.min() and acc.max() < bound):
            raise ConfigError(f"an accumulator of {self.name} is {-bound}..{bound - 1}")
        if m.size and not (m.min() >= 0 and m.max() < 1 << self.multiplier_bits):
            top = (1 << self.multiplier_bits) - 1
            raise ConfigError(f"a multiplier of {self.name} is 0..{top}")
        one = self._integer if isinstance(self.output, IntFormat) else self._minifloat
        flat = [one(int(a), int(b)) for a, b in zip(acc.ravel(), m.ravel(), strict=True)]
        return np.array(flat, dtype=np.int64).reshape(acc.shape)

    def emit(self, *, module: str = "requantizer") -> str:
        """Write the unit as Verilog, with all modules that it needs."""
        return "\n".join([library(*REQUANTIZER_PARTS), self.emit_alone(module=module)])

    def emit_alone(self, *, module: str) -> str:
        """Write the unit for a text that holds ``REQUANTIZER_PARTS`` already."""
        return write_requantizer(
            self.output,
            accumulator_bits=self.accumulator_bits,
            multiplier_bits=self.multiplier_bits,
            shift=self.shift,
            never_negative=self.never_negative,
            module=module,
        )

    def _integer(self, acc: int, m: int) -> int:
        numbers = code_integers(self.output)[legal_codes(self.output)]
        low = 0 if self.never_negative else int(min(numbers))
        rounded = _round_half_even(acc * m, self.shift)
        return max(low, min(int(max(numbers)), rounded)) & ((1 << self.output.bits) - 1)

    def _minifloat(self, acc: int, m: int) -> int:
        fmt = self.output
        assert not isinstance(fmt, IntFormat)
        mantissa = fmt.mantissa_bits
        sign = int(acc < 0)
        if sign and self.never_negative:
            return 0
        magnitude = abs(acc) * m
        exponent = max(1, magnitude.bit_length() - self.shift - mantissa)
        significand = _round_half_even(magnitude, self.shift + exponent - 1)
        code = ((exponent - 1) << mantissa) + significand
        numbers = code_integers(fmt)
        largest = max(legal_codes(fmt), key=lambda index: int(numbers[index]))
        return min(code, int(largest)) | sign << (fmt.exponent_bits + mantissa)


def _round_half_even(number: int, shift: int) -> int:
    """Divide by ``2**shift`` and round to the nearest integer, ties to the even one."""
    if shift == 0:
        return number
    quotient = number >> shift
    rest = number - (quotient << shift)
    half = 1 << (shift - 1)
    return quotient + int(rest > half or (rest == half and quotient % 2 == 1))


def verify_requantizer(
    unit: Requantizer, netlist: Netlist, *, vectors: int = 4096, seed: int = 0
) -> Verification:
    """Check a mapped requantizer against its model with random and corner vectors.

    Half of the accumulators have a random number of leading zeros; a third of the multipliers
    are powers of two, so that ties and every binade occur; extremes come first.

    Args:
        unit: The unit.
        netlist: What became of it.
        vectors: Number of vectors.
        seed: Of the random numbers.
    """
    rng = np.random.default_rng(seed)
    bits, m_bits = unit.accumulator_bits, unit.multiplier_bits
    acc = from_bits(rng.integers(0, 2, (bits, vectors)).astype(np.bool_), signed=True)
    m = from_bits(rng.integers(0, 2, (m_bits, vectors)).astype(np.bool_))
    lost = rng.integers(0, bits, vectors)
    powers = rng.integers(0, m_bits, vectors)
    for index in range(0, vectors, 2):
        acc[index] = acc[index] >> int(lost[index])
    for index in range(0, vectors, 3):
        m[index] = 1 << int(powers[index])
    corners = [
        (a, b)
        for a in (0, 1, -1, (1 << (bits - 1)) - 1, -(1 << (bits - 1)))
        for b in (0, 1, (1 << m_bits) - 1, 1 << (m_bits - 1))
    ]
    for index, (a, b) in enumerate(corners):
        acc[index], m[index] = a, b
    outputs, _ = netlist.simulate({"acc": bits_of(acc, bits), "m": bits_of(m, m_bits)})
    got = from_bits(outputs["y"])
    wanted: npt.NDArray[Any] = unit.model(acc, m).astype(object)
    return compare(got, wanted, {"acc": acc, "m": m}, exhaustive=False)
