# SPDX-License-Identifier: Apache-2.0
"""Which layers are computed at which step, and which take what they gave before."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeAlias

from lutwise.errors import ConfigError, DataError
from lutwise.files import write_atomic
from lutwise.workspace import to_json

__all__ = ["CacheSchedule", "NamedSchedule", "Part"]

_COMPUTE, _REUSE = "x", "."
_VERSION: Final = 1

_Table: TypeAlias = tuple[tuple[bool, ...], ...]


class Part(StrEnum):
    """A part of a block whose output can be kept."""

    ATTENTION = "attention"
    FEED_FORWARD = "feed_forward"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSchedule:
    """A table of steps, blocks and parts: True where the part is computed.

    Args:
        attention: By step and block.
        feed_forward: By step and block.

    Raises:
        ConfigError: The tables are empty, of different shapes, or reuse something in the first
            step, which has nothing to reuse.
    """

    attention: _Table
    feed_forward: _Table

    def __post_init__(self) -> None:
        steps, blocks = self.steps, self.blocks
        if not steps or not blocks:
            raise ConfigError(f"a schedule has steps and blocks, got {steps} and {blocks}")
        for part in Part:
            table = self.table(part)
            widths = {len(row) for row in table}
            if len(table) != steps or widths != {blocks}:
                raise ConfigError(
                    f"a schedule has the same steps and blocks throughout: attention begins with "
                    f"{steps} steps of {blocks} blocks, {part} has {len(table)} steps of "
                    f"{sorted(widths)} blocks"
                )
            if not all(table[0]):
                raise ConfigError(
                    f"the first step has nothing to reuse, so it computes all; this schedule "
                    f"leaves out {part} of block {table[0].index(False)}"
                )

    @classmethod
    def none(cls, *, steps: int, blocks: int) -> "CacheSchedule":
        """Return the schedule that computes everything."""
        return cls.every(1, steps=steps, blocks=blocks)

    @classmethod
    def every(
        cls, interval: int, *, steps: int, blocks: int, parts: Iterable[Part] = tuple(Part)
    ) -> "CacheSchedule":
        """Return the schedule that computes everything at every ``interval``-th step.

        Args:
            interval: One computes always.
            steps: Of sampling.
            blocks: Of the model.
            parts: Which are kept in between; others are always computed.

        Raises:
            ConfigError: A number is not positive.

        Reference:
            FORA, arXiv 2407.01425.
        """
        if min(interval, steps, blocks) < 1:
            raise ConfigError(
                f"interval, steps and blocks are at least 1, got {interval}, {steps}, {blocks}"
            )
        refresh = tuple((step % interval == 0,) * blocks for step in range(steps))
        always = ((True,) * blocks,) * steps
        kept = set(parts)
        return cls(
            attention=refresh if Part.ATTENTION in kept else always,
            feed_forward=refresh if Part.FEED_FORWARD in kept else always,
        )

    @property
    def steps(self) -> int:
        """Steps of sampling."""
        return len(self.attention)

    @property
    def blocks(self) -> int:
        """Blocks of the model."""
        return len(self.attention[0]) if self.attention else 0

    @property
    def computes_all(self) -> bool:
        """Whether nothing is ever reused."""
        return all(all(row) for part in Part for row in self.table(part))

    def table(self, part: Part) -> _Table:
        """Return the table of a part, by step and block."""
        return self.attention if part is Part.ATTENTION else self.feed_forward

    def computes(self, step: int, block: int, part: Part) -> bool:
        """Return whether a part is computed."""
        return self.table(part)[step][block]

    def share(self, part: Part) -> float:
        """Return how much of a part's work over all steps and blocks is done, 0 .. 1."""
        return sum(map(sum, self.table(part))) / (self.steps * self.blocks)

    def refreshes(self) -> tuple[int, ...]:
        """Return the steps that compute everything."""
        return tuple(
            step
            for step in range(self.steps)
            if all(self.attention[step]) and all(self.feed_forward[step])
        )

    def check(self, *, steps: int, blocks: int) -> None:
        """Make sure that the schedule fits a sampling run.

        Raises:
            ConfigError: It has other steps or blocks.
        """
        if self.steps != steps:
            raise ConfigError(
                f"the schedule is for {self.steps} steps and sampling takes {steps}; make one of "
                f"{steps} steps, or sample with {self.steps}"
            )
        if self.blocks != blocks:
            raise ConfigError(
                f"the schedule is for {self.blocks} blocks and the model has {blocks}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return plain values: a row per step, and in it a letter per block.

        ``x`` is computed, ``.`` is reused.
        """
        rows = {
            part.value: [
                "".join(_COMPUTE if computed else _REUSE for computed in row)
                for row in self.table(part)
            ]
            for part in Part
        }
        return {"version": _VERSION, **rows}

    @classmethod
    def from_json(cls, plain: Any) -> "CacheSchedule":
        """Make a schedule of what `to_json` gave.

        Raises:
            ConfigError: It is something else.
        """
        if not isinstance(plain, dict) or plain.get("version") != _VERSION:
            raise ConfigError(
                f"a schedule is an object with version {_VERSION}, {' and '.join(Part)}"
            )
        unknown = sorted(plain.keys() - {"version", *(part.value for part in Part)})
        if unknown:
            raise ConfigError(
                f"a schedule has version, {' and '.join(Part)}, and nothing called {unknown[0]!r}"
            )
        return cls(**{part.value: _rows(plain, part) for part in Part})

    def save(self, path: Path) -> None:
        """Write as JSON.

        Raises:
            OutputError: The place cannot be written.
        """
        write_atomic(path, to_json(self.to_json()))

    @classmethod
    def load(cls, path: Path) -> "CacheSchedule":
        """Read what `save` wrote, or somebody wrote by hand.

        Raises:
            DataError: The file is missing or no JSON.
            ConfigError: It holds no valid schedule.
        """
        try:
            plain = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"cannot read the schedule {path}: {error}") from error
        try:
            return cls.from_json(plain)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSchedule:
    """A schedule and what it is called.

    Args:
        name: For people.
        table: The schedule.
    """

    name: str
    table: CacheSchedule

    @classmethod
    def load(cls, path: Path) -> "NamedSchedule":
        """Read a schedule, which is called as its file without the ending.

        Raises:
            DataError: The file is missing or no JSON.
            ConfigError: It holds no valid schedule.
        """
        return cls(name=path.stem, table=CacheSchedule.load(path))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"name": self.name, "table": self.table.to_json()}

    @classmethod
    def from_json(cls, plain: Any) -> "NamedSchedule":
        """Make one of what `to_json` gave.

        Raises:
            ConfigError: It holds no valid schedule.
        """
        return cls(name=str(plain["name"]), table=CacheSchedule.from_json(plain["table"]))


def _rows(plain: dict[str, Any], part: Part) -> _Table:
    rows = plain.get(part.value)
    if not isinstance(rows, list) or not all(
        isinstance(row, str) and set(row) <= {_COMPUTE, _REUSE} for row in rows
    ):
        raise ConfigError(
            f"{part} of a schedule is a list with a word of {_COMPUTE!r} (computed) and {_REUSE!r} "
            f"(reused) per step, got {str(rows)[:80]!r}"
        )
    return tuple(tuple(letter == _COMPUTE for letter in row) for row in rows)
