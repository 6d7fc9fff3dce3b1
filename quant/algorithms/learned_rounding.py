# SPDX-License-Identifier: Apache-2.0
"""Learned rounding of one layer (AdaRound)."""

from dataclasses import dataclass

import torch

from lutwise.errors import ConfigError
from lutwise.quant import solvers
from lutwise.quant.algorithms.problems import LayerProblem
from lutwise.quant.algorithms.registry import Stage, register
from lutwise.quant.algorithms.soft_rounding import SoftRounding, sharpness
from lutwise.quant.formats import Format
from lutwise.quant.quantized import QuantizedWeight
from lutwise.quant.work import Demand, LayerSize, Work, descent

__all__ = ["LearnedRoundingConfig", "learn", "learned_rounding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedRoundingConfig:
    """Settings.

    Args:
        iterations: Of gradient descent.
        rate: Learning rate of Adam.
        penalty: Weight of the penalty on weights between two values, relative to the error of
            rounding to nearest.
        sweeps: Of coordinate descent afterwards.
        centered: Second moments around the means, which are left to `bias_correction`.

    Raises:
        ConfigError: Out of range.
    """

    iterations: int = 400
    rate: float = 0.03
    penalty: float = 16.0
    sweeps: int = 3
    centered: bool = False

    def __post_init__(self) -> None:
        good = self.iterations >= 1 and self.rate > 0 and self.penalty >= 0 and self.sweeps >= 0
        if not good:
            raise ConfigError(
                "learned_rounding needs at least one iteration, a positive rate, and penalty and "
                f"sweeps of at least 0, got iterations={self.iterations}, rate={self.rate}, "
                f"penalty={self.penalty}, sweeps={self.sweeps}"
            )


def _demand(size: LayerSize, config: LearnedRoundingConfig) -> Demand:
    iteration = Work(flops=2 * size.weights * size.columns, numbers=90 * size.weights, calls=200)
    work = size.gram + iteration.times(config.iterations) + descent(size, config.sweeps, 64)
    # The matrix, and scaled once more, or, centered, an outer product in float64 and rounded.
    squares = 4 if config.centered else 3
    # Of the weights' shape: what is learned, Adam's moments, and what automatic differentiation
    # keeps.
    return Demand(work=work, numbers=squares * size.square + 30 * size.weights)


@register(
    "learned_rounding",
    Stage.ROUND,
    LearnedRoundingConfig,
    reads_floats=lambda c: False,
    demand=_demand,
)
def learned_rounding(problem: LayerProblem, config: LearnedRoundingConfig) -> QuantizedWeight:
    """Learn for each weight whether it goes up or down, layer by layer.

    Reference:
        AdaRound, arXiv 2004.10568, equation 21 without the activation function; coordinate
        descent after it, arXiv 2309.01885. The squared error of all outputs is quadratic in the
        weights, so the second moments of the inputs replace the images, and every step sees all
        of them.
    """
    problem = problem.around_means() if config.centered else problem
    values = learn(
        problem.start.format, problem.in_units, problem.gram, problem.start_values(), config
    )
    return problem.rounded(values)


def learn(
    fmt: Format,
    weights: torch.Tensor,
    gram: torch.Tensor,
    nearest: torch.Tensor,
    config: LearnedRoundingConfig,
) -> torch.Tensor:
    """Return learned values.

    Args:
        fmt: The format.
        weights: In units of the scale, shape (g, rows, n).
        gram: H, shape (g, n, n).
        nearest: Weights rounded to nearest; a row that learning makes worse keeps them.
        config: Settings.
    """
    at_start = solvers.loss(weights, nearest, gram)
    scale = at_start.sum()
    if not scale > 0:
        return nearest
    soft = SoftRounding(fmt, weights)
    optimizer = torch.optim.Adam([soft.variable], lr=config.rate)
    for i in range(config.iterations):
        optimizer.zero_grad(set_to_none=True)
        share = soft.share()
        current = soft.weights(share)
        with torch.no_grad():
            slope = (current - weights) @ gram * (2 / scale)
        power = sharpness(i / config.iterations)
        if power is not None:
            (config.penalty * soft.indecision(share, power)).backward(retain_graph=True)
        current.backward(slope)
        optimizer.step()
    learned = soft.rounded()
    better = solvers.loss(weights, learned, gram) < at_start
    found = torch.where(better[..., None], learned, nearest)
    return solvers.descend(fmt, weights, found, gram, sweeps=config.sweeps)
