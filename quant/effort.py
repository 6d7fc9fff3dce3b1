# SPDX-License-Identifier: Apache-2.0
"""What quantizing a model will take: time and memory, layer by layer, before anything is run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, inf, prod
from typing import Final

from torch import fx, nn

from lutwise.quant import algorithms
from lutwise.quant.algorithms import Stage
from lutwise.quant.blocks import find_blocks
from lutwise.quant.gram import CHUNK_BYTES, MERGED_BYTES, Layer, gram_flops, is_dense, layer_groups
from lutwise.quant.graph import Kind, PreparedModel, layer_nodes
from lutwise.quant.ranges import SAMPLES, thresholds_tried
from lutwise.quant.recipe import GraphMode, Recipe
from lutwise.quant.shelf import SMALL
from lutwise.quant.work import TYPICAL, Demand, LayerSize, Speed, Work, product

__all__ = ["NOTED_IMAGES", "RUN", "Effort", "LayerEffort", "estimate_effort", "shares_before"]

CALIBRATE, RANGES, RUN = "calibrate", "find ranges", "run both models"

NOTED_IMAGES: Final = 16
"""Images on which the effect of an algorithm on a layer's output is measured, for the record."""

_FLOAT: Final = 4
_FILED_PASSES: Final = 64
"""How many elementwise operations take as long as putting a node's outputs, of both models, into
files: what costs is the pages that the kernel has to find, not the disk."""

_KEPT_BY_ALLOCATOR: Final = 1.0
"""Of the memory for activations and work, what the C library keeps of tensors that are gone at
most: blocks of other sizes leave gaps between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEffort:
    """What a layer takes, with the operations that follow it up to the next layer.

    Args:
        node: Its node.
        layer: Its module.
        seconds: By step: of quantization, or the name of an algorithm.
        peak_bytes: Memory for the work on this layer alone, beside the activations that are held
            for all images.
    """

    node: str
    layer: str
    seconds: Mapping[str, float]
    peak_bytes: int

    @property
    def total_seconds(self) -> float:
        """Of all steps."""
        return sum(self.seconds.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What quantizing a model takes.

    Args:
        layers: In execution order.
        memory: Bytes by purpose, each the most that is held for it at a time.
        filed_bytes: Activations that exceed the recipe's bound and go to files.
    """

    layers: tuple[LayerEffort, ...]
    memory: Mapping[str, int]
    filed_bytes: int

    @property
    def steps(self) -> dict[str, float]:
        """Seconds by step, in the order of work."""
        found: dict[str, float] = {}
        for layer in self.layers:
            for step, seconds in layer.seconds.items():
                found[step] = found.get(step, 0.0) + seconds
        return found

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(self.steps.values())

    @property
    def peak_bytes(self) -> int:
        """Bound of the memory for weights, images and activations at any time."""
        return sum(self.memory.values())


def estimate_effort(model: PreparedModel, recipe: Recipe, images: int, speed: Speed) -> Effort:
    """Estimate what calibrating, rounding and correcting take; nothing is run.

    Attention's products of activations are not counted, and neither are algorithms of the first
    stage, nor those registered without a demand.

    Args:
        model: The float model.
        recipe: What to do with it.
        images: For calibration.
        speed: Of the machine.
    """
    count = _Count(model, recipe, images)
    layers = tuple(count.layer(node, nodes, speed) for node, nodes in _stretches(model))
    weights, searched = count.weight_bytes()
    at_work = max(searched, count.calibration_bytes(), *(layer.peak_bytes for layer in layers))
    return Effort(
        layers=layers,
        memory={
            "weights": weights,
            "images": _FLOAT * images * prod(_input_shape(model)),
            "samples": 2 * _FLOAT * SAMPLES * len(model.shapes),
            "activations": count.held,
            "work on a layer": at_work,
            "freed, not returned": round(_KEPT_BY_ALLOCATOR * (count.held + at_work)),
        },
        filed_bytes=count.filed,
    )


def shares_before(
    model: PreparedModel, recipe: Recipe, images: int, steps: tuple[str, ...]
) -> dict[str, float]:
    """Return for each layer's node how much of some steps is done before it, from 0 to 1.

    Args:
        model: The float model.
        recipe: What is done with it.
        images: For calibration.
        steps: As `Effort.steps` names them.
    """
    effort = estimate_effort(model, recipe, images, TYPICAL)
    costs = {
        layer.node: sum(layer.seconds.get(step, 0.0) for step in steps) for layer in effort.layers
    }
    total, done = sum(costs.values()) or 1.0, 0.0
    found = {}
    for node, cost in costs.items():
        found[node] = done / total
        done += cost
    return found


