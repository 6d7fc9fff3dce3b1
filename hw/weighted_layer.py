# SPDX-License-Identifier: Apache-2.0
"""What every unit of a whole layer is: weights, an accumulator, and what follows it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lutwise.errors import ConfigError
from lutwise.hw.bounds import exact_integers
from lutwise.hw.output_stage import OutputStage
from lutwise.quant.formats import Format

__all__ = ["MOST_SUM_BITS", "WeightedLayer"]

MOST_SUM_BITS: Final = 62
"""Wider accumulators are refused: the model's sums are 64-bit integers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightedLayer:
    """A layer with its weights, and its exact results.

    Args:
        name: Of the module.
        weights: Format of the weights.
        activations: Format of the inputs.
        weight_codes: Codes, shape (groups, outputs of a group, products).
        accumulator_bits: Two's complement width that holds every sum, with and without its bias.
        stage: What follows the sums; ``None`` where a sum with its bias goes out.
        bias: Per output channel, in units of the accumulator; used without a stage.

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
    def output_bits(self) -> int:
        """Width of one result."""
        return self.stage.output.bits if self.stage else self.accumulator_bits

    @cached_property
    def weight_integers(self) -> npt.NDArray[Any]:
        """Weights in units of their format, shape of the codes, Python integers."""
        return exact_integers(self.weights, self.weight_codes)

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
        w = self.weight_integers.astype(np.int64)
        a = exact_integers(self.activations, vectors).astype(np.int64)
        sums: npt.NDArray[np.int64] = np.einsum("ngk,gok->ngo", a, w).reshape(-1, self.channels)
        if self.stage is None:
            return sums + np.array(self.bias, dtype=np.int64)
        channels = np.broadcast_to(np.arange(self.channels), sums.shape)
        return self.stage.model(sums, channels)
