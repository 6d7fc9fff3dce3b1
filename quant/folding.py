# SPDX-License-Identifier: Apache-2.0
"""Divide the channels of a tensor by positive numbers and leave what a float model computes.

The layers that read the tensor have their weights multiplied. The division goes into whatever
makes the tensor: the output channels of a layer or the slope and offset of a norm, directly or
through operations that a positive factor passes. Where there is nothing of that kind, it can be an
operation of its own.
"""

from dataclasses import dataclass
from math import prod
from typing import cast

import torch
from torch import fx, nn

from lutwise.quant.channels import Channels, alone, readers_of
from lutwise.quant.gram import Layer, layer_groups
from lutwise.quant.graph import ChannelScale, Kind, PreparedModel, layer_nodes

__all__ = ["Readers", "column_peaks", "find_readers", "rescale", "scaled_columns"]

_POINTWISE = (nn.ReLU, nn.LeakyReLU, nn.PReLU)
_SPATIAL = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Readers:
    """Layers that read one tensor along one dimension, and share its division.

    Args:
        source: Node that makes the tensor.
        axis: Dimension of the channels, batch included.
        channels: How many.
        layers: Nodes of the layers.
        maker: Node of the layer or norm whose output channels can take the division in; None
            where there is none, or something else reads a tensor on the way, too.
    """

    source: fx.Node
    axis: int
    channels: int
    layers: tuple[fx.Node, ...]
    maker: fx.Node | None

    @property
    def tensor(self) -> Channels:
        """The tensor by name, and its dimension."""
        return self.source.name, self.axis


def find_readers(model: PreparedModel) -> list[Readers]:
    """Return the layers to be quantized by the tensors that they read, in execution order.

    Layers that share their weights with another node are left out: they cannot change.
    """
    free = alone(model)
    found: dict[tuple[fx.Node, int], list[fx.Node]] = {}
    for node in layer_nodes(model):
        source = node.all_input_nodes[0]
        convolution = isinstance(model.module(node), nn.Conv2d)
        axis = 1 if convolution else len(model.shapes[source.name])
        found.setdefault((source, axis), []).append(node)
    return [
        Readers(
            source=source,
            axis=axis,
            channels=model.shapes[source.name][axis - 1],
            layers=tuple(layers),
            maker=_maker(model, source, axis, layers, free),
        )
        for (source, axis), layers in found.items()
        if all(node.name in free for node in layers)
    ]


def _maker(
    model: PreparedModel, source: fx.Node, axis: int, layers: list[fx.Node], free: frozenset[str]
) -> fx.Node | None:
    node, readers = source, layers
    while set(readers_of(model, node)) == set(readers):
        if _makes(model, node, axis):
            return node if node.name in free else None
        if not _passes(model, node, axis):
            return None
        node, readers = node.all_input_nodes[0], [node]
    return None


def _makes(model: PreparedModel, node: fx.Node, axis: int) -> bool:
    """Whether a node's module has parameters for each channel of its output."""
    if node.op != "call_module":
        return False
    last = axis == len(model.shapes[node.name])
    match model.module(node):
        case nn.Conv2d():
            return axis == 1
        case nn.Linear():
            return last
        case nn.LayerNorm() | nn.RMSNorm() as norm:
            return last and len(norm.normalized_shape) == 1 and norm.weight is not None
        case nn.GroupNorm() | nn.BatchNorm1d() as norm:
            return axis == 1 and norm.affine
        case _:
            return False


def _passes(model: PreparedModel, node: fx.Node, axis: int) -> bool:
    """Whether scaling a channel of a node's input does nothing but scale that of its output."""
    kind = model.kinds[node.name]
    if kind is Kind.FLATTEN:  # of one number per channel
        before = model.shapes[node.all_input_nodes[0].name]
        return axis == 1 and prod(before[1:]) == 1
    if node.op != "call_module":
        return False
    module = model.module(node)
    images = axis == 1 and len(model.shapes[node.name]) == 3
    return isinstance(module, _POINTWISE) or (
        images and (isinstance(module, _SPATIAL) or kind is Kind.PAD)
    )


def _by_column(layer: Layer, weight: torch.Tensor) -> torch.Tensor:
    """Return weights as (groups, out / groups, in / groups, taps); a view where possible."""
    groups = layer_groups(layer)
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def column_peaks(layer: Layer) -> torch.Tensor:
    """Return the largest magnitude of the weights that read each input channel, shape (in,)."""
    return _by_column(layer, layer.weight).abs().amax((1, 3)).reshape(-1)


def scaled_columns(layer: Layer, scales: torch.Tensor) -> torch.Tensor:
    """Return a layer's weights with those that read an input channel multiplied by its scale.

    Args:
        layer: The layer.
        scales: Shape (in,).
    """
    columns = _by_column(layer, layer.weight)
    spread = scales.reshape(len(columns), 1, -1, 1)
    return (columns * spread).reshape(layer.weight.shape)


@torch.no_grad()
def rescale(model: PreparedModel, readers: Readers, scales: torch.Tensor) -> None:
    """Divide a tensor by a scale per channel and multiply the weights that read it.

    Where nothing takes the division in, a `ChannelScale` is added to the graph, and the model's
    shapes and kinds lack its node.

    Args:
        model: The float model; changed in place.
        readers: Of the tensor.
        scales: Positive, shape (channels,).
    """
    for node in readers.layers:
        layer = cast(Layer, model.module(node))
        layer.weight.copy_(scaled_columns(layer, scales))
    if readers.maker is None:
        _insert(model, readers, scales)
        return
    maker = model.module(readers.maker)
    for parameter in (maker.weight, getattr(maker, "bias", None)):  # an RMSNorm has no bias
        if isinstance(parameter, torch.Tensor):
            parameter.div_(scales.reshape(-1, *(1,) * (parameter.dim() - 1)))


def _insert(model: PreparedModel, readers: Readers, scales: torch.Tensor) -> None:
    dimensions = len(model.shapes[readers.source.name])
    shape = (-1,) + (1,) * (dimensions - readers.axis)
    name = f"{readers.layers[0].target}_input_scale"
    graph = model.graph
    graph.add_submodule(name, ChannelScale(scales.reciprocal().reshape(shape)))
    with graph.graph.inserting_after(readers.source):
        scale = graph.graph.call_module(name, (readers.source,))
    for node in readers.layers:
        node.replace_input_with(readers.source, scale)
    graph.recompile()
