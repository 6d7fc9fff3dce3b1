# SPDX-License-Identifier: Apache-2.0
"""Where a quantized model loses accuracy, layer by layer."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce
from typing import Final

import torch
from torch import fx, nn

from lutwise.quant.evaluate import ratio_db, sqnr_db
from lutwise.quant.graph import Kind, layer_nodes
from lutwise.quant.quantized import QuantizedModel, QuantizedWeight
from lutwise.quant.range_use import RangeUse, activation_use, weight_use
from lutwise.quant.sensitivity import Sensitivity, list_parts, measure, point_of
from lutwise.quant.walk import Step, walk

__all__ = ["Diagnosis", "LayerKind", "LayerNoise", "OwnQuantizer", "PointNoise", "diagnose"]


class OwnQuantizer(StrEnum):
    """Which quantizer an override of a layer's activations changes.

    That of the logits belongs to the last layer, but is a matter of the recipe's ``output``.
    """

    INPUT = "input"
    OUTPUT = "output"
    NONE = "none"


class LayerKind(StrEnum):
    """What a layer with weights is."""

    CONV = "conv"
    DEPTHWISE = "depthwise"
    LINEAR = "linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNoise:
    """What quantization does to one layer, and what that does to the network's output.

    Shares lie in 0..1, but for those of the error. "Error" is the mean squared error of the logits
    against the float model's; see `Sensitivity.share` for its share.

    Args:
        node: Name of its node.
        layer: Module name.
        kind: What it is.
        weights: Format of the weights.
        inputs: Format of what it reads.
        outputs: Format of its output; ``accumulator`` where it hands out exact sums, ``float32``
            where only inputs are quantized.
        weight_count: Weights.
        weight_scales: Their scales.
        quantizer: Which quantizer an override of its activations changes.
        weight_sqnr_db: Signal to noise of its weights.
        output_sqnr_db: Of its output before its own quantizer, all layers before it quantized.
        weights_at_ends: Share of weights that hold the largest or smallest value of their format.
        weights_at_zero: Share of weights that became zero and were not.
        weight_codes_dead: Share of the format's values that no weight takes.
        inputs_clipped: Share of the numbers it reads that were beyond the range of their format.
        input_codes_dead: Share of the format's values that no number it reads takes.
        input_rounding_db: Signal to the noise that the quantizer of its input adds by itself.
        outputs_clipped: The same of its output; None where that has no quantizer.
        output_codes_dead: The same.
        output_rounding_db: The same.
        error_share: How much of the error goes when this layer alone is left in float: weights,
            bias, and its quantizer, that of its output (``dataflow``) or input (``layerwise``).
        error_without: The error then.
        sqnr_without_db: Signal to noise of the logits then.
        alone_share: ``error_alone`` against the error of the whole model.
        error_alone: The error when only this layer is quantized.
        sqnr_alone_db: Signal to noise of the logits then.
    """

    node: str
    layer: str
    kind: LayerKind
    weights: str
    inputs: str
    outputs: str
    weight_count: int
    weight_scales: int
    quantizer: OwnQuantizer
    weight_sqnr_db: float
    output_sqnr_db: float
    weights_at_ends: float
    weights_at_zero: float
    weight_codes_dead: float
    inputs_clipped: float
    input_codes_dead: float
    input_rounding_db: float
    outputs_clipped: float | None
    output_codes_dead: float | None
    output_rounding_db: float | None
    error_share: float
    error_without: float
    sqnr_without_db: float
    alone_share: float
    error_alone: float
    sqnr_alone_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PointNoise:
    """What a quantizer does that belongs to no layer: of the image, a sum, or an average.

    Args:
        node: Name of the node whose output it quantizes.
        format: Of the values.
        clipped: As `LayerNoise.outputs_clipped`.
        codes_dead: As `LayerNoise.output_codes_dead`.
        error_share: As `LayerNoise.error_share`, of this quantizer.
        sqnr_alone_db: As `LayerNoise.sqnr_alone_db`.
    """

    node: str
    format: str
    clipped: float
    codes_dead: float
    error_share: float
    sqnr_alone_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Noise of all layers on the same images.

    Args:
        images: How many.
        logits_error: Mean squared error of the logits against the float model's.
        logits_sqnr_db: Their signal to noise.
        layers: In execution order.
        points: Quantizers that belong to no layer, in execution order.
    """

    images: int
    logits_error: float
    logits_sqnr_db: float
    layers: tuple[LayerNoise, ...]
    points: tuple[PointNoise, ...]


_BATCH: Final = 16
"""Images at a time, where it does not matter: temporary tensors stay small."""


