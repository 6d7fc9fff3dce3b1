# SPDX-License-Identifier: Apache-2.0
"""Which requantizers the library holds."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from lutwise.cost_models.units import weight_formats
from lutwise.quant.formats import Format, IntFormat, parse_element

__all__ = ["ACCUMULATOR_BITS", "RequantizerKey", "requantizer_units"]

ACCUMULATOR_BITS: Final = (12, 16, 20, 24, 32)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class RequantizerKey:
    """What identifies a requantizer of the library.

    Args:
        accumulator_bits: Width of the accumulator.
        output: Spelling of the output format.
    """

    accumulator_bits: int
    output: str

    @property
    def output_format(self) -> Format:
        """Format of the output."""
        return parse_element(self.output)


def requantizer_units() -> Iterator[RequantizerKey]:
    """List the requantizers: integers and minifloats of 2 to 8 bits, signed and unsigned."""
    outputs: list[str] = []
    for fmt in weight_formats():
        signed = IntFormat(bits=fmt.bits) if isinstance(fmt, IntFormat) else fmt
        outputs += [signed.name, fmt.as_unsigned().name]
    for output in dict.fromkeys(outputs):
        for bits in ACCUMULATOR_BITS:
            yield RequantizerKey(accumulator_bits=bits, output=output)
