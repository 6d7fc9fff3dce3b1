# SPDX-License-Identifier: Apache-2.0
"""What the cost of a layer depends on."""

from dataclasses import dataclass

from lutwise.errors import ConfigError
from lutwise.quant.formats import Format

__all__ = ["LayerShape"]


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
        outputs: Output channels of all groups.
        output_pixels: Output positions (tokens, pixels) per channel.
        weights: Format of the weights (or of the second operand).
        activations: Format of the inputs.
        accumulator_bits: Width of the accumulator.
        output: Format of the outputs; ``None`` where the accumulator itself goes out.
        groups: Groups of outputs with inputs of their own.

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
    groups: int = 1

    def __post_init__(self) -> None:
        sizes = (self.macs, self.dot_length, self.outputs, self.output_pixels)
        if min(*sizes, self.accumulator_bits) < 1 or self.weight_count < 0:
            raise ConfigError(f"layer {self.name!r}: sizes are positive, got {self}")
        if self.macs != self.dot_length * self.outputs * self.output_pixels:
            raise ConfigError(
                f"layer {self.name!r}: macs = dot_length * outputs * output_pixels is wanted, "
                f"got {self.macs} and {self.dot_length} * {self.outputs} * {self.output_pixels}"
            )
        if self.groups < 1 or self.outputs % self.groups:
            raise ConfigError(
                f"layer {self.name!r}: its {self.outputs} outputs are no {self.groups} equal groups"
            )

    @property
    def output_elements(self) -> int:
        """Output elements for one input of the network."""
        return self.outputs * self.output_pixels
