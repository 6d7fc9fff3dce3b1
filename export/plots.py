# SPDX-License-Identifier: Apache-2.0
"""Accuracy against cost: the pictures of a sweep."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lutwise.errors import ConfigError
from lutwise.export.layer_plot import layers_svg, plot_layers
from lutwise.export.plot_panel import MARK, CostAxis, Panel
from lutwise.export.plot_style import (
    BAND,
    HALO,
    INK,
    MUTED,
    PAPER,
    STYLES,
    inline_svg,
    new_figure,
    plot_context,
    png_bytes,
    svg_bytes,
)
from lutwise.export.plot_window import Window, accuracy_window
from lutwise.export.points import Family, SweepResult
from lutwise.export.text import percent, shorten
from lutwise.files import write_atomic

__all__ = ["layers_svg", "plot_layers", "plot_sweep", "sweep_svg"]


def _costs(result: SweepResult) -> tuple[CostAxis, ...]:
    folding = f" ({shorten(result.folding, 24)})" if result.folding else ""
    return (
        CostAxis(name="weight_bits", label="bits per weight", value=lambda p: p.weight_bits),
        CostAxis(
            name="bits_per_mac",
            label="weight bits times activation bits, per MAC",
            value=lambda p: p.bits_per_mac,
        ),
        CostAxis(
            name="luts",
            label=f"LUTs of the folded network{folding}",
            value=lambda p: p.luts_folded,
            uncertain=True,
        ),
        CostAxis(name="luts_per_mac", label="LUTs per MAC", value=lambda p: p.luts_per_mac),
    )


def plot_sweep(result: SweepResult, out_dir: Path) -> list[Path]:
    """Draw accuracy against bits per weight, bits per MAC and LUTs.

    Args:
        result: The sweep.
        out_dir: Gets ``pareto`` (three panels), ``pareto_weight_bits``, ``pareto_bits_per_mac``,
            ``pareto_luts`` and ``pareto_luts_per_mac``, each as ``.png`` and ``.svg``.

    Returns:
        The files, in this order.

    Raises:
        ConfigError: The sweep has no points.
        OutputError: The place cannot be written.
    """
    costs = _costs(result)
    pictures = [("pareto", costs[:3]), *((f"pareto_{cost.name}", (cost,)) for cost in costs)]
    written = []
    with plot_context():
        for stem, shown in pictures:
            figure = _draw(result, shown)
            for suffix, content in ((".png", png_bytes(figure)), (".svg", svg_bytes(figure))):
                path = out_dir / (stem + suffix)
                write_atomic(path, content)
                written.append(path)
    return written


def sweep_svg(result: SweepResult) -> str:
    """Return the picture with three panels as an ``<svg>`` element for a page.

    Raises:
        ConfigError: The sweep has no points.
    """
    with plot_context(live_text=True):
        return inline_svg(_draw(result, _costs(result)[:3]))


def _draw(result: SweepResult, costs: Sequence[CostAxis]) -> Figure:
    if not result.points:
        raise ConfigError(
            f"the sweep of {result.model!r} has no points to draw; run at least one point"
        )
    wide = len(costs) > 1
    width, height = (13.2, 5.8) if wide else (6.8, 6.1)
    figure = new_figure(width, height)
    window = accuracy_window([p.accuracy for p in result.points], result.float_accuracy)
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    figure.subplots_adjust(
        left=0.66 / width, right=1 - 0.18 / width, bottom=(0.98 if wide else 1.36) / height,
        top=1 - 0.78 / height,
        wspace=0.07,
    )  # fmt: skip
    for axes, cost in zip(panels, costs, strict=True):
        Panel(axes, result, cost, window, first=axes is panels[0]).draw()
    _title(figure, result, costs, wide=wide)
    _legend(figure, result, window, wide=wide)
    return figure


def _title(figure: Figure, result: SweepResult, costs: Sequence[CostAxis], *, wide: bool) -> None:
    width, height = figure.get_size_inches()
    names = f"{shorten(result.model, 60)} on {shorten(result.data, 60)}"
    head = shorten(names, 130 if wide else 58)
    facts = [f"{result.images:,} images", f"{shorten(result.mode, 20)} mode"]
    facts.append("bars: 95 % confidence interval")
    if any(c.uncertain for c in costs) and any(p.cost_error > 0 for p in result.points):
        facts.append("sideways: expected error of the LUTs")
    left = 0.14 / width
    for text, down, size, colour, weight in (
        (head, 0.30, 11.0, INK, "bold"),
        (" · ".join(facts), 0.53, 8.5, MUTED, "normal"),
    ):
        figure.text(
            left, 1 - down / height, text, size=size, color=colour, weight=weight, ha="left",
            parse_math=False,
        )  # fmt: skip


def _legend(figure: Figure, result: SweepResult, window: Window, *, wide: bool) -> None:
    families = [f for f in Family if any(p.family is f for p in result.points)]
    handles: list[Line2D | Patch] = []
    for family in families:
        style = STYLES[family]
        handles.append(
            Line2D(
                [], [], color=style.colour, linestyle=style.line, marker=style.marker, ms=MARK,
                mfc=style.colour if style.filled else PAPER, lw=1.3,
                label=f"{style.label}, their Pareto front",
            )
        )  # fmt: skip
    handles.append(Line2D([], [], color=HALO, lw=5, label="Pareto front of all"))
    handles.append(
        Patch(
            facecolor=BAND, edgecolor=MUTED, lw=0.6,
            label=f"float: {percent(result.float_accuracy.value)}, 95 % CI",
        )
    )  # fmt: skip
    if window.cut:
        handles.append(
            Line2D([], [], color=MUTED, marker="v", ms=MARK, ls="none", label="below the axis")
        )
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles) if wide else 2,
        bbox_to_anchor=(0.5, 0.012), columnspacing=1.8, handlelength=2.6, labelspacing=0.35,
    )  # fmt: skip
