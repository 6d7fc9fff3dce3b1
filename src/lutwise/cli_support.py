# SPDX-License-Identifier: Apache-2.0
"""What the groups of commands share: options, and how results are printed."""

import json
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import click

__all__ = ["JSON_OPTION", "QUIET_OPTION", "print_result", "stack"]

_F = TypeVar("_F", bound=Callable[..., Any])


def stack(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """Return one decorator that applies several, so that their help keeps the given order."""

    def apply(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


JSON_OPTION: Final = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON."
)
QUIET_OPTION: Final = click.option("--quiet", is_flag=True, help="No progress on stderr.")


def print_result(result: dict[str, Any], *, as_json: bool) -> None:
    """Print a result on stdout, for people or as JSON."""
    lines = [json.dumps(result, indent=2)] if as_json else _for_people(result)
    for line in lines:
        click.echo(line)


def _for_people(result: Any, indent: int = 0) -> Iterator[str]:
    """Yield a result as indented lines; a list of mappings becomes a table."""
    pad = "  " * indent
    for key, value in result.items():
        label = str(key).replace("_", " ")
        if isinstance(value, dict):
            if all(not isinstance(v, dict | list) for v in value.values()) and len(value) <= 4:
                yield f"{pad}{label}: " + ", ".join(f"{k} {v}" for k, v in value.items())
            else:
                yield f"{pad}{label}:"
                yield from _for_people(value, indent + 1)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"{pad}{label}:"
            yield from _table(value, pad + "  ")
        elif isinstance(value, list):
            yield f"{pad}{label}: {', '.join(map(str, value))}"
        else:
            yield f"{pad}{label}: {value}"


def _table(rows: list[dict[str, Any]], pad: str) -> Iterator[str]:
    heads = [k for k, v in rows[0].items() if v is not None and not isinstance(v, dict | list)]
    cells = [heads, *[[str(row.get(head, "")) for head in heads] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    for row in cells:
        yield pad + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
