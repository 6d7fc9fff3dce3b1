# SPDX-License-Identifier: Apache-2.0
"""Which points a sweep visits."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lutwise.errors import ConfigError
from lutwise.quant.formats import Format, all_formats, parse_element
from lutwise.quant.recipe import Recipe, build_recipe

__all__ = ["BUILT_IN", "SpacePoint", "load_space"]

_DEMO: Final = (
    *("int2", "int3", "int4", "int5", "int6", "int8"),
    *("e2m0", "e1m2", "e2m1", "e3m0", "e2m2", "e3m1", "e2m3", "e3m2", "e4m3"),
)


class _Space(BaseModel):
    """A space file.

    ``recipe`` holds what all points share. ``points`` lists points, each a recipe's keys and
    optionally a ``name``. ``weights`` and ``activations`` together add their cross product.
    ``diagonal: [3, 8]`` adds every signed format of 3 to 8 bits with activations of the same
    family and width.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: dict[str, Any] = Field(default_factory=dict)
    points: tuple[dict[str, Any], ...] = ()
    weights: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()
    diagonal: tuple[int, int] | None = None


class SpacePoint(BaseModel):
    """A point: a name that is a folder's name, and a complete recipe."""

    model_config = ConfigDict(frozen=True)

    name: str
    recipe: Recipe


def _pair(fmt: Format) -> dict[str, Any]:
    return {"weights": fmt.name, "activations": fmt.as_unsigned().name}


def _demo() -> _Space:
    return _Space(points=tuple(_pair(parse_element(name)) for name in _DEMO))


BUILT_IN: Final[Mapping[str, str]] = {
    "demo": "15 integer and minifloat points from 2 to 8 bits",
    "diagonal": "every integer and minifloat of 3 to 8 bits, weights and activations alike",
}
"""Spaces that need no file, with a line for people."""


def load_space(spec: str, changes: Mapping[str, Any] | None = None) -> tuple[SpacePoint, ...]:
    """Return the points of a space.

    Args:
        spec: A name of `BUILT_IN` or a YAML file.
        changes: Recipe values by dotted key that win over the space's.

    Raises:
        ConfigError: The space is missing, not valid, empty, or names a point twice.
    """
    if spec == "demo":
        space = _demo()
    elif spec == "diagonal":
        space = _Space(diagonal=(3, 8))
    else:
        space = _read(Path(spec))
    found = [_point(space, dict(entry), changes) for entry in _entries(space)]
    if not found:
        raise ConfigError(f"{spec}: the space has no points; give points, weights or diagonal")
    names = [point.name for point in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{spec}: several points are named {', '.join(twice)}")
    return tuple(found)


def _read(path: Path) -> _Space:
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"cannot read the space {path}: {error.strerror}; built in are {', '.join(BUILT_IN)}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error
    try:
        return _Space.model_validate(data or {})
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, item['loc'])) or 'space'}: {item['msg']}"
            for item in error.errors()
        ]
        raise ConfigError(f"{path} is not valid: {'; '.join(lines)}") from error


def _entries(space: _Space) -> list[dict[str, Any]]:
    entries = list(space.points)
    entries += [
        {"weights": w, "activations": a}
        for w, a in itertools.product(space.weights, space.activations)
    ]
    if space.diagonal is not None:
        low, high = space.diagonal
        entries += [_pair(f) for f in all_formats(min_bits=low, max_bits=high) if f.signed]
    return entries


def _point(space: _Space, entry: dict[str, Any], changes: Mapping[str, Any] | None) -> SpacePoint:
    name = entry.pop("name", None)
    recipe = build_recipe(
        space.recipe, entry, changes=changes or {}, where=f"point {name or entry}"
    )
    name = str(name) if name else f"{recipe.weights.format}-{recipe.activations.format}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
        raise ConfigError(
            f"a point's name is a folder's name of letters, digits and _.+-, got {name!r}"
        )
    return SpacePoint(name=name, recipe=recipe)
