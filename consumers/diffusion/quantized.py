# SPDX-License-Identifier: Apache-2.0
"""A diffusion transformer with every linear layer quantized, made, kept and read again.

The float model stays the stock class in its own folder. What quantization adds, codes and scales,
is kept beside it in two files and put into a copy of the model when it is loaded.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
from torch import nn

from lutwise.consumers.diffusion.calibration import SamplePool
from lutwise.consumers.diffusion.fake_quant import (
    Clock,
    FakeQuantLinear,
    QuantizedInput,
    QuantizedLayer,
    TimeGroups,
)
from lutwise.consumers.diffusion.model import Dit
from lutwise.consumers.diffusion.ranges import collect_inputs
from lutwise.consumers.diffusion.recipe import FLOAT, DitRecipe
from lutwise.consumers.diffusion.rounding import round_weights
from lutwise.errors import CalibrationError, LutwiseError, ModelError
from lutwise.files import write_atomic
from lutwise.quant import kernels
from lutwise.quant.checkpoints import State, check_finite, load_state
from lutwise.quant.formats import Format
from lutwise.quant.numerics import decode, encode
from lutwise.quant.progress import Tell, silent
from lutwise.quant.quantized import QuantizedWeight
from lutwise.quant.ranges import RangeSearch, search
from lutwise.workspace import to_json

__all__ = [
    "CONFIG_FILE",
    "STATE_FILE",
    "QuantizedDit",
    "from_state",
    "linear_layers",
    "load_quantized",
    "quantize_dit",
    "save_quantized",
    "state_of",
]

CONFIG_FILE: Final = "quantized.json"
STATE_FILE: Final = "quantized.safetensors"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizedDit:
    """A quantized diffusion transformer.

    Args:
        transformer: A copy of the float model with `FakeQuantLinear` layers, in evaluation mode.
        layers: What is quantized of each linear layer, by module name.
        recipe: How.
        groups: Of timesteps.
        source: SHA-256 of the float model's weights.
    """

    transformer: nn.Module
    layers: Mapping[str, QuantizedLayer]
    recipe: DitRecipe
    groups: TimeGroups
    source: str


def linear_layers(transformer: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of a DiT by module name, in the order of the model.

    The embedding of patches is a convolution and stays float.
    """
    return {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
    }


def quantize_dit(
    dit: Dit,
    pool: SamplePool,
    recipe: DitRecipe,
    *,
    guided: bool = False,
    tell: Tell = silent,
) -> QuantizedDit:
    """Quantize a diffusion transformer.

    Args:
        dit: The float model; not changed.
        pool: Samples to calibrate with, chosen by `calibration.select`.
        recipe: Formats, ranges and rounding.
        guided: The model will be sampled with guidance, so it is calibrated without classes, too.
        tell: Told how much is done.

    Raises:
        CalibrationError: No samples of a group of timesteps, or inputs that are NaN.
        ConfigError: An override that no layer matches.
    """
    floats = linear_layers(dit.transformer)
    recipe.check_globs(floats)
    groups = time_groups(dit, recipe)
    if not 0 <= pool.timesteps.min() <= pool.timesteps.max() < groups.trained:
        raise CalibrationError(
            f"the model has timesteps 0 .. {groups.trained - 1}, the calibration samples have "
            f"{int(pool.timesteps.min())} .. {int(pool.timesteps.max())}"
        )
    formats = {name: recipe.activation_format(name) for name in floats}
    read = {name: floats[name] for name, fmt in formats.items() if fmt is not None}
    numbers = collect_inputs(
        dit.transformer, read, pool, groups,
        batch=recipe.batch, guided=guided, seed=recipe.seed, tell=tell,
    )  # fmt: skip
    layers = {}
    for done, (name, layer) in enumerate(floats.items()):
        tell("find ranges", done / len(floats))
        layers[name] = QuantizedLayer(
            weight=_weight(recipe.weight_format(name), layer.weight.detach(), recipe.weight_range),
            input=_input(formats[name], numbers.get(name, []), recipe.activation_range),
        )
    transformer = _assemble(dit.transformer, layers, groups)
    layers = round_weights(
        transformer, layers, floats, dit.transformer, pool, recipe, guided=guided, tell=tell
    )
    return QuantizedDit(
        transformer=transformer, layers=layers, recipe=recipe, groups=groups, source=dit.sha256
    )


def _weight(fmt: Format | None, weight: torch.Tensor, how: RangeSearch) -> QuantizedWeight | None:
    if fmt is None:
        return None
    scales = search(fmt, weight, how)
    values = kernels.quantize(fmt, weight.double() / scales.double()[:, None])
    return QuantizedWeight(format=fmt, values=values, scales=scales)


def _input(
    fmt: Format | None, numbers: list[torch.Tensor], how: RangeSearch
) -> QuantizedInput | None:
    if fmt is None:
        return None
    scales = [search(fmt, group.reshape(1, -1), how) for group in numbers]
    return QuantizedInput(format=fmt, scales=torch.cat(scales))


def _assemble(
    transformer: nn.Module, layers: Mapping[str, QuantizedLayer], groups: TimeGroups
) -> nn.Module:
    """Return a copy of a float model with quantized layers."""
    made = copy.deepcopy(transformer)
    clock = Clock(groups)
    for name, layer in linear_layers(made).items():
        owner, _, attribute = name.rpartition(".")
        setattr(made.get_submodule(owner), attribute, FakeQuantLinear(layer, layers[name], clock))
    if groups.groups > 1:
        made.register_forward_pre_hook(clock, with_kwargs=True)
    return made.eval().requires_grad_(requires_grad=False)


