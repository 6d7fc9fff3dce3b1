# SPDX-License-Identifier: Apache-2.0
"""Round and correct the layers of a quantized model, one after another, in one walk."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from lutwise.errors import CalibrationError
from lutwise.quant import algorithms
from lutwise.quant.algorithms import Algorithm, Stage
from lutwise.quant.algorithms.problems import Correction, LayerOutputs, LayerProblem
from lutwise.quant.effort import NOTED_IMAGES, RUN, shares_before
from lutwise.quant.evaluate import sqnr_db
from lutwise.quant.keep import Keep, Tensors
from lutwise.quant.progress import Tell
from lutwise.quant.quantized import QuantizedModel, QuantizedWeight, apply_layer
from lutwise.quant.recipe import Recipe
from lutwise.quant.shelf import Shelf
from lutwise.quant.walk import Step, walk

__all__ = ["layer_problem", "round_layers"]


def layer_problem(
    model: QuantizedModel,
    node: fx.Node,
    *,
    inputs: Sequence[torch.Tensor] = (),
    float_inputs: Sequence[torch.Tensor] = (),
) -> LayerProblem:
    """Return the problem of rounding a layer's weights."""
    real = model.prepared.module(node).weight
    assert isinstance(real, torch.Tensor)
    return LayerProblem(
        name=str(node.target),
        layer=model.layer(node),
        weight=real,
        start=model.weights[node.name],
        inputs=inputs,
        float_inputs=float_inputs,
    )


def round_layers(
    model: QuantizedModel,
    batches: Sequence[torch.Tensor],
    recipe: Recipe,
    *,
    keep: Keep,
    tell: Tell,
    shelf: Shelf,
) -> None:
    """Run the algorithms of the stages ROUND, RESCALE and CORRECT, layer by layer.

    Each layer sees the inputs that the finished layers before it make.

    Args:
        model: Changed in place.
        batches: Calibration images, batch by batch.
        recipe: What to do.
        keep: Remembers finished layers.
        tell: Told at each layer how much is done.
        shelf: Where tensors are held.
    """
    rounding = algorithms.selected(recipe.algorithms, Stage.ROUND)
    correcting = [
        *algorithms.selected(recipe.algorithms, Stage.RESCALE),
        *algorithms.selected(recipe.algorithms, Stage.CORRECT),
    ]
    if not rounding and not correcting:
        return
    floats = algorithms.needs_floats(recipe.algorithms)
    names = [a.name for a, _ in (*rounding, *correcting)]
    what = " + ".join(name.replace("_", " ") for name in names)
    images = sum(map(len, batches))
    shares = shares_before(model.prepared, recipe, images, (RUN, *names))
    done = 0
    for step in walk(model, batches, floats=floats, shelf=shelf):
        if step.layer is None:
            continue
        done += 1
        place = f"layer {done} of {len(shares)}, {step.node.target}"
        tell(f"{what}: {place}", shares[step.node.name])
        work = _Layer(model, step, keep)
        for algorithm, config in rounding:
            work.round(algorithm, config)
        for algorithm, config in correcting:
            work.correct(algorithm, config)


@dataclass(slots=True)
class _Layer:
    """The work on one layer."""

    model: QuantizedModel
    step: Step
    keep: Keep

    def round(self, algorithm: Algorithm, config: Any) -> None:
        """Round the weights, or take them from an earlier run."""
        model, node = self.model, self.step.node
        problem = layer_problem(
            model, node, inputs=self.step.inputs, float_inputs=self.step.float_inputs
        )
        before = problem.start

        def work() -> Tensors:
            try:
                weight = algorithm.run(problem, config)
            except CalibrationError as error:
                raise CalibrationError(f"layer {problem.name!r}: {error}") from error
            return {"values": weight.values.float(), "scales": weight.scales}

        found = self.keep(f"{algorithm.name}-{node.name}", work)
        weight = QuantizedWeight(
            format=before.format, values=found["values"].double(), scales=found["scales"]
        )
        gain = self._output_db(weight) - self._output_db(before)
        model.set_weight(node, weight)
        model.note(node, algorithm.name, gain)

    def _output_db(self, weight: QuantizedWeight) -> float:
        """Return the signal to noise ratio of some outputs with given weights."""
        step = self.step
        layer = step.layer
        assert layer is not None
        real = self.model.prepared.module(step.node)
        x = step.inputs[0][:NOTED_IMAGES]
        wanted = step.floats[0][:NOTED_IMAGES] if step.floats else real(x)
        return sqnr_db(wanted.numpy(), apply_layer(layer, x, weight.real()).numpy())

    def correct(self, algorithm: Algorithm, config: Any) -> None:
        """Change outputs by a gain and a shift per channel, through scales and bias."""
        model, step = self.model, self.step
        node, layer = step.node, step.layer
        assert layer is not None
        outputs = LayerOutputs(
            name=str(node.target),
            layer=layer,
            per_channel=len(model.weights[node.name].scales) > 1,
            floats=step.floats,
            quantized=step.quantized,
        )
        before = self._corrected_db()
        correction: Correction = algorithm.run(outputs, config)
        _apply_to_layer(model, node, layer, correction)
        shift = outputs.spread(correction.shift)
        for output in step.quantized:
            if correction.gain is not None:
                output.mul_(outputs.spread(correction.gain))
            output.add_(shift)
        model.note(node, algorithm.name, self._corrected_db() - before)

    def _corrected_db(self) -> float:
        floats, quantized = self.step.floats[0], self.step.quantized[0]
        return sqnr_db(floats[:NOTED_IMAGES].numpy(), quantized[:NOTED_IMAGES].numpy())


def _apply_to_layer(
    model: QuantizedModel, node: fx.Node, layer: nn.Conv2d | nn.Linear, correction: Correction
) -> None:
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros_like(correction.shift), requires_grad=False)
    if correction.gain is not None:
        weight = model.weights[node.name]
        model.set_weight(
            node,
            QuantizedWeight(
                format=weight.format,
                values=weight.values,
                scales=weight.scales * correction.gain,
            ),
        )
        layer.bias.mul_(correction.gain)
    layer.bias.add_(correction.shift)
