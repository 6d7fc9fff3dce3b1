# SPDX-License-Identifier: Apache-2.0
"""Round the weights of a quantized model block by block, from the blocks' outputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from lutwise.quant import algorithms
from lutwise.quant.algorithms import Stage
from lutwise.quant.algorithms.problems import BlockProblem
from lutwise.quant.blocks import Block, find_blocks
from lutwise.quant.effort import shares_before
from lutwise.quant.evaluate import sqnr_db
from lutwise.quant.graph import Kind, PreparedModel
from lutwise.quant.keep import Keep, Tensors
from lutwise.quant.progress import Tell
from lutwise.quant.quantized import (
    QuantizedModel,
    QuantizedWeight,
    TensorQuantizer,
    apply_layer,
    call_node,
)
from lutwise.quant.recipe import Recipe
from lutwise.quant.rounding import layer_problem
from lutwise.quant.shelf import Shelf

__all__ = ["reconstruct_blocks"]


def reconstruct_blocks(
    model: QuantizedModel,
    batches: Sequence[torch.Tensor],
    recipe: Recipe,
    *,
    keep: Keep,
    tell: Tell,
    shelf: Shelf,
) -> None:
    """Run the algorithm of the stage RECONSTRUCT, block by block.

    Args:
        model: Changed in place.
        batches: Calibration images, batch by batch.
        recipe: What to do.
        keep: Remembers finished blocks.
        tell: Told at each block how much is done.
        shelf: Where tensors are held.
    """
    for algorithm, config in algorithms.selected(recipe.algorithms, Stage.RECONSTRUCT):
        blocks = find_blocks(model.prepared)
        floats = list(batches)
        quantized = [_after(model, blocks[0].entry, b) for b in batches]
        images = sum(map(len, batches))
        shares = shares_before(model.prepared, recipe, images, (algorithm.name,))
        for i, block in enumerate(blocks):
            work = _BlockWork(model, block, algorithm.name, keep)
            what = f"{algorithm.name.replace('_', ' ')}: block {i + 1} of {len(blocks)}"
            tell(what, shares[work.layers()[0].name])
            floats = [shelf.place(_run_float(model.prepared, block, x)) for x in floats]
            work.reconstruct(quantized, floats, algorithm.run, config, recipe.seed)
            quantized = [shelf.place(work.finish(x)) for x in quantized]


@dataclass(frozen=True, slots=True)
class _BlockWork:
    model: QuantizedModel
    block: Block
    name: str
    keep: Keep

    def layers(self) -> list[fx.Node]:
        return [n for n in self.block.nodes if self.model.prepared.kinds[n.name] is Kind.LAYER]

    def reconstruct(
        self,
        inputs: Sequence[torch.Tensor],
        targets: Sequence[torch.Tensor],
        algorithm: Callable[..., dict[str, QuantizedWeight]],
        config: Any,
        seed: int,
    ) -> None:
        """Set the weights of the block's layers."""
        nodes = self.layers()
        if not nodes:
            return
        problem = BlockProblem(
            layers={n.name: layer_problem(self.model, n) for n in nodes},
            inputs=inputs,
            targets=targets,
            run=self.run,
            seed=seed,
        )

        def work() -> Tensors:
            with torch.enable_grad():
                found = algorithm(problem, config)
            return {name: weight.values.float() for name, weight in found.items()}

        before = self._output_db(inputs[0], targets[0])
        found = self.keep(f"{self.name}-{self.block.nodes[-1].name}", work)
        for node in nodes:
            start = self.model.weights[node.name]
            weight = QuantizedWeight(
                format=start.format, values=found[node.name].double(), scales=start.scales
            )
            self.model.set_weight(node, weight)
        gain = self._output_db(inputs[0], targets[0]) - before
        for node in nodes:
            self.model.note(node, self.name, gain)

    @torch.no_grad()
    def _output_db(self, x: torch.Tensor, target: torch.Tensor) -> float:
        return sqnr_db(target.numpy(), self.run({}, x).numpy())

    def run(self, weights: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Return the block's output before its quantizer, with some layers' weights replaced.

        Differentiable: a quantizer passes gradients on wherever it does not clip.
        """
        model, last = self.model, self.block.nodes[-1]
        held: dict[fx.Node, Any] = {self.block.entry: x}
        for node in self.block.nodes:
            held[node] = _node_output(model, node, held, weights)
            if node is not last and (after := model.outputs.get(node.name)):
                held[node] = _straight_through(after, held[node])
        output = held[last]
        assert isinstance(output, torch.Tensor)
        return output

    @torch.no_grad()
    def finish(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output behind its quantizer."""
        return _after(self.model, self.block.nodes[-1], self.run({}, x))


def _after(model: QuantizedModel, node: fx.Node, x: torch.Tensor) -> torch.Tensor:
    after = model.outputs.get(node.name)
    return after(x) if after else x


def _straight_through(quantizer: TensorQuantizer, x: torch.Tensor) -> torch.Tensor:
    fmt, scale = quantizer.format, quantizer.scale
    inside = x.clamp(fmt.min_value * scale, fmt.max_value * scale)
    return inside + (quantizer(x.detach()) - inside).detach()


def _node_output(
    model: QuantizedModel,
    node: fx.Node,
    held: Mapping[fx.Node, Any],
    weights: Mapping[str, torch.Tensor],
) -> Any:
    if model.prepared.kinds[node.name] is Kind.LAYER:
        x = held[node.all_input_nodes[0]]
        if before := model.layer_inputs.get(node.name):
            x = _straight_through(before, x)
        layer = model.layer(node)
        return apply_layer(layer, x, weights.get(node.name, layer.weight))
    return call_node(node, model.graph, held)


@torch.no_grad()
def _run_float(model: PreparedModel, block: Block, x: torch.Tensor) -> torch.Tensor:
    held: dict[fx.Node, Any] = {block.entry: x}
    for node in block.nodes:
        held[node] = call_node(node, model.graph, held)
    output = held[block.nodes[-1]]
    assert isinstance(output, torch.Tensor)
    return output
