# SPDX-License-Identifier: Apache-2.0
"""Price of a layer unit: its dot products, what follows them, memories and control.

Every part is counted from the unit's parameters as ``lutwise.hw.layer_unit`` builds it. Two parts
have a coefficient, since the synthesizer finds more than a count sees: columns of small ROMs that
are equal or constant, and the control's counters and comparisons.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from math import ceil
from typing import Final

from lutwise.cost_models.library import LutPrice, PriceSource, lut_per_mac, requantizer_luts
from lutwise.errors import ConfigError
from lutwise.hw.bounds import width_of_range
from lutwise.hw.layer_unit import LayerUnit
from lutwise.hw.output_stage import Form, form_for, result_codes
from lutwise.quant.formats import Format, IntFormat, parse_element, parse_weight

__all__ = [
    "CHOICE_SITES_PER_BIT",
    "CONTROL_SITES_PER_BIT",
    "LAYER_ERROR",
    "LUTS_PER_BLOCK_RAM",
    "TABLE_ROM",
    "WEIGHT_ROM",
    "LayerPrice",
    "LayerSize",
    "Memory",
    "layer_price",
    "output_sites",
]

TABLE_ROM: Final = 0.6
"""Sites per counted site of the ROMs that hold thresholds, biases and multipliers: many of their
columns are equal or constant."""

WEIGHT_ROM: Final = 0.85
"""Sites per counted site of weights in LUTs."""

CONTROL_SITES_PER_BIT: Final = 2.7
"""Sites of the control per bit of its counters: count, compare, wrap."""

CHOICE_SITES_PER_BIT: Final = 1.0
"""Sites per bit of an input word that comes from the stream or from the vector's memory."""

LAYER_ERROR: Final = 0.11
"""Relative error of a layer unit's price: the 90th percentile on units that nothing was fitted
on."""

LUTS_PER_BLOCK_RAM: Final = 150
"""LUTs that are as scarce as one RAMB18: a ZU9EG has 274 080 of the ones and 1824 of the others."""

_BLOCK_RAM_WORDS: Final = 512
_BLOCK_RAM_WIDTH: Final = 36
_DSP_BITS: Final = 4


