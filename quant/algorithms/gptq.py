# SPDX-License-Identifier: Apache-2.0
"""GPTQ."""

from dataclasses import dataclass

import torch

from lutwise.errors import ConfigError
from lutwise.quant import solvers
from lutwise.quant.algorithms.problems import LayerProblem
from lutwise.quant.algorithms.registry import Stage, register
from lutwise.quant.quantized import QuantizedWeight
from lutwise.quant.solvers import Order
from lutwise.quant.work import (
    Demand,
    LayerSize,
    descent,
    factorization,
    permutation,
    round_columns,
)

__all__ = ["GptqConfig", "check_solver", "gptq"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqConfig:
    """Settings.

    Args:
        order: Of the columns: by input power, or as they are.
        damping: Added to the diagonal of the second moments, relative to its mean.
        block: Columns between two matrix products; decides speed alone.
        quantized_inputs: Second moments of the quantized model's inputs; else the float model's.
        sweeps: Of coordinate descent afterwards.
        centered: Second moments around the means, which are left to `bias_correction`.

    Raises:
        ConfigError: Out of range.
    """

    order: Order = Order.ACTIVITY
    damping: float = 0.01
    block: int = 64
    quantized_inputs: bool = True
    sweeps: int = 0
    centered: bool = False

    def __post_init__(self) -> None:
        check_solver("gptq", block=self.block, damping=self.damping, sweeps=self.sweeps)


def check_solver(name: str, *, block: int, damping: float, sweeps: int) -> None:
    """Check settings that solvers share.

    Raises:
        ConfigError: Out of range.
    """
    if block < 1 or sweeps < 0 or not 0 <= damping < float("inf"):
        raise ConfigError(
            f"{name} needs a block of at least one column, and damping and sweeps of at least 0, "
            f"got block={block}, damping={damping}, sweeps={sweeps}"
        )


def _demand(size: LayerSize, config: GptqConfig) -> Demand:
    work = size.gram + permutation(size) + factorization(size) + round_columns(size, config.block)
    if config.sweeps:
        work += descent(size, config.sweeps, config.block)
    # The matrix, its permuted copy, the factor as LAPACK makes it and reversed, and one more.
    return Demand(work=work, numbers=5 * size.square + 6 * size.weights)


@register(
    "gptq",
    Stage.ROUND,
    GptqConfig,
    reads_floats=lambda c: not c.quantized_inputs,
    demand=_demand,
)
@torch.no_grad()
def gptq(problem: LayerProblem, config: GptqConfig) -> QuantizedWeight:
    """Round columns one after another, the rest taking up the error of each.

    Reference:
        arXiv 2210.17323, algorithm 1; with sweeps, arXiv 2309.01885 after it.
    """
    problem = problem.around_means() if config.centered else problem
    gram = problem.gram if config.quantized_inputs else problem.float_gram
    fmt, weights = problem.start.format, problem.in_units
    values = solvers.gptq(
        fmt, weights, gram, order=config.order, damping=config.damping, block=config.block
    ).values
    if config.sweeps:
        values = solvers.descend(
            fmt, weights, values, gram, sweeps=config.sweeps, block=config.block
        )
    return problem.rounded(values)
