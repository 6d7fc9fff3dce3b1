# SPDX-License-Identifier: Apache-2.0
"""FINN's LUT formula for integer matrix-vector units, as a second opinion."""

from math import ceil

__all__ = ["finn_mvau_luts"]


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
