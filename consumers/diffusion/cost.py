# SPDX-License-Identifier: Apache-2.0
"""What sampling with a diffusion transformer costs in theory: operations, bits and LUTs.

Counted are the layers of diffusers' ``DiTTransformer2DModel`` that multiply: linear layers, the
convolution that makes patches, and the two products of attention. Norms, softmax, activation
functions and sums are not. Reuse by a cache takes away attention and feed-forward layers, never
embedders and modulations, which follow the timestep.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from lutwise.consumers.diffusion.layers import DitLayer, DitSize, dit_layers
from lutwise.consumers.diffusion.schedule import Part
from lutwise.cost_models.library import LutPrice, lut_per_mac, requantizer_luts
from lutwise.errors import ConfigError
from lutwise.hw.bounds import accumulator_range, width_of_range
from lutwise.quant.formats import Format

__all__ = [
    "DitCost",
    "DitLayer",
    "DitSize",
    "LayerCost",
    "LayerFormats",
    "dit_cost",
    "dit_layers",
]

Table: TypeAlias = npt.NDArray[np.bool_]

_PARTS: Final = (Part.ATTENTION, Part.FEED_FORWARD)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFormats:
    """Formats of a layer.

    Args:
        weights: None where they stay float.
        activations: Of the input; None where it stays float.
    """

    weights: Format | None = None
    activations: Format | None = None


_FLOAT: Final = LayerFormats()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """What a layer costs over a whole sampling run.

    Args:
        layer: The layer.
        formats: Its formats.
        macs: Multiply-accumulates.
        bops: Bit operations: width times width times multiply-accumulates.
        weight_bits: Bits of its weights, stored once.
        activation_bits: Bits of all inputs that it reads.
        lut_per_mac: Price of a multiply-accumulate; None where an operand is float.
        requantizer_luts: Price of a requantizer from its sums to its input format, which one
            output lane needs; None where an operand is float.
    """

    layer: DitLayer
    formats: LayerFormats
    macs: int
    bops: int
    weight_bits: int
    activation_bits: int
    lut_per_mac: LutPrice | None
    requantizer_luts: LutPrice | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DitCost:
    """What a sampling run costs, for one image.

    Args:
        layers: By layer.
        step_macs: Multiply-accumulates of each step.
        float_parameter_bits: Bits of biases and of the class embeddings, which stay float.
        cache_bits: Bits of all outputs that are kept from step to step.
        lanes: Products per cycle of the units that are priced.
    """

    layers: tuple[LayerCost, ...]
    step_macs: tuple[int, ...]
    float_parameter_bits: int
    cache_bits: int
    lanes: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all steps."""
        return sum(self.step_macs)

    @property
    def bops(self) -> int:
        """Bit operations of all steps."""
        return sum(layer.bops for layer in self.layers)

    @property
    def weight_bits(self) -> int:
        """Bits of all weights that multiply."""
        return sum(layer.weight_bits for layer in self.layers)

    @property
    def activation_bits(self) -> int:
        """Bits of all inputs that layers read in all steps."""
        return sum(layer.activation_bits for layer in self.layers)

    @property
    def priced_share(self) -> float:
        """Share of the multiply-accumulates that have a price in LUTs, 0 .. 1."""
        priced = sum(layer.macs for layer in self.layers if layer.lut_per_mac is not None)
        return priced / self.macs

    @property
    def lut_per_mac(self) -> float | None:
        """Mean LUTs per multiply-accumulate of what has a price, weighted by work."""
        return self._mean({layer.layer.name: layer.lut_per_mac for layer in self.layers})

    @property
    def requantizer_luts(self) -> float | None:
        """Mean LUTs of a requantizer of what has a price, weighted by work."""
        return self._mean({layer.layer.name: layer.requantizer_luts for layer in self.layers})

    @property
    def lane_luts(self) -> float | None:
        """Mean LUTs of a lane of a unit with its share of the unit's requantizer."""
        if self.lut_per_mac is None or self.requantizer_luts is None:
            return None
        return self.lut_per_mac + self.requantizer_luts / self.lanes

    def _mean(self, prices: Mapping[str, LutPrice | None]) -> float | None:
        priced = [
            (price.value, layer.macs)
            for layer in self.layers
            if (price := prices[layer.layer.name]) is not None
        ]
        work = sum(macs for _, macs in priced)
        return sum(value * macs for value, macs in priced) / work if work else None

    def to_json(self) -> dict[str, Any]:
        """Return totals as plain values for JSON."""

        def rounded(number: float | None) -> float | None:
            return None if number is None else round(number, 3)

        return {
            "macs": self.macs,
            "bops": self.bops,
            "weight_bits": self.weight_bits,
            "float_parameter_bits": self.float_parameter_bits,
            "activation_bits": self.activation_bits,
            "cache_bits": self.cache_bits,
            "step_macs": list(self.step_macs),
            "lanes": self.lanes,
            "lut_per_mac": rounded(self.lut_per_mac),
            "requantizer_luts": rounded(self.requantizer_luts),
            "lane_luts": rounded(self.lane_luts),
            "priced_share": round(self.priced_share, 4),
        }


