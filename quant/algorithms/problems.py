# SPDX-License-Identifier: Apache-2.0
"""What algorithms are given and what they give back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import torch
from torch import nn

from lutwise.quant.formats import Format
from lutwise.quant.gram import Layer, columns, gram, mean_patch, weight_of
from lutwise.quant.keep import Keep, compute
from lutwise.quant.quantized import QuantizedWeight
from lutwise.quant.ranges import RangeSearch

__all__ = ["Balance", "BlockProblem", "Correction", "LayerOutputs", "LayerProblem"]

_NOISE: Final = 1e-5
"""Of float32 sums: a variance that is a smaller part of the second moment is taken to be zero."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Balance:
    """Images to balance a float model on, and how it will be quantized.

    Args:
        batches: Calibration images, batch by batch, shape (n, c, h, w).
        layerwise: Operations between layers run in float, so new ones may be added.
        weight_formats: By layer node.
        input_formats: Of what a layer reads, by layer node.
        weight_search: How scales of weights are found.
        input_search: How scales of activations are found.
        per_channel: Each output channel's weights have a scale of their own.
        seed: Of the choice of numbers.
        keep: Remembers what was found.
    """

    batches: Sequence[torch.Tensor]
    layerwise: bool
    weight_formats: Mapping[str, Format]
    input_formats: Mapping[str, Format]
    weight_search: RangeSearch
    input_search: RangeSearch
    per_channel: bool
    seed: int
    keep: Keep = compute


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerProblem:
    """Weights of a layer to be rounded.

    Args:
        name: Module name.
        layer: The layer, for its kind and shape.
        weight: Float weights, shape of the layer's.
        start: Scales, and weights rounded to nearest.
        inputs: What the layer reads in the quantized model, batch by batch.
        float_inputs: What it reads in the float model; empty where the algorithm does not ask.
        centered: Second moments are taken around the means of both inputs. What is minimized is
            then the variance of the outputs' error; its mean is left to the bias.
    """

    name: str
    layer: Layer
    weight: torch.Tensor
    start: QuantizedWeight
    inputs: Sequence[torch.Tensor]
    float_inputs: Sequence[torch.Tensor]
    centered: bool = False

    @cached_property
    def gram(self) -> torch.Tensor:
        """H of the quantized inputs, (groups, n, n)."""
        found = gram(self.layer, self.inputs)
        return _around_mean(found, *self._mean) if self.centered else found

    @cached_property
    def float_gram(self) -> torch.Tensor:
        """H of the float inputs, (groups, n, n)."""
        found = gram(self.layer, self.float_inputs)
        return _around_mean(found, *self._float_mean) if self.centered else found

    @cached_property
    def cross(self) -> torch.Tensor:
        """G, the quantized inputs against the float inputs, (groups, n, n)."""
        found = gram(self.layer, self.inputs, self.float_inputs)
        if self.centered:
            (mean, count), (float_mean, _) = self._mean, self._float_mean
            found -= _outer(mean, float_mean, count).to(found.dtype)
        return found

    @cached_property
    def _mean(self) -> tuple[torch.Tensor, int]:
        return mean_patch(self.layer, self.inputs)

    @cached_property
    def _float_mean(self) -> tuple[torch.Tensor, int]:
        return mean_patch(self.layer, self.float_inputs)

    @property
    def in_units(self) -> torch.Tensor:
        """Float weights divided by their scales, (groups, rows, n), columns as in `gram`."""
        shape = (-1,) + (1,) * (self.weight.dim() - 1)
        return columns(self.layer, self.weight / self.start.scales.reshape(shape))

    def around_means(self) -> "LayerProblem":
        """Return the problem with `centered` second moments."""
        return replace(self, centered=True)

    def start_values(self) -> torch.Tensor:
        """Return the weights rounded to nearest, (groups, rows, n)."""
        return columns(self.layer, self.start.values.to(self.weight.dtype))

    def rounded(self, values: torch.Tensor) -> QuantizedWeight:
        """Return the weight that holds values (groups, rows, n) of the format."""
        return QuantizedWeight(
            format=self.start.format,
            values=weight_of(self.layer, values).double(),
            scales=self.start.scales,
        )


def _outer(left: torch.Tensor, right: torch.Tensor, count: int) -> torch.Tensor:
    return count * left[:, :, None] * right[:, None, :]


def _around_mean(gram: torch.Tensor, mean: torch.Tensor, count: int) -> torch.Tensor:
    """Return second moments around the mean; what hardly varies is taken to be constant."""
    before = gram.diagonal(dim1=-2, dim2=-1).clone()
    gram -= _outer(mean, mean, count).to(gram.dtype)
    constant = gram.diagonal(dim1=-2, dim2=-1) <= _NOISE * before
    return gram.masked_fill_(constant[:, :, None] | constant[:, None, :], 0.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockProblem:
    """Weights of neighbouring layers to be rounded together.

    Args:
        layers: Problems of the layers by node name, in execution order; without inputs.
        inputs: What the block reads in the quantized model, batch by batch.
        targets: What it gives in the float model.
        run: Differentiable ``(weights by node name, input) -> output`` with quantized activations.
        seed: Of the choice of images.
    """

    layers: Mapping[str, LayerProblem]
    inputs: Sequence[torch.Tensor]
    targets: Sequence[torch.Tensor]
    run: Callable[[Mapping[str, torch.Tensor], torch.Tensor], torch.Tensor]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerOutputs:
    """Outputs of a layer, batch by batch.

    Args:
        name: Module name.
        layer: The layer.
        per_channel: Its weights have a scale per channel.
        floats: Of the float model.
        quantized: Of the quantized model, before the output's quantizer.
    """

    name: str
    layer: Layer
    per_channel: bool
    floats: Sequence[torch.Tensor]
    quantized: Sequence[torch.Tensor]

    @property
    def axes(self) -> list[int]:
        """All dimensions but the channels."""
        if isinstance(self.layer, nn.Conv2d):
            return [0, 2, 3]
        return list(range(self.floats[0].dim() - 1))

    def spread(self, channels: torch.Tensor) -> torch.Tensor:
        """Return one number per channel in a shape that broadcasts against the outputs."""
        return channels.reshape(-1, 1, 1) if isinstance(self.layer, nn.Conv2d) else channels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Correction:
    """An affine change of a layer's outputs, ``gain * output + shift``.

    Args:
        gain: Positive, per channel, float32; None for one.
        shift: Per channel, float32.
    """

    gain: torch.Tensor | None
    shift: torch.Tensor
