# SPDX-License-Identifier: Apache-2.0
"""What the cost model needs to know of a quantized network."""

from collections.abc import Mapping
from math import prod
from typing import Any

from lutwise.cost_models.layer_shape import LayerShape
from lutwise.quant.formats import parse_element
from lutwise.quant.network import Conv, Network

__all__ = ["layer_shapes", "shapes_from_json"]


def layer_shapes(network: Network) -> tuple[LayerShape, ...]:
    """Return the layers of a network with the accumulators of their actual weights.

    The width is the per-channel L1 bound (`lutwise.quant.network.Accumulator.bits`).
    """
    shapes = []
    for layer in network.layers():
        source, target = network.tensors[layer.input], network.tensors[layer.output]
        assert source.format is not None
        outputs = layer.weight_codes.shape[0]
        pixels = prod(target.shape) // outputs
        shapes.append(
            LayerShape(
                name=layer.name,
                kind="conv" if isinstance(layer, Conv) else "linear",
                macs=layer.dot_length * outputs * pixels,
                weight_count=layer.weight_codes.size,
                dot_length=layer.dot_length,
                outputs=outputs,
                output_pixels=pixels,
                weights=layer.weight_format,
                activations=source.format,
                accumulator_bits=layer.accumulator.bits,
                output=target.format,
                groups=layer.groups if isinstance(layer, Conv) else 1,
            )
        )
    return tuple(shapes)


def shapes_from_json(data: Mapping[str, Any]) -> tuple[LayerShape, ...]:
    """Return the layers that a ``cost.json`` was made of.

    Raises:
        KeyError: An entry is missing.
        FormatError: A format does not exist.
    """
    return tuple(
        LayerShape(
            name=entry["name"],
            kind=entry["kind"],
            macs=entry["macs"],
            weight_count=entry["weight_bits"] // parse_element(entry["weights"]).bits,
            dot_length=entry["dot_length"],
            outputs=entry["outputs"],
            output_pixels=entry["macs"] // entry["dot_length"] // entry["outputs"],
            weights=parse_element(entry["weights"]),
            activations=parse_element(entry["activations"]),
            accumulator_bits=entry["accumulator_bits"],
            output=parse_element(entry["output"]) if entry["output"] else None,
            groups=entry["groups"],
        )
        for entry in data["layers"]
    )
