# SPDX-License-Identifier: Apache-2.0
"""LUTs, share of the final error and signal to noise of each layer of a run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lutwise.errors import ConfigError
from lutwise.export.layer_row import LayerRow
from lutwise.export.plot_style import (
    GRID,
    INK,
    MUTED,
    PAPER,
    STYLES,
    inline_svg,
    new_figure,
    plot_context,
    png_bytes,
    short_count,
    strip_spines,
    svg_bytes,
)
from lutwise.export.points import Family
from lutwise.export.text import shorten
from lutwise.files import write_atomic

__all__ = ["layers_svg", "plot_layers"]

_ROW: Final = 0.21
"""Height of a layer, inch."""

_EXACT_DB: Final = 199.5
"""From here on there is no noise at all; drawn at the end of the axis."""

_NAMED_SHARE: Final = 0.1
"""From this share of the error on, a bar has its number beside it."""

_DOTS, _REQUANTIZERS = STYLES[Family.INTEGER].colour, STYLES[Family.MINIFLOAT].colour
_SHARE: Final = STYLES[Family.MIXED].colour


def plot_layers(rows: Sequence[LayerRow], path: Path) -> Path:
    """Draw LUTs by part, share of the error, and noise of each layer.

    What no layer has a number for is left out.

    Args:
        rows: The layers, first at the top.
        path: The file, ``.png`` or ``.svg``.

    Returns:
        The file.

    Raises:
        ConfigError: There are no layers, or the suffix is another.
        OutputError: The place cannot be written.
    """
    makers = {".png": png_bytes, ".svg": svg_bytes}
    if path.suffix not in makers:
        raise ConfigError(f"a picture is a .png or .svg file, got {path.name!r}")
    with plot_context():
        write_atomic(path, makers[path.suffix](_draw(rows)))
    return path


def layers_svg(rows: Sequence[LayerRow]) -> str:
    """Return the picture as an ``<svg>`` element for a page.

    Raises:
        ConfigError: There are no layers.
    """
    with plot_context(live_text=True):
        return inline_svg(_draw(rows))


def _draw(rows: Sequence[LayerRow]) -> Figure:
    if not rows:
        raise ConfigError("there are no layers to draw; the run has none")
    names = [shorten(row.layer, 34) for row in rows]
    draw: list[Callable[[Axes, Sequence[LayerRow]], None]] = [_draw_noise]
    if any(row.error_share is not None for row in rows):
        draw.insert(0, _draw_shares)
    if any(row.dot_product_luts is not None for row in rows):
        draw.insert(0, _draw_luts)
    left = 0.3 + 0.068 * max(len(name) for name in names)
    panel_width = 3.9 if len(draw) < 3 else 3.2
    width, height = left + panel_width * len(draw), 1.05 + _ROW * max(len(rows), 2)
    figure = new_figure(width, height)
    axes = figure.subplots(1, len(draw), sharey=True, squeeze=False)[0]
    figure.subplots_adjust(
        left=left / width, right=1 - 0.25 / width, bottom=0.5 / height, top=1 - 0.5 / height,
        wspace=0.08,
    )  # fmt: skip
    for panel, draw_panel in zip(axes, draw, strict=True):
        draw_panel(panel, rows)
        panel.set_ylim(max(len(rows), 2) - 0.4, -0.6)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x", color=GRID, lw=0.6)
        strip_spines(panel)
        panel.legend(
            loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, columnspacing=1.4,
            borderaxespad=0.2, handletextpad=0.5,
        )  # fmt: skip
    axes[0].set_yticks(range(len(rows)), names, size=7.6)
    for label in axes[0].get_yticklabels():
        label.set_parse_math(False)
    return figure


def _draw_luts(axes: Axes, rows: Sequence[LayerRow]) -> None:
    at = range(len(rows))
    dots = [row.dot_product_luts or 0.0 for row in rows]
    requantizers = [row.requantizer_luts or 0.0 for row in rows]
    axes.barh(at, dots, height=0.62, color=_DOTS, label="dot products", zorder=2)
    axes.barh(
        at, requantizers, left=dots, height=0.62, color=PAPER, edgecolor=_REQUANTIZERS, lw=0.8,
        hatch="//////", label="requantizers", zorder=2,
    )  # fmt: skip
    starts = [d + r for d, r in zip(dots, requantizers, strict=True)]
    rest = [(row.memory_luts or 0.0) + (row.control_luts or 0.0) for row in rows]
    axes.barh(
        at, rest, left=starts, height=0.62, color=MUTED, alpha=0.45, label="memory, control",
        zorder=2,
    )  # fmt: skip
    axes.set_xlim(0, 1.04 * max(s + r for s, r in zip(starts, rest, strict=True)) or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(short_count))
    axes.set_xlabel("LUTs, folded")


def _draw_shares(axes: Axes, rows: Sequence[LayerRow]) -> None:
    """Draw how much of the error goes without a layer, and how much it makes alone."""
    shares = [100 * (row.error_share or 0.0) for row in rows]
    alone = [100 * (row.alone_share or 0.0) for row in rows]
    at = range(len(rows))
    axes.barh(at, shares, height=0.62, color=_SHARE, alpha=0.7, label="gone without it", zorder=2)
    # One layer of a huge number must not squeeze the others: the axis is cut there.
    high = max(5.0, 1.3 * max(shares), min(100.0, max(alone)))
    axes.plot(
        [min(share, high) for share in alone], at, marker="|", ls="none", ms=7.5, mec=INK,
        mew=1.4, label="made by it alone", zorder=3,
    )  # fmt: skip
    axes.axvline(0, color=MUTED, lw=0.7, zorder=2)
    low = max(min(0.0, *shares), -high)
    for i, share in enumerate(shares):
        if share >= 100 * _NAMED_SHARE or share < low:
            axes.annotate(
                f"{share:.0f} %", (min(max(0.0, share, alone[i]), high), i), xytext=(5, 0),
                textcoords="offset points", size=7, color=INK, ha="left", va="center",
            )  # fmt: skip
    axes.set_xlim(low - 0.03 * (high - low), high + 0.15 * (high - low))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xlabel("share of the final error (%)")


def _draw_noise(axes: Axes, rows: Sequence[LayerRow]) -> None:
    weights = [row.weight_sqnr_db for row in rows]
    outputs = [row.output_sqnr_db for row in rows]
    finite = [v for v in (*weights, *outputs) if v is not None and abs(v) < _EXACT_DB]
    low, high = min([0.0, *finite]), max([10.0, *finite])
    end = high + 0.08 * (high - low)
    for values, marker, colour, fill, label in (
        (weights, "s", _DOTS, _DOTS, "weights"),
        (outputs, "o", _REQUANTIZERS, PAPER, "outputs"),
    ):
        measured = [(v, i) for i, v in enumerate(values) if v is not None]
        axes.plot(
            [min(max(v, low), end) for v, _ in measured], [i for _, i in measured], marker=marker,
            ls="none", ms=4.8, mec=colour, mfc=fill, mew=1.2, label=label, zorder=3,
        )  # fmt: skip
        for v, i in measured:
            if v >= _EXACT_DB:
                axes.annotate(
                    "exact", (end, i), xytext=(5, 0), textcoords="offset points", size=7,
                    color=INK, ha="left", va="center",
                )  # fmt: skip
    for i, pair in enumerate(zip(weights, outputs, strict=True)):
        ends = [min(max(v, low), end) for v in pair if v is not None]
        if len(ends) == 2:
            axes.plot(ends, [i, i], color=MUTED, lw=0.8, alpha=0.6, zorder=2)
    exact = any(v is not None and v >= _EXACT_DB for v in (*weights, *outputs))
    axes.set_xlim(low - 0.02 * (end - low), end + (0.13 if exact else 0.02) * (end - low))
    axes.set_xlabel("signal to quantization noise (dB)")
