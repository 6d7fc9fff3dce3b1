# SPDX-License-Identifier: Apache-2.0
"""Run the float and the quantized model side by side, one node at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from lutwise.quant.graph import Kind
from lutwise.quant.quantized import QuantizedModel, call_node
from lutwise.quant.shelf import Shelf

__all__ = ["Step", "walk"]

_Held = dict[fx.Node, list[Any]]


@dataclass(slots=True, kw_only=True, eq=False)
class Step:
    """The state after one node, until the walk goes on.

    Args:
        node: The node.
        layer: Its quantized layer, where it is one.
        inputs: For a layer, what it reads in the quantized model, quantized, batch by batch.
        float_inputs: For a layer, what it reads in the float model; empty where that is not run.
        floats: Outputs of the float model, batch by batch; empty where that is not run.
    """

    node: fx.Node
    layer: nn.Conv2d | nn.Linear | None
    inputs: list[torch.Tensor]
    float_inputs: list[torch.Tensor]
    floats: list[Any]
    _walk: "_Walk"
    _quantized: list[Any] | None = field(default=None)

    @property
    def quantized(self) -> list[Any]:
        """Outputs of the quantized model before their quantizer, batch by batch.

        A layer computes them when they are first asked for, with the weights it has then; changes
        to the list and its tensors are seen by the nodes that follow.
        """
        if self._quantized is None:
            self._quantized = self._walk.run_quantized(self)
        return self._quantized

    def release(self) -> None:
        """Let go of all tensors: whoever keeps the step must not keep them alive."""
        self.inputs, self.float_inputs, self.floats, self._quantized = [], [], [], None


class _Walk:
    """The tensors of both models that later nodes still read."""

    def __init__(
        self, model: QuantizedModel, batches: Sequence[torch.Tensor], *, floats: bool, shelf: Shelf
    ) -> None:
        self.model, self.batches, self.shelf = model, batches, shelf
        self.floats: _Held | None = {} if floats else None
        self.quantized: _Held = {}

    def step(self, node: fx.Node) -> Step:
        """Run the float side of a node and make its step."""
        model = self.model
        is_layer = model.prepared.kinds[node.name] is Kind.LAYER
        if self.floats is not None:
            if node.op == "placeholder":
                self.floats[node] = list(self.batches)
            else:
                self.floats[node] = self._run(node, model.prepared.graph, self.floats)
        inputs: list[torch.Tensor] = []
        float_inputs: list[torch.Tensor] = []
        if is_layer:
            source = node.all_input_nodes[0]
            inputs = self.quantized[source]
            if before := model.layer_inputs.get(node.name):
                inputs = [self.shelf.place(before(x)) for x in inputs]
            float_inputs = self.floats[source] if self.floats is not None else []
        return Step(
            node=node,
            layer=model.layer(node) if is_layer else None,
            inputs=inputs,
            float_inputs=float_inputs,
            floats=self.floats[node] if self.floats is not None else [],
            _walk=self,
        )

    def run_quantized(self, step: Step) -> list[Any]:
        """Run the quantized side of a node."""
        node = step.node
        if node.op == "placeholder":
            return [self.shelf.place(b.clone()) for b in self.batches]
        if step.layer is not None:
            held = {node.all_input_nodes[0]: step.inputs}
            return self._run(node, self.model.graph, held)
        return self._run(node, self.model.graph, self.quantized)

    def finish(self, step: Step) -> None:
        """Quantize the outputs of a node and keep them for those that follow."""
        outputs = step.quantized
        if after := self.model.outputs.get(step.node.name):
            for i, output in enumerate(outputs):
                outputs[i] = self.shelf.place(after(output))
        self.quantized[step.node] = outputs

    def forget(self, node: fx.Node) -> None:
        """Drop the outputs of a node that no other reads any more."""
        del self.quantized[node]
        if self.floats is not None:
            del self.floats[node]

    def _run(self, node: fx.Node, graph: fx.GraphModule, held: _Held) -> list[Any]:
        return [
            self.shelf.place(call_node(node, graph, {s: kept[i] for s, kept in held.items()}))
            for i in range(len(self.batches))
        ]


@torch.no_grad()
def walk(
    model: QuantizedModel,
    batches: Sequence[torch.Tensor],
    *,
    floats: bool = True,
    shelf: Shelf | None = None,
) -> Iterator[Step]:
    """Yield after each node, in execution order; every node runs once.

    The models' tensors are held for all batches until their last use: the widest cut through the
    graph times the number of images, twice with the float model. What exceeds the shelf's bytes
    goes to files.

    Args:
        model: The quantized model; its layers' weights may be changed on the way.
        batches: Images, batch by batch.
        floats: Also run the float model.
        shelf: Where tensors are held; None for memory alone.
    """
    state = _Walk(model, batches, floats=floats, shelf=shelf or Shelf())
    nodes = list(model.graph.graph.nodes)
    last = {source: node for node in nodes for source in node.all_input_nodes}
    for node in nodes:
        if node.op == "output":
            return
        step = state.step(node)
        yield step
        state.finish(step)
        step.release()
        for source in node.all_input_nodes:
            if last[source] is node:
                state.forget(source)
