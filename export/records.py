# SPDX-License-Identifier: Apache-2.0
"""Frozen dataclasses to JSON and back, with every type checked."""

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from lutwise.errors import ConfigError

__all__ = ["Record", "check_range"]


class Record:
    """Conversion to and from plain values, for frozen dataclasses."""

    __slots__ = ()
    __pydantic_config__ = ConfigDict(extra="forbid")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON holds them."""
        plain: dict[str, Any] = TypeAdapter(type(self)).dump_python(self, mode="json")
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` gave.

        Raises:
            ConfigError: A key is missing or unknown, or a value has the wrong type or range.
        """
        try:
            return TypeAdapter(cls).validate_json(json.dumps(data), strict=True)
        except (ValidationError, TypeError) as error:
            raise ConfigError(f"{cls.__name__}: {_explain(error)}") from error


def _explain(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return f"wanted plain values as JSON holds them: {error}"
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']} (got {item['input']!r})"
        for item in error.errors()
    )


def check_range(
    owner: str, name: str, value: float | None, *, low: float = 0.0, high: float = float("inf")
) -> None:
    """Refuse a number that is not finite or not in a range; None passes.

    Raises:
        ConfigError: It is not.
    """
    if value is not None and not (isfinite(value) and low <= value <= high):
        wanted = f"{low:g}..{high:g}" if isfinite(high) else f"a finite number >= {low:g}"
        raise ConfigError(f"{owner}: {name} must be {wanted}, got {value!r}")
