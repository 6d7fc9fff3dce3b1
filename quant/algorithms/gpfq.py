# SPDX-License-Identifier: Apache-2.0
"""GPFQ."""

from dataclasses import dataclass

import torch

from lutwise.quant import solvers
from lutwise.quant.algorithms.gptq import check_solver
from lutwise.quant.algorithms.problems import LayerProblem
from lutwise.quant.algorithms.registry import Stage, register
from lutwise.quant.quantized import QuantizedWeight
from lutwise.quant.solvers import Order
from lutwise.quant.work import Demand, LayerSize, Work, permutation, round_columns

__all__ = ["GpfqConfig", "gpfq"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpfqConfig:
    """Settings.

    Args:
        order: Of the columns: by input power, or as they are.
        block: Columns between two matrix products; decides speed alone.
        centered: Second moments around the means, which are left to `bias_correction`.

    Raises:
        ConfigError: Out of range.
    """

    order: Order = Order.ACTIVITY
    block: int = 64
    centered: bool = False

    def __post_init__(self) -> None:
        check_solver("gpfq", block=self.block, damping=0.0, sweeps=0)


def _demand(size: LayerSize, config: GpfqConfig) -> Demand:
    start = Work(flops=2 * size.weights * size.columns, numbers=30 * size.square, calls=200)
    work = (
        (size.gram + size.cross + permutation(size).times(2))
        + start
        + round_columns(size, config.block)
    )
    # Both matrices, their permuted copies, and two on the way to the feedback.
    return Demand(work=work, numbers=6 * size.square + 6 * size.weights)


@register("gpfq", Stage.ROUND, GpfqConfig, demand=_demand)
@torch.no_grad()
def gpfq(problem: LayerProblem, config: GpfqConfig) -> QuantizedWeight:
    """Round each column to what cancels the error of all columns before it.

    Reference:
        arXiv 2201.11113, equation 2.
    """
    problem = problem.around_means() if config.centered else problem
    solution = solvers.gpfq(
        problem.start.format,
        problem.in_units,
        problem.gram,
        problem.cross,
        order=config.order,
        block=config.block,
    )
    return problem.rounded(solution.values)
