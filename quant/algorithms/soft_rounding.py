# SPDX-License-Identifier: Apache-2.0
"""Rounding as a choice between two neighbours that gradients can move."""

from typing import Final

import torch

from lutwise.quant.formats import Format, values

__all__ = ["SoftRounding", "sharpness"]

_LOW, _HIGH = -0.1, 1.1
"""The stretched sigmoid's ends, gamma and zeta of the paper."""

_WARM_UP: Final = 0.2
_SHARP, _BLUNT = 2.0, 20.0


class SoftRounding:
    """Numbers between the two values of a format around each weight.

    Args:
        fmt: The format.
        weights: In units of the scale, any shape.

    Reference:
        AdaRound, arXiv 2004.10568, equations 23 and 24. The neighbours are those of the format,
        so the distance between them may differ from weight to weight.
    """

    def __init__(self, fmt: Format, weights: torch.Tensor) -> None:
        grid = torch.from_numpy(values(fmt).copy()).to(weights.dtype)
        above = torch.searchsorted(grid, weights.contiguous()).clamp_(1, len(grid) - 1)
        self.low, high = grid[above - 1], grid[above]
        self.gap = high - self.low
        share = ((weights - self.low) / self.gap).clamp(0, 1)
        # A weight that is on the grid, or beyond its ends, has nothing to choose.
        self._free = (share > 0) & (share < 1)
        self._fixed = share.round()
        inner = ((share - _LOW) / (_HIGH - _LOW)).clamp(1e-6, 1 - 1e-6)
        self.variable = torch.logit(inner).requires_grad_(True)

    def share(self) -> torch.Tensor:
        """Return where each weight is, 0 the lower and 1 the upper neighbour; differentiable."""
        soft = (torch.sigmoid(self.variable) * (_HIGH - _LOW) + _LOW).clamp(0, 1)
        return torch.where(self._free, soft, self._fixed)

    def weights(self, share: torch.Tensor) -> torch.Tensor:
        """Return the numbers at given shares."""
        return self.low + self.gap * share

    def indecision(self, share: torch.Tensor, power: float) -> torch.Tensor:
        """Return the mean of ``1 - |2 h - 1|^power`` over the weights that have a choice."""
        total = (1 - (2 * share - 1).abs().pow(power)).sum()
        return total / self._free.sum().clamp_min(1)

    @torch.no_grad()
    def rounded(self) -> torch.Tensor:
        """Return the values decided on."""
        return self.weights((self.share() >= 0.5).to(self.low.dtype))


def sharpness(progress: float) -> float | None:
    """Return the power of the penalty on indecision at a stage of training, from 0 to 1.

    None during the warm-up, when there is no penalty; then from 20 down to 2 along a cosine.
    """
    if progress < _WARM_UP:
        return None
    phase = (progress - _WARM_UP) / (1 - _WARM_UP)
    cosine = 0.5 * (1 + torch.cos(torch.tensor(phase * torch.pi)).item())
    return _SHARP + (_BLUNT - _SHARP) * cosine
