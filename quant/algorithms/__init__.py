# SPDX-License-Identifier: Apache-2.0
"""PTQ algorithms: one file each, one registry, one order."""

from lutwise.quant.algorithms import bias_correction as _bias_correction
from lutwise.quant.algorithms import equalize as _equalize
from lutwise.quant.algorithms.registry import Algorithm, Stage, list_algorithms, resolve, selected

__all__ = ["Algorithm", "Stage", "list_algorithms", "resolve", "selected"]

del _bias_correction, _equalize  # imported for the registration