@torch.no_grad()
def diagnose(model: QuantizedModel, images: torch.Tensor) -> Diagnosis:
    """Measure every layer.

    Most of the time goes into `lutwise.quant.sensitivity.measure`, which says how much.

    Args:
        model: The model.
        images: Shape (n, c, h, w), n >= 1; `affordable_images` says how many are enough work.
    """
    found = measure(model, images)
    outputs: dict[str, float] = {}
    uses: dict[str, RangeUse] = {}
    for step in walk(model, images.split(_BATCH)):
        if step.layer is not None:
            outputs[step.node.name] = _noise_db(step)
        uses.update(_uses(model, step))
    return Diagnosis(
        images=len(images),
        logits_error=found.error,
        logits_sqnr_db=ratio_db(found.signal, found.error),
        layers=tuple(
            _layer_noise(model, node, found, uses, outputs[node.name])
            for node in layer_nodes(model.prepared)
        ),
        points=tuple(
            PointNoise(
                node=part.start,
                format=uses[part.start].format.name,
                clipped=uses[part.start].clipped_share,
                codes_dead=uses[part.start].dead_share,
                error_share=found.share(part.start),
                sqnr_alone_db=ratio_db(found.signal, found.parts[part.start].alone),
            )
            for part in list_parts(model)
            if not part.is_layer
        ),
    )


def _noise_db(step: Step) -> float:
    signal = noise = 0.0
    for real, quantized in zip(step.floats, step.quantized, strict=True):
        signal += float(real.square().sum(dtype=torch.float64))
        noise += float((quantized - real).square_().sum(dtype=torch.float64))
    return ratio_db(signal, noise)


def _uses(model: QuantizedModel, step: Step) -> Iterator[tuple[str, RangeUse]]:
    """Yield how the quantizers that take a node's output use their formats.

    By the node in ``dataflow`` mode; by the layer that reads it in ``layerwise`` mode.
    """
    if quantizer := model.outputs.get(step.node.name):
        yield step.node.name, activation_use(quantizer, step.quantized)
    for user in step.node.users:
        if quantizer := model.layer_inputs.get(user.name):
            yield user.name, activation_use(quantizer, step.quantized)


def _layer_noise(
    model: QuantizedModel,
    node: fx.Node,
    found: Sensitivity,
    uses: dict[str, RangeUse],
    output_sqnr_db: float,
) -> LayerNoise:
    layer, weight = model.layer(node), model.weights[node.name]
    real = model.prepared.module(node).weight
    assert isinstance(real, torch.Tensor)
    sources = [node.name] if node.name in model.layer_inputs else _sources(model, node)
    inputs = reduce(RangeUse.join, [uses[name] for name in sources])
    point, part = point_of(model, node), found.parts[node.name]
    output, used = uses[point] if point else None, weight_use(weight, real)
    unquantized = "float32" if model.layer_inputs else "accumulator"
    return LayerNoise(
        node=node.name,
        layer=str(node.target),
        kind=_kind(layer),
        weights=weight.format.name,
        inputs=inputs.format.name,
        outputs=output.format.name if output else unquantized,
        weight_count=real.numel(),
        weight_scales=len(weight.scales),
        quantizer=_own_quantizer(model, node, point),
        weight_sqnr_db=sqnr_db(real.numpy(), weight.real().numpy()),
        output_sqnr_db=output_sqnr_db,
        weights_at_ends=_share_at_ends(weight),
        weights_at_zero=used.zero_share,
        weight_codes_dead=used.dead_share,
        inputs_clipped=inputs.clipped_share,
        input_codes_dead=inputs.dead_share,
        input_rounding_db=inputs.rounding_db,
        outputs_clipped=output.clipped_share if output else None,
        output_codes_dead=output.dead_share if output else None,
        output_rounding_db=output.rounding_db if output else None,
        error_share=found.share(node.name),
        error_without=part.without,
        sqnr_without_db=ratio_db(found.signal, part.without),
        alone_share=found.alone_share(node.name),
        error_alone=part.alone,
        sqnr_alone_db=ratio_db(found.signal, part.alone),
    )


def _kind(layer: nn.Conv2d | nn.Linear) -> LayerKind:
    if isinstance(layer, nn.Linear):
        return LayerKind.LINEAR
    depthwise = layer.groups == layer.in_channels and layer.groups > 1
    return LayerKind.DEPTHWISE if depthwise else LayerKind.CONV


def _own_quantizer(model: QuantizedModel, node: fx.Node, point: str | None) -> OwnQuantizer:
    if model.layer_inputs:
        return OwnQuantizer.INPUT
    if point is None or _gives_output(model, node, point):
        return OwnQuantizer.NONE
    return OwnQuantizer.OUTPUT


def _gives_output(model: QuantizedModel, node: fx.Node, point: str) -> bool:
    """Whether what a layer hands on reaches the output with the format it got at a point."""
    kinds = model.prepared.kinds
    return any(
        kinds[user.name] is Kind.OUTPUT
        or (
            (user.name == point or kinds[user.name].keeps_values)
            and _gives_output(model, user, point)
        )
        for user in node.users
    )


def _share_at_ends(weight: QuantizedWeight) -> float:
    at_ends = (weight.values >= weight.format.max_value) | (
        weight.values <= weight.format.min_value
    )
    return float(at_ends.double().mean())


def _sources(model: QuantizedModel, node: fx.Node) -> list[str]:
    """Return the nodes whose quantizers what a node reads has gone through."""
    found: list[str] = []
    for source in node.all_input_nodes:
        found += [source.name] if source.name in model.outputs else _sources(model, source)
    return list(dict.fromkeys(found))
