# SPDX-License-Identifier: Apache-2.0
"""Whose quantization makes the final error: leave one part in float, or quantize it alone.

A *part* is what can be left in float together: a layer's weights and bias with the quantizer
that belongs to it, or a quantizer that belongs to no layer (of the image, a sum, an average).
What comes before a part is the same whether the part is quantized or not, so one pass over the
nodes keeps the tensors that are still needed, and starts at each part two runs over the rest.

Corrected biases need care: each makes up for the errors of all layers before it as well, so
a layer that gets its float bias back lets those errors through and would look harmful where it is
not. Where a model has corrected biases, every run here therefore corrects them anew: the mean of
each channel of a layer's output is moved to the float model's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import torch
from torch import fx, nn

from lutwise.quant.graph import Kind, PreparedModel, layer_nodes
from lutwise.quant.quantized import QuantizedModel, call_node

__all__ = [
    "Part",
    "PartError",
    "Sensitivity",
    "affordable_images",
    "has_corrected_biases",
    "list_parts",
    "measure",
    "point_of",
    "products_per_image",
]

_WORK: Final = 4e12
"""What a measurement may take, in multiply-accumulates: one to two minutes on two cores. The 50
layers of EfficientNet-Lite0 on 64 images of 224x224 are 2.9e12, and took 100 s and 2.3 GiB."""

_NUMBER: Final = 40
"""What making, rounding and moving one number costs, in multiply-accumulates; fitted to the times
of convolutional nets of 0.3 to 1.8 G multiply-accumulates and a vision transformer."""

_LEAST: Final = 4
"""Images, however large the network."""

_Held = dict[fx.Node, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Nodes that are quantized, or not, together.

    Args:
        start: Name of the first of them; the layer's node, where the part is a layer.
        nodes: Names of all of them, the quantizer's point included.
        is_layer: Whether it has weights.
    """

    start: str
    nodes: frozenset[str]
    is_layer: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PartError:
    """Mean squared errors of the output against the float model's.

    Args:
        without: All but this part quantized.
        alone: Only this part quantized.
    """

    without: float
    alone: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Errors of the output (logits) against the float model's.

    Args:
        images: How many were run.
        signal: Mean square of the float model's output.
        error: Mean squared error, everything quantized.
        parts: By the name of a part's first node.
    """

    images: int
    signal: float
    error: float
    parts: Mapping[str, PartError]

    def share(self, start: str) -> float:
        """Return how much of the squared error goes when a part is left in float.

        ``(error - without) / error``; 0 where there is no error. Errors of parts add up and
        cancel, so shares need not sum to one, and a part whose error cancels that of others has
        a negative share.
        """
        if self.error == 0.0:
            return 0.0
        return (self.error - self.parts[start].without) / self.error

    def alone_share(self, start: str) -> float:
        """Return the squared error that a part makes alone, against that of all together.

        0 where there is no error.
        """
        return self.parts[start].alone / self.error if self.error else 0.0


def list_parts(model: QuantizedModel) -> list[Part]:
    """Return the parts of a model in execution order of their first nodes.

    In ``dataflow`` mode the quantizer of a layer is that of its output, behind the clamp that
    completes it; in ``layerwise`` mode that of its input.
    """
    layers = {}
    for node in layer_nodes(model.prepared):
        point = point_of(model, node)
        layers[node.name] = frozenset({node.name, point} if point else {node.name})
    owned = frozenset[str]().union(*layers.values())
    found = []
    for node in model.graph.graph.nodes:
        if node.name in layers:
            found.append(Part(start=node.name, nodes=layers[node.name], is_layer=True))
        elif node.name in model.outputs and node.name not in owned:
            found.append(Part(start=node.name, nodes=frozenset({node.name}), is_layer=False))
    return found


def point_of(model: QuantizedModel, node: fx.Node) -> str | None:
    """Return the node at which a layer's output is quantized, if there is one."""
    if node.name in model.outputs:
        return node.name
    for user in node.users:
        if model.prepared.kinds[user.name] is Kind.CLAMP and user.name in model.outputs:
            return user.name
    return None


def has_corrected_biases(model: QuantizedModel) -> bool:
    """Whether a bias differs from the float model's by more than its rounding to the accumulator.

    A layer that got a bias and had none counts.
    """
    for node in layer_nodes(model.prepared):
        bias, real = model.layer(node).bias, model.prepared.module(node).bias
        if bias is None:
            continue
        if not isinstance(real, torch.Tensor):
            return True
        weight, source = model.weights[node.name], model.input_quantizer(node)
        exponent = weight.format.unit_exponent + source.format.unit_exponent
        step = weight.scales.double() * source.scale * 2.0**exponent
        rounding = step.float() + 1e-6 * bias.abs()  # the bias is held in float32
        if bool(((bias - real).abs() > rounding).any()):
            return True
    return False


def affordable_images(model: QuantizedModel, wanted: int) -> int:
    """Return how many images `measure` can run in a minute or two; at least 4.

    Operations are counted, not seconds, so that a run gives the same twice.

    Args:
        model: The model.
        wanted: At most.
    """
    affordable = int(_WORK / products_per_image(model))
    return max(min(_LEAST, wanted), min(wanted, affordable))


