# SPDX-License-Identifier: Apache-2.0
"""Cross-layer (weight) equalization."""

from dataclasses import dataclass

from lutwise.errors import ConfigError
from lutwise.quant import brevitas_facade
from lutwise.quant.algorithms.registry import Stage, register

__all__ = ["EqualizeConfig", "equalize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualizeConfig:
    """Settings.

    Args:
        iterations: At most.
        threshold: Stop when the mean change of the scales is smaller.
        merge_bias: Count the bias into the range of a channel.

    Raises:
        ConfigError: Out of range.
    """

    iterations: int = 20
    threshold: float = 0.05
    merge_bias: bool = True

    def __post_init__(self) -> None:
        if self.iterations < 1 or not self.threshold >= 0:
            raise ConfigError(
                "equalize needs at least one iteration and a threshold of at least 0, got "
                f"iterations={self.iterations}, threshold={self.threshold}"
            )


@register("equalize", Stage.PREPARE, EqualizeConfig)
def equalize(
    graph: brevitas_facade.BrevitasGraph, config: EqualizeConfig
) -> brevitas_facade.BrevitasGraph:
    """Even out the weight ranges of connected layers, channel by channel.

    Reference:
        arXiv 1906.04721, section 4.1.
    """
    return brevitas_facade.equalize(
        graph,
        iterations=config.iterations,
        threshold=config.threshold,
        merge_bias=config.merge_bias,
    )
