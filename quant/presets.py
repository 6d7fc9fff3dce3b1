# SPDX-License-Identifier: Apache-2.0
"""Named choices of algorithms."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

__all__ = ["PRESETS", "Preset"]


class Preset(StrEnum):
    """How much work the result is worth."""

    FAST = "fast"
    """Rounding to nearest with corrected biases: seconds."""

    BALANCED = "balanced"
    """Second-order rounding: one more pass over the calibration images."""

    BEST = "best"
    """Several combinations, of which the calibration images decide: about ten times as long."""


_BALANCED: Final[Mapping[str, Any]] = {
    "equalize": {},
    "gptq": {"sweeps": 3},
    "bias_correction": {},
}

PRESETS: Final[Mapping[Preset, Mapping[str, Any]]] = {
    Preset.FAST: {"algorithms": {"equalize": {}, "bias_correction": {}}},
    Preset.BALANCED: {"algorithms": _BALANCED},
    Preset.BEST: {"algorithms": _BALANCED, "search": True},
}
"""Recipe settings; what the recipe itself says wins over them."""
