# SPDX-License-Identifier: Apache-2.0
"""The registry of algorithms. The order of stages, then of registration, is the order of work."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import IntEnum, StrEnum
from math import isfinite
from typing import Any, Final, TypeVar

from lutwise.errors import ConfigError
from lutwise.quant.work import Demand, LayerSize

__all__ = [
    "Algorithm",
    "Stage",
    "list_algorithms",
    "needs_floats",
    "register",
    "resolve",
    "selected",
]


class Stage(IntEnum):
    """When an algorithm works, and what its function takes and gives."""

    PREPARE = 0
    """On the traced float graph: ``(BrevitasGraph, config) -> BrevitasGraph``."""

    BALANCE = 1
    """On the float model and images: ``(PreparedModel, Balance, config) -> None``, in place."""

    ROUND = 2
    """On a layer's weights: ``(LayerProblem, config) -> QuantizedWeight``. At most one."""

    RECONSTRUCT = 3
    """On blocks of layers: ``(BlockProblem, config) -> {layer: QuantizedWeight}``. At most one,
    and no other of the stage before."""

    RESCALE = 4
    """On a layer's outputs: ``(LayerOutputs, config) -> Correction``."""

    CORRECT = 5
    """The same, after the stage before."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """An entry of the registry.

    Args:
        name: Spelling in recipes and on the command line.
        stage: When it works.
        config: Frozen dataclass of its settings, all with defaults.
        run: The function.
        summary: One line for people.
        reads_floats: Whether, with a config, it looks at the float model's tensors, too (stage
            ROUND).
        demand: What it takes for a layer, by the layer's size and a config.
    """

    name: str
    stage: Stage
    config: type[Any]
    run: Callable[..., Any]
    summary: str
    reads_floats: Callable[[Any], bool]
    demand: Callable[[LayerSize, Any], Demand]


_REGISTRY: Final[dict[str, Algorithm]] = {}
_F = TypeVar("_F", bound=Callable[..., Any])


def register(
    name: str,
    stage: Stage,
    config: type[Any],
    *,
    reads_floats: Callable[[Any], bool] = lambda config: True,
    demand: Callable[[LayerSize, Any], Demand] = lambda size, config: Demand(),
) -> Callable[[_F], _F]:
    """Register a function; its docstring's first line is the summary.

    Args:
        name: Spelling in recipes.
        stage: When it works.
        config: Frozen dataclass of its settings, all with defaults.
        reads_floats: Whether, with a config, it looks at the float model's tensors, too; where
            nobody does, that model need not run (stage ROUND).
        demand: What it takes for a layer, by the layer's size and a config; the default leaves it
            out of estimates (`lutwise.quant.effort`).

    Raises:
        ConfigError: The name is taken.
    """

    def add(function: _F) -> _F:
        if name in _REGISTRY:
            raise ConfigError(f"an algorithm named {name!r} is registered already")
        summary = (function.__doc__ or "").strip().splitlines()[0]
        _REGISTRY[name] = Algorithm(name, stage, config, function, summary, reads_floats, demand)
        return function

    return add


def list_algorithms() -> tuple[Algorithm, ...]:
    """Return all algorithms in the order of work."""
    return tuple(sorted(_REGISTRY.values(), key=lambda a: a.stage))


def resolve(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the settings complete and plain, in the order of work.

    Raises:
        ConfigError: An unknown algorithm or setting, a setting of the wrong type or range, two
            algorithms that both round the weights, or one that leaves means to nobody.
    """
    for name in settings:
        if name not in _REGISTRY:
            raise ConfigError(f"no algorithm {name!r}; known are {', '.join(_REGISTRY)}")
    found = {
        a.name: {
            key: str(value) if isinstance(value, StrEnum) else value
            for key, value in asdict(_configured(a, settings[a.name] or {})).items()
        }
        for a in list_algorithms()
        if a.name in settings
    }
    rounding = [n for n in found if _REGISTRY[n].stage in (Stage.ROUND, Stage.RECONSTRUCT)]
    if len(rounding) > 1:
        raise ConfigError(f"{' and '.join(rounding)} both round the weights; choose one of them")
    correcting = [n for n in found if _REGISTRY[n].stage in (Stage.RESCALE, Stage.CORRECT)]
    if not correcting and (centered := [n for n in rounding if found[n].get("centered")]):
        raise ConfigError(
            f"{centered[0]}.centered leaves the means of errors to bias_correction or "
            "norm_reestimation, and neither is among the algorithms; add one of them"
        )
    return found


def selected(
    settings: Mapping[str, Mapping[str, Any]], stage: Stage
) -> list[tuple[Algorithm, Any]]:
    """Return the algorithms of a stage with their configs, in the order of work."""
    return [
        (a, _configured(a, settings[a.name]))
        for a in list_algorithms()
        if a.stage is stage and a.name in settings
    ]


def needs_floats(settings: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether rounding and correcting layers has to run the float model, too."""
    rounding = selected(settings, Stage.ROUND)
    correcting = selected(settings, Stage.RESCALE) or selected(settings, Stage.CORRECT)
    return bool(correcting) or any(a.reads_floats(config) for a, config in rounding)


def _configured(algorithm: Algorithm, given: Mapping[str, Any]) -> Any:
    """Return the config with the given settings, whose types are those of the defaults."""
    defaults = algorithm.config()
    known = [f.name for f in fields(defaults)]
    typed = {}
    for key, value in given.items():
        if key not in known:
            raise ConfigError(
                f"algorithm {algorithm.name!r} has no setting {key!r}; known are "
                f"{', '.join(known) or 'none'}"
            )
        typed[key] = _typed(f"{algorithm.name}.{key}", type(getattr(defaults, key)), value)
    return algorithm.config(**typed)


def _typed(where: str, wanted: type[Any], value: Any) -> Any:
    if issubclass(wanted, StrEnum):
        if value in list(wanted):
            return wanted(value)
        raise ConfigError(f"{where} is one of {', '.join(wanted)}, got {value!r}")
    if wanted is float and type(value) in (int, str):  # YAML 1.1 takes 1e-3 for a word
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)
    if type(value) is not wanted or (wanted is float and not isfinite(value)):
        kind = "a finite float" if wanted is float else wanted.__name__
        raise ConfigError(f"{where} is {kind}, got {value!r} ({type(value).__name__})")
    return value
