# SPDX-License-Identifier: Apache-2.0
"""Where marks and labels go so that they do not hide each other; all in pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, hypot, pi, sin
from typing import Final

__all__ = ["Box", "place_labels", "spread", "swarm"]

_ANGLES: Final = 16
_RADII: Final = (1.0, 1.6, 2.4, 3.4, 4.8, 6.5, 8.5)


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "Box") -> float:
        """Return the area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return width * height if width > 0 and height > 0 else 0.0

    def outside(self, frame: "Box") -> float:
        """Return the area that is not within a frame."""
        area = (self.right - self.left) * (self.top - self.bottom)
        return area - self.overlap(frame)


def swarm(places: Sequence[tuple[float, float]], size: float) -> list[float]:
    """Return how far each mark moves sideways so that marks of the same x do not overlap.

    Marks whose x differs stay, even where they overlap: there the x says something.

    Args:
        places: Centres.
        size: Diameter of a mark.
    """
    moves = [0.0] * len(places)
    columns: dict[int, list[int]] = {}
    for i, (x, _) in enumerate(places):
        columns.setdefault(round(x), []).append(i)
    for column in columns.values():
        placed: list[tuple[float, float]] = []
        for i in sorted(column, key=lambda i: (-places[i][1], i)):
            y = places[i][1]
            step = 0
            while any(hypot(_side(step) * size - dx, y - py) < 0.98 * size for dx, py in placed):
                step += 1
            moves[i] = _side(step) * size
            placed.append((moves[i], y))
    return moves


def _side(step: int) -> float:
    """Return 0, 1/2, -1/2, 1, -1, ... for 0, 1, 2, ..."""
    return (step + 1) // 2 / 2 * (1 if step % 2 else -1)


def spread(centres: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return centres in their order, at least a gap apart, between two ends if there is room.

    Args:
        centres: Wanted.
        gap: Between neighbours; less where the room is too small.
        low: Smallest.
        high: Largest.
    """
    order = sorted(range(len(centres)), key=lambda i: (centres[i], i))
    if len(order) > 1:
        gap = min(gap, (high - low) / (len(order) - 1))
    found = [0.0] * len(centres)
    # Groups of touching marks, each centred on the mean of what its members wanted.
    groups: list[list[float]] = []  # [sum of (wanted - position in the group), count, start]
    for i in order:
        groups.append([centres[i], 1.0, min(max(centres[i], low), high)])
        while len(groups) > 1 and groups[-2][2] + groups[-2][1] * gap > groups[-1][2]:
            total, count, _ = groups.pop()
            before = groups[-1]
            before[0] += total - count * before[1] * gap
            before[1] += count
            start = before[0] / before[1]
            before[2] = min(max(start, low), high - (before[1] - 1) * gap)
    at = iter(order)
    for _, count, start in groups:
        for k in range(int(count)):
            found[next(at)] = start + k * gap
    return found


def place_labels(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    marks: Sequence[Box],
    lines: Sequence[Box],
    frame: Box,
    *,
    distance: float,
) -> list[tuple[float, float]]:
    """Return centres for labels, one after the other at the least crowded place near its mark.

    Args:
        anchors: Centres of the marks.
        sizes: Width and height of the labels.
        marks: What labels should not cover, the labelled marks included.
        lines: What labels may cover where there is no better place.
        frame: What labels should stay within.
        distance: From a mark to the nearest edge of its label, at least.
    """
    taken: list[Box] = []
    found = []
    for (x, y), (width, height) in zip(anchors, sizes, strict=True):
        best: tuple[float, float, float] | None = None
        for ring, radius in enumerate(_RADII):
            for k in range(_ANGLES):
                angle = pi / 2 + (k + 1) // 2 * (1 if k % 2 else -1) * 2 * pi / _ANGLES
                reach = distance * radius
                cx = x + cos(angle) * (reach + width / 2)
                cy = y + sin(angle) * (reach + height / 2)
                box = _around(cx, cy, width, height)
                cost = (
                    20 * box.outside(frame)
                    + 10 * sum(box.overlap(other) for other in taken)
                    + 6 * sum(box.overlap(other) for other in marks)
                    + 1.5 * sum(box.overlap(other) for other in lines)
                    + 0.15 * width * height * ring
                    + 0.01 * width * height * ((k + 1) // 2)
                )
                if best is None or cost < best[0]:
                    best = (cost, cx, cy)
        assert best is not None
        _, cx, cy = best
        taken.append(_around(cx, cy, width, height))
        found.append((cx, cy))
    return found


def _around(x: float, y: float, width: float, height: float) -> Box:
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
