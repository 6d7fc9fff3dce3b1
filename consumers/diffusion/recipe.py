# SPDX-License-Identifier: Apache-2.0
"""How to quantize a diffusion transformer."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

from lutwise.errors import ConfigError, FormatError, LutwiseError
from lutwise.quant import algorithms
from lutwise.quant.algorithms import Stage
from lutwise.quant.formats import Format, parse_element, parse_weight
from lutwise.quant.ranges import RangeMethod, RangeSearch, ScaleKind

__all__ = ["FLOAT", "DitRecipe", "LayerOverride"]

FLOAT: Final = "float"
"""In place of a format: do not quantize."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOverride:
    """Other formats for some layers.

    Args:
        layers: Glob of module names, such as ``*.attn1.to_v`` or ``proj_out_*``.
        weights: Format or ``float``; None leaves it as it was.
        activations: Format or ``float``; None leaves it as it was.
    """

    layers: str
    weights: str | None = None
    activations: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DitRecipe:
    """Formats, ranges and rounding.

    Inputs of a DiT's linear layers take both signs, so formats of activations are signed; the
    unsigned ones are read as the signed ones of their width.

    Args:
        weights: Format of weights, with a scale per output channel, or ``float``.
        activations: Format of layer inputs, with a static scale per tensor, or ``float``.
        overrides: Later ones win.
        weight_range: How scales of weights are found.
        activation_range: How scales of activations are found.
        timestep_groups: Groups of neighbouring timesteps that have activation scales of their own.
        algorithms: Settings of at most one algorithm of lutwise that rounds weights layer by
            layer (``gptq``, ``qronos``, ``gpfq``, ``learned_rounding``), by its name; none rounds
            to nearest.
        batch: Samples at a time in calibration.
        seed: Of the choice of numbers.

    Raises:
        ConfigError: A number is out of range, or an algorithm is none of those.
        FormatError: A format that does not exist, or an unsigned one for weights.
    """

    weights: str = "int8"
    activations: str = "int8"
    overrides: tuple[LayerOverride, ...] = ()
    weight_range: RangeSearch = field(default_factory=RangeSearch)
    activation_range: RangeSearch = field(default_factory=RangeSearch)
    timestep_groups: int = 1
    algorithms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    batch: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.timestep_groups < 1 or self.batch < 1 or self.seed < 0:
            raise ConfigError(
                "timestep_groups and batch are at least 1 and seed at least 0, got "
                f"timestep_groups={self.timestep_groups}, batch={self.batch}, seed={self.seed}"
            )
        rounding = algorithms.selected(algorithms.resolve(self.algorithms), Stage.ROUND)
        if len(rounding) != len(self.algorithms):
            known = [a.name for a in algorithms.list_algorithms() if a.stage is Stage.ROUND]
            raise ConfigError(
                f"weights of a DiT are rounded by one of {', '.join(known)}, got "
                f"{', '.join(self.algorithms)}"
            )
        if any(config.centered for _, config in rounding):
            raise ConfigError(
                "centered second moments leave means to bias_correction, which does not run on DiTs"
            )
        for weights in (self.weights, *(o.weights for o in self.overrides)):
            _weight(weights or FLOAT)
        for activations in (self.activations, *(o.activations for o in self.overrides)):
            _activation(activations or FLOAT)

    def weight_format(self, layer: str) -> Format | None:
        """Return the format of a layer's weights; None for float."""
        given = [o.weights for o in self.overrides if o.weights and fnmatchcase(layer, o.layers)]
        return _weight(given[-1] if given else self.weights)

    def activation_format(self, layer: str) -> Format | None:
        """Return the format of a layer's input; None for float."""
        given = [
            o.activations for o in self.overrides if o.activations and fnmatchcase(layer, o.layers)
        ]
        return _activation(given[-1] if given else self.activations)

    def check_globs(self, layers: Iterable[str]) -> None:
        """Make sure that each override is about some layer.

        Raises:
            ConfigError: One is not; the message lists the layers.
        """
        names = list(layers)
        for override in self.overrides:
            if not any(fnmatchcase(name, override.layers) for name in names):
                kinds = sorted({name.replace("transformer_blocks.0.", "*.") for name in names
                                if not name.startswith("transformer_blocks")
                                or name.startswith("transformer_blocks.0.")})  # fmt: skip
                raise ConfigError(
                    f"the override for {override.layers!r} matches no linear layer; they are "
                    f"{', '.join(kinds)}"
                )

    def to_json(self) -> dict[str, Any]:
        """Return plain values, algorithms with all their settings."""
        return {**asdict(self), "algorithms": algorithms.resolve(self.algorithms)}

    @classmethod
    def from_json(cls, plain: Any) -> "DitRecipe":
        """Make a recipe of what `to_json` gave.

        Raises:
            ConfigError: It is something else.
        """
        try:
            given = dict(plain)
            for name in ("weight_range", "activation_range"):
                search = dict(given[name])
                given[name] = RangeSearch(
                    method=RangeMethod(search["method"]),
                    percentile=float(search["percentile"]),
                    scale=ScaleKind(search["scale"]),
                )
            given["overrides"] = tuple(LayerOverride(**o) for o in given["overrides"])
            return cls(**given)
        except (TypeError, ValueError, LookupError, LutwiseError) as error:
            raise ConfigError(f"not a recipe of a DiT: {error}") from error


def _weight(text: str) -> Format | None:
    if text == FLOAT:
        return None
    fmt = parse_weight(text)
    if not fmt.signed:
        raise FormatError(
            f"weights of a DiT take both signs, and {text!r} holds one; wanted a signed format "
            "such as int4 or e2m1"
        )
    return fmt


def _activation(text: str) -> Format | None:
    return None if text == FLOAT else parse_element(text).as_signed()