def dit_cost(
    size: DitSize,
    schedule: Table,
    formats: Mapping[str, LayerFormats],
    *,
    guided: bool,
    float_bits: int = 32,
    lanes: int = 8,
) -> DitCost:
    """Price sampling of one image.

    Args:
        size: Of the DiT.
        schedule: Whether a part is computed, shape (steps, blocks, 2); attention first, then
            feed-forward.
        formats: By layer name; layers that are not there stay float.
        guided: Whether each step runs twice, for classifier-free guidance.
        float_bits: Width of what stays float.
        lanes: Products per cycle of the units that are priced.

    Raises:
        ConfigError: The schedule has another shape or type, a name is no layer, a width is not
            positive, or the library has no requantizer to a format.
    """
    wanted = (size.blocks, len(_PARTS))
    if schedule.dtype != np.bool_ or schedule.ndim != 3 or schedule.shape[1:] != wanted:
        raise ConfigError(
            f"a schedule is a boolean table of shape (steps, {size.blocks}, {len(_PARTS)}), got "
            f"{schedule.dtype} of shape {schedule.shape}"
        )
    if min(len(schedule), float_bits, lanes) < 1:
        raise ConfigError(
            f"steps, float_bits and lanes are at least 1, got {len(schedule)}, {float_bits}, "
            f"{lanes}"
        )
    layers = dit_layers(size)
    unknown = sorted(formats.keys() - {layer.name for layer in layers})
    if unknown:
        raise ConfigError(f"formats are for layers of the DiT, {unknown[0]!r} is none")
    samples = 2 if guided else 1
    ran = {layer.name: _ran(layer, schedule) for layer in layers}
    costs = tuple(
        _layer_cost(
            layer, formats.get(layer.name, _FLOAT), samples * int(ran[layer.name].sum()),
            float_bits, lanes,
        )
        for layer in layers
    )  # fmt: skip
    step_macs = [
        samples * sum(layer.macs for layer in layers if ran[layer.name][step])
        for step in range(len(schedule))
    ]
    kept = int((~schedule.all(axis=0)).sum())
    tables = size.blocks * (size.classes + 1) * size.width
    return DitCost(
        layers=costs,
        step_macs=tuple(step_macs),
        float_parameter_bits=float_bits * (tables + sum(layer.biases for layer in layers)),
        cache_bits=float_bits * samples * kept * size.tokens * size.width,
        lanes=lanes,
    )


def _ran(layer: DitLayer, schedule: Table) -> Table:
    """Return at which steps a layer runs, shape (steps,)."""
    if layer.block is None or layer.part is None:
        return np.ones(len(schedule), dtype=np.bool_)
    return schedule[:, layer.block, _PARTS.index(layer.part)]


def _layer_cost(
    layer: DitLayer, formats: LayerFormats, times: int, float_bits: int, lanes: int
) -> LayerCost:
    weights, activations = formats.weights, formats.activations
    weight_bits = weights.bits if weights else float_bits
    activation_bits = activations.bits if activations else float_bits
    # Products of attention have two activations as operands.
    second = weight_bits if layer.weights else activation_bits
    macs = layer.macs * times
    price = requantizer = None
    if weights is not None and activations is not None:
        bits = width_of_range(*accumulator_range(weights, activations, layer.dot_length))
        price = lut_per_mac(weights, activations, lanes, accumulator_bits=bits)
        requantizer = requantizer_luts(bits, activations)
    return LayerCost(
        layer=layer,
        formats=formats,
        macs=macs,
        bops=second * activation_bits * macs,
        weight_bits=layer.weights * weight_bits,
        activation_bits=prod((layer.inputs, layer.runs, times, activation_bits)),
        lut_per_mac=price,
        requantizer_luts=requantizer,
    )
