# SPDX-License-Identifier: Apache-2.0
"""Pictures of a sweep: quality against cost, and errors over time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lutwise.consumers.diffusion.grid import Setting
from lutwise.consumers.diffusion.sweep_result import Cell, SweepSummary, cheapest_front
from lutwise.errors import ConfigError
from lutwise.export.plot_place import Box, place_labels
from lutwise.export.plot_style import (
    BAND,
    GRID,
    HALO,
    INK,
    MUTED,
    PAPER,
    inline_svg,
    new_figure,
    plot_context,
    png_bytes,
    short_count,
    strip_spines,
    svg_bytes,
)

__all__ = [
    "AXES",
    "CostAxis",
    "trade_off_figure",
    "trade_off_files",
    "trade_off_svg",
    "variance_curves",
]

_COLOURS: Final = (INK, "#0072b2", "#d55e00", "#007a5e", "#a0527a", "#8a6d00")
_MARKERS: Final = ("o", "s", "^", "D", "v", "P")
_MARK: Final = 5.6
_LABEL: Final = 7.4


@dataclass(frozen=True, slots=True, kw_only=True)
class CostAxis:
    """What a picture draws quality over.

    Args:
        name: Of the files.
        label: Of the axis.
        value: Of a cell.
    """

    name: str
    label: str
    value: Callable[[Cell], float]


AXES: Final = (
    CostAxis(name="bops", label="bit operations per sample", value=lambda c: c.cost["bops"]),
    CostAxis(
        name="seconds", label="processor seconds, fake quantization",
        value=lambda c: c.processor_seconds.mean,
    ),
)  # fmt: skip


def trade_off_files(summary: SweepSummary) -> dict[str, bytes]:
    """Return pictures as PNG and SVG by file name."""
    found = {}
    with plot_context():
        for axis in AXES:
            figure = trade_off_figure(summary, axis)
            found[f"trade_off_{axis.name}.png"] = png_bytes(figure)
            found[f"trade_off_{axis.name}.svg"] = svg_bytes(figure)
    return found


def trade_off_svg(summary: SweepSummary, axis: CostAxis) -> str:
    """Return a picture as an ``<svg>`` element for a page."""
    with plot_context(live_text=True):
        return inline_svg(trade_off_figure(summary, axis))


def trade_off_figure(summary: SweepSummary, axis: CostAxis = AXES[0]) -> Figure:
    """Return quality over cost, one panel for each number of steps.

    Args:
        summary: The sweep.
        axis: The cost.

    Raises:
        ConfigError: No cell but the float model.
    """
    cells = [cell for cell in summary.cells if cell.quality is not None]
    if all(cell.setting.exact for cell in summary.cells):
        raise ConfigError("a sweep of the float model alone has nothing to draw; add formats")
    steps = list(dict.fromkeys(cell.setting.steps for cell in cells))
    looks = _Looks.of(cells)
    width, height = 1.0 + 5.6 * len(steps), 5.4
    figure = new_figure(width, height)
    panels = figure.subplots(1, len(steps), sharey=True, squeeze=False)[0]
    figure.subplots_adjust(
        left=0.75 / width, right=1 - 0.2 / width, top=1 - 0.45 / height, wspace=0.06,
        bottom=(1.0 if len(steps) > 1 else 1.45) / height,
    )  # fmt: skip
    values = [end for c in cells if c.quality for end in (c.quality.low, c.quality.high) if end > 0]
    values = values or [1.0]  # nothing differs, and a logarithmic axis has no place for that
    for axes, count in zip(panels, steps, strict=True):
        members = [cell for cell in cells if cell.setting.steps == count]
        _panel(axes, members, axis, looks, (min(values) / 1.25, max(values) * 1.25))
        axes.set_title(f"{count} steps", loc="left", fontsize=9.5, color=INK)
    measured = summary.measured
    panels[0].set_ylabel(
        "Frechet distance to real images" if measured else "squared error to the float samples"
    )
    figure.legend(
        handles=looks.handles(banded=measured, fronted=axis is AXES[0]),
        loc="lower center", fontsize=8,
        ncols=3 if len(steps) == 1 else 6,
        bbox_to_anchor=(0.5, 0.01), columnspacing=1.5, handlelength=1.6, labelspacing=0.35,
    )  # fmt: skip
    return figure


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looks:
    """Colours by format, markers by interval; filled marks are compensated."""

    colours: Mapping[str, str]
    markers: Mapping[str, str]

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> "_Looks":
        formats = list(dict.fromkeys(str(cell.setting.formats) for cell in cells))
        # Intervals by length, then schedules by name.
        caches = sorted(
            {(not s.interval, s.interval, _cache(s)) for s in (c.setting for c in cells)}
        )
        return cls(
            colours={f: _COLOURS[i % len(_COLOURS)] for i, f in enumerate(formats)},
            markers={name: _MARKERS[i % len(_MARKERS)] for i, (*_, name) in enumerate(caches)},
        )

    def handles(self, *, banded: bool, fronted: bool) -> list[Line2D | Patch]:
        found: list[Line2D | Patch] = [
            Line2D([], [], color=colour, lw=4, label=name) for name, colour in self.colours.items()
        ]
        found += [
            Line2D([], [], color=MUTED, marker=marker, ms=_MARK, ls="none", label=name)
            for name, marker in self.markers.items()
        ]
        for label, fill in (("compensated", MUTED), ("not compensated", PAPER)):
            found.append(
                Line2D([], [], color=MUTED, mfc=fill, marker="o", ms=_MARK, ls="none", label=label)
            )
        if fronted:
            found.append(Line2D([], [], color=HALO, lw=4, label="best for the cost"))
        if banded:
            found.append(
                Patch(facecolor=BAND, edgecolor=MUTED, lw=0.6, label="float, N = 1, over seeds")
            )
        return found


def _panel(
    axes: Axes,
    cells: Sequence[Cell],
    axis: CostAxis,
    looks: _Looks,
    limits: tuple[float, float],
) -> None:
    strip_spines(axes)
    axes.grid(color=GRID, lw=0.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(*limits)
    costs = [axis.value(cell) for cell in cells]
    axes.set_xlim(min(costs) / 1.5, max(costs) * 1.5)
    for edge in (axes.xaxis, axes.yaxis):
        edge.set_major_locator(LogLocator(subs=(1, 2, 5)))
        edge.set_major_formatter(FuncFormatter(short_count))
        edge.set_minor_formatter(NullFormatter())
    axes.set_xlabel(axis.label)
    front = cheapest_front(cells)
    _draw_front(axes, front, axis)
    for cell in cells:
        if cell.setting.exact and cell.frechet is not None:
            axes.axhspan(cell.frechet.low, cell.frechet.high, color=BAND, lw=0, zorder=0.5)
        _draw_cell(axes, cell, axis, looks)
    _draw_labels(axes, front, cells, axis, looks)


def _draw_front(axes: Axes, front: Sequence[Cell], axis: CostAxis) -> None:
    """Draw what the cheapest cells reach, where the axis is what they are cheap in."""
    if axis is not AXES[0]:
        return
    x = [axis.value(cell) for cell in front]
    y = [cell.quality.mean for cell in front if cell.quality is not None]
    axes.plot(x, y, drawstyle="steps-post", color=HALO, lw=4, zorder=1, solid_joinstyle="miter")


def _draw_cell(axes: Axes, cell: Cell, axis: CostAxis, looks: _Looks) -> None:
    assert cell.quality is not None
    colour = looks.colours[str(cell.setting.formats)]
    x, quality = axis.value(cell), cell.quality
    axes.plot(
        [x, x], [quality.low, quality.high], color=colour, lw=0.9, alpha=0.7, zorder=2.5
    )  # fmt: skip
    plain = cell.compensation == "none" and not cell.setting.exact
    axes.plot(
        [x], [quality.mean], marker=looks.markers[_cache(cell.setting)], ms=_MARK, ls="none",
        mec=colour, mfc=PAPER if plain else colour, mew=1.1, zorder=3,
    )  # fmt: skip


def _draw_labels(
    axes: Axes, front: Sequence[Cell], cells: Sequence[Cell], axis: CostAxis, looks: _Looks
) -> None:
    dots = axes.figure.dpi / 72
    half = (_MARK / 2 + 1) * dots

    def place(cell: Cell) -> tuple[float, float]:
        assert cell.quality is not None
        x, y = axes.transData.transform((axis.value(cell), cell.quality.mean))
        return float(x), float(y)

    def height(value: float) -> float:
        return float(axes.transData.transform((1, value))[1])

    marks = [Box(x - half, y - half, x + half, y + half) for x, y in map(place, cells)]
    bars = [
        Box(x - 1.5, height(quality.low), x + 1.5, height(quality.high))
        for (x, _), quality in ((place(cell), cell.quality) for cell in cells)
        if quality is not None
    ]
    names = [_label(cell) for cell in front]
    sizes = []
    for name in names:
        text = axes.text(0, 0, name, size=_LABEL)
        extent = text.get_window_extent()
        text.remove()
        sizes.append((extent.width + 2, extent.height))
    frame = axes.get_window_extent()
    centres = place_labels(
        [place(cell) for cell in front], sizes, marks, bars,
        Box(frame.x0 + 2, frame.y0 + 2, frame.x1 - 2, frame.y1 - 2), distance=half + 2 * dots,
    )  # fmt: skip
    back = axes.transAxes.inverted()
    for cell, name, centre in zip(front, names, centres, strict=True):
        x, y = back.transform(centre)
        axes.text(
            x, y, name, transform=axes.transAxes, ha="center", va="center",
            size=_LABEL, color=looks.colours[str(cell.setting.formats)], zorder=6,
            bbox={"boxstyle": "square,pad=0.08", "fc": PAPER, "ec": "none", "alpha": 0.7},
        )  # fmt: skip


def _cache(setting: Setting) -> str:
    return f"N = {setting.interval}" if setting.interval else setting.cache


def _label(cell: Cell) -> str:
    """Return what tells a mark from others of its panel."""
    setting = cell.setting
    parts = [str(setting.formats), _cache(setting).replace(" = ", "=")]
    if setting.order:
        parts.append(f"order {setting.order}")
    if cell.compensation != "none":
        parts.append(cell.compensation)
    return " ".join(parts)


def variance_curves(summary: SweepSummary, steps: int) -> dict[str, tuple[float, ...]]:
    """Return the variance of latents by step of some telling cells, the float model first.

    These are the cells with the longest interval, and of them those of the first format that is
    not float, with every compensation, beside the float model with the same cache. None where the
    file leaves them out.
    """
    cells = [cell for cell in summary.cells if cell.setting.steps == steps]
    exact = summary.floats()[steps]
    others = [cell for cell in cells if not cell.setting.exact]
    if exact.variance is None:
        return {}
    if not others:
        return {"float": exact.variance}
    longest = max(cell.setting.interval for cell in others)
    others = [cell for cell in others if cell.setting.interval == longest]
    first = next((c.setting for c in others if not c.setting.formats.is_float), None)
    found = {"float": exact.variance}
    for cell in others:
        plain_float = cell.setting.formats.is_float and cell.compensation == "none"
        if cell.variance is not None and (cell.setting == first or plain_float):
            found[_label(cell)] = cell.variance
    return found
