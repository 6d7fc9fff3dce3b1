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

import numpy as np
import numpy.typing as npt

from lutwise.errors import ConfigError
from lutwise.hw.architecture import Architecture
from lutwise.hw.dot_product import DotProduct
from lutwise.hw.layer_unit_rtl import write_layer_unit
from lutwise.hw.weighted_layer import WeightedLayer

__all__ = ["LayerUnit"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerUnit(WeightedLayer):
    """A layer in hardware.

    Ports: ``clk``; ``rst``, synchronous; ``in_data``, ``in_valid``, ``in_ready`` and
    ``out_data``, ``out_valid``, ``out_ready``: streams that move a word at a rising edge with both
    valid and ready. Lane 0 is in the lowest bits. Without weights inside also
    ``weight_address``, ``weight_enable`` and ``weight_data``: a memory that answers after one
    edge with ``weight_enable``.

    Args, beside those of ``WeightedLayer``:
        pe: Outputs computed side by side.
        simd: Products per output and cycle.
        architecture: Of the dot products.
        pipeline: Registers inside the dot products.
        weights_inside: Whether the unit holds its weights in LUTs; else it reads them.

    Raises:
        ConfigError: A size is out of range, or sizes contradict each other.
    """

    pe: int
    simd: int
    architecture: Architecture
    pipeline: bool = False
    weights_inside: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (1 <= self.pe <= self.outputs and 1 <= self.simd <= self.products):
            raise ConfigError(
                f"unit {self.name!r}: pe is 1..{self.outputs} and simd 1..{self.products}, got "
                f"pe={self.pe}, simd={self.simd}"
            )

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
