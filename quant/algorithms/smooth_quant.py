# SPDX-License-Identifier: Apache-2.0
"""SmoothQuant: activation equalization."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

import torch

from lutwise.errors import ConfigError
from lutwise.quant import kernels, ranges
from lutwise.quant.algorithms.problems import Balance
from lutwise.quant.algorithms.registry import Stage, register
from lutwise.quant.channels import channel_extremes, visit
from lutwise.quant.folding import Readers, column_peaks, find_readers, rescale, scaled_columns
from lutwise.quant.formats import Format
from lutwise.quant.gram import Layer, layer_groups
from lutwise.quant.graph import PreparedModel
from lutwise.quant.plan import is_image
from lutwise.quant.quantized import apply_layer
from lutwise.quant.ranges import RangeSearch, thresholds_tried
from lutwise.quant.work import Demand, LayerSize, Work

__all__ = ["SmoothQuantConfig", "smooth_quant", "smoothing_scales"]

_LARGEST_OCTAVES: Final = 10.0
"""Scales lie within 2**-10..2**10, so that a nearly dead channel makes no extreme weights."""

_ALPHAS: Final = tuple(i / 10 for i in range(11))

_SEARCHED_IMAGES: Final = 16
_SEARCHED_NUMBERS: Final = 1 << 16
_SEARCHED_ROWS: Final = 256
"""What the search for alpha looks at: images, numbers of an input to find its range, and output
channels of a layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothQuantConfig:
    """Settings.

    Args:
        alpha: How much of the unevenness goes from the activations to the weights: 0 evens out
            the weights, 1 the activations.
        search: Choose alpha for each tensor by the squared error of the layers that read it,
            or leave the tensor alone.
        images: That are looked at, at most.

    Raises:
        ConfigError: Out of range.
    """

    alpha: float = 0.5
    search: bool = False
    images: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1 or self.images < 1:
            raise ConfigError(
                "smooth_quant needs an alpha in 0..1 and at least one image, got "
                f"alpha={self.alpha}, images={self.images}"
            )


def _demand(size: LayerSize, config: SmoothQuantConfig) -> Demand:
    looked = min(config.images, size.images)
    work = size.forward.times(looked) + Work(numbers=4 * size.inputs * looked)
    if config.search:
        images = min(_SEARCHED_IMAGES, size.images)
        numbers = min(_SEARCHED_NUMBERS, size.inputs * images)
        rows = min(_SEARCHED_ROWS, size.groups * size.rows)
        weights = rows * size.weights // (size.groups * size.rows)
        tried = Work(
            numbers=10 * thresholds_tried(RangeSearch()) * (numbers + weights)
            + 10 * size.inputs * images
            + 4 * size.outputs * images
        )
        work += (tried + size.forward.times(images)).times(len(_ALPHAS) + 1)
    return Demand(work=work, numbers=3 * size.inputs * looked)


@register("smooth_quant", Stage.BALANCE, SmoothQuantConfig, demand=_demand)
@torch.no_grad()
def smooth_quant(model: PreparedModel, balance: Balance, config: SmoothQuantConfig) -> None:
    """Divide channels of activations by scales that the weights behind them take up.

    The division goes into the layer or norm before; where that cannot be, ``layerwise`` models
    get an operation for it, and in the others, whose hardware has none, the tensor stays as it is.
    So does the image. Scales come from the model as it is given, so their order does not matter.

    Reference:
        arXiv 2211.10438, equation 4; see `smoothing_scales`. The search is not in the paper.
    """
    tensors = [
        readers
        for readers in find_readers(model)
        if (readers.maker is not None or balance.layerwise)
        and not is_image(model, readers.source.name)
    ]

    def work() -> dict[str, torch.Tensor]:
        scales = _scales(model, balance, config, tensors)
        return {_key(readers): divisors for readers, divisors in scales.items()}

    found = balance.keep("smooth_quant", work)
    for readers in tensors:
        if (divisors := found.get(_key(readers))) is not None:
            rescale(model, readers, divisors)


def _key(readers: Readers) -> str:
    return f"{readers.source.name}-{readers.axis}"


def _scales(
    model: PreparedModel,
    balance: Balance,
    config: SmoothQuantConfig,
    tensors: Sequence[Readers],
) -> Mapping[Readers, torch.Tensor]:
    """Return what to divide each tensor by; a search leaves out what it would make no better."""
    batches = _first(balance.batches, config.images)
    extremes = channel_extremes(model, batches, {readers.tensor for readers in tensors})
    peaks = {}
    for readers in tensors:
        low, high = extremes[readers.tensor]
        weights = [column_peaks(layer) for layer in _layers(model, readers)]
        peaks[readers] = _Peaks(torch.maximum(-low, high), torch.stack(weights).amax(0))
    if config.search:
        return _searched(model, balance, peaks, torch.cat(_first(batches, _SEARCHED_IMAGES)))
    return {readers: peak.scales(config.alpha) for readers, peak in peaks.items()}


