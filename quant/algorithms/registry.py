# SPDX-License-Identifier: Apache-2.0
"""The registry of algorithms. The order of stages, then of registration, is the order of work."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from typing import Any, Final, TypeVar

from lutwise.errors import ConfigError

__all__ = ["Algorithm", "Stage", "list_algorithms", "register", "resolve", "selected"]


class Stage(IntEnum):
    """When an algorithm works."""

    PREPARE = 0
    """On the traced float graph: ``(BrevitasGraph, config) -> BrevitasGraph``."""

    CORRECT = 1
    """On the quantized model: ``(QuantizedModel, images, config) -> None``."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """An entry of the registry.

    Args:
        name: Spelling in recipes and on the command line.
        stage: When it works.
        config: Frozen dataclass of its settings, all with defaults.
        run: The function.
        summary: One line for people.
    """

    name: str
    stage: Stage
    config: type[Any]
    run: Callable[..., Any]
    summary: str


_REGISTRY: Final[dict[str, Algorithm]] = {}
_F = TypeVar("_F", bound=Callable[..., Any])


def register(name: str, stage: Stage, config: type[Any]) -> Callable[[_F], _F]:
    """Register a function; its docstring's first line is the summary.

    Raises:
        ConfigError: The name is taken.
    """

    def add(function: _F) -> _F:
        if name in _REGISTRY:
            raise ConfigError(f"an algorithm named {name!r} is registered already")
        summary = (function.__doc__ or "").strip().splitlines()[0]
        _REGISTRY[name] = Algorithm(name, stage, config, function, summary)
        return function

    return add


def list_algorithms() -> tuple[Algorithm, ...]:
    """Return all algorithms in the order of work."""
    return tuple(sorted(_REGISTRY.values(), key=lambda a: a.stage))


def resolve(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the settings complete, in the order of work.

    Raises:
        ConfigError: An unknown algorithm or setting, or a setting of the wrong type or range.
    """
    for name, given in settings.items():
        if name not in _REGISTRY:
            raise ConfigError(f"no algorithm {name!r}; known are {', '.join(_REGISTRY)}")
        defaults = asdict(_REGISTRY[name].config())
        for key, value in (given or {}).items():
            if key not in defaults:
                raise ConfigError(
                    f"algorithm {name!r} has no setting {key!r}; known are {', '.join(defaults)}"
                )
            wanted = type(defaults[key])
            if type(value) is not wanted and not (wanted is float and type(value) is int):
                raise ConfigError(
                    f"{name}.{key} is {wanted.__name__}, got {value!r} ({type(value).__name__})"
                )
        _REGISTRY[name].config(**(given or {}))  # checks the values
    return {
        a.name: {**asdict(a.config()), **(settings[a.name] or {})}
        for a in list_algorithms()
        if a.name in settings
    }


def selected(
    settings: Mapping[str, Mapping[str, Any]], stage: Stage
) -> list[tuple[Algorithm, Any]]:
    """Return the algorithms of a stage with their configs, in the order of work."""
    return [
        (a, a.config(**{f.name: settings[a.name][f.name] for f in fields(a.config)}))
        for a in list_algorithms()
        if a.stage is stage and a.name in settings
    ]
