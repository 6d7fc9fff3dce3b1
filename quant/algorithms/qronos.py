# SPDX-License-Identifier: Apache-2.0
"""Qronos."""

from dataclasses import dataclass

import torch

from lutwise.quant import solvers
from lutwise.quant.algorithms.gptq import check_solver
from lutwise.quant.algorithms.problems import LayerProblem
from lutwise.quant.algorithms.registry import Stage, register
from lutwise.quant.quantized import QuantizedWeight
from lutwise.quant.solvers import Order
from lutwise.quant.work import (
    Demand,
    LayerSize,
    Work,
    factorization,
    permutation,
    round_columns,
)

__all__ = ["QronosConfig", "qronos"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QronosConfig:
    """Settings.

    Args:
        order: Of the columns: by input power, or as they are.
        damping: Added to the diagonals of the second moments, relative to their mean.
        block: Columns between two matrix products; decides speed alone.
        centered: Second moments around the means, which are left to `bias_correction`.

    Raises:
        ConfigError: Out of range.
    """

    order: Order = Order.ACTIVITY
    damping: float = 0.01
    block: int = 64
    centered: bool = False

    def __post_init__(self) -> None:
        check_solver("qronos", block=self.block, damping=self.damping, sweeps=0)


def _demand(size: LayerSize, config: QronosConfig) -> Demand:
    # Least squares: a product and two triangular solves, which reach a third of its speed.
    ideal = Work(flops=12 * size.weights * size.columns, numbers=10 * size.square)
    work = (
        (size.gram + size.cross + permutation(size).times(2))
        + (factorization(size) + ideal)
        + round_columns(size, config.block)
    )
    # Both matrices and their permuted copies, the factor twice, and one more on the way.
    return Demand(work=work, numbers=7 * size.square + 8 * size.weights)


@register("qronos", Stage.ROUND, QronosConfig, demand=_demand)
@torch.no_grad()
def qronos(problem: LayerProblem, config: QronosConfig) -> QuantizedWeight:
    """Round columns one after another, correcting the error of the inputs on the way.

    Reference:
        arXiv 2505.11695, algorithm 1.
    """
    problem = problem.around_means() if config.centered else problem
    solution = solvers.qronos(
        problem.start.format,
        problem.in_units,
        problem.gram,
        problem.cross,
        order=config.order,
        damping=config.damping,
        block=config.block,
    )
    return problem.rounded(solution.values)
