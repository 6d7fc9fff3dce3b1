# SPDX-License-Identifier: Apache-2.0
"""What plots and reports read about the layers of a run, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lutwise.export.records import Record, check_range

__all__ = ["LayerAdvice", "LayerRow", "PointRow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow(Record):
    """A layer of a run; the fields are the columns of ``layers.csv``.

    Everything but the name may be None: a layerwise run has no hardware form. Shares lie in 0..1,
    but for those of the error. "Error" is the mean squared error of the logits against the float
    model's.

    Args:
        layer: Module name.
        kind: Kind of layer.
        weights: Format of the weights.
        inputs: Format of the inputs.
        outputs: Format of the outputs.
        weight_count: Weights.
        weight_scales: Their scales.
        macs: Multiply-accumulates for one image.
        dot_length: Products per output element.
        accumulator_bits: Width of the accumulator.
        luts_per_mac: LUTs per multiply-accumulate, folded.
        price: Where the price comes from.
        pe: Outputs side by side, folded.
        simd: Products per output and cycle, folded.
        dot_product_luts: LUTs of the dot products, folded.
        requantizer_luts: LUTs of the requantizers with biases and their ROMs, folded.
        memory_luts: LUTs of weights and of the input's memory, folded.
        control_luts: LUTs of counters and handshakes, folded.
        block_rams: RAMB18 of weights, folded.
        cycles: Cycles for one image, folded.
        quantizer: Which quantizer an override of the layer's activations changes: ``input``,
            ``output`` or ``none``.
        weight_sqnr_db: Signal to noise of the weights.
        output_sqnr_db: Signal to noise of the output, all layers before it quantized.
        weights_at_ends: Share of weights at the ends of their format's range.
        weights_at_zero: Share of weights that became zero and were not.
        weight_codes_dead: Share of the format's values that no weight takes.
        inputs_clipped: Share of the inputs beyond the range of their format.
        input_codes_dead: Share of the format's values that no input takes.
        input_rounding_db: Signal to the noise that the input's quantizer adds by itself.
        outputs_clipped: The same of the outputs.
        output_codes_dead: The same of the outputs.
        output_rounding_db: The same of the outputs.
        error_share: How much of the error goes when only this layer is left in float.
        error_without: The error then.
        sqnr_without_db: Signal to noise of the logits then.
        alone_share: ``error_alone`` against the error of the whole model.
        error_alone: The error when only this layer is quantized.
        sqnr_alone_db: Signal to noise of the logits then.
        gains: By algorithm, by how many decibels it raised ``output_sqnr_db``.
    """

    layer: str
    kind: str | None = None
    weights: str | None = None
    inputs: str | None = None
    outputs: str | None = None
    weight_count: int | None = None
    weight_scales: int | None = None
    macs: int | None = None
    dot_length: int | None = None
    accumulator_bits: int | None = None
    luts_per_mac: float | None = None
    price: str | None = None
    pe: int | None = None
    simd: int | None = None
    dot_product_luts: float | None = None
    requantizer_luts: float | None = None
    memory_luts: float | None = None
    control_luts: float | None = None
    block_rams: int | None = None
    cycles: int | None = None
    quantizer: str | None = None
    weight_sqnr_db: float | None = None
    output_sqnr_db: float | None = None
    weights_at_ends: float | None = None
    weights_at_zero: float | None = None
    weight_codes_dead: float | None = None
    inputs_clipped: float | None = None
    input_codes_dead: float | None = None
    input_rounding_db: float | None = None
    outputs_clipped: float | None = None
    output_codes_dead: float | None = None
    output_rounding_db: float | None = None
    error_share: float | None = None
    error_without: float | None = None
    sqnr_without_db: float | None = None
    alone_share: float | None = None
    error_alone: float | None = None
    sqnr_alone_db: float | None = None
    gains: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        owner = f"layer {self.layer!r}"
        for name in (
            "luts_per_mac", "dot_product_luts", "requantizer_luts", "memory_luts",
            "control_luts", "block_rams", "macs", "cycles", "error_without", "error_alone",
            "alone_share",
        ):  # fmt: skip
            check_range(owner, name, getattr(self, name))
        for name in (
            "weights_at_ends", "weights_at_zero", "weight_codes_dead", "inputs_clipped",
            "input_codes_dead", "outputs_clipped", "output_codes_dead",
        ):  # fmt: skip
            check_range(owner, name, getattr(self, name), high=1.0)
        check_range(owner, "error_share", self.error_share, low=float("-inf"), high=1.0)
        for name in (
            "weight_sqnr_db", "output_sqnr_db", "input_rounding_db", "output_rounding_db",
            "sqnr_without_db", "sqnr_alone_db",
        ):  # fmt: skip
            check_range(owner, name, getattr(self, name), low=-1000.0, high=1000.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRow(Record):
    """A quantizer that belongs to no layer: of the image, a sum, or an average.

    Args:
        node: Name of the node whose output it quantizes.
        format: Of the values.
        clipped: Share of numbers beyond the range.
        codes_dead: Share of the format's values that no number takes.
        error_share: How much of the error goes without it.
        sqnr_alone_db: Signal to noise of the logits when nothing else is quantized.
    """

    node: str
    format: str
    clipped: float
    codes_dead: float
    error_share: float
    sqnr_alone_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAdvice(Record):
    """A layer, or a quantizer of none, that dominates the loss, and what to try.

    Args:
        layer: Name of the module, or of the quantizer's node.
        share: Its share of the final error.
        causes: What its numbers show.
        text: For people.
        override: Item for ``overrides`` in a recipe, or empty.
    """

    layer: str
    share: float
    causes: tuple[str, ...]
    text: str
    override: str
