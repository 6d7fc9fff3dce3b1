# SPDX-License-Identifier: Apache-2.0
"""Bias absorption."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import fx, nn

from lutwise.quant.algorithms.problems import Balance
from lutwise.quant.algorithms.registry import Stage, register
from lutwise.quant.channels import alone, channel_extremes, readers_of
from lutwise.quant.folding import scaled_columns
from lutwise.quant.gram import Layer
from lutwise.quant.graph import Kind, PreparedModel, layer_nodes

__all__ = ["BiasAbsorptionConfig", "bias_absorption"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasAbsorptionConfig:
    """No settings."""


@register("bias_absorption", Stage.BALANCE, BiasAbsorptionConfig)
@torch.no_grad()
def bias_absorption(model: PreparedModel, balance: Balance, config: BiasAbsorptionConfig) -> None:
    """Move what a ReLU always lets through from a layer's bias to the next layer's.

    For a layer, a ReLU and another layer, ``c`` is the smallest input of the ReLU, per channel, on
    the calibration images, where that is positive: ``b1 -= c`` and ``b2 += W2 c``, so that the
    tensor between them starts at zero. The outputs for these images stay the same. An image
    that falls below ``c`` is clipped there.

    Reference:
        arXiv 1906.04721, section 4.1.3; there ``c`` comes from the batch norm's statistics, three
        deviations below its mean, here from the images.
    """
    del config
    pairs = _find_pairs(model)
    channels = {first: (first.name, _channel_axis(model, first)) for first, _ in pairs}
    extremes = channel_extremes(model, balance.batches, set(channels.values()))
    for first, second in pairs:
        lowest, _ = extremes[channels[first]]
        _absorb(cast(Layer, model.module(first)), cast(Layer, model.module(second)), lowest)


def _channel_axis(model: PreparedModel, node: fx.Node) -> int:
    convolution = isinstance(model.module(node), nn.Conv2d)
    return 1 if convolution else len(model.shapes[node.name])


def _find_pairs(model: PreparedModel) -> list[tuple[fx.Node, fx.Node]]:
    """Return layers with a bias, and those that alone read them through a ReLU."""
    free, found = alone(model), []
    for first in layer_nodes(model):
        match readers_of(model, first):
            case [fx.Node(op="call_module") as relu] if type(model.module(relu)) is nn.ReLU:
                readers = readers_of(model, relu)
            case _:
                continue
        if len(readers) == 1 and _can_absorb(model, first, readers[0]):
            found.append((first, readers[0]))
    return [(a, b) for a, b in found if a.name in free and b.name in free]


def _can_absorb(model: PreparedModel, first: fx.Node, second: fx.Node) -> bool:
    if model.kinds[second.name] is not Kind.LAYER:
        return False
    layer, reader = model.module(first), model.module(second)
    if layer.bias is None or isinstance(layer, nn.Conv2d) != isinstance(reader, nn.Conv2d):
        return False
    # Padding puts zeros, which no bias stands for, beside what would be moved.
    return not isinstance(reader, nn.Conv2d) or reader.padding in ("valid", (0, 0))


def _absorb(first: Layer, second: Layer, lowest: torch.Tensor) -> None:
    moved = lowest.clamp_min(0.0)
    if not moved.any():
        return
    assert first.bias is not None
    first.bias.sub_(moved)
    sums = scaled_columns(second, moved).flatten(1).sum(1)
    if second.bias is None:
        second.bias = nn.Parameter(torch.zeros_like(sums), requires_grad=False)
    second.bias.add_(sums)
