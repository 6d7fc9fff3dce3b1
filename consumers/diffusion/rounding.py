# SPDX-License-Identifier: Apache-2.0
"""Weights rounded by lutwise's own solvers, block by block."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import nn

from lutwise.consumers.diffusion.calibration import SamplePool
from lutwise.consumers.diffusion.fake_quant import FakeQuantLinear, QuantizedLayer
from lutwise.consumers.diffusion.ranges import run_pool, watched
from lutwise.consumers.diffusion.recipe import DitRecipe
from lutwise.errors import CalibrationError
from lutwise.quant import algorithms
from lutwise.quant.algorithms import Stage
from lutwise.quant.algorithms.problems import LayerProblem
from lutwise.quant.progress import Tell
from lutwise.quant.quantized import QuantizedWeight

__all__ = ["ROWS", "round_weights"]

ROWS: Final = 1 << 15
"""Input vectors of a layer that rounding looks at, at most."""


def round_weights(
    quantized: nn.Module,
    layers: Mapping[str, QuantizedLayer],
    floats: Mapping[str, nn.Linear],
    transformer: nn.Module,
    pool: SamplePool,
    recipe: DitRecipe,
    *,
    guided: bool,
    tell: Tell,
) -> dict[str, QuantizedLayer]:
    """Round the weights of one block after another with the recipe's algorithm.

    Each block sees what the finished blocks before it make; layers within one see each other
    rounded to nearest.

    Args:
        quantized: The model with weights rounded to nearest; gets the others.
        layers: Its quantized layers by name.
        floats: The float layers by name.
        transformer: The float model.
        pool: Calibration samples.
        recipe: What to do.
        guided: Look at each sample without its class, too.
        tell: Told how much is done.

    Returns:
        All layers, some with other weights.

    Raises:
        CalibrationError: The inputs of a layer are not finite.
    """
    found = dict(layers)
    for algorithm, config in algorithms.selected(
        algorithms.resolve(recipe.algorithms), Stage.ROUND
    ):
        units = _units([name for name, layer in layers.items() if layer.weight is not None])
        for done, unit in enumerate(units):
            tell(algorithm.name.replace("_", " "), done / len(units))
            inputs = _inputs(
                {name: _module(quantized, name).input for name in unit},
                quantized, pool, recipe, guided=guided, output=True,
            )  # fmt: skip
            float_inputs: dict[str, list[torch.Tensor]] = {name: [] for name in unit}
            if algorithm.reads_floats(config):
                watching = {name: floats[name] for name in unit}
                float_inputs = _inputs(
                    watching, transformer, pool, recipe, guided=guided, output=False
                )
            for name in unit:
                start = found[name].weight
                assert start is not None
                problem = LayerProblem(
                    name=name,
                    layer=floats[name],
                    weight=floats[name].weight.detach(),
                    start=start,
                    inputs=inputs[name],
                    float_inputs=float_inputs[name],
                )
                try:
                    weight: QuantizedWeight = algorithm.run(problem, config)
                except CalibrationError as error:
                    raise CalibrationError(f"layer {name!r}: {error}") from error
                found[name] = replace(found[name], weight=weight)
                _module(quantized, name).weight.copy_(weight.real())
    return found


def _module(quantized: nn.Module, name: str) -> FakeQuantLinear:
    module = quantized.get_submodule(name)
    assert isinstance(module, FakeQuantLinear)
    return module


def _units(names: Sequence[str]) -> list[list[str]]:
    """Return the layers of each block together, and each other layer by itself."""
    units: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        key = ".".join(parts[:2]) if parts[0] == "transformer_blocks" else name
        units.setdefault(key, []).append(name)
    return list(units.values())


@torch.no_grad()
def _inputs(
    modules: Mapping[str, nn.Module],
    transformer: nn.Module,
    pool: SamplePool,
    recipe: DitRecipe,
    *,
    guided: bool,
    output: bool,
) -> dict[str, list[torch.Tensor]]:
    """Return input vectors of layers, batch by batch, the same ones whatever the model."""
    batches = -(-len(pool) // recipe.batch)
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in modules}

    def see(name: str, x: torch.Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1])
        if not torch.isfinite(rows).all():
            raise CalibrationError(f"the input of {name} became NaN or infinite in calibration")
        # By the number of batches seen, so that float and quantized inputs are of the same rows.
        generator = torch.Generator().manual_seed(recipe.seed + len(kept[name]))
        index = torch.randperm(len(rows), generator=generator)[: max(1, ROWS // batches)]
        kept[name].append(rows[index])

    with watched(modules, see, output=output):
        for _ in run_pool(transformer, pool, batch=recipe.batch, guided=guided):
            pass
    return kept