def smoothing_scales(inputs: torch.Tensor, weights: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return what to divide each channel of an input by.

    ``inputs**alpha / weights**(1 - alpha)``, divided by the (lower) median over the channels, a
    common factor that the quantizers' scales take up anyway, and limited to 2**-10..2**10.
    Channels of zeros get 1.

    Args:
        inputs: Largest magnitude of each channel, shape (channels,).
        weights: Largest magnitude of the weights that read it.
        alpha: In 0..1.

    Reference:
        arXiv 2211.10438, equation 4.
    """
    scales = torch.ones_like(inputs)
    alive = (inputs > 0) & (weights > 0)
    if alive.any():
        octaves = alpha * inputs[alive].log2() - (1 - alpha) * weights[alive].log2()
        octaves = (octaves - octaves.median()).clamp(-_LARGEST_OCTAVES, _LARGEST_OCTAVES)
        scales[alive] = octaves.exp2()
    return scales


@dataclass(frozen=True, slots=True, eq=False)
class _Peaks:
    """Largest magnitudes of an input and of the weights that read it, by channel."""

    inputs: torch.Tensor
    weights: torch.Tensor

    def scales(self, alpha: float) -> torch.Tensor:
        return smoothing_scales(self.inputs, self.weights, alpha)


def _layers(model: PreparedModel, readers: Readers) -> list[Layer]:
    return [cast(Layer, model.module(node)) for node in readers.layers]


def _first(batches: Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
    """Return the first images of batches."""
    found = []
    for batch in batches:
        if count > 0:
            found.append(batch[:count])
        count -= len(batch)
    return found


def _searched(
    model: PreparedModel,
    balance: Balance,
    peaks: Mapping[Readers, _Peaks],
    images: torch.Tensor,
) -> dict[Readers, torch.Tensor]:
    """Return the best scales of each tensor, without those that nothing makes better."""
    found = {}

    def call(name: str, x: torch.Tensor) -> None:
        for readers, peak in peaks.items():
            if readers.source.name != name:
                continue
            error = _Error(model, balance, readers, x)
            least = error(torch.ones_like(peak.inputs))
            for scales in map(peak.scales, _ALPHAS):
                if (now := error(scales)) < least:
                    found[readers], least = scales, now

    visit(model, images, {readers.source.name for readers in peaks}, call)
    return found


class _Error:
    """Squared error that quantization makes in the outputs of layers that read one tensor.

    Args:
        model: The float model.
        balance: Formats and range searches.
        readers: The layers.
        x: The tensor.
    """

    def __init__(
        self, model: PreparedModel, balance: Balance, readers: Readers, x: torch.Tensor
    ) -> None:
        self._balance, self._readers, self._x = balance, readers, x
        self._layers = [
            (node.name, layer, _rows(layer))
            for node, layer in zip(readers.layers, _layers(model, readers), strict=True)
        ]
        self._targets = [
            apply_layer(layer, x, layer.weight[rows], with_bias=False)
            for _, layer, rows in self._layers
        ]

    def __call__(self, scales: torch.Tensor) -> float:
        """Return the error with the tensor divided and the weights multiplied by scales."""
        balance, total = self._balance, 0.0
        spread = scales.reshape(-1, *(1,) * (self._x.dim() - self._readers.axis - 1))
        # The layers read one tensor, so their inputs have one format.
        x = self._rounded_input(balance.input_formats[self._layers[0][0]], self._x / spread)
        for (name, layer, rows), target in zip(self._layers, self._targets, strict=True):
            weight = scaled_columns(layer, scales)[rows]
            flat = weight.flatten(1) if balance.per_channel else weight.reshape(1, -1)
            fmt = balance.weight_formats[name]
            steps = ranges.search(fmt, flat, balance.weight_search).reshape(-1, 1)
            rounded = kernels.quantize_scaled(fmt, flat, steps).reshape(weight.shape)
            output = apply_layer(layer, x, rounded, with_bias=False)
            total += float((output - target).square().sum(dtype=torch.float64))
        return total

    def _rounded_input(self, fmt: Format, x: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self._balance.seed)  # the same for all scales
        numbers = ranges.sample(x, _SEARCHED_NUMBERS, generator).reshape(1, -1)
        return kernels.quantize_scaled(
            fmt, x, ranges.search(fmt, numbers, self._balance.input_search)
        )


def _rows(layer: Layer) -> torch.Tensor:
    """Return the output channels to look at, evenly spaced; all where they form groups."""
    out = len(layer.weight)
    count = min(out, _SEARCHED_ROWS) if layer_groups(layer) == 1 else out
    return torch.arange(count) * out // count
