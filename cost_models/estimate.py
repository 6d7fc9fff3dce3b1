# SPDX-License-Identifier: Apache-2.0
"""Price of a network: what its layers cost folded onto few units, and fully unrolled.

Folded, a layer is one layer unit, or several for groups side by side. What moves data between the
units is not priced: windows of convolutions, pooling, sums of branches, stream buffers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any, Final

from lutwise.cost_models.constant_cost import (
    constant_luts,
    constant_output_luts,
    has_constant_price,
)
from lutwise.cost_models.folding import (
    FoldedLayer,
    Folding,
    balanced_folding,
    divisor_foldings,
    layer_choices,
)
from lutwise.cost_models.layer_cost import LayerSize, Memory, layer_price
from lutwise.cost_models.layer_shape import LayerShape
from lutwise.cost_models.library import (
    LutPrice,
    PriceSource,
    lut_per_mac,
    requantizer_luts,
)
from lutwise.cost_models.published import finn_mvau_luts
from lutwise.errors import ConfigError

__all__ = [
    "ACCUMULATOR_RULE",
    "LayerCost",
    "NetworkCost",
    "Target",
    "estimate",
    "fold_to_budget",
]

ACCUMULATOR_RULE: Final = (
    "exact sums, one rule for integers and minifloats; each layer's width is the one that its "
    "actual weights need (per-channel L1 bound), at one LUT per bit"
)

_UNROLLED_LANES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one way to build a layer, or all of them, takes.

    Args:
        dot_product_luts: Dot-product units.
        requantizer_luts: From sums to results, with biases and their ROMs.
        weight_luts: Weights in LUTs.
        buffer_luts: Memory of an input vector, and choosing between it and the stream.
        control_luts: Counters and handshakes.
        lut_rams: Of ``buffer_luts``, the LUTs that are memory.
        block_rams: RAMB18 of weights.
        dsps: DSP48E2 that could do the products instead of LUTs; 0 where they cannot.
        cycles: Cycles for one input of the network.
        uncertainty_luts: Expected deviation of all LUTs from synthesis of the units.
    """

    dot_product_luts: float
    requantizer_luts: float
    weight_luts: float = 0.0
    buffer_luts: float = 0.0
    control_luts: float = 0.0
    lut_rams: int = 0
    block_rams: int = 0
    dsps: int = 0
    cycles: int
    uncertainty_luts: float

    @property
    def luts(self) -> float:
        """All parts together."""
        return (
            self.dot_product_luts
            + self.requantizer_luts
            + self.weight_luts
            + self.buffer_luts
            + self.control_luts
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "luts": round(self.luts, 1),
            "luts_low": round(self.luts - self.uncertainty_luts, 1),
            "luts_high": round(self.luts + self.uncertainty_luts, 1),
            "dot_product_luts": round(self.dot_product_luts, 1),
            "requantizer_luts": round(self.requantizer_luts, 1),
            "weight_luts": round(self.weight_luts, 1),
            "buffer_luts": round(self.buffer_luts, 1),
            "control_luts": round(self.control_luts, 1),
            "lut_rams": self.lut_rams,
            "block_rams": self.block_rams,
            "dsps_instead_of_products": self.dsps,
            "cycles": self.cycles,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """Price of a layer.

    Args:
        shape: The layer.
        folding: Of the folded design, clipped to the layer.
        memory: Where the weights of the folded design lie.
        lut_per_mac: Price of a multiply-accumulate in the folded design.
        folded: The folded design.
        unrolled: A unit for every output position, with the weights built in.
        finn_luts: The folded layer by FINN's formula, memories and thresholds left out.
    """

    shape: LayerShape
    folding: Folding
    memory: Memory
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
            "groups": shape.groups,
            "macs": shape.macs,
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
            "bops": self.bops,
            "lut_per_mac": round(self.lut_per_mac.value, 3),
            "lut_per_mac_source": self.lut_per_mac.source.value,
            "lut_per_mac_relative_error": self.lut_per_mac.relative_error,
            "pe": self.folding.pe,
            "simd": self.folding.simd,
            "weights_in": self.memory.value,
            "folded": self.folded.to_json(),
            "unrolled": self.unrolled.to_json(),
            "finn_mvau_luts": round(self.finn_luts, 1),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkCost:
    """Price of a network.

    Args:
        layers: Prices of the layers, in order.
        clock_mhz: Clock that throughput is stated for.
    """

    layers: tuple[LayerCost, ...]
    clock_mhz: float

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
    def bottleneck(self) -> LayerCost | None:
        """The slowest layer of the folded design, the first of several; None without layers."""
        return max(self.layers, key=lambda layer: layer.folded.cycles, default=None)

    @property
    def inputs_per_second(self) -> float:
        """Inputs that the folded design takes per second at its clock."""
        cycles = self.folded.cycles
        return self.clock_mhz * 1e6 / cycles if cycles else 0.0

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
        slowest = self.bottleneck
        return {
            "assumptions": {
                "accumulators": ACCUMULATOR_RULE,
                "luts": (
                    "estimated LUT6 sites of UltraScale+ from Yosys netlists; not compared with a "
                    "vendor's tools"
                ),
                "folded": (
                    "layer units: dot products, requantizers, weights, input memory, control; "
                    "windows of convolutions, pooling, sums of branches, stream buffers and "
                    "routing are not priced"
                ),
                "unrolled": (
                    "one unit for every output position, weights built in where they are fixed; "
                    "sums and requantizers"
                ),
                "error_bar": "errors of all layers, added up as if all had the same sign",
                "activation_bits": "outputs of every layer for one input of the network",
                "folded_cycles": "of the slowest layer: all layers work at the same time",
                "clock": "taken as given, not estimated",
                "finn": "FINN's formula for the folded layers, thresholds and memories left out",
            },
            "total": {
                "macs": self.macs,
                "weight_bits": self.weight_bits,
                "activation_bits": self.activation_bits,
                "bops": self.bops,
                "lut_per_mac": round(self.lut_per_mac, 3),
                "layers_priced_from_table": from_table,
                "folded": self.folded.to_json(),
                "clock_mhz": self.clock_mhz,
                "inputs_per_second": round(self.inputs_per_second, 1),
                "bottleneck": slowest.shape.name if slowest else None,
                "unrolled": self.unrolled.to_json(),
                "finn_mvau_luts": round(self.finn_luts, 1),
            },
            "layers": [layer.to_json() for layer in self.layers],
        }


def estimate(
    layers: Sequence[LayerShape],
    folding: Folding | Sequence[Folding] | None = None,
    *,
    memory: Memory = Memory.AUTO,
    clock_mhz: float = 200.0,
) -> NetworkCost:
    """Price a network.

    Args:
        layers: Its layers.
        folding: How far to fold, one for all layers or one for each; four outputs times eight
            products by default.
        memory: Where weights lie.
        clock_mhz: Clock that throughput is stated for.

    Raises:
        ConfigError: The library has no requantizer to a layer's output format, the foldings are
            not as many as the layers, or the clock is not positive and finite.
    """
    if not (clock_mhz > 0 and isfinite(clock_mhz)):
        raise ConfigError(f"the clock is a positive number of MHz, got {clock_mhz}")
    chosen = folding or Folding()
    each = [chosen] * len(layers) if isinstance(chosen, Folding) else chosen
    if len(each) != len(layers):
        raise ConfigError(f"wanted a folding for each of {len(layers)} layers, got {len(each)}")
    costs = (_layer_cost(layer, one, memory) for layer, one in zip(layers, each, strict=True))
    return NetworkCost(layers=tuple(costs), clock_mhz=clock_mhz)


def fold_to_budget(
    layers: Sequence[LayerShape], budget_luts: float, *, memory: Memory = Memory.AUTO
) -> tuple[Folding, ...]:
    """Find the foldings with the fewest cycles of the slowest layer within a budget.

    Args:
        layers: Of the network.
        budget_luts: LUTs of all layer units together, at most.
        memory: Where weights lie.

    Returns:
        One for each layer; none is faster than the pace needs.

    Raises:
        ConfigError: The budget is too small, or the library has no requantizer to a format.
    """
    choices = []
    for layer in layers:
        designs = ((way, _folded(layer, way, memory)[2]) for way in divisor_foldings(layer))
        ways = (FoldedLayer(cycles=t.cycles, luts=t.luts, folding=way) for way, t in designs)
        choices.append(layer_choices(layer.name, ways))
    return tuple(choice.folding for choice in balanced_folding(choices, budget_luts))


def _folded(layer: LayerShape, folding: Folding, memory: Memory) -> tuple[Folding, Memory, Target]:
    """Price a layer's units: one of ``pe`` outputs, or one for each of the groups side by side."""
    of_group = layer.outputs // layer.groups
    pe, simd = min(folding.pe, of_group), min(folding.simd, layer.dot_length)
    units = max(1, min(layer.groups, folding.pe // of_group))
    size = LayerSize(
        weights=layer.weights,
        activations=layer.activations,
        output=layer.output,
        accumulator_bits=layer.accumulator_bits,
        groups=ceil(layer.groups / units),
        outputs=of_group,
        products=layer.dot_length,
        pe=pe,
        simd=simd,
    )
    price = layer_price(size, memory)
    target = Target(
        dot_product_luts=units * price.dot_products,
        requantizer_luts=units * price.outputs,
        weight_luts=units * price.weights,
        buffer_luts=units * price.buffer,
        control_luts=units * price.control,
        lut_rams=units * price.lut_rams,
        block_rams=units * price.block_rams,
        dsps=units * price.dsps,
        cycles=size.beats * size.folds * size.groups * layer.output_pixels,
        uncertainty_luts=units * price.luts * price.relative_error,
    )
    return Folding(pe=pe * units, simd=simd), price.memory, target


def _layer_cost(layer: LayerShape, wanted: Folding, memory: Memory) -> LayerCost:
    folding, place, folded = _folded(layer, wanted, memory)
    return LayerCost(
        shape=layer,
        folding=folding,
        memory=place,
        lut_per_mac=_price(layer, folding.simd),
        folded=folded,
        unrolled=_unrolled(layer),
        finn_luts=finn_mvau_luts(
            weight_bits=layer.weights.bits,
            activation_bits=layer.activations.bits,
            pe=folding.pe,
            simd=folding.simd,
            accumulator_bits=layer.accumulator_bits,
        ),
    )


def _unrolled(layer: LayerShape) -> Target:
    """Price a unit for every output position, with the weights built in where they are fixed."""
    if layer.weight_count and has_constant_price(layer.weights):
        sums = constant_luts(
            layer.weights, layer.activations, layer.dot_length, layer.outputs, groups=layer.groups
        )
        results = layer.outputs * constant_output_luts(layer.accumulator_bits, layer.output)
        luts, spread = sums.value, sums.relative_error * (sums.value + results)
    else:
        luts, results, spread = _unrolled_variable(layer)
    pixels = layer.output_pixels
    return Target(
        dot_product_luts=pixels * luts,
        requantizer_luts=pixels * results,
        cycles=1,
        uncertainty_luts=pixels * spread,
    )


def _unrolled_variable(layer: LayerShape) -> tuple[float, float, float]:
    """Price all outputs of a position, with both operands as inputs: sums, results, deviation.

    An output has units of 32 lanes in a row, and a tail. The accumulator's adder of a unit takes in
    the sum of the unit before it.
    """
    full, tail = divmod(layer.dot_length, _UNROLLED_LANES)
    luts = spread = 0.0
    for count, lanes in ((full, _UNROLLED_LANES), (1, tail)):
        if count and lanes:
            price = _price(layer, lanes)
            luts += count * lanes * price.value
            spread += count * lanes * _spread(price)
    requantizer = LutPrice(value=0.0, source=PriceSource.TABLE, relative_error=0.0)
    if layer.output is not None:
        requantizer = requantizer_luts(layer.accumulator_bits, layer.output)
    outputs = layer.outputs
    spread += _spread(requantizer)
    return outputs * luts, outputs * requantizer.value, outputs * spread


def _price(layer: LayerShape, lanes: int) -> LutPrice:
    return lut_per_mac(
        layer.weights, layer.activations, lanes, accumulator_bits=layer.accumulator_bits
    )


def _spread(price: LutPrice) -> float:
    return price.value * price.relative_error


def _total(targets: Sequence[Target]) -> Target:
    return Target(
        dot_product_luts=sum(target.dot_product_luts for target in targets),
        requantizer_luts=sum(target.requantizer_luts for target in targets),
        weight_luts=sum(target.weight_luts for target in targets),
        buffer_luts=sum(target.buffer_luts for target in targets),
        control_luts=sum(target.control_luts for target in targets),
        lut_rams=sum(target.lut_rams for target in targets),
        block_rams=sum(target.block_rams for target in targets),
        dsps=sum(target.dsps for target in targets),
        cycles=max((target.cycles for target in targets), default=0),
        uncertainty_luts=sum(target.uncertainty_luts for target in targets),
    )
