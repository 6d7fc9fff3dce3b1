# SPDX-License-Identifier: Apache-2.0
"""Published formulas, as a second opinion: FINN's LUTs and the accumulators of a PTQ paper."""

from math import ceil

from lutwise.errors import ConfigError
from lutwise.quant.formats import FloatFormat, Format, IntFormat

__all__ = ["finn_mvau_luts", "paper_accumulator_bits"]


def finn_mvau_luts(
    *,
    weight_bits: int,
    activation_bits: int,
    pe: int,
    simd: int,
    accumulator_bits: int,
    threshold_luts: float = 0.0,
) -> float:
    """Price a folded integer layer by FINN's formula, for comparison.

    Args:
        weight_bits: Width of the weights.
        activation_bits: Width of the inputs.
        pe: Outputs side by side.
        simd: Products per output and cycle.
        accumulator_bits: Width of the accumulator.
        threshold_luts: LUTs of one output's thresholds.

    Returns:
        LUTs, without memories.

    Reference:
        FINN-R, arXiv 1809.04570, section 4; constants of the ``MVAU`` estimate in finn-plus.
    """
    width = weight_bits + activation_bits
    multipliers = simd * (2 * ceil(width / 6) - 1) * width
    adders = width * (2 * simd - 1)
    return 300 + 1.1 * pe * (multipliers + adders + accumulator_bits + threshold_luts)


def paper_accumulator_bits(weights: Format, activations: Format, length: int) -> int:
    """Return the accumulator's width by the two rules of the paper behind these formats.

    For integers of ``a`` and ``b`` bits it is ``a + b + ceil(log2(length)) + 1``; for minifloats
    ``2**e + m`` of both operands together and ``ceil(log2(length)) - 1``. On the same grid
    (``int3`` and ``e1m1``) they differ by two bits.

    Args:
        weights: Format of the weights.
        activations: Format of the activations.
        length: Products of the dot product.

    Raises:
        ConfigError: No product, or an integer with a minifloat, which the paper does not have.

    Reference:
        arXiv 2311.12359.
    """
    if length < 1:
        raise ConfigError(f"a dot product has at least one term, got length {length}")
    growth = (length - 1).bit_length()
    if isinstance(weights, IntFormat) and isinstance(activations, IntFormat):
        return weights.bits + activations.bits + growth + 1
    if isinstance(weights, FloatFormat) and isinstance(activations, FloatFormat):
        fields = (weights, activations)
        return sum((1 << fmt.exponent_bits) + fmt.mantissa_bits for fmt in fields) + growth - 1
    raise ConfigError(f"the paper has no accumulator for {weights} x {activations}")
