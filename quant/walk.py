# SPDX-License-Identifier: Apache-2.0
"""Run the float and the quantized model side by side, one node at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from lutwise.quant.graph import Kind
from lutwise.quant.quantized import QuantizedModel

__all__ = ["Step", "walk"]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """The state after one node.

    Args:
        node: The node.
        layer: Its quantized layer, where it is one.
        floats: Outputs of the float model, batch by batch.
        quantized: Outputs of the quantized model before their quantizer; changes to these lists
            and tensors are seen by the nodes that follow.
    """

    node: fx.Node
    layer: nn.Conv2d | nn.Linear | None
    floats: list[Any]
    quantized: list[Any]


@torch.no_grad()
def walk(model: QuantizedModel, batches: Sequence[torch.Tensor]) -> Iterator[Step]:
    """Yield after each node, in execution order; every node runs once.

    Both models' tensors are held for all batches until their last use, so memory is the widest
    cut through the graph times the number of images, twice.
    """
    nodes = list(model.graph.graph.nodes)
    last = {source: node for node in nodes for source in node.all_input_nodes}
    floats: dict[fx.Node, list[Any]] = {}
    quantized: dict[fx.Node, list[Any]] = {}
    for node in nodes:
        if node.op == "output":
            return
        if node.op == "placeholder":
            floats[node] = list(batches)
            quantized[node] = [b.clone() for b in batches]
        else:
            floats[node] = _run(node, model.prepared.graph, floats, len(batches))
            if before := model.layer_inputs.get(node.name):
                source = node.all_input_nodes[0]
                held = {source: [before(x) for x in quantized[source]]}
                quantized[node] = _run(node, model.graph, held, len(batches))
            else:
                quantized[node] = _run(node, model.graph, quantized, len(batches))
        layer = model.layer(node) if model.prepared.kinds[node.name] is Kind.LAYER else None
        yield Step(node, layer, floats[node], quantized[node])
        if after := model.outputs.get(node.name):
            quantized[node] = [after(x) for x in quantized[node]]
        for source in node.all_input_nodes:
            if last[source] is node:
                del floats[source], quantized[source]


def _run(
    node: fx.Node, graph: fx.GraphModule, held: dict[fx.Node, list[Any]], count: int
) -> list[Any]:
    results = []
    for i in range(count):
        current = {source: kept[i] for source, kept in held.items()}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), current.__getitem__)
        match node.op:
            case "call_module":
                results.append(graph.get_submodule(str(node.target))(*args, **kwargs))
            case "call_method":
                results.append(getattr(args[0], str(node.target))(*args[1:], **kwargs))
            case "call_function":
                results.append(node.target(*args, **kwargs))  # type: ignore[operator]
            case _:  # get_attr
                value: Any = graph
                for part in str(node.target).split("."):
                    value = getattr(value, part)
                results.append(value)
    return results
