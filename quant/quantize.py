# SPDX-License-Identifier: Apache-2.0
"""From a float model to a quantized one: prepare, look at data, choose scales, round, correct."""

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from lutwise.errors import CalibrationError, ConfigError, ModelError
from lutwise.quant import algorithms, brevitas_facade, kernels
from lutwise.quant.algorithms import Stage
from lutwise.quant.algorithms.problems import Balance
from lutwise.quant.channels import check_finite, visit
from lutwise.quant.formats import Format, parse_element
from lutwise.quant.graph import PreparedModel, check_supported, layer_nodes, prepare_graph
from lutwise.quant.keep import Keep, compute
from lutwise.quant.plan import Group, Plan, check_globs, plan_dataflow, plan_layerwise
from lutwise.quant.progress import Tell, silent
from lutwise.quant.quantized import QuantizedModel, QuantizedWeight, TensorQuantizer
from lutwise.quant.ranges import SAMPLES, ScaleKind, sample, search, squared_error
from lutwise.quant.recipe import Granularity, GraphMode, Recipe
from lutwise.quant.reconstruct import reconstruct_blocks
from lutwise.quant.rounding import round_layers
from lutwise.quant.shelf import Shelf

__all__ = ["Samples", "collect_samples", "prepare", "quantize"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """What calibration saw of a float model.

    Args:
        numbers: Up to 2**16 numbers of each node's output, by node, shape (n,).
        input_nonnegative: No image held a negative number.
        images: How many images.
    """

    numbers: Mapping[str, torch.Tensor]
    input_nonnegative: bool
    images: int


def prepare(
    model: nn.Module,
    input_shape: tuple[int, ...],
    recipe: Recipe,
    *,
    name: str,
    images: torch.Tensor | None = None,
    progress: Tell = silent,
    keep: Keep = compute,
) -> PreparedModel:
    """Trace a float model, fold batch norms, and run the algorithms of the first two stages.

    Args:
        model: Any traceable module; not changed.
        input_shape: Of one image, (channels, height, width).
        recipe: What to do.
        name: For people.
        images: Calibration images, for algorithms of the stage BALANCE, shape (n, c, h, w).
        progress: Told about each step.
        keep: Remembers what algorithms of the stage BALANCE found.

    Raises:
        ModelError: NaN or infinite weights, or a wrong input shape.
        UnsupportedLayerError: The model cannot be traced, has no layers, or has some that would
            stay in float and are not allowed to.
        ConfigError: The recipe has an algorithm that looks at images, and there are none; or
            leaves layers in float where that cannot be.
        CalibrationError: The model makes NaN or Inf of them.
    """
    progress("trace and prepare")
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise ModelError(f"{name}: {bad} of {tensor.numel()} numbers in {key!r} are not finite")
        if key.endswith("running_var") and (tensor < 0).any():
            raise ModelError(f"{name}: a variance is not negative, and {key!r} has some that are")
    graph = brevitas_facade.trace(model)
    if recipe.relu6_to_relu:
        graph = brevitas_facade.relu6_to_relu(graph)
    for algorithm, config in algorithms.selected(recipe.algorithms, Stage.PREPARE):
        graph = algorithm.run(graph, config)
    if recipe.float_layers and recipe.mode is not GraphMode.LAYERWISE:
        raise ConfigError(
            "`float_layers` leaves layers in float, which hardware has no place for; use "
            "`mode: layerwise`"
        )
    finish = functools.partial(
        prepare_graph, input_shape=input_shape, name=name, float_layers=recipe.float_layers
    )
    prepared = finish(brevitas_facade.finish(graph))
    if recipe.mode is GraphMode.LAYERWISE:
        check_supported(prepared, recipe.float_layers)
    for algorithm, config in algorithms.selected(recipe.algorithms, Stage.BALANCE):
        if images is None or len(images) == 0:
            raise ConfigError(
                f"{algorithm.name} looks at calibration images while {name} is prepared, and got "
                "none; give `images` to prepare()"
            )
        progress(algorithm.name.replace("_", " "))
        algorithm.run(prepared, _balance(prepared, images, recipe, keep), config)
        prepared = finish(prepared.graph)  # nodes may be new
    return prepared


def _balance(model: PreparedModel, images: torch.Tensor, recipe: Recipe, keep: Keep) -> Balance:
    plan = _plan(model, recipe, input_nonnegative=bool(images.min() >= 0))
    by_point = {p: _group_format(group, recipe) for group in plan.groups for p in group.points}
    input_formats = {}
    for node in layer_nodes(model):
        source = node.all_input_nodes[0]
        while source.name not in by_point:  # through nodes that keep values
            source = source.all_input_nodes[0]
        input_formats[node.name] = by_point[source.name]
    return Balance(
        batches=images.split(recipe.calibration.batch),
        layerwise=recipe.mode is GraphMode.LAYERWISE,
        weight_formats=_weight_formats(model, recipe),
        input_formats=input_formats,
        weight_search=recipe.weights.search(),
        input_search=recipe.activations.search(),
        per_channel=recipe.weights.granularity is Granularity.CHANNEL,
        seed=recipe.seed,
        keep=keep,
    )


@torch.no_grad()
def collect_samples(
    model: PreparedModel, images: torch.Tensor, *, batch: int, seed: int
) -> Samples:
    """Run the float model and keep numbers of every tensor.

    Args:
        model: The float model.
        images: Calibration images, shape (n, c, h, w).
        batch: Images at a time.
        seed: Of the choice of numbers.

    Raises:
        CalibrationError: There are no images, or the model makes NaN or Inf of them.
    """
    if len(images) == 0:
        raise CalibrationError("calibration needs at least one image, got none")
    parts = images.split(batch)
    share = max(1, SAMPLES // len(parts))
    generator = torch.Generator().manual_seed(seed)
    kept: dict[str, list[torch.Tensor]] = {}

    def keep(name: str, output: torch.Tensor) -> None:
        kept.setdefault(name, []).append(sample(output, share, generator).clone())

    for part in parts:
        visit(model, part, None, keep)
    numbers = {name: torch.cat(found) for name, found in kept.items()}
    for name, found in numbers.items():
        check_finite(model, name, found)
    return Samples(numbers=numbers, input_nonnegative=bool(images.min() >= 0), images=len(images))


def quantize(
    model: PreparedModel,
    samples: Samples,
    images: torch.Tensor,
    recipe: Recipe,
    *,
    progress: Tell = silent,
    keep: Keep = compute,
) -> QuantizedModel:
    """Quantize a prepared model.

    Args:
        model: The float model.
        samples: What calibration saw of it.
        images: Calibration images, for algorithms that run the model, shape (n, c, h, w).
        recipe: What to do.
        progress: Told about each step.
        keep: Remembers finished layers, so that a killed run goes on where it was.

    Raises:
        UnsupportedLayerError: A node that the graph mode cannot hold.
        CalibrationError: No range can be found, or the inputs of a layer are not finite.
    """
    progress("round weights")
    weights = _quantize_weights(model, recipe)
    progress("find activation ranges")
    plan = _plan(model, recipe, input_nonnegative=samples.input_nonnegative)
    globs = [o.layers for o in recipe.overrides if o.activations]
    check_globs(plan, globs, name=model.name, output_is_set=recipe.output is not None)
    by_point = _activation_quantizers(plan, samples, recipe)
    graph = copy.deepcopy(model.graph)
    quantized = QuantizedModel(
        model,
        graph,
        weights=weights,
        outputs=by_point if recipe.mode is GraphMode.DATAFLOW else {},
        layer_inputs={layer: by_point[source] for layer, source in plan.layer_sources.items()},
    )
    _limit_bias_codes(quantized, recipe.weights.scale)
    batches = images.split(recipe.calibration.batch)
    shelf = Shelf(round(recipe.calibration.memory_gib * 2**30))
    reconstruct_blocks(quantized, batches, recipe, keep=keep, tell=progress, shelf=shelf)
    round_layers(quantized, batches, recipe, keep=keep, tell=progress, shelf=shelf)
    _round_biases(quantized)
    return quantized


def _plan(model: PreparedModel, recipe: Recipe, *, input_nonnegative: bool) -> Plan:
    if recipe.mode is GraphMode.LAYERWISE:
        return plan_layerwise(model, input_nonnegative=input_nonnegative)
    return plan_dataflow(
        model, input_nonnegative=input_nonnegative, quantize_output=recipe.output is not None
    )


@torch.no_grad()
def _limit_bias_codes(model: QuantizedModel, kind: ScaleKind) -> None:
    """Coarsen the weights of channels whose bias would need a wider accumulator than their sums.

    A channel of weights near zero gets a scale near zero, and its bias then a code of any width.
    Where the bias exceeds the largest sum that the formats allow, the channel's scale is raised
    until it does not; its weights matter little beside such a bias.
    """
    for node in layer_nodes(model.prepared):
        bias, weight = model.layer(node).bias, model.weights[node.name]
        if bias is None:
            continue
        source = model.input_quantizer(node)
        largest_sum = weight.values[0].numel() * weight.format.max_value * source.format.max_value
        magnitude = bias.abs() if len(weight.scales) > 1 else bias.abs().amax(0, keepdim=True)
        least = (magnitude.double() / (source.scale * largest_sum)).float()
        if kind is ScaleKind.POWER_OF_TWO:
            least = torch.where(least > 0, torch.exp2(torch.ceil(torch.log2(least))), least)
        raised = torch.maximum(weight.scales, least)
        if torch.equal(raised, weight.scales):
            continue
        real = model.prepared.module(node).weight
        assert isinstance(real, torch.Tensor)
        rows = real.reshape(len(raised), -1).double() / raised.double().reshape(-1, 1)
        values = kernels.quantize(weight.format, rows).reshape(real.shape)
        model.set_weight(node, QuantizedWeight(format=weight.format, values=values, scales=raised))


@torch.no_grad()
def _round_biases(model: QuantizedModel) -> None:
    """Move each bias to the grid of its layer's accumulator, where hardware adds it."""
    for node in layer_nodes(model.prepared):
        bias, weight = model.layer(node).bias, model.weights[node.name]
        source = model.input_quantizer(node)
        if bias is not None:
            exponent = weight.format.unit_exponent + source.format.unit_exponent
            step = weight.scales.double() * source.scale * 2.0**exponent
            bias.copy_(torch.round(bias.double() / step) * step)


def _weight_formats(model: PreparedModel, recipe: Recipe) -> dict[str, Format]:
    """Return the format of each layer's weights, by layer node."""
    nodes = layer_nodes(model)
    names = [str(node.target) for node in nodes]
    for override in recipe.overrides:
        if override.weights and not any(fnmatchcase(n, override.layers) for n in names):
            raise ConfigError(
                f"the override for {override.layers!r} matches no layer of {model.name}, whose "
                f"layers are {', '.join(names)}"
            )
    return {
        node.name: recipe.weight_format(str(node.target), first=i == 0, last=i == len(nodes) - 1)
        for i, node in enumerate(nodes)
    }


@torch.no_grad()
def _quantize_weights(model: PreparedModel, recipe: Recipe) -> dict[str, QuantizedWeight]:
    formats = _weight_formats(model, recipe)
    found = {}
    for node in layer_nodes(model):
        fmt = formats[node.name]
        weight = model.module(node).weight
        assert isinstance(weight, torch.Tensor)
        per_channel = recipe.weights.granularity is Granularity.CHANNEL
        rows = weight.reshape(len(weight), -1) if per_channel else weight.reshape(1, -1)
        scales = search(fmt, rows, recipe.weights.search())
        values = kernels.quantize(fmt, rows.double() / scales.double().reshape(-1, 1))
        found[node.name] = QuantizedWeight(
            format=fmt, values=values.reshape(weight.shape), scales=scales
        )
    return found


def _group_format(group: Group, recipe: Recipe) -> Format:
    if group.is_input:
        fmt = parse_element(recipe.input)
        return fmt.as_unsigned() if group.nonnegative else fmt.as_signed()
    if group.is_output and recipe.output is not None:
        fmt = parse_element(recipe.output)
        return fmt.as_unsigned() if group.nonnegative else fmt.as_signed()
    return recipe.activation_format(group.modules, nonnegative=group.nonnegative)


def _activation_quantizers(
    plan: Plan, samples: Samples, recipe: Recipe
) -> dict[str, TensorQuantizer]:
    """Return the quantizer of each point."""
    families: dict[int, list[Group]] = {}
    for group in plan.groups:
        families.setdefault(group.family, []).append(group)
    found: dict[str, TensorQuantizer] = {}
    for family in families.values():
        formats = [_group_format(group, recipe) for group in family]
        rows = [
            torch.cat([samples.numbers[name] for name in group.points]).reshape(1, -1)
            for group in family
        ]
        how = recipe.activations.search()
        scales = [search(f, r, how) for f, r in zip(formats, rows, strict=True)]
        if len(family) > 1 and how.scale is ScaleKind.FLOAT32:
            scales = _align(formats, rows, scales)
        given = any(group.is_input or group.is_output for group in family)
        factor = 1.0 if given else recipe.activations.factor  # image and logits keep theirs
        for group, fmt, scale in zip(family, formats, scales, strict=True):
            quantizer = TensorQuantizer(format=fmt, scale=(scale * factor).item())
            found.update(dict.fromkeys(group.points, quantizer))
    return found


def _align(
    formats: list[Format], rows: list[torch.Tensor], scales: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Move scales so that they differ by powers of two, at the least relative squared error.

    The fraction that all share is one of the given scales' own; each scale then takes the power
    of two that serves it best.
    """
    powers = [r.square().mean().clamp_min(1e-30) for r in rows]
    best: tuple[float, list[torch.Tensor]] | None = None
    for base in scales:
        chosen, total = [], 0.0
        for fmt, row, scale, power in zip(formats, rows, scales, powers, strict=True):
            nearest = torch.round(torch.log2(scale / base))
            options = [base * torch.exp2(nearest + d) for d in (-1.0, 0.0, 1.0)]
            errors = [(squared_error(fmt, row, o) / power).item() for o in options]
            pick = min(range(len(options)), key=errors.__getitem__)
            chosen.append(options[pick])
            total += errors[pick]
        if best is None or total < best[0]:
            best = (total, chosen)
    assert best is not None
    return best[1]
