# SPDX-License-Identifier: Apache-2.0
"""Scales for a format from samples of a tensor: maximum, percentile or least squared error.

Tensors are two-dimensional here, one row per scale: (1, n) per tensor, (channels, n) per
channel.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import torch

from lutwise.errors import CalibrationError
from lutwise.quant import kernels
from lutwise.quant.formats import Format

__all__ = [
    "SAMPLES",
    "RangeMethod",
    "RangeSearch",
    "ScaleKind",
    "sample",
    "search",
    "squared_error",
    "thresholds_tried",
]

SAMPLES: Final = 1 << 16
"""Numbers kept of a tensor for calibration; its extremes are always among them."""

_CANDIDATES: Final = 84
_SMALLEST, _LARGEST = 0.12, 2.0
"""Thresholds tried, as shares of the largest magnitude. Above one, since minifloats have steps
that differ: it may serve the bulk better when the largest value of the grid is not met. A factor
of two changes no more than where the subnormals begin, so nothing is gained beyond it."""


class RangeMethod(StrEnum):
    """How a range is found."""

    MAX = "max"
    PERCENTILE = "percentile"
    MSE = "mse"


class ScaleKind(StrEnum):
    """Which numbers a scale may be."""

    FLOAT32 = "float32"
    POWER_OF_TWO = "power_of_two"


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeSearch:
    """How to find scales.

    Args:
        method: Maximum, percentile of the magnitudes, or least squared error.
        percentile: For that method, in percent.
        scale: Any float32 number, or powers of two only.
    """

    method: RangeMethod = RangeMethod.MSE
    percentile: float = 99.99
    scale: ScaleKind = ScaleKind.FLOAT32


def sample(x: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return numbers of a tensor to search a range with: all, or ``count`` and the extremes.

    Args:
        x: Any shape.
        count: At most so many are chosen.
        generator: Chooses them.

    Returns:
        Shape (n,).
    """
    flat = x.reshape(-1)
    if len(flat) <= count:
        return flat
    pick = torch.randint(len(flat), (count,), generator=generator)
    return torch.cat([flat[pick], torch.stack(list(flat.aminmax()))])


def squared_error(fmt: Format, rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the mean squared quantization error of each row.

    Args:
        fmt: The format.
        rows: Samples, shape (r, n).
        scale: Shape (r,) or (1,).
    """
    error = kernels.quantize_scaled(fmt, rows, scale.reshape(-1, 1)) - rows
    return error.square().mean(1)


def search(fmt: Format, rows: torch.Tensor, how: RangeSearch) -> torch.Tensor:
    """Return a positive scale per row, shape (r,), float32.

    Rows of zeros get the scale one.

    Raises:
        CalibrationError: A row holds NaN or Inf.

    Reference:
        ``scale = threshold / max_value``, arXiv 2311.12359, section III-A.
    """
    if not torch.isfinite(rows).all():
        raise CalibrationError("cannot find a range for values that are NaN or infinite")
    magnitude = rows.abs()
    largest = magnitude.amax(1)
    if how.method is RangeMethod.PERCENTILE:
        k = max(1, min(rows.shape[1], round(rows.shape[1] * how.percentile / 100)))
        threshold = magnitude.kthvalue(k, dim=1).values
        threshold = torch.where(threshold > 0, threshold, largest)
    else:
        threshold = largest
    threshold = torch.where(largest > 0, threshold, torch.ones_like(largest))
    unit = torch.where(largest > 0, threshold / fmt.max_value, torch.ones_like(largest))
    unit = unit.clamp_min(torch.finfo(torch.float32).tiny)
    if how.scale is ScaleKind.POWER_OF_TWO:
        unit = torch.exp2(torch.ceil(torch.log2(unit)))
    if how.method is not RangeMethod.MSE:
        return unit
    return _best(fmt, rows, unit, _shares(how.scale))


def thresholds_tried(how: RangeSearch) -> int:
    """Return how many thresholds a search compares."""
    return 1 if how.method is not RangeMethod.MSE else 1 + len(_shares(how.scale))


def _shares(scale: ScaleKind) -> torch.Tensor:
    """Return the thresholds tried beside the largest magnitude itself, as shares of it."""
    if scale is ScaleKind.POWER_OF_TWO:
        return torch.exp2(torch.arange(-4.0, 2.0))
    return torch.logspace(
        torch.log10(torch.tensor(_SMALLEST)).item(),
        torch.log10(torch.tensor(_LARGEST)).item(),
        _CANDIDATES,
    )


def _best(
    fmt: Format, rows: torch.Tensor, unit: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    best, least = unit.clone(), squared_error(fmt, rows, unit)
    for share in shares:
        scale = unit * share
        error = squared_error(fmt, rows, scale)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best
