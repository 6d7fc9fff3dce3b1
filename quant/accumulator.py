# SPDX-License-Identifier: Apache-2.0
"""How wide exact sums are: one bounding rule for integers and minifloats.

Everything is counted in units, ``2**(weight unit + input unit)``, with Python integers, so that
even e7m0 (products of 253 bits) has exact bounds.
"""

from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from lutwise.errors import FormatError
from lutwise.quant.formats import Format, values
from lutwise.quant.network import Accumulator

__all__ = ["accumulator_for", "twos_complement_bits"]


def twos_complement_bits(low: int, high: int) -> int:
    """Return the smallest two's complement width that holds ``low`` .. ``high``."""
    return max(high if high >= 0 else ~high, low if low >= 0 else ~low).bit_length() + 1


def accumulator_for(
    weight_values: npt.NDArray[np.float64],
    weight_format: Format,
    input_format: Format,
    bias_codes: npt.NDArray[np.object_],
) -> Accumulator:
    """Bound the accumulator of a layer, in the worst case and for its actual weights.

    The worst case is the exact range of one product, times the dot length. The actual bound is
    the per-channel L1 norm split by sign, ``sum(w > 0) * x_max + sum(w < 0) * x_min``, which is
    the exact extreme of the sum. Both hold with and without the bias.

    Args:
        weight_values: Values of the weight format, shape (out, ...).
        weight_format: Format of the weights.
        input_format: Format of the inputs.
        bias_codes: Integers in accumulator units, shape (out,).

    Raises:
        FormatError: A weight is not a value of its format.

    Reference:
        The L1 bound is that of A2Q, arXiv 2308.13504, section 3. (arXiv 2311.12359 bounds
        integers and minifloats by two rules that differ by 2 bits on the same grid; this one
        does not.)
    """
    table = values(weight_format)
    index = np.searchsorted(table, weight_values).clip(max=len(table) - 1)
    if (table[index] != weight_values).any():
        raise FormatError(f"the weights are not all values of {weight_format}; quantize them first")
    weight_units = _units(weight_format, table)
    x_low, x_high = _units(input_format, (input_format.min_value, input_format.max_value))
    biases = [int(code) for code in bias_codes]

    low = high = magnitude = 0
    for row, bias in zip(index.reshape(len(biases), -1), biases, strict=True):
        counts = np.bincount(row, minlength=len(table)).tolist()
        parts = [count * w for count, w in zip(counts, weight_units, strict=True)]
        positive = sum(part for part in parts if part > 0)
        negative = sum(part for part in parts if part < 0)
        row_low = positive * x_low + negative * x_high
        row_high = positive * x_high + negative * x_low
        low = min(low, row_low, row_low + bias)
        high = max(high, row_high, row_high + bias)
        partial = (positive - negative) * max(x_high, -x_low) + abs(bias)
        magnitude = max(magnitude, partial)

    products = [w * x for w in (weight_units[0], weight_units[-1]) for x in (x_low, x_high)]
    length = index[0].size
    worst_low = length * min(*products, 0) + min(*biases, 0)
    worst_high = length * max(*products, 0) + max(*biases, 0)
    return Accumulator(
        unit_exponent=weight_format.unit_exponent + input_format.unit_exponent,
        worst_bits=twos_complement_bits(worst_low, worst_high),
        bits=twos_complement_bits(low, high),
        magnitude_bits=max(magnitude.bit_length(), 1),
    )


def _units(fmt: Format, numbers: Iterable[float]) -> list[int]:
    unit = Fraction(2) ** fmt.unit_exponent
    return [int(Fraction(float(number)) / unit) for number in numbers]
