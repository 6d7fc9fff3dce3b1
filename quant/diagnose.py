# SPDX-License-Identifier: Apache-2.0
"""Per-layer signal to noise: where a quantized model loses accuracy."""

from dataclasses import dataclass

import torch

from lutwise.quant.evaluate import sqnr_db
from lutwise.quant.quantized import QuantizedModel
from lutwise.quant.walk import walk

__all__ = ["LayerNoise", "diagnose"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNoise:
    """Noise of one layer, decibel.

    Args:
        layer: Module name.
        weight_sqnr_db: Of its weights.
        output_sqnr_db: Of its output before its own quantizer, all layers before it quantized.
        weights_at_ends: Share of weights that hold the largest or smallest value of their format.
    """

    layer: str
    weight_sqnr_db: float
    output_sqnr_db: float
    weights_at_ends: float


@torch.no_grad()
def diagnose(model: QuantizedModel, images: torch.Tensor, *, batch: int = 32) -> list[LayerNoise]:
    """Measure every layer on some images (n, c, h, w), in execution order."""
    found = []
    for step in walk(model, images.split(batch)):
        if step.layer is None:
            continue
        weight = model.weights[step.node.name]
        real = model.prepared.module(step.node).weight
        assert isinstance(real, torch.Tensor)
        ends = (weight.values >= weight.format.max_value) | (
            weight.values <= weight.format.min_value
        )
        found.append(
            LayerNoise(
                layer=str(step.node.target),
                weight_sqnr_db=sqnr_db(real.numpy(), step.layer.weight.detach().numpy()),
                output_sqnr_db=sqnr_db(
                    torch.cat(step.floats).numpy(), torch.cat(step.quantized).numpy()
                ),
                weights_at_ends=float(ends.double().mean()),
            )
        )
    return found
