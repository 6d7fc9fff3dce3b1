# SPDX-License-Identifier: Apache-2.0
"""Matrix-vector units: one layer with its weights, folded onto a few dot-product units.

``pe`` dot products of ``simd`` lanes work side by side. An input vector comes in as a stream of
``input_beats`` words of ``simd`` codes; the results leave as ``folds`` words of ``pe`` codes. All
beats of a vector are kept, so that they can be used again for every fold.

Grouped convolutions (depthwise ones too) take one vector per group, in the order of the groups.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Final

import numpy as np
import numpy.typing as npt

from lutwise.errors import ConfigError
from lutwise.hw.architecture import Architecture
from lutwise.hw.bounds import exact_integers
from lutwise.hw.dot_product import DotProduct
from lutwise.hw.layer_unit_rtl import write_layer_unit
from lutwise.hw.output_stage import OutputStage
from lutwise.quant.formats import Format

__all__ = ["MOST_SUM_BITS", "LayerUnit"]

MOST_SUM_BITS: Final = 62
"""Wider accumulators are refused: the model's sums are 64-bit integers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerUnit:
    """A layer in hardware.

    Ports: ``clk``; ``rst``, synchronous; ``in_data``, ``in_valid``, ``in_ready`` and
    ``out_data``, ``out_valid``, ``out_ready``: streams that move a word at a rising edge with both
    valid and ready. Lane 0 is in the lowest bits. Without weights inside also
    ``weight_address``, ``weight_enable`` and ``weight_data``: a memory that answers after one
    edge with ``weight_enable``.

    Args:
        name: Of the module.
        weights: Format of the weights.
        activations: Format of the inputs.
        weight_codes: Codes, shape (groups, outputs of a group, products).
        accumulator_bits: Two's complement width that holds every sum, with and without its bias.
        stage: What follows the accumulator; ``None`` where the sum with its bias goes out.
        bias: Per output channel, in units of the accumulator; used without a stage.
        pe: Outputs computed side by side.
        simd: Products per output and cycle.
        architecture: Of the dot products.
        pipeline: Registers inside the dot products.
        weights_inside: Whether the unit holds its weights in LUTs; else it reads them.

    Raises:
        ConfigError: A size is out of range, or sizes contradict each other.
    """

    name: str
    weights: Format
    activations: Format
    weight_codes: npt.NDArray[np.int64]
    accumulator_bits: int
    stage: OutputStage | None
    bias: tuple[int, ...]
    pe: int
    simd: int
    architecture: Architecture
    pipeline: bool = False
    weights_inside: bool = True

    def __post_init__(self) -> None:
        if self.weight_codes.ndim != 3 or not self.weight_codes.size:
            raise ConfigError(
                f"unit {self.name!r}: wanted weights of shape (groups, outputs, products), got "
                f"{self.weight_codes.shape}"
            )
        if not 3 <= self.accumulator_bits <= MOST_SUM_BITS:
            raise ConfigError(
                f"unit {self.name!r}: an accumulator has 3..{MOST_SUM_BITS} bits, got "
                f"{self.accumulator_bits}"
            )
        _, outputs, products = self.weight_codes.shape
        if not (1 <= self.pe <= outputs and 1 <= self.simd <= products):
            raise ConfigError(
                f"unit {self.name!r}: pe is 1..{outputs} and simd 1..{products}, got "
                f"pe={self.pe}, simd={self.simd}"
            )
        channels = len(self.stage.bias) if self.stage else len(self.bias)
        if channels != self.channels:
            raise ConfigError(
                f"unit {self.name!r}: {self.channels} channels, but {channels} biases"
            )

    @property
    def groups(self) -> int:
        """Groups of outputs with inputs of their own."""
        return int(self.weight_codes.shape[0])

    @property
    def outputs(self) -> int:
        """Output channels of a group."""
        return int(self.weight_codes.shape[1])

    @property
    def channels(self) -> int:
        """Output channels of all groups."""
        return self.groups * self.outputs

    @property
    def products(self) -> int:
        """Products per output."""
        return int(self.weight_codes.shape[2])

    @property
    def input_beats(self) -> int:
        """Words of an input vector."""
        return ceil(self.products / self.simd)

    @property
    def folds(self) -> int:
        """Words of the results of one vector."""
        return ceil(self.outputs / self.pe)

    @property
    def cycles(self) -> int:
        """Cycles from one vector to the next (initiation interval)."""
        return self.input_beats * self.folds

    @property
    def latency(self) -> int:
        """Clock edges from the one that takes a vector's last word to that of the first results.

        Where nobody pauses; the results of every further fold follow ``input_beats`` edges later.
        """
        return 2 + self.dot.latency

    @property
    def output_bits(self) -> int:
        """Width of one result."""
        return self.stage.output.bits if self.stage else self.accumulator_bits

    @cached_property
    def dot(self) -> DotProduct:
        """The dot-product unit of one output."""
        reach = 1 << (self.accumulator_bits - 1)
        return DotProduct(
            weights=self.weights,
            activations=self.activations,
            lanes=self.simd,
            length=max(self.simd, self.products),
            architecture=self.architecture,
            bounds=(-reach, reach - 1),
            restart=True,
            pipeline=self.pipeline,
        )

    @cached_property
    def weight_words(self) -> tuple[int, ...]:
        """Words of the weight memory: groups, then folds, then beats.

        Each holds ``pe`` times ``simd`` weights, lane 0 of output 0 lowest.
        """
        groups, outputs, products = self.weight_codes.shape
        beats, folds, bits = self.input_beats, self.folds, self.weights.bits
        wide = np.zeros((groups, folds * self.pe, beats * self.simd), dtype=np.int64)
        wide[:, :outputs, :products] = self.dot.weight_bits(self.weight_codes)
        words = wide.reshape(groups, folds, self.pe, beats, self.simd).transpose(0, 1, 3, 2, 4)
        return tuple(
            sum(int(code) << (bits * lane) for lane, code in enumerate(word))
            for word in words.reshape(groups * folds * beats, self.pe * self.simd)
        )

    def model(self, vectors: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Compute results exactly.

        Args:
            vectors: Codes of inputs, shape (n, groups, products).

        Returns:
            Codes of the output, or sums with bias where there is no stage, shape (n, channels).

        Raises:
            ConfigError: The shape is wrong.
            FormatError: A code is not a number of the inputs' format.
        """
        if vectors.shape[1:] != (self.groups, self.products):
            raise ConfigError(
                f"unit {self.name!r}: wanted inputs of shape (n, {self.groups}, "
                f"{self.products}), got {vectors.shape}"
            )
        w = exact_integers(self.weights, self.weight_codes).astype(np.int64)
        a = exact_integers(self.activations, vectors).astype(np.int64)
        sums: npt.NDArray[np.int64] = np.einsum("ngk,gok->ngo", a, w).reshape(-1, self.channels)
        if self.stage is None:
            return sums + np.array(self.bias, dtype=np.int64)
        channels = np.broadcast_to(np.arange(self.channels), sums.shape)
        return self.stage.model(sums, channels)

    def emit(self) -> str:
        """Write the unit as Verilog, with all modules that it needs."""
        return write_layer_unit(self)

    def input_words(self, vectors: npt.NDArray[np.int64]) -> list[int]:
        """Return the words of the input stream for vectors as ``model`` takes them."""
        bits = self.activations.bits
        wide = np.zeros((len(vectors) * self.groups, self.input_beats * self.simd), dtype=np.int64)
        wide[:, : self.products] = vectors.reshape(-1, self.products)
        words = wide.reshape(-1, self.simd)
        return [sum(int(c) << (bits * lane) for lane, c in enumerate(word)) for word in words]

    def results(self, words: list[int]) -> npt.NDArray[np.int64]:
        """Return what the words of the output stream say, as ``model`` does."""
        bits, outputs = self.output_bits, self.outputs
        mask = (1 << bits) - 1
        lanes = np.array(
            [[word >> (bits * lane) & mask for lane in range(self.pe)] for word in words],
            dtype=np.int64,
        )
        if self.stage is None:
            lanes -= (lanes >> (bits - 1)) << bits
        whole = lanes.reshape(-1, self.groups, self.folds * self.pe)[:, :, :outputs]
        found: npt.NDArray[np.int64] = whole.reshape(-1, self.channels)
        return found
