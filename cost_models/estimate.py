# SPDX-License-Identifier: Apache-2.0
"""Price of a network: what its layers cost folded onto few units, and fully unrolled.

Priced are the dot-product units and the requantizers, in LUTs. Weight and activation memories,
stream buffers, control and routing are not; weights count as stored bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Final

from lutwise.cost_models.library import (
    LutPrice,
    PriceSource,
    lut_per_mac,
    requantizer_luts,
)
from lutwise.cost_models.published import finn_mvau_luts
from lutwise.errors import ConfigError
from lutwise.quant.formats import Format

__all__ = [
    "ACCUMULATOR_RULE",
    "Folding",
    "LayerCost",
    "LayerShape",
    "NetworkCost",
    "Target",
    "estimate",
]

ACCUMULATOR_RULE: Final = (
    "exact sums, one rule for integers and minifloats; each layer's width is the one that its "
    "actual weights need (per-channel L1 bound), at one LUT per bit"
)

_UNROLLED_LANES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Folding:
    """How much of a layer works in one cycle; clipped to each layer's sizes.

    Args:
        pe: Outputs computed side by side.
        simd: Products per output and cycle.

    Raises:
        ConfigError: A number is not positive.
    """

    pe: int = 4
    simd: int = 8

    def __post_init__(self) -> None:
        if self.pe < 1 or self.simd < 1:
            raise ConfigError(f"pe and simd are at least 1, got pe={self.pe}, simd={self.simd}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """What the cost of a layer depends on.

    Args:
        name: Name in the network.
        kind: Label for reports, such as ``conv`` or ``linear``.
        macs: Multiply-accumulates for one input of the network; equal to
            ``dot_length * outputs * output_pixels``.
        weight_count: Stored weights; 0 where both operands are activations.
        dot_length: Products per output element.
        outputs: Output channels.
        output_pixels: Output positions (tokens, pixels) per channel.
        weights: Format of the weights (or of the second operand).
        activations: Format of the inputs.
        accumulator_bits: Width of the accumulator.
        output: Format of the outputs; ``None`` where the accumulator itself goes out.

    Raises:
        ConfigError: A size is out of range, or the sizes contradict each other.
    """

    name: str
    kind: str
    macs: int
    weight_count: int
    dot_length: int
    outputs: int
    output_pixels: int
    weights: Format
    activations: Format
    accumulator_bits: int
    output: Format | None = None

    def __post_init__(self) -> None:
        sizes = (self.macs, self.dot_length, self.outputs, self.output_pixels)
        if min(*sizes, self.accumulator_bits) < 1 or self.weight_count < 0:
            raise ConfigError(f"layer {self.name!r}: sizes are positive, got {self}")
        if self.macs != self.dot_length * self.outputs * self.output_pixels:
            raise ConfigError(
                f"layer {self.name!r}: macs = dot_length * outputs * output_pixels is wanted, "
                f"got {self.macs} and {self.dot_length} * {self.outputs} * {self.output_pixels}"
            )

    @property
    def output_elements(self) -> int:
        """Output elements for one input of the network."""
        return self.outputs * self.output_pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """LUTs of one way to build a layer.

    Args:
        mac_luts: Dot-product units.
        requantizer_luts: Requantizers.
        cycles: Cycles for one input of the network.
        uncertainty_luts: Expected deviation of both from synthesis of the units.
    """

    mac_luts: float
    requantizer_luts: float
    cycles: int
    uncertainty_luts: float

    @property
    def luts(self) -> float:
        """Both together."""
        return self.mac_luts + self.requantizer_luts

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "mac_luts": round(self.mac_luts, 1),
            "requantizer_luts": round(self.requantizer_luts, 1),
            "luts": round(self.luts, 1),
            "luts_low": round(self.luts - self.uncertainty_luts, 1),
            "luts_high": round(self.luts + self.uncertainty_luts, 1),
            "cycles": self.cycles,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """Price of a layer.

    Args:
        shape: The layer.
        pe: Outputs side by side in the folded design.
        simd: Products per output and cycle in the folded design.
        lut_per_mac: Price of a multiply-accumulate in the folded design.
        folded: The folded design.
        unrolled: Every multiply-accumulate in a lane of its own.
        finn_luts: The folded layer by FINN's formula, memories and thresholds left out.
    """

    shape: LayerShape
    pe: int
    simd: int
    lut_per_mac: LutPrice
    folded: Target
    unrolled: Target
    finn_luts: float

    @property
    def weight_bits(self) -> int:
        """Bits of all stored weights."""
        return self.shape.weight_count * self.shape.weights.bits

    @property
    def activation_bits(self) -> int:
        """Bits of all outputs; of the accumulators where there is no output format."""
        output = self.shape.output
        bits = output.bits if output is not None else self.shape.accumulator_bits
        return self.shape.output_elements * bits

    @property
    def bops(self) -> int:
        """Bit operations: width times width times multiply-accumulates."""
        return self.shape.weights.bits * self.shape.activations.bits * self.shape.macs

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        shape = self.shape
        return {
            "name": shape.name,
            "kind": shape.kind,
            "weights": str(shape.weights),
            "activations": str(shape.activations),
            "output": str(shape.output) if shape.output is not None else None,
            "accumulator_bits": shape.accumulator_bits,
            "dot_length": shape.dot_length,
            "outputs": shape.outputs,
            "macs": shape.macs,
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
            "bops": self.bops,
            "lut_per_mac": round(self.lut_per_mac.value, 3),
            "lut_per_mac_source": self.lut_per_mac.source.value,
            "lut_per_mac_relative_error": self.lut_per_mac.relative_error,
            "pe": self.pe,
            "simd": self.simd,
            "folded": self.folded.to_json(),
            "unrolled": self.unrolled.to_json(),
            "finn_mvau_luts": round(self.finn_luts, 1),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkCost:
    """Price of a network.

    Args:
        layers: Prices of the layers, in order.
        folding: The folding that was asked for.
    """

    layers: tuple[LayerCost, ...]
    folding: Folding

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input."""
        return sum(layer.shape.macs for layer in self.layers)

    @property
    def weight_bits(self) -> int:
        """Bits of all weights."""
        return sum(layer.weight_bits for layer in self.layers)

    @property
    def activation_bits(self) -> int:
        """Bits of all outputs of all layers."""
        return sum(layer.activation_bits for layer in self.layers)

    @property
    def bops(self) -> int:
        """Bit operations of all layers."""
        return sum(layer.bops for layer in self.layers)

    @property
    def folded(self) -> Target:
        """All layers side by side, folded; the slowest layer sets the cycles."""
        return _total([layer.folded for layer in self.layers])

    @property
    def unrolled(self) -> Target:
        """All layers side by side, fully unrolled."""
        return _total([layer.unrolled for layer in self.layers])

    @property
    def finn_luts(self) -> float:
        """The folded network by FINN's formula."""
        return sum(layer.finn_luts for layer in self.layers)

    @property
    def lut_per_mac(self) -> float:
        """Mean LUTs per multiply-accumulate of the folded units, weighted by work."""
        weighted = sum(layer.lut_per_mac.value * layer.shape.macs for layer in self.layers)
        return weighted / self.macs if self.macs else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON, with the assumptions in words."""
        from_table = sum(layer.lut_per_mac.source is PriceSource.TABLE for layer in self.layers)
        return {
            "assumptions": {
                "accumulators": ACCUMULATOR_RULE,
                "luts": (
                    "estimated LUT6 sites of UltraScale+ from Yosys netlists; dot products and "
                    "requantizers only; not compared with a vendor's tools"
                ),
                "error_bar": (
                    "errors of formula prices, added up as if all had the same sign; prices "
                    "from the table count as exact"
                ),
                "activation_bits": "outputs of every layer for one input of the network",
                "folded_cycles": "of the slowest layer: all layers work at the same time",
                "finn": "FINN's formula for the folded layers, thresholds and memories left out",
            },
            "folding": {"pe": self.folding.pe, "simd": self.folding.simd},
            "total": {
                "macs": self.macs,
                "weight_bits": self.weight_bits,
                "activation_bits": self.activation_bits,
                "bops": self.bops,
                "lut_per_mac": round(self.lut_per_mac, 3),
                "layers_priced_from_table": from_table,
                "folded": self.folded.to_json(),
                "unrolled": self.unrolled.to_json(),
                "finn_mvau_luts": round(self.finn_luts, 1),
            },
            "layers": [layer.to_json() for layer in self.layers],
        }


def estimate(layers: Sequence[LayerShape], folding: Folding | None = None) -> NetworkCost:
    """Price a network.

    Args:
        layers: Its layers.
        folding: How far to fold; four outputs times eight products by default.

    Raises:
        ConfigError: The library has no requantizer to a layer's output format.
    """
    chosen = folding or Folding()
    return NetworkCost(layers=tuple(_layer_cost(layer, chosen) for layer in layers), folding=chosen)


def _layer_cost(layer: LayerShape, folding: Folding) -> LayerCost:
    pe, simd = min(folding.pe, layer.outputs), min(folding.simd, layer.dot_length)
    price = _price(layer, simd)
    requantizer = (
        requantizer_luts(layer.accumulator_bits, layer.output)
        if layer.output is not None
        else LutPrice(value=0.0, source=PriceSource.TABLE, relative_error=0.0)
    )
    folded = Target(
        mac_luts=pe * simd * price.value,
        requantizer_luts=pe * requantizer.value,
        cycles=ceil(layer.dot_length / simd) * ceil(layer.outputs / pe) * layer.output_pixels,
        uncertainty_luts=pe * (simd * _spread(price) + _spread(requantizer)),
    )
    return LayerCost(
        shape=layer,
        pe=pe,
        simd=simd,
        lut_per_mac=price,
        folded=folded,
        unrolled=_unrolled(layer, requantizer),
        finn_luts=finn_mvau_luts(
            weight_bits=layer.weights.bits,
            activation_bits=layer.activations.bits,
            pe=pe,
            simd=simd,
            accumulator_bits=layer.accumulator_bits,
        ),
    )


def _unrolled(layer: LayerShape, requantizer: LutPrice) -> Target:
    """Price one dot product per output element: units of 32 lanes in a row, and a tail.

    The accumulator's adder of a unit takes in the sum of the unit before it.
    """
    full, tail = divmod(layer.dot_length, _UNROLLED_LANES)
    mac_luts = spread = 0.0
    for count, lanes in ((full, _UNROLLED_LANES), (1, tail)):
        if count and lanes:
            price = _price(layer, lanes)
            mac_luts += count * lanes * price.value
            spread += count * lanes * _spread(price)
    elements = layer.output_elements
    return Target(
        mac_luts=elements * mac_luts,
        requantizer_luts=elements * requantizer.value,
        cycles=1,
        uncertainty_luts=elements * (spread + _spread(requantizer)),
    )


def _price(layer: LayerShape, lanes: int) -> LutPrice:
    return lut_per_mac(
        layer.weights, layer.activations, lanes, accumulator_bits=layer.accumulator_bits
    )


def _spread(price: LutPrice) -> float:
    return price.value * price.relative_error


def _total(targets: Sequence[Target]) -> Target:
    return Target(
        mac_luts=sum(target.mac_luts for target in targets),
        requantizer_luts=sum(target.requantizer_luts for target in targets),
        cycles=max((target.cycles for target in targets), default=0),
        uncertainty_luts=sum(target.uncertainty_luts for target in targets),
    )
