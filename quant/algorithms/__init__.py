# SPDX-License-Identifier: Apache-2.0
"""PTQ algorithms: one file each, one registry, one order."""

from lutwise.quant.algorithms import (  # imported for the registration
    bias_absorption,
    bias_correction,
    block_rounding,
    equalize,
    gpfq,
    gptq,
    learned_rounding,
    norm_reestimation,
    qronos,
    smooth_quant,
)
from lutwise.quant.algorithms.registry import (
    Algorithm,
    Stage,
    list_algorithms,
    needs_floats,
    resolve,
    selected,
)

__all__ = ["Algorithm", "Stage", "list_algorithms", "needs_floats", "resolve", "selected"]

del bias_absorption, bias_correction, block_rounding, equalize, gpfq, gptq
del learned_rounding, norm_reestimation, qronos, smooth_quant
