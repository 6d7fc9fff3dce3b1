# SPDX-License-Identifier: Apache-2.0
"""Settings of Brevitas's post-training flow, and the quantizers that they mean.

All weights have one format, and the layers that read the image have inputs of ``input_format``, as
in lutwise's mode ``layerwise``. Brevitas's flow gives other widths to layers with 3 input channels
or 1000 outputs instead; so its ``create_quant_maps`` is called here and not its
``quantize_model``. That one also refuses minifloats without mantissa bits, which the quantizers
take.
"""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from lutwise.errors import ConfigError, FormatError, UnsupportedLayerError
from lutwise.quant.brevitas_facade import finish
from lutwise.quant.formats import FloatFormat, IntFormat, SpecialCodes, parse_element
from lutwise.quant.graph import prepare_graph
from lutwise.quant.plan import plan_layerwise

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Brevitas warns on import about its own modules
    from brevitas.graph.quantize import layerwise_quantize, quantize
    from brevitas_examples.imagenet_classification.ptq.ptq_common import create_quant_maps

__all__ = [
    "ActEqualization",
    "Backend",
    "BrevitasSettings",
    "LayerInput",
    "RangeKind",
    "insert_quantizers",
    "layer_inputs",
]


class Backend(StrEnum):
    """Which tensors Brevitas quantizes."""

    LAYERWISE = "layerwise"
    """Inputs and weights of layers."""

    FX = "fx"
    """Every tensor between layers."""


class RangeKind(StrEnum):
    """How Brevitas finds a range."""

    STATS = "stats"
    """Weights and minifloat activations: the maximum; integer activations: a percentile."""

    MSE = "mse"
    """The least squared error of a grid of 20 ranges."""