def state_of(quantized: QuantizedDit) -> State:
    """Return codes and scales by layer; with the recipe they are the quantized model."""
    state: State = {}
    for name, layer in quantized.layers.items():
        if layer.weight is not None:
            codes = encode(layer.weight.format, layer.weight.values.numpy())
            state[f"{name}.weight_codes"] = torch.from_numpy(codes)
            state[f"{name}.weight_scales"] = layer.weight.scales
        if layer.input is not None:
            state[f"{name}.input_scales"] = layer.input.scales
    return state


def from_state(dit: Dit, recipe: DitRecipe, state: Mapping[str, torch.Tensor]) -> QuantizedDit:
    """Make a quantized model of what `state_of` gave.

    Args:
        dit: The float model.
        recipe: How it was quantized.
        state: Codes and scales.

    Raises:
        ModelError: The state is of other layers, shapes or formats.
    """
    groups = time_groups(dit, recipe)
    layers = {}
    for name, layer in linear_layers(dit.transformer).items():
        try:
            layers[name] = QuantizedLayer(
                weight=_read_weight(recipe.weight_format(name), name, layer, state),
                input=_read_input(recipe.activation_format(name), name, state, groups.groups),
            )
        except (KeyError, ValueError, LutwiseError) as error:
            raise ModelError(
                f"layer {name!r} of the quantized model is not what its recipe says: "
                f"{type(error).__name__}: {error}; quantize again"
            ) from error
    return QuantizedDit(
        transformer=_assemble(dit.transformer, layers, groups),
        layers=layers,
        recipe=recipe,
        groups=groups,
        source=dit.sha256,
    )


def _read_weight(
    fmt: Format | None, name: str, layer: nn.Linear, state: Mapping[str, torch.Tensor]
) -> QuantizedWeight | None:
    if fmt is None:
        return None
    codes, scales = state[f"{name}.weight_codes"], state[f"{name}.weight_scales"]
    if codes.shape != layer.weight.shape or scales.shape != codes.shape[:1]:
        raise ValueError(
            f"weights {tuple(layer.weight.shape)} have codes {tuple(codes.shape)} and scales "
            f"{tuple(scales.shape)}"
        )
    values = torch.from_numpy(decode(fmt, codes.numpy()))
    return QuantizedWeight(format=fmt, values=values, scales=scales.float())


def _read_input(
    fmt: Format | None, name: str, state: Mapping[str, torch.Tensor], groups: int
) -> QuantizedInput | None:
    if fmt is None:
        return None
    scales = state[f"{name}.input_scales"]
    if scales.shape != (groups,):
        raise ValueError(f"{groups} groups of timesteps have scales {tuple(scales.shape)}")
    return QuantizedInput(format=fmt, scales=scales.float())


def save_quantized(quantized: QuantizedDit, folder: Path) -> None:
    """Write codes and scales, and what they mean.

    Args:
        quantized: The model; its float weights are not written.
        folder: Gets ``quantized.safetensors`` and ``quantized.json``.

    Raises:
        OutputError: The place cannot be written.
    """
    record = {
        "version": _VERSION,
        "source_sha256": quantized.source,
        "recipe": quantized.recipe.to_json(),
        "layers": {
            name: {
                "weights": FLOAT if layer.weight is None else str(layer.weight.format),
                "activations": FLOAT if layer.input is None else str(layer.input.format),
            }
            for name, layer in quantized.layers.items()
        },
    }
    write_atomic(folder / STATE_FILE, safetensors.torch.save(state_of(quantized)))
    write_atomic(folder / CONFIG_FILE, to_json(record))


def load_quantized(dit: Dit, folder: Path) -> QuantizedDit:
    """Read what `save_quantized` wrote.

    Args:
        dit: The float model that was quantized.
        folder: Of the two files.

    Raises:
        ModelError: A file is missing or damaged, or belongs to another model.
    """
    path = folder / CONFIG_FILE
    try:
        record = json.loads(path.read_bytes())
        if record["version"] != _VERSION:
            raise ValueError(f"version {record['version']!r}, wanted {_VERSION}")
        source, recipe = str(record["source_sha256"]), DitRecipe.from_json(record["recipe"])
    except (OSError, ValueError, TypeError, LookupError, RecursionError, LutwiseError) as error:
        raise ModelError(
            f"cannot read the quantized model {path}: {type(error).__name__}: {error}; "
            "quantize again"
        ) from error
    if source != dit.sha256:
        raise ModelError(
            f"{path} belongs to a model with weights {source[:12]}..., and {dit.name} has "
            f"{dit.sha256[:12]}...; load the model that was quantized"
        )
    state = load_state(folder / STATE_FILE)
    check_finite(state, str(folder / STATE_FILE))
    return from_state(dit, recipe, state)


def time_groups(dit: Dit, recipe: DitRecipe) -> TimeGroups:
    """Return the groups of timesteps that a recipe makes of a model's."""
    trained = int(dit.scheduler.get("num_train_timesteps", 1000))
    return TimeGroups(groups=recipe.timestep_groups, trained=trained)
