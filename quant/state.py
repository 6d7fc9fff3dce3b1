# SPDX-License-Identifier: Apache-2.0
"""A quantized model as tensors and plain values, for files."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lutwise.errors import ModelError
from lutwise.quant.formats import parse_element
from lutwise.quant.graph import PreparedModel, layer_nodes
from lutwise.quant.quantized import QuantizedModel, QuantizedWeight, TensorQuantizer

__all__ = ["from_state", "to_state"]


def to_state(model: QuantizedModel) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the numbers of a quantized model and what they mean.

    Returns:
        Tensors ``LAYER.values``, ``LAYER.scales`` and ``LAYER.bias`` by layer node, and plain
        values for JSON: formats of weights, quantizers of tensors.
    """
    tensors: dict[str, torch.Tensor] = {}
    for node in layer_nodes(model.prepared):
        weight, bias = model.weights[node.name], model.layer(node).bias
        tensors[f"{node.name}.values"] = weight.values.float().contiguous()
        tensors[f"{node.name}.scales"] = weight.scales.contiguous()
        if bias is not None:
            tensors[f"{node.name}.bias"] = bias.detach().contiguous()
    return tensors, {
        "weights": {name: str(weight.format) for name, weight in model.weights.items()},
        "outputs": _plain(model.outputs),
        "layer_inputs": _plain(model.layer_inputs),
        "changes": model.changes,
    }


def _plain(quantizers: Mapping[str, TensorQuantizer]) -> dict[str, list[Any]]:
    return {name: [str(q.format), q.scale] for name, q in quantizers.items()}


@torch.no_grad()
def from_state(
    prepared: PreparedModel, tensors: Mapping[str, torch.Tensor], meanings: Mapping[str, Any]
) -> QuantizedModel:
    """Rebuild a quantized model; the inverse of `to_state`.

    Raises:
        ModelError: The state does not belong to the model.
    """
    graph = copy.deepcopy(prepared.graph)
    try:
        weights = {
            name: QuantizedWeight(
                format=parse_element(text),
                values=tensors[f"{name}.values"].double(),
                scales=tensors[f"{name}.scales"],
            )
            for name, text in meanings["weights"].items()
        }
        model = QuantizedModel(
            prepared,
            graph,
            weights=weights,
            outputs=_quantizers(meanings["outputs"]),
            layer_inputs=_quantizers(meanings["layer_inputs"]),
        )
        for node in layer_nodes(prepared):
            layer = model.layer(node)
            if (bias := tensors.get(f"{node.name}.bias")) is not None:
                layer.bias = nn.Parameter(bias, requires_grad=False)
        model.changes.update(meanings["changes"])
    except (KeyError, RuntimeError) as error:
        raise ModelError(
            f"the saved quantized state does not belong to {prepared.name}: {error}"
        ) from error
    return model


def _quantizers(plain: Mapping[str, list[Any]]) -> dict[str, TensorQuantizer]:
    return {
        name: TensorQuantizer(format=parse_element(text), scale=scale)
        for name, (text, scale) in plain.items()
    }