class ActEqualization(StrEnum):
    """Where the scales of activation equalization go (SmoothQuant, arXiv 2211.10438)."""

    FX = "fx"
    """Into the layers before."""

    LAYERWISE = "layerwise"
    """Into multiplications in front of every layer, which hardware would have to pay for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrevitasSettings:
    """What Brevitas does with a net.

    Args:
        weights: Element format of all weights, signed; scales are float32 and per channel.
        activations: Element format; scales are float32 and per tensor. An unsigned integer is
            unsigned where a tensor is never negative, and signed elsewhere.
        input_format: Element format of the image, unsigned where no image is negative.
        backend: Which tensors are quantized.
        weight_range: Of each channel.
        activation_range: Of each tensor.
        percentile: For ``RangeKind.STATS``.
        narrow_weights: Leave out the most negative integer.
        relu6_to_relu: As Brevitas does, so that equalization may scale through it.
        equalize_iterations: Of cross-layer equalization with the bias counted in; 0 for none.
        act_equalization: With an exponent of 0.5, or None.
        gpfq: Run GPFQ (arXiv 2201.11113).
        gptq: Run GPTQ (arXiv 2210.17323).
        qronos: Run Qronos (arXiv 2505.11695).
        act_order: Columns of large inputs first, in these three.
        gptq_quantized_activations: Whether GPTQ sees quantized activations (the others do).
        one_pass: GPFQ, GPTQ and Qronos run every layer once, see `brevitas_walk`; Brevitas itself
            runs all layers before the one at work again. The results are the same bit for bit.
        learned_round: Iterations per layer (the rounding of arXiv 2309.05516); 0 for none.
        learned_round_batch: Images per iteration.
        learned_round_rate: Learning rate of Adam.
        bias_correction: Run it at the end.
        batch: Calibration images at a time.
        seed: Of learned rounding's choice of images.

    Raises:
        FormatError: A format that Brevitas has not, or that its place cannot have.
        ConfigError: Settings out of range, or that do not go together.
    """

    weights: str = "int8"
    activations: str = "uint8"
    input_format: str = "int8"
    backend: Backend = Backend.LAYERWISE
    weight_range: RangeKind = RangeKind.MSE
    activation_range: RangeKind = RangeKind.MSE
    percentile: float = 99.999
    narrow_weights: bool = True
    relu6_to_relu: bool = True
    equalize_iterations: int = 20
    act_equalization: ActEqualization | None = None
    gpfq: bool = False
    gptq: bool = False
    qronos: bool = False
    act_order: bool = False
    gptq_quantized_activations: bool = False
    one_pass: bool = False
    learned_round: int = 0
    learned_round_batch: int = 1
    learned_round_rate: float = 1e-3
    bias_correction: bool = True
    batch: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("weights", "activations", "input_format"):
            fmt = parse_element(getattr(self, name))
            special = isinstance(fmt, FloatFormat) and fmt.special is not SpecialCodes.NONE
            unsigned = not fmt.signed and (name == "weights" or isinstance(fmt, FloatFormat))
            if special or unsigned or (isinstance(fmt, IntFormat) and fmt.narrow):
                raise FormatError(
                    f"{name}: wanted a signed integer or minifloat without Inf and NaN, or for "
                    f"activations an unsigned integer, as Brevitas has no other; got {fmt}"
                )
        for name, low in (
            ("equalize_iterations", 0), ("learned_round", 0), ("learned_round_batch", 1),
            ("batch", 1),
        ):  # fmt: skip
            if getattr(self, name) < low:
                raise ConfigError(f"{name}: wanted at least {low}, got {getattr(self, name)}")
        if not 50 < self.percentile <= 100:
            raise ConfigError(f"percentile: wanted 50 < p <= 100, got {self.percentile}")
        if self.backend is Backend.FX:
            # These would leave layers, or their inputs, in float and look too good.
            if self.act_equalization is ActEqualization.LAYERWISE:
                raise ConfigError("layerwise activation equalization needs the layerwise backend")
            if self.learned_round:
                raise ConfigError("Brevitas has learned rounding for the layerwise backend only")

    @property
    def read_formats(self) -> tuple[str, str]:
        """Formats that the inputs of layers have: of the image, of all others."""
        return self.input_format, self.activations


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInput:
    """What is known about the tensor that a layer reads.

    Args:
        is_image: It is the network's input.
        nonnegative: No value can be negative.
    """

    is_image: bool
    nonnegative: bool


_UNKNOWN = LayerInput(is_image=False, nonnegative=False)


def layer_inputs(graph: nn.Module, images: Tensor) -> dict[nn.Module, LayerInput]:
    """Return what lutwise's plan of the mode ``layerwise`` knows, by layer.

    Args:
        graph: Float model, traced by Brevitas; not changed.
        images: To calibrate with, shape (n, c, h, w).

    Raises:
        ModelError: The model does not run on these images.
        UnsupportedLayerError: It has no layer to quantize.
    """
    prepared = prepare_graph(
        finish(copy.deepcopy(graph)), tuple(images.shape[1:]), name=type(graph).__name__
    )
    plan = plan_layerwise(prepared, input_nonnegative=bool(images.min() >= 0))
    found: dict[nn.Module, LayerInput] = {}
    for group in plan.groups:
        for name in group.modules:
            layer = graph.get_submodule(name)
            before = found.get(layer)  # a layer that is called twice has one quantizer
            found[layer] = LayerInput(
                is_image=group.is_input,
                nonnegative=group.nonnegative and (before is None or before.nonnegative),
            )
    return found


def insert_quantizers(
    graph: nn.Module,
    inputs: Mapping[nn.Module, LayerInput],
    images: Tensor,
    settings: BrevitasSettings,
) -> nn.Module:
    """Let Brevitas put its quantized layers, and with ``fx`` activations, into a graph.

    Args:
        graph: Float model, traced by Brevitas; may be changed.
        inputs: Of its layers.
        images: A batch to run once, which is when Brevitas finds the ranges of weights.
        settings: What to do.

    Returns:
        The quantized model in evaluation mode, its activations not calibrated.

    Raises:
        UnsupportedLayerError: Brevitas cannot quantize this net to these formats.
    """
    if settings.backend is Backend.LAYERWISE:
        model = _by_layer(graph, inputs, settings).eval()
        model(images)
        return model
    try:
        model = _by_graph(graph, settings).eval()
        model(images)
    except (AttributeError, TypeError) as error:
        if isinstance(parse_element(settings.activations), IntFormat):
            raise
        raise UnsupportedLayerError(
            f"Brevitas's fx backend fails on {type(graph).__name__} with activations of "
            f"{settings.activations} ({error}); it cannot add or concatenate minifloats (its issue "
            "897), so use the layerwise backend"
        ) from error
    return model


def _quant_maps(settings: BrevitasSettings, activations: str) -> Any:
    """Return Brevitas's maps: layers, layers of ``layerwise``, activations, identities."""
    keys: dict[str, Any] = {}
    for place, text in (("weight", settings.weights), ("act", activations)):
        fmt = parse_element(text)
        keys[f"{place}_bit_width"] = fmt.bits
        keys[f"{place}_quant_format"] = "int" if isinstance(fmt, IntFormat) else "float"
        if isinstance(fmt, FloatFormat):
            keys[f"{place}_exponent_bit_width"] = fmt.exponent_bits
            keys[f"{place}_mantissa_bit_width"] = fmt.mantissa_bits
    return create_quant_maps(
        dtype=torch.float32,
        bias_bit_width=None,  # fails with minifloats; 32 bits are as good as float
        weight_scale_type="float_scale",
        weight_param_method=settings.weight_range.value,
        weight_quant_type="sym",
        weight_quant_granularity="per_channel",
        weight_narrow_range=settings.narrow_weights,
        act_scale_type="float_scale",
        act_scale_computation_type="static",
        act_param_method=settings.activation_range.value,
        act_quant_percentile=settings.percentile,
        act_quant_type="sym",
        act_quant_granularity="per_tensor",
        uint_sym_act_for_unsigned_values=not parse_element(settings.activations).signed,
        **keys,
    )


def _by_layer(
    graph: nn.Module, inputs: Mapping[nn.Module, LayerInput], settings: BrevitasSettings
) -> nn.Module:
    maps = {text: _quant_maps(settings, text)[1] for text in settings.read_formats}

    def input_quant(layer: nn.Module) -> Any:
        known = inputs.get(layer, _UNKNOWN)
        text = settings.input_format if known.is_image else settings.activations
        fmt = parse_element(text)
        quantizer = maps[text][type(layer)][1]["input_quant"]
        wanted = known.is_image or not fmt.signed
        if isinstance(fmt, IntFormat) and wanted and known.nonnegative:
            return quantizer.let(signed=False)
        return quantizer

    layers = {
        # Brevitas calls a setting with the layer where it is a lambda, and only then
        kind: (module, {**keys, "input_quant": lambda layer: input_quant(layer)})
        for kind, (module, keys) in maps[settings.activations].items()
        if "input_quant" in keys
    }
    quantized: nn.Module = layerwise_quantize(graph, layers)
    return quantized


def _by_graph(graph: nn.Module, settings: BrevitasSettings) -> nn.Module:
    layers, _, activations, identities = _quant_maps(settings, settings.activations)
    model = quantize(
        graph, quant_identity_map=identities, compute_layer_map=layers, quant_act_map=activations
    )
    module, keys = _quant_maps(settings, settings.input_format)[3]["signed"]
    for node in model.graph.nodes:
        if node.op == "placeholder":
            setattr(model, f"{node.name}_quant", module(**keys))
    quantized: nn.Module = model
    return quantized
