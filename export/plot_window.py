# SPDX-License-Identifier: Apache-2.0
"""Which part of the accuracy axis a plot shows when some points have collapsed."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Final

from lutwise.export.points import Estimate

__all__ = ["Window", "accuracy_window"]

_LEAST_LOSS: Final = 10.0
"""Points of accuracy below the float model that are always shown to scale."""

_SHARE_SHOWN: Final = 0.4
_STRIP: Final = 0.25
"""Height of the strip for collapsed points, over the height of the scale above it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Range of the accuracy axis, per cent.

    Args:
        bottom: Lower end of the plot.
        floor: Where the scale begins; below it is the strip for collapsed points.
        top: Upper end of the plot.
    """

    bottom: float
    floor: float
    top: float

    @property
    def cut(self) -> bool:
        """Whether there is a strip for collapsed points."""
        return self.bottom < self.floor

    def shows(self, share: float) -> bool:
        """Return whether an accuracy lies on the scale."""
        return 100 * share >= self.floor


def accuracy_window(estimates: Sequence[Estimate], reference: Estimate) -> Window:
    """Choose the range: all points, unless a few collapsed ones would squeeze the others.

    Args:
        estimates: Accuracies of the points, at least one.
        reference: Accuracy of the float model.
    """
    values = sorted((100 * e.value for e in estimates), reverse=True)
    high = max(100 * reference.high, *(100 * e.high for e in estimates))
    least = values[ceil(_SHARE_SHOWN * len(values)) - 1]
    wanted = min(least, 100 * reference.value - _LEAST_LOSS)
    room = high - values[-1]
    if room <= 1.5 * (high - wanted):
        low = min(100 * reference.low, *(100 * e.low for e in estimates))
        step = _step(high - low)
        bottom = max(0.0, floor((low - 0.02 * (high - low)) / step) * step)
        return Window(bottom=bottom, floor=bottom, top=_top(high, bottom))
    shown = [v for v in values if v >= wanted]
    step = _step(high - wanted)
    start = floor((shown[-1] - 0.02 * (high - wanted)) / step) * step
    top = _top(high, start)
    return Window(bottom=start - _STRIP * (top - start), floor=start, top=top)


def _step(span: float) -> float:
    """Return the grid that an axis of this span begins on."""
    return next(step for step in (0.5, 1.0, 2.0, 5.0, 10.0) if span <= 10 * step or step == 10.0)


def _top(high: float, bottom: float) -> float:
    return high + max(0.06 * (high - bottom), 0.2)
