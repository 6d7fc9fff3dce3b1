# SPDX-License-Identifier: Apache-2.0
"""Accuracy with its uncertainty, and how close two models' outputs are."""

from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np
import numpy.typing as npt

from lutwise.errors import DataError

__all__ = ["Accuracy", "Comparison", "accuracy", "compare", "ratio_db", "sqnr_db"]

_Z: Final = 1.959963984540054
"""Quantile of the normal distribution for two-sided 95 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Top-1 accuracy with its 95 % confidence interval.

    Args:
        value: Share of right answers.
        low: Lower end of the interval.
        high: Upper end.
        correct: Right answers.
        images: Images.

    Reference:
        E. B. Wilson, Probable inference, JASA 22 (1927): the score interval.
    """

    value: float
    low: float
    high: float
    correct: int
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A quantized model against its float model on the same images.

    Args:
        agreement: Share of images with the same top-1 class.
        sqnr_db: Signal to quantization noise of the outputs, decibel.
        difference: Accuracy minus float accuracy; None without labels.
        difference_low: Lower end of its paired 95 % confidence interval.
        difference_high: Upper end.
    """

    agreement: float
    sqnr_db: float
    difference: float | None
    difference_low: float | None
    difference_high: float | None


def accuracy(logits: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> Accuracy:
    """Return the top-1 accuracy; of equal logits the first class counts.

    Args:
        logits: Shape (n, classes).
        labels: Shape (n,).

    Raises:
        DataError: There are no images.
    """
    if len(logits) == 0:
        raise DataError("accuracy needs at least one image, got none")
    n = len(logits)
    correct = int((logits.argmax(1) == labels).sum())
    p, z2 = correct / n, _Z * _Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Accuracy(
        value=p,
        low=min(p, max(0.0, middle - half)),  # rounding must not push an end past the value
        high=max(p, min(1.0, middle + half)),
        correct=correct,
        images=n,
    )


def sqnr_db(reference: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> float:
    """Return ``10 log10(sum reference^2 / sum (reference - other)^2)``; 200 where equal."""
    wide = reference.astype(np.float64)
    return ratio_db(float(np.square(wide).sum()), float(np.square(wide - other).sum()))


def ratio_db(signal: float, noise: float) -> float:
    """Return ``10 log10(signal / noise)``, at most 200 (no noise) and at least -200."""
    if noise == 0.0 or signal == 0.0:
        return 200.0 if noise == 0.0 else -200.0
    return float(np.clip(10 * np.log10(signal / noise), -200, 200))


def compare(
    reference: npt.NDArray[np.floating],
    other: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer] | None,
) -> Comparison:
    """Compare two models' logits, shape (n, classes), on the same images.

    The interval of the accuracy difference is the normal approximation for paired proportions.
    """
    n = len(reference)
    first, second = reference.argmax(1), other.argmax(1)
    difference = low = high = None
    if labels is not None:
        won = int(((second == labels) & (first != labels)).sum())
        lost = int(((second != labels) & (first == labels)).sum())
        difference = (won - lost) / n
        half = _Z * sqrt(max(0.0, won + lost - (won - lost) ** 2 / n)) / n
        low, high = difference - half, difference + half
    return Comparison(
        agreement=float((first == second).mean()),
        sqnr_db=sqnr_db(reference, other),
        difference=difference,
        difference_low=low,
        difference_high=high,
    )
