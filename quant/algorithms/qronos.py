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

__all__ = ["QronosConfig", "qronos"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QronosConfig:
    """Settings.

    Args:
        order: Of the columns: by input power, or as they are.
        damping: Added to the diagonals of the second moments, relative to their mean.
        block: Columns between two matrix products; decides speed alone.

    Raises:
        ConfigError: Out of range.
    """

    order: Order = Order.ACTIVITY
    damping: float = 0.01
    block: int = 64

    def __post_init__(self) -> None:
        check_solver("qronos", block=self.block, damping=self.damping, sweeps=0)


@register("qronos", Stage.ROUND, QronosConfig)
@torch.no_grad()
def qronos(problem: LayerProblem, config: QronosConfig) -> QuantizedWeight:
    """Round columns one after another, correcting the error of the inputs on the way.

    Reference:
        arXiv 2505.11695, algorithm 1.
    """
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
