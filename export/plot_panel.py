# SPDX-License-Identifier: Apache-2.0
"""One plot of accuracy against one cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.typing import LineStyleType

from lutwise.export.plot_place import Box, place_labels, spread, swarm
from lutwise.export.plot_style import (
    BAND,
    GRID,
    HALO,
    MUTED,
    PAPER,
    STYLES,
    short_count,
    strip_spines,
)
from lutwise.export.plot_window import Window
from lutwise.export.points import Family, Point, SweepResult, pareto
from lutwise.export.text import percent, printable, shorten

__all__ = ["MARK", "CostAxis", "Panel"]

MARK: Final = 5.6
"""Diameter of a mark, in typographic points."""

_LABEL_SIZE: Final = 7.4
_LOG_FROM: Final = 10.0
"""Ratio of the largest cost to the smallest from which an axis is logarithmic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostAxis:
    """A cost axis.

    Args:
        name: Of the file.
        label: Of the axis.
        value: Cost of a point.
        uncertain: Whether the point's relative cost error applies.
    """

    name: str
    label: str
    value: Callable[[Point], float]
    uncertain: bool = False


class Panel:
    """One plot of accuracy against one cost."""

    def __init__(
        self, axes: Axes, result: SweepResult, cost: CostAxis, window: Window, *, first: bool
    ) -> None:
        self.axes, self.result, self.cost, self.window = axes, result, cost, window
        self.first = first
        self.points = result.points
        self.x = [cost.value(p) for p in self.points]
        self.shown = [i for i, p in enumerate(self.points) if window.shows(p.accuracy.value)]
        self.front = pareto(self.points, cost.value)
        self.family_fronts = {family: self._family_front(family) for family in Family}
        self.best = set(self.front).union(*self.family_fronts.values())
        self.marks: list[Box] = []
        self.lines: list[Box] = []

    def _family_front(self, family: Family) -> tuple[int, ...]:
        members = [i for i, p in enumerate(self.points) if p.family is family]
        found = pareto([self.points[i] for i in members], self.cost.value)
        return tuple(members[k] for k in found)

    def draw(self) -> None:
        """Draw everything, labels last."""
        self._set_scales()
        self._draw_reference()
        self._draw_fronts()
        places = self._draw_points()
        self._draw_labels(places)
        if self.window.cut:
            self._draw_collapsed()

    def _set_scales(self) -> None:
        axes, window = self.axes, self.window
        low, high = min(self.x), max(self.x)
        if low > 0 and high / low > _LOG_FROM:
            axes.set_xscale("log")
            margin = (high / low) ** 0.08
            axes.set_xlim(low / margin, high * margin)
            axes.xaxis.set_major_locator(FixedLocator(_log_ticks(low / margin, high * margin)))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            margin = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
            axes.set_xlim(low - margin, high + margin)
            axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(short_count))
        axes.set_ylim(window.bottom, window.top)
        ticks = MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]).tick_values(window.floor, window.top)
        axes.yaxis.set_major_locator(
            FixedLocator([t for t in ticks if window.floor <= t <= min(window.top, 100)])
        )
        axes.grid(color=GRID, lw=0.6)
        axes.set_xlabel(self.cost.label, parse_math=False)
        if self.first:
            axes.set_ylabel("top-1 accuracy (%)")
        else:
            axes.tick_params(axis="y", length=0)
        strip_spines(axes)

    def _draw_reference(self) -> None:
        reference = self.result.float_accuracy
        low = max(100 * reference.low, self.window.floor)
        self.axes.axhspan(low, max(100 * reference.high, low), color=BAND, lw=0, zorder=0.5)
        if self.window.shows(reference.value):
            self.axes.axhline(100 * reference.value, color=MUTED, lw=0.9, zorder=1.2)

    def _draw_fronts(self) -> None:
        self._draw_front(self.front, color=HALO, lw=5.0, zorder=1.0)
        for family, front in self.family_fronts.items():
            style = STYLES[family]
            self._draw_front(front, color=style.colour, lw=1.3, zorder=2.0, ls=style.line)

    def _draw_front(
        self, front: Sequence[int], *, color: str, lw: float, zorder: float,
        ls: LineStyleType = "solid",
    ) -> None:  # fmt: skip
        """Draw the best accuracy for every budget, from the first visible point to the edge."""
        shown = [i for i in front if self.window.shows(self.points[i].accuracy.value)]
        if not shown:
            return
        x = [self.x[i] for i in shown]
        y = [100 * self.points[i].accuracy.value for i in shown]
        if len(shown) < len(front):  # it comes up from below the axis
            x, y = [x[0], *x], [self.window.floor, *y]
        x, y = [*x, self.axes.get_xlim()[1]], [*y, y[-1]]
        self._avoid_steps(x, y)
        self.axes.plot(
            x, y, drawstyle="steps-post", color=color, lw=lw, ls=ls, zorder=zorder,
            solid_joinstyle="miter", solid_capstyle="butt", dash_capstyle="butt",
        )  # fmt: skip

    def _avoid_steps(self, x: Sequence[float], y: Sequence[float]) -> None:
        """Keep labels off a front's line."""
        corners = self.axes.transData.transform(list(zip(x, y, strict=True)))
        for (x0, y0), (x1, y1) in pairwise(corners):
            self.lines.append(Box(x0, y0 - 2, x1, y0 + 2))
            self.lines.append(Box(x1 - 2, min(y0, y1), x1 + 2, max(y0, y1)))

    def _draw_points(self) -> dict[int, tuple[float, float]]:
        """Draw marks and error bars; return the marks' places in pixels."""
        axes = self.axes
        dots = axes.figure.dpi / 72
        pixels = [
            tuple(axes.transData.transform((self.x[i], 100 * self.points[i].accuracy.value)))
            for i in self.shown
        ]
        moves = swarm(pixels, (MARK + 1.6) * dots)
        places = {}
        for i, (px, py), move in zip(self.shown, pixels, moves, strict=True):
            px += move
            places[i] = (px, py)
            x = float(axes.transData.inverted().transform((px, py))[0])
            self._draw_point(i, x)
            half = (MARK / 2 + 1) * dots
            self.marks.append(Box(px - half, py - half, px + half, py + half))
        return places

    def _draw_point(self, i: int, x: float) -> None:
        point, style = self.points[i], STYLES[self.points[i].family]
        best = i in self.best
        estimate = point.accuracy
        y = 100 * estimate.value
        low = max(100 * estimate.low, self.window.floor)
        sideways = point.cost_error * self.x[i] if self.cost.uncertain else 0.0
        self.axes.errorbar(
            x, y, yerr=[[y - low], [100 * estimate.high - y]],
            xerr=sideways or None, fmt="none", ecolor=style.colour,
            elinewidth=0.9 if best else 0.7, alpha=0.75 if best else 0.28, zorder=2.5,
        )  # fmt: skip
        self.axes.plot(
            [x], [y], marker=style.marker, ms=MARK, ls="none", mec=style.colour,
            mfc=style.colour if style.filled else PAPER, mew=1.3 if best else 1.0,
            alpha=1.0 if best else 0.5, zorder=4.0 if best else 3.0,
        )  # fmt: skip

    def _draw_labels(self, places: dict[int, tuple[float, float]]) -> None:
        axes, dots = self.axes, self.axes.figure.dpi / 72
        shown = [i for i in sorted(self.best, key=lambda i: (self.x[i], i)) if i in places]
        names = _labels(self.points)
        sizes = [_text_size(axes, names[i], _LABEL_SIZE) for i in shown]
        frame = axes.get_window_extent()
        floor = axes.transData.transform((0, self.window.floor))[1]
        centres = place_labels(
            [places[i] for i in shown],
            sizes,
            self.marks,
            [*self.lines, *self._bar_boxes(places)],
            Box(frame.x0 + 2, floor + 2, frame.x1 + 12, frame.y1),
            distance=(MARK / 2 + 2.4) * dots,
        )
        for i, (cx, cy), size in zip(shown, centres, sizes, strict=True):
            self._draw_label(names[i], self.points[i].family, places[i], (cx, cy), size)

    def _bar_boxes(self, places: dict[int, tuple[float, float]]) -> list[Box]:
        found = []
        for i, (px, _) in places.items():
            estimate = self.points[i].accuracy
            low, high = (
                float(self.axes.transData.transform((self.x[i], 100 * end))[1])
                for end in (max(estimate.low, self.window.floor / 100), estimate.high)
            )
            found.append(Box(px - 1.5, low, px + 1.5, high))
        return found

    def _draw_label(
        self,
        text: str,
        family: Family,
        mark: tuple[float, float],
        centre: tuple[float, float],
        size: tuple[float, float],
    ) -> None:
        axes, dots = self.axes, self.axes.figure.dpi / 72
        colour = STYLES[family].colour
        dx, dy = (centre[0] - mark[0]) / dots, (centre[1] - mark[1]) / dots
        gap = max(abs(dx) - size[0] / 2 / dots, abs(dy) - size[1] / 2 / dots)
        axes.annotate(
            text,
            xy=tuple(axes.transAxes.inverted().transform(mark)),
            xycoords="axes fraction",
            xytext=(dx, dy),
            textcoords="offset points",
            ha="center", va="center", size=_LABEL_SIZE, color=colour, zorder=6, parse_math=False,
            annotation_clip=False,
            arrowprops=(
                {"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.7, "shrinkA": 0.5,
                 "shrinkB": MARK / 2 + 0.5}
                if gap > MARK + 2.5 else None
            ),
            bbox={"boxstyle": "square,pad=0.08", "fc": PAPER, "ec": "none", "alpha": 0.6},
        )  # fmt: skip

    def _draw_collapsed(self) -> None:
        """Draw points below the axis as arrows at its lower edge, with their values."""
        axes, window, dots = self.axes, self.window, self.axes.figure.dpi / 72
        axes.axhline(window.floor, color=MUTED, lw=0.7, ls=(0, (2, 2)), zorder=1.5)
        hidden = [i for i in range(len(self.points)) if i not in self.shown]
        frame = axes.get_window_extent()
        at = axes.transData.transform([(self.x[i], window.floor) for i in hidden])[:, 0]
        room = 1.32 * _LABEL_SIZE * dots
        moved = spread([float(a) for a in at], room, frame.x0 + room / 2, frame.x1)
        names = _labels(self.points)
        for i, px in zip(hidden, moved, strict=True):
            style = STYLES[self.points[i].family]
            x = (px - frame.x0) / frame.width
            axes.plot(
                [x], [4.2 * dots / frame.height], transform=axes.transAxes, marker="v", ms=MARK,
                mec=style.colour, mfc=style.colour if style.filled else PAPER, ls="none",
                mew=1.1, zorder=4, clip_on=False,
            )  # fmt: skip
            axes.text(
                x, 11 * dots / frame.height,
                f"{names[i]} {percent(self.points[i].accuracy.value, 0)}",
                transform=axes.transAxes, rotation=90, rotation_mode="anchor", ha="left",
                va="center_baseline",
                size=_LABEL_SIZE - 0.9, color=style.colour, zorder=5, parse_math=False,
            )  # fmt: skip


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of two, or 1, 2 and 5 times powers of ten, between two numbers."""
    if high <= 200:
        found = [2.0**k for k in range(-20, 20)]
    else:
        found = [m * 10.0**k for k in range(-6, 16) for m in (1, 2, 5)]
    found = [t for t in found if low <= t <= high]
    return found if len(found) <= 10 else found[:: -(-len(found) // 8)]


def _labels(points: Sequence[Point]) -> list[str]:
    """Return the shortest names that tell the points apart: weight formats, both, or names."""
    for labels in (
        [p.weights for p in points],
        [f"{p.weights}/{p.activations}" for p in points],
    ):
        if len(set(labels)) == len(points):
            return [shorten(label, 18) for label in labels]
    return [shorten(p.name, 18) for p in points]


def _text_size(axes: Axes, text: str, size: float) -> tuple[float, float]:
    """Return width and height of a label in pixels."""
    label = axes.text(0, 0, printable(text), size=size, parse_math=False)
    extent = label.get_window_extent()
    label.remove()
    return extent.width + 2, extent.height