class Memory(Enum):
    """Where weights lie."""

    LUT = "lut"
    """ROMs of LUTs."""

    BLOCK = "block"
    """RAMB18."""

    AUTO = "auto"
    """RAMB18 where they save more than ``LUTS_PER_BLOCK_RAM`` LUTs each, else LUTs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSize:
    """What the price of a layer unit depends on.

    Args:
        weights: Format of the weights.
        activations: Format of the inputs.
        output: Format of the results; ``None`` where sums go out.
        accumulator_bits: Width of the sums.
        groups: Groups of outputs with inputs of their own.
        outputs: Outputs of a group.
        products: Products per output.
        pe: Outputs side by side.
        simd: Products per output and cycle.
        multiplier_bits: Width of a requantizer's multipliers, which share one shift.

    Raises:
        ConfigError: ``pe`` or ``simd`` is out of range.
    """

    weights: Format
    activations: Format
    output: Format | None
    accumulator_bits: int
    groups: int
    outputs: int
    products: int
    pe: int
    simd: int
    multiplier_bits: int = 18

    def __post_init__(self) -> None:
        if not (1 <= self.pe <= self.outputs and 1 <= self.simd <= self.products):
            raise ConfigError(
                f"pe is 1..{self.outputs} and simd 1..{self.products}, got pe={self.pe}, "
                f"simd={self.simd}"
            )

    @classmethod
    def of(cls, unit: LayerUnit) -> "LayerSize":
        """Return the size of a unit."""
        stage = unit.stage
        multiplies = stage is not None and stage.form is Form.MULTIPLY
        return cls(
            weights=unit.weights,
            activations=unit.activations,
            output=stage.output if stage else None,
            accumulator_bits=unit.accumulator_bits,
            groups=unit.groups,
            outputs=unit.outputs,
            products=unit.products,
            pe=unit.pe,
            simd=unit.simd,
            multiplier_bits=max(stage.multipliers).bit_length() if stage and multiplies else 16,
        )

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> "LayerSize":
        """Return the size that a row of ``data/layer_units.csv`` describes.

        Raises:
            KeyError: A column is missing.
            ValueError: A number is none.
        """
        numbers = ("accumulator_bits", "groups", "outputs", "products", "pe", "simd")
        return cls(
            weights=parse_weight(row["weights"]),
            activations=parse_element(row["activations"]),
            output=parse_element(row["output"]) if row["output"] else None,
            multiplier_bits=int(row["multiplier_bits"]) or 16,
            **{name: int(row[name]) for name in numbers},
        )

    @property
    def beats(self) -> int:
        """Words of an input vector."""
        return ceil(self.products / self.simd)

    @property
    def folds(self) -> int:
        """Words of the results of a vector."""
        return ceil(self.outputs / self.pe)

    @property
    def weight_words(self) -> int:
        """Words of the weight memory."""
        return self.groups * self.folds * self.beats

    @property
    def weight_width(self) -> int:
        """Bits of a word of the weight memory."""
        return self.pe * self.simd * self.weights.bits


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPrice:
    """LUT sites of a layer unit by part, and what else it takes.

    Args:
        dot_products: Of all outputs side by side.
        outputs: From sums to results, with their ROMs.
        weights: Of weights in LUTs.
        buffer: Of the memory that keeps a vector, and of the choice between it and the stream.
        control: Counters and handshakes.
        lut_rams: Of ``buffer``, the LUTs that are memory.
        memory: Where the weights lie.
        block_rams: RAMB18 of weights in block RAM.
        dsps: DSP48E2 that could do the products of a cycle instead of LUTs, four of up to 4 bits
            or two of up to 8 bits each; 0 where they cannot.
        source: Of the dot products' price.
        relative_error: Of all LUTs.
    """

    dot_products: float
    outputs: float
    weights: float
    buffer: float
    control: float
    lut_rams: int
    memory: Memory
    block_rams: int
    dsps: int
    source: PriceSource
    relative_error: float

    @property
    def luts(self) -> float:
        """All parts together."""
        return self.dot_products + self.outputs + self.weights + self.buffer + self.control


def layer_price(size: LayerSize, memory: Memory = Memory.LUT) -> LayerPrice:
    """Price a layer unit.

    Raises:
        ConfigError: The library has no requantizer to the output's format.
    """
    dots = lut_per_mac(
        size.weights, size.activations, size.simd, accumulator_bits=size.accumulator_bits
    )
    served = size.groups * size.folds
    counters = sum(map(_counter_bits, (size.beats, size.folds, size.weight_words, served)))
    in_luts = WEIGHT_ROM * _rom_sites(size.weight_words, size.weight_width)
    block_rams = _block_rams(size.weight_words, size.weight_width)
    if memory is Memory.AUTO:
        saves = in_luts > LUTS_PER_BLOCK_RAM * block_rams
        memory = Memory.BLOCK if saves else Memory.LUT
    lut_rams = _lut_ram_sites(size) if size.folds > 1 else 0
    return LayerPrice(
        dot_products=size.pe * size.simd * dots.value,
        outputs=size.pe * output_sites(size, served),
        weights=in_luts if memory is Memory.LUT else 0.0,
        buffer=lut_rams + _choice_sites(size) if size.folds > 1 else 0.0,
        control=CONTROL_SITES_PER_BIT * counters,
        lut_rams=lut_rams,
        memory=memory,
        block_rams=block_rams if memory is Memory.BLOCK else 0,
        dsps=_dsps(size),
        source=dots.source,
        relative_error=_error(dots),
    )


def _error(dots: LutPrice) -> float:
    return max(LAYER_ERROR, dots.relative_error)


def _counter_bits(states: int) -> int:
    return width_of_range(0, states - 1)


def _rom_sites(words: int, width: int) -> float:
    """Count a ROM.

    Two columns of up to 32 words share a LUT; multiplexers of up to 256 words are the slice's own.
    """
    if words <= 1:
        return 0.0
    if words <= 32:
        return width / 2
    blocks = ceil(words / 256)
    return float(width * (ceil(words / 64) + ceil((blocks - 1) / 3)))


def output_sites(size: LayerSize, served: int, form: Form | None = None) -> float:
    """Count what turns the sums of one lane into results.

    Args:
        size: Of the layer.
        served: Channels that the lane serves.
        form: Of the output stage; the one that a layer unit takes if ``None``.
    """
    bits = size.accumulator_bits
    if size.output is None:
        return bits + TABLE_ROM * _rom_sites(served, bits)
    results = len(result_codes(size.output))
    if (form or form_for(results, served)) is Form.THRESHOLDS:
        levels = (results - 1).bit_length()
        compare = levels * ceil((bits + 1) / 2)
        roms = sum(_rom_sites(served << level, bits + 1) for level in range(levels))
        return compare + TABLE_ROM * roms + size.output.bits / 2
    # The characterised requantizers have a multiplier of 16 bits, and rows in proportion to it.
    requantizer = requantizer_luts(bits, size.output).value * size.multiplier_bits / 16
    roms = _rom_sites(served, bits + size.multiplier_bits)
    return requantizer + bits + TABLE_ROM * roms


def _lut_ram_sites(size: LayerSize) -> int:
    """Count the LUT memory of a vector: 32 words of 14 bits or 64 of 7 take eight LUTs."""
    width = size.simd * size.activations.bits
    if size.beats <= 32:
        return 8 * ceil(width / 14)
    return 8 * ceil(width / 7) * ceil(size.beats / 64)


def _choice_sites(size: LayerSize) -> float:
    """Count what chooses between the banks of that memory, and between it and the stream."""
    width = size.simd * size.activations.bits
    banks = 1 if size.beats <= 32 else ceil(size.beats / 64)
    return width * ceil((banks - 1) / 3) + CHOICE_SITES_PER_BIT * width


def _block_rams(words: int, width: int) -> int:
    return ceil(width / _BLOCK_RAM_WIDTH) * ceil(words / _BLOCK_RAM_WORDS)


def _dsps(size: LayerSize) -> int:
    """Count DSP48E2 for integers: products that share an operand go into one multiplier."""
    formats = (size.weights, size.activations)
    if not all(isinstance(fmt, IntFormat) for fmt in formats):
        return 0
    packed = 4 if max(fmt.bits for fmt in formats) <= _DSP_BITS else 2
    return ceil(size.pe / packed) * size.simd