def products_per_image(model: QuantizedModel) -> int:
    """Return what `measure` takes for an image, in multiply-accumulates."""
    starts = {part.start for part in list_parts(model)}
    costs = {n.name: _cost(model.prepared, n) for n in model.graph.graph.nodes}
    rest = sum(costs.values())
    total = 2 * rest
    for name, cost in costs.items():
        total += 2 * rest * (name in starts)
        rest -= cost
    return total


def _cost(model: PreparedModel, node: fx.Node) -> int:
    numbers = prod(model.shapes[node.name])
    if model.kinds[node.name] is not Kind.LAYER:
        return _NUMBER * numbers
    weight = model.module(node).weight
    assert isinstance(weight, torch.Tensor)
    return (_NUMBER + weight[0].numel()) * numbers


class _Runner:
    """Runs nodes of a model on some images, each of them quantized or in float."""

    def __init__(self, model: QuantizedModel, images: torch.Tensor) -> None:
        self.nodes = list(model.graph.graph.nodes)
        self._model = model
        self._images = images
        self._last = {source: node for node in self.nodes for source in node.all_input_nodes}
        self._means: dict[fx.Node, torch.Tensor] = {}
        if has_corrected_biases(model):
            self._keep_means()

    def _keep_means(self) -> None:
        held: _Held = {}
        means: dict[fx.Node, torch.Tensor] = {}
        for node in self.nodes[:-1]:
            self.step(node, held, real=True)
            if self._model.prepared.kinds[node.name] is Kind.LAYER:
                means[node] = self._mean(node, held[node])
            self.drop(node, held)
        self._means = means

    def _mean(self, node: fx.Node, output: torch.Tensor) -> torch.Tensor:
        """Return the mean of each channel in a shape that broadcasts against the output."""
        channels = 1 if isinstance(self._model.layer(node), nn.Conv2d) else output.dim() - 1
        others = [axis for axis in range(output.dim()) if axis != channels]
        return output.mean(others, keepdim=True)

    def step(self, node: fx.Node, held: _Held, *, real: bool) -> None:
        """Run a node on what is held; hold its result."""
        if node.op == "placeholder":
            result: Any = self._images
        elif real:
            result = call_node(node, self._model.prepared.graph, held)
        else:
            current = held
            if before := self._model.layer_inputs.get(node.name):
                source = node.all_input_nodes[0]
                current = {source: before(held[source])}
            result = call_node(node, self._model.graph, current)
        if node in self._means:
            result = result + (self._means[node] - self._mean(node, result))
        after = None if real else self._model.outputs.get(node.name)
        held[node] = after(result) if after else result

    def drop(self, node: fx.Node, held: _Held) -> None:
        """Let go of what no node after this one needs."""
        for source in node.all_input_nodes:
            if self._last[source] is node:
                del held[source]

    def finish(self, start: int, held: _Held, *, real: frozenset[str]) -> torch.Tensor:
        """Run the nodes from one on, the named ones in float; return the output, float64.

        What is held stays as it is.
        """
        held = dict(held)
        for node in self.nodes[start:-1]:
            self.step(node, held, real=node.name in real)
            self.drop(node, held)
        return self.output(held)

    def output(self, held: _Held) -> torch.Tensor:
        """Return the network's output, float64."""
        (source,) = self.nodes[-1].all_input_nodes
        output: torch.Tensor = held[source]
        return output.double()


@torch.no_grad()
def measure(model: QuantizedModel, images: torch.Tensor, *, batch: int = 64) -> Sensitivity:
    """Measure the output's error without each part, and with each part alone.

    A network of n parts takes about n runs of the quantized and of the float model, half of each
    on average; `affordable_images` bounds that. Memory: three times the widest cut through the
    graph times a batch.

    Args:
        model: The model.
        images: Shape (n, c, h, w), n >= 1.
        batch: Images at a time; biases are corrected anew for each batch.

    Reference:
        arXiv 2012.08420 breaks degradation down by layer, too. The share and the repeated bias
        correction are this project's.
    """
    batches = [_measure_batch(model, some) for some in images.split(batch)]

    weights = [found.images / len(images) for found in batches]

    def mean(numbers: Iterable[float]) -> float:
        return sum(w * number for w, number in zip(weights, numbers, strict=True))

    return Sensitivity(
        images=len(images),
        signal=mean(found.signal for found in batches),
        error=mean(found.error for found in batches),
        parts={
            start: PartError(
                without=mean(found.parts[start].without for found in batches),
                alone=mean(found.parts[start].alone for found in batches),
            )
            for start in batches[0].parts
        },
    )


def _measure_batch(model: QuantizedModel, images: torch.Tensor) -> Sensitivity:
    runner = _Runner(model, images)
    parts = {part.start: part.nodes for part in list_parts(model)}
    everything = frozenset(node.name for node in runner.nodes)
    real: _Held = {}
    quantized: _Held = {}
    outputs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for i, node in enumerate(runner.nodes[:-1]):
        if (own := parts.get(node.name)) is not None:
            outputs[node.name] = (
                runner.finish(i, quantized, real=own),
                runner.finish(i, real, real=everything - own),
            )
        for held, is_real in ((real, True), (quantized, False)):
            runner.step(node, held, real=is_real)
            runner.drop(node, held)
    expected = runner.output(real)

    def error(output: torch.Tensor) -> float:
        return float((output - expected).square().mean())

    return Sensitivity(
        images=len(images),
        signal=float(expected.square().mean()),
        error=error(runner.output(quantized)),
        parts={
            start: PartError(without=error(without), alone=error(alone))
            for start, (without, alone) in outputs.items()
        },
    )
