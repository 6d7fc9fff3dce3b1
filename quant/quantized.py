# SPDX-License-Identifier: Apache-2.0
"""A quantized model in torch: float32 fake quantization, the fast approximation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from lutwise.quant import kernels
from lutwise.quant.formats import Format
from lutwise.quant.graph import PreparedModel

__all__ = [
    "Interpreter",
    "QuantizedModel",
    "QuantizedWeight",
    "TensorQuantizer",
    "apply_layer",
    "call_node",
    "predict",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorQuantizer:
    """A format and its scale.

    Args:
        format: Of the values.
        scale: Positive float32 number.
    """

    format: Format
    scale: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``scale * round(x / scale)`` in the format."""
        return kernels.quantize_scaled(self.format, x, torch.tensor(self.scale, dtype=x.dtype))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizedWeight:
    """Weights of a layer as values and scales.

    Args:
        format: Of the values.
        values: Numbers of the format, float64, shape of the weight.
        scales: Float32, shape (out,) or (1,).
    """

    format: Format
    values: torch.Tensor
    scales: torch.Tensor

    def real(self) -> torch.Tensor:
        """Return ``scale * value``, float32, shape of the weight."""
        shape = (-1,) + (1,) * (self.values.dim() - 1)
        return (self.values * self.scales.double().reshape(shape)).float()


class QuantizedModel(nn.Module):
    """A prepared model with quantized weights, and quantizers at some of its tensors.

    Args:
        prepared: The float model; not changed.
        graph: Its copy, whose layers hold quantized weights and corrected biases.
        weights: By layer node; see `set_weight`.
        outputs: Quantizers of node outputs, by node (``dataflow``).
        layer_inputs: Quantizers of layer inputs, by layer node (``layerwise``).

    ``changes`` holds, by layer node and algorithm, what the algorithm changed of the signal to
    noise ratio of the layer's output, decibel.
    """

    @torch.no_grad()
    def __init__(
        self,
        prepared: PreparedModel,
        graph: fx.GraphModule,
        *,
        weights: Mapping[str, QuantizedWeight],
        outputs: Mapping[str, TensorQuantizer],
        layer_inputs: Mapping[str, TensorQuantizer],
    ) -> None:
        super().__init__()
        self.prepared = prepared
        self.graph = graph
        self.weights = dict(weights)
        self.outputs = outputs
        self.layer_inputs = layer_inputs
        self.changes: dict[str, dict[str, float]] = {}
        by_name = {node.name: node for node in graph.graph.nodes}
        for name, weight in weights.items():
            self.layer(by_name[name]).weight.copy_(weight.real())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (n, c, h, w) to the output, by float32 fake quantization."""
        return Interpreter(self).run(x)  # type: ignore[no-any-return]

    def layer(self, node: fx.Node) -> nn.Conv2d | nn.Linear:
        """Return the quantized layer of a node."""
        module = self.graph.get_submodule(str(node.target))
        assert isinstance(module, nn.Conv2d | nn.Linear)
        return module

    def set_weight(self, node: fx.Node, weight: QuantizedWeight) -> None:
        """Give a layer other weights."""
        self.weights[node.name] = weight
        self.layer(node).weight.copy_(weight.real())

    def note(self, node: fx.Node, algorithm: str, gain_db: float) -> None:
        """Record by how much an algorithm changed a layer's output signal to noise ratio."""
        self.changes.setdefault(node.name, {})[algorithm] = gain_db

    def input_quantizer(self, node: fx.Node) -> TensorQuantizer:
        """Return the quantizer that the input of a layer has gone through."""
        if found := self.layer_inputs.get(node.name):
            return found
        source = node.all_input_nodes[0]
        while source.name not in self.outputs:  # through nodes that keep values
            source = source.all_input_nodes[0]
        return self.outputs[source.name]


class Interpreter(fx.Interpreter):
    """Runs a quantized model node by node."""

    def __init__(self, model: QuantizedModel) -> None:
        super().__init__(model.graph)
        self._model = model

    def run_node(self, n: fx.Node) -> Any:
        """Run a node between its quantizers."""
        if before := self._model.layer_inputs.get(n.name):
            (source,) = self.fetch_args_kwargs_from_env(n)[0]
            return self.call_module(str(n.target), (before(source),), {})
        result = super().run_node(n)
        after = self._model.outputs.get(n.name)
        return after(result) if after else result


@torch.no_grad()
def predict(model: nn.Module, images: torch.Tensor, *, batch: int = 64) -> torch.Tensor:
    """Run a model over images (n, c, h, w), a batch at a time."""
    return torch.cat([model(part) for part in images.split(batch)])


def call_node(node: fx.Node, graph: fx.GraphModule, current: Mapping[fx.Node, Any]) -> Any:
    """Return what a node of a graph makes of the outputs of those before it."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), current.__getitem__)
    match node.op:
        case "call_module":
            return graph.get_submodule(str(node.target))(*args, **kwargs)
        case "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        case "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        case _:  # get_attr
            value: Any = graph
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value


def apply_layer(
    layer: nn.Conv2d | nn.Linear, x: torch.Tensor, weight: torch.Tensor, *, with_bias: bool = True
) -> torch.Tensor:
    """Return what a layer makes of its input with other weights."""
    bias = layer.bias if with_bias else None
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, bias)
    return nn.functional.conv2d(
        x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups
    )
