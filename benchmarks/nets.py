# SPDX-License-Identifier: Apache-2.0
"""Nets that benchmarks run on and that need no trained weights of others."""

import copy
from typing import Final

import torch
from torch import Tensor, nn

from lutwise.quant.zoo.architectures import ResidualBlock

__all__ = ["resnet18_cifar", "with_outliers"]

_WIDTHS: Final = (64, 128, 256, 512)
_SETTLING_ROUNDS: Final = 10
"""With a momentum of 0.1 a running statistic keeps 0.9**10 = 35 % of its start after one batch per
round, and 2 % with four batches per round."""


def resnet18_cifar(
    images: Tensor, *, classes: int = 10, batch: int = 64, seed: int = 0
) -> nn.Module:
    """Return ResNet-18 for small images, with random weights and settled batch norms.

    The stem is a 3x3 convolution of stride 1 and there is no max pooling, so that 32x32 images
    keep 4x4 positions in the last stage.

    Args:
        images: That the batch norms see, shape (n, 3, h, w).
        classes: Width of the last layer.
        batch: Images at a time.
        seed: Of the weights.

    Returns:
        The net in evaluation mode, 11.2 M parameters; the same one for the same arguments.

    Reference:
        Deep Residual Learning, arXiv 1512.03385, table 1 (18 layers) and section 4.2 (the stem
        for small images).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks: list[nn.Module] = []
        inputs = _WIDTHS[0]
        for width in _WIDTHS:
            blocks += [
                ResidualBlock(inputs, width, 1 if width == inputs else 2),
                ResidualBlock(width, width, 1),
            ]
            inputs = width
        net = nn.Sequential(
            nn.Conv2d(3, _WIDTHS[0], 3, 1, 1, bias=False),
            nn.BatchNorm2d(_WIDTHS[0]),
            nn.ReLU(),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(inputs, classes),
        )
    net.train()
    with torch.no_grad():
        for _ in range(_SETTLING_ROUNDS):
            for part in images.split(batch):
                net(part)
    return net.eval().requires_grad_(False)


def with_outliers(transformer: nn.Module, channels: tuple[int, ...] = (7, 33, 70)) -> nn.Module:
    """Return a copy that computes the same with three channels of each norm 20 times as large.

    Large transformers grow such channels by themselves (arXiv 2211.10438, figure 4); small ones do
    not, and show nothing of what a method does about them.

    Args:
        transformer: With ``blocks`` of ``norm1``, ``attention.qkv``, ``norm2``, ``fc1``.
        channels: That become large.
    """
    net = copy.deepcopy(transformer)
    with torch.no_grad():
        for block in net.get_submodule("blocks").children():
            for norm, layer in (("norm1", "attention.qkv"), ("norm2", "fc1")):
                weight = block.get_submodule(layer).weight
                assert isinstance(weight, Tensor)
                factors = torch.ones(weight.shape[1])
                factors[list(channels)] = 20.0
                for parameter in block.get_submodule(norm).parameters():
                    parameter.mul_(factors)
                weight.div_(factors)
    return net
