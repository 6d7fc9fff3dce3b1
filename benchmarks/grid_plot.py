# SPDX-License-Identifier: Apache-2.0
"""The picture of the ImageNet grid: accuracy against bits, ours and Brevitas's."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.grid_rows import theirs
from lutwise.export.plot_style import (
    GRID,
    INK,
    MUTED,
    STYLES,
    new_figure,
    plot_context,
    png_bytes,
    strip_spines,
)
from lutwise.export.points import Family
from lutwise.quant.formats import IntFormat, parse_element

__all__ = ["grid_png"]

Row = Mapping[str, Any]

_ASIDE: Final = {Family.INTEGER: -0.16, Family.MINIFLOAT: 0.16}
"""Places beside the whole number of bits, so that marks do not hide each other."""


def grid_png(rows: Sequence[Row]) -> bytes:
    """Draw a panel for each net: the best splits of each width, with 95 % intervals.

    Args:
        rows: Of `imagenet_grid.py`; those with one format for weights and activations are drawn.
    """
    rows = [row for row in rows if row["weights"] == row["activations"]]
    nets = list(dict.fromkeys(row["net"] for row in rows))
    with plot_context():
        figure = new_figure(4.4 * len(nets), 3.6)
        for i, net in enumerate(nets):
            axes = figure.add_subplot(1, len(nets), i + 1)
            _panel(axes, net, [row for row in rows if row["net"] == net], first=i == 0)
        _legend(figure)
        figure.subplots_adjust(left=0.6 / (4.4 * len(nets)), right=0.985, top=0.9, bottom=0.25)
        return png_bytes(figure)


def _panel(axes: Axes, net: str, rows: Sequence[Row], *, first: bool) -> None:
    strip_spines(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    reference = 100 * rows[0]["float_accuracy"]["value"]
    axes.axhline(reference, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
    axes.annotate(
        f"float {reference:.1f}", (0, reference), xycoords=("axes fraction", "data"),
        xytext=(4, 3), textcoords="offset points", color=MUTED, fontsize=8,
    )  # fmt: skip
    for family in (Family.INTEGER, Family.MINIFLOAT):
        for ours in (True, False):
            _points(axes, _champions(rows, family, ours=ours), family, ours=ours)
    axes.set_title(f"{net}, {rows[0]['images']} images", loc="left", color=INK, fontsize=9)
    axes.set_xlabel("bits of weights and activations")
    if first:
        axes.set_ylabel("top-1 accuracy (%)")
    axes.set_xticks(range(3, 9))
    axes.set_xlim(2.55, 8.75)
    axes.set_ylim(bottom=0)


def _champions(rows: Sequence[Row], family: Family, *, ours: bool) -> list[Row]:
    """Return the most accurate row of each width."""
    found: dict[int, Row] = {}
    for row in rows:
        fmt = parse_element(row["weights"])
        if isinstance(fmt, IntFormat) != (family is Family.INTEGER):
            continue
        if row["tool"] != "best" if ours else not theirs(row):
            continue
        best = found.get(fmt.bits)
        if best is None or row["accuracy"]["value"] > best["accuracy"]["value"]:
            found[fmt.bits] = row
    return [found[bits] for bits in sorted(found)]


def _points(axes: Axes, rows: Sequence[Row], family: Family, *, ours: bool) -> None:
    style = STYLES[family]
    bits = [parse_element(row["weights"]).bits for row in rows]
    values = [100 * row["accuracy"]["value"] for row in rows]
    low, high = (
        [abs(100 * row["accuracy"][end] - v) for row, v in zip(rows, values, strict=True)]
        for end in ("low", "high")
    )
    places = [b + _ASIDE[family] + (-0.05 if ours else 0.05) for b in bits]
    axes.errorbar(
        places,
        values,
        (low, high),
        color=style.colour,
        alpha=1.0 if ours else 0.45,
        linestyle=style.line if ours else "none",
        linewidth=1.1,
        elinewidth=0.7,
        marker=style.marker if ours else "x",
        markersize=4.5,
        markerfacecolor=style.colour if style.filled else "white",
    )
    if family is Family.MINIFLOAT and ours:
        for place, value, row in zip(places, values, rows, strict=True):
            axes.annotate(
                row["weights"], (place, value), xytext=(5, -9), textcoords="offset points",
                color=style.colour, fontsize=7,
            )  # fmt: skip


def _legend(figure: Figure) -> None:
    handles = []
    for family in (Family.INTEGER, Family.MINIFLOAT):
        style = STYLES[family]
        common: dict[str, Any] = {"color": style.colour, "markersize": 4.5}
        handles.append(
            Line2D(
                [], [], linestyle=style.line, marker=style.marker, **common,
                markerfacecolor=style.colour if style.filled else "white",
                label=f"{style.label}, lutwise best",
            )
        )  # fmt: skip
        handles.append(
            Line2D(
                [], [], linestyle="none", marker="x", alpha=0.45, **common,
                label=f"{style.label}, Brevitas",
            )
        )  # fmt: skip
    figure.legend(handles=handles, loc="lower center", ncols=4, columnspacing=1.6)
