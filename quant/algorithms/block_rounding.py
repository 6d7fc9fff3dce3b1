# SPDX-License-Identifier: Apache-2.0
"""Learned rounding of all layers of a block together (BRECQ)."""

from dataclasses import dataclass

import torch

from lutwise.errors import ConfigError
from lutwise.quant.algorithms.problems import BlockProblem, LayerProblem
from lutwise.quant.algorithms.registry import Stage, register
from lutwise.quant.algorithms.soft_rounding import SoftRounding, sharpness
from lutwise.quant.gram import weight_of
from lutwise.quant.quantized import QuantizedWeight
from lutwise.quant.work import Demand, LayerSize, Work

__all__ = ["BlockRoundingConfig", "block_rounding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRoundingConfig:
    """Settings.

    Args:
        iterations: Of gradient descent, per block.
        images: At a time.
        rate: Learning rate of Adam.
        penalty: Weight of the penalty on weights between two values, relative to the error of
            rounding to nearest.

    Raises:
        ConfigError: Out of range.
    """

    iterations: int = 400
    images: int = 16
    rate: float = 0.03
    penalty: float = 16.0

    def __post_init__(self) -> None:
        if min(self.iterations, self.images) < 1 or not self.rate > 0 or not self.penalty >= 0:
            raise ConfigError(
                "block_rounding needs at least one iteration and image, a positive rate and a "
                f"penalty of at least 0, got iterations={self.iterations}, images={self.images}, "
                f"rate={self.rate}, penalty={self.penalty}"
            )


def _demand(size: LayerSize, config: BlockRoundingConfig) -> Demand:
    images = min(config.images, size.images)
    # Backwards costs twice what forwards does; quantizers and their gradients come on top.
    image = size.forward.times(3) + Work(numbers=20 * size.outputs)
    weights = Work(numbers=90 * size.weights, calls=300)
    work = (image.times(images) + weights).times(config.iterations)
    # The block's error before and after, and both models' passes through it.
    work += size.forward.times(4 * size.images)
    return Demand(work=work, numbers=25 * size.weights + 12 * size.outputs * images)


@register("block_rounding", Stage.RECONSTRUCT, BlockRoundingConfig, demand=_demand)
def block_rounding(
    problem: BlockProblem, config: BlockRoundingConfig
) -> dict[str, QuantizedWeight]:
    """Learn the rounding of a residual block's weights from the block's output.

    Reference:
        BRECQ, arXiv 2102.05426, algorithm 1, with the plain squared error in place of the one
        weighted by Fisher information, and AdaRound's soft rounding (arXiv 2004.10568).
    """
    soft = {n: SoftRounding(p.start.format, p.in_units) for n, p in problem.layers.items()}
    nearest = {n: p.start for n, p in problem.layers.items()}
    before = _error(problem, nearest)
    if not before > 0:
        return nearest
    optimizer = torch.optim.Adam([s.variable for s in soft.values()], lr=config.rate)
    generator = torch.Generator().manual_seed(problem.seed)
    for i in range(config.iterations):
        optimizer.zero_grad(set_to_none=True)
        x, target = _draw(problem, config.images, generator)
        shares = {n: s.share() for n, s in soft.items()}
        weights = {n: _real(problem.layers[n], s.weights(shares[n])) for n, s in soft.items()}
        objective = (problem.run(weights, x) - target).square().mean() / before
        power = sharpness(i / config.iterations)
        if power is not None:
            undecided = [s.indecision(shares[n], power) for n, s in soft.items()]
            objective = objective + config.penalty * torch.stack(undecided).mean()
        objective.backward()
        optimizer.step()
    learned = {n: problem.layers[n].rounded(s.rounded()) for n, s in soft.items()}
    return learned if _error(problem, learned) < before else nearest


def _real(problem: LayerProblem, units: torch.Tensor) -> torch.Tensor:
    shape = (-1,) + (1,) * (problem.weight.dim() - 1)
    return weight_of(problem.layer, units) * problem.start.scales.reshape(shape)


@torch.no_grad()
def _error(problem: BlockProblem, weights: dict[str, QuantizedWeight]) -> float:
    """Return the mean squared error of the block's output over all images."""
    real = {name: weight.real() for name, weight in weights.items()}
    pairs = zip(problem.inputs, problem.targets, strict=True)
    sums = [(problem.run(real, x) - y).square().sum(dtype=torch.float64) for x, y in pairs]
    return torch.stack(sums).sum().item() / sum(y.numel() for y in problem.targets)


def _draw(
    problem: BlockProblem, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return some images of one batch; where they live in files, only these are read."""
    which = int(torch.randint(len(problem.inputs), (1,), generator=generator))
    x, target = problem.inputs[which], problem.targets[which]
    pick = torch.randperm(len(x), generator=generator)[:count]
    return x[pick], target[pick]
