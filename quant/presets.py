# SPDX-License-Identifier: Apache-2.0
"""Named choices of algorithms."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

__all__ = ["PRESETS", "Preset"]


class Preset(StrEnum):
    """How much work the result is worth."""

    FAST = "fast"
    """Rounding to nearest with corrected biases."""

    BALANCED = "balanced"
    """Weights rounded so that they make up for the errors of the layers before."""

    BEST = "best"
    """Several combinations, of which the calibration images decide: four to nine times as long."""


# Nothing is equalized here: weights have a scale per channel anyway, and moving their unevenness
# into the activations, which have one scale, costs more than it gains on most nets. The search
# finds out where it helps.
_BALANCED: Final[Mapping[str, Any]] = {"qronos": {"centered": True}, "bias_correction": {}}

PRESETS: Final[Mapping[Preset, Mapping[str, Any]]] = {
    Preset.FAST: {"algorithms": {"bias_correction": {}}},
    Preset.BALANCED: {"algorithms": _BALANCED},
    Preset.BEST: {"algorithms": _BALANCED, "search": True},
}
"""Recipe settings; what the recipe itself says wins over them."""