def _input_shape(model: PreparedModel) -> tuple[int, ...]:
    (found,) = (model.shapes[name] for name, kind in model.kinds.items() if kind is Kind.INPUT)
    return found


def _stretches(model: PreparedModel) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """Yield each layer with the nodes up to the next one; the first has those before it, too."""
    layers = layer_nodes(model)
    nodes = [n for n in model.graph.graph.nodes if n.op != "output"]
    starts = [0, *(nodes.index(layer) for layer in layers[1:]), len(nodes)]
    for layer, (start, end) in zip(layers, pairwise(starts), strict=True):
        yield layer, nodes[start:end]


class _Count:
    """Counts work and memory.

    Args:
        model: The float model.
        recipe: What to do with it.
        images: For calibration.
    """

    def __init__(self, model: PreparedModel, recipe: Recipe, images: int) -> None:
        self.model, self.recipe, self.images = model, recipe, images
        self.batch = min(images, recipe.calibration.batch)
        self.batches = ceil(images / self.batch)
        chosen = {stage: algorithms.selected(recipe.algorithms, stage) for stage in Stage}
        self.balancing = chosen[Stage.BALANCE]
        self.blocks = chosen[Stage.RECONSTRUCT]
        self.walking = [
            *chosen[Stage.ROUND], *chosen[Stage.RESCALE], *chosen[Stage.CORRECT],
        ]  # fmt: skip
        self.rounds = bool(chosen[Stage.ROUND])
        self.floats = algorithms.needs_floats(recipe.algorithms)
        self.found_blocks = find_blocks(model) if self.blocks else ()
        self.held, self.filed = self._held_bytes()

    def layer(self, node: fx.Node, nodes: list[fx.Node], speed: Speed) -> LayerEffort:
        """Count what a layer takes with the nodes that follow it."""
        forward = sum((self._forward(n) for n in nodes), Work())
        size = self._size(node, forward)
        numbers = sum(prod(self.model.shapes[n.name]) for n in nodes)
        calls = Work(calls=20 * len(nodes) * self.batches)
        work = {
            CALIBRATE: (forward + Work(numbers=3 * numbers)).times(self.images) + calls,
            RANGES: self._ranges(size, nodes),
        }
        demands = {a.name: a.demand(size, c) for a, c in (*self.blocks, *self.walking)}
        if self.walking:
            passes = 8 + _FILED_PASSES * self.filed / max(1, self.held + self.filed)
            both = forward.times(2 if self.floats else 1) + Work(numbers=passes * numbers)
            work[RUN] = both.times(self.images) + calls.times(2)
        if self.rounds:
            noted = size.forward.times(2) + Work(numbers=30 * size.outputs)
            work[RUN] += noted.times(min(NOTED_IMAGES, self.images))
        balancing = {a.name: a.demand(size, c).work for a, c in self.balancing}
        work = balancing | work | {name: demand.work for name, demand in demands.items()}
        return LayerEffort(
            node=node.name,
            layer=str(node.target),
            seconds={step: speed.seconds(w) for step, w in work.items()},
            peak_bytes=self._layer_bytes(node, size, demands),
        )

    def _forward(self, node: fx.Node) -> Work:
        """Count one image's pass through a node."""
        outputs = prod(self.model.shapes[node.name])
        if self.model.kinds[node.name] is not Kind.LAYER:
            return Work(numbers=3 * outputs)
        rows, columns = self._dimensions(node)
        layer = self._layer(node)
        taps = prod(layer.kernel_size) if isinstance(layer, nn.Conv2d) else 1
        multiply = product(2 * outputs * columns, min(rows, columns // taps))
        return multiply + Work(numbers=2 * outputs)

    def _size(self, node: fx.Node, forward: Work) -> LayerSize:
        rows, columns = self._dimensions(node)
        layer = self._layer(node)
        return LayerSize(
            images=self.images,
            groups=layer_groups(layer),
            rows=rows,
            columns=columns,
            inputs=prod(self._inputs(node)),
            outputs=prod(self.model.shapes[node.name]),
            forward=forward,
            gram=self._gram(layer, self._inputs(node), cross=False),
            cross=self._gram(layer, self._inputs(node), cross=True),
        )

    def _inputs(self, node: fx.Node) -> tuple[int, ...]:
        return self.model.shapes[node.all_input_nodes[0].name]

    def _gram(self, layer: Layer, shape: tuple[int, ...], *, cross: bool) -> Work:
        """Count the second moments of all images."""
        groups = layer_groups(layer)
        n = layer.weight[0].numel()
        merges = ceil(self.images / self._merged(shape))
        flops = gram_flops(layer, shape, cross=cross) * self.images
        if isinstance(layer, nn.Conv2d) and is_dense(layer):
            taps = prod(layer.kernel_size)
            width = n // taps
            products = 4 * taps if cross else 2 * taps
            # Each horizontal displacement copies the image twice; narrow slices are copied again.
            copies = (8 if cross else 4) * layer.kernel_size[1]
            if width == 1:
                copies += 5 * products
        else:
            width, products = n, 1
            patches = flops / (2 * groups * n * n)
            copies = ceil(5 * patches * groups * n / (prod(shape) * self.images)) + 2
        writes = 6 * groups * n * n * merges
        moves = Work(numbers=copies * prod(shape) * self.images + writes)
        return product(flops, width) + moves + Work(calls=20 * products * merges)

    def _merged(self, shape: tuple[int, ...]) -> int:
        """Return how many images' second moments are taken at a time."""
        one = _FLOAT * prod(shape) * self.batch
        return min(self.images, self.batch * max(1, MERGED_BYTES // one))

    def _ranges(self, size: LayerSize, nodes: list[fx.Node]) -> Work:
        keeping = sum(self.model.kinds[n.name].keeps_values for n in nodes)
        tensors = max(1, len(nodes) - keeping - 1)  # a clamp completes another
        samples = SAMPLES * (tensors if self.recipe.mode is GraphMode.DATAFLOW else 1)
        weights = thresholds_tried(self.recipe.weights.search()) * size.weights
        activations = thresholds_tried(self.recipe.activations.search()) * samples
        return Work(numbers=8 * (weights + activations), calls=1000)

    def _layer_bytes(self, node: fx.Node, size: LayerSize, demands: Mapping[str, Demand]) -> int:
        shape = self._inputs(node)
        numbers = max(prod(shape), size.outputs)
        found = [_FLOAT * demand.numbers for demand in demands.values()]
        found.append(6 * _FLOAT * self.batch * numbers)  # a batch on its way through the layer
        if self.rounds:
            merged = _FLOAT * self._merged(shape) * prod(shape)
            # Both inputs in the order of images and of channels, two displaced, and strips.
            images = 8 * merged if is_dense(self._layer(node)) else 2 * merged + 2 * CHUNK_BYTES
            found.append(3 * _FLOAT * size.square + images)
        for block in self.found_blocks:
            if node in block.nodes:
                inside = sum(prod(self.model.shapes[n.name]) for n in block.nodes)
                # The output's signal to noise ratio is computed in float64.
                found.append(_FLOAT * self.batch * (inside + 10 * numbers))
        return round(max(found))

    def weight_bytes(self) -> tuple[int, int]:
        """Return what all weights take, and what the search for the largest layer's ranges does.

        Float32 in the model as it came, prepared, and quantized; float64 as values.
        """
        counts = [self._layer(node).weight.numel() for node in layer_nodes(self.model)]
        return (3 * _FLOAT + 8) * sum(counts), 48 * max(counts)

    def _layer(self, node: fx.Node) -> Layer:
        layer = self.model.module(node)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        return layer

    def _dimensions(self, node: fx.Node) -> tuple[int, int]:
        """Return rows per group and columns."""
        layer = self._layer(node)
        return len(layer.weight) // layer_groups(layer), layer.weight[0].numel()

    def _held_bytes(self) -> tuple[int, int]:
        """Return the activations of all images held in memory and in files, each at most."""
        copies = 2 if self.floats or self.blocks else 1
        if not self.walking and not self.blocks:
            return 0, 0
        whole = copies * self.images * self._widest()
        # What is too small for a file stays in memory.
        small = copies * self.images * self._widest(SMALL / self.batch)
        limit = round(self.recipe.calibration.memory_gib * 2**30) + small
        return min(whole, limit), max(0, whole - limit)

    def _widest(self, largest: float = inf) -> int:
        """Return the bytes of the widest cut, per image, of tensors up to a size.

        A node's inputs, its output, and the quantized inputs of a layer are held together.
        """
        nodes = list(self.model.graph.graph.nodes)
        last = {source: node for node in nodes for source in node.all_input_nodes}
        held: dict[fx.Node, int] = {}
        widest = 0
        for node in nodes[:-1]:
            held[node] = _FLOAT * prod(self.model.shapes[node.name])
            sizes = list(held.values())
            if self.recipe.mode is GraphMode.LAYERWISE:
                sizes += [held[s] for s in node.all_input_nodes]
            widest = max(widest, sum(size for size in sizes if size <= largest))
            for source in node.all_input_nodes:
                if last[source] is node:
                    del held[source]
        return widest

    def calibration_bytes(self) -> int:
        """Return what calibration takes for a batch."""
        return 2 * self.batch * self._widest()
