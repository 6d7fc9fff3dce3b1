# SPDX-License-Identifier: Apache-2.0
"""One look for every plot: colours, marks, and files that are the same byte for byte."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.typing import LineStyleType

from lutwise.export.points import Family

__all__ = [
    "BAND",
    "GRID",
    "HALO",
    "INK",
    "MUTED",
    "PAPER",
    "STYLES",
    "THEME_VARIABLES",
    "FamilyStyle",
    "inline_svg",
    "new_figure",
    "plot_context",
    "png_bytes",
    "short_count",
    "strip_spines",
    "svg_bytes",
]

INK: Final = "#1f2328"
MUTED: Final = "#59636e"
GRID: Final = "#e3e7eb"
HALO: Final = "#c3cad2"
BAND: Final = "#eceff2"
PAPER: Final = "#ffffff"

_BLUE: Final = "#0072b2"
_VERMILION: Final = "#d55e00"
_GREEN: Final = "#007a5e"

THEME_VARIABLES: Final = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    HALO: "halo",
    BAND: "band",
    PAPER: "paper",
    _BLUE: "integer",
    _VERMILION: "minifloat",
    _GREEN: "mixed",
}
"""CSS variable (without its leading dashes) for each colour, in pictures inside a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyStyle:
    """How the points of a family look; marker, fill and line differ, not only colour.

    Args:
        label: For the legend.
        colour: One that is told apart with all common kinds of colour blindness.
        marker: Shape.
        filled: Whether the shape is filled.
        line: Style of the Pareto front's line.
    """

    label: str
    colour: str
    marker: str
    filled: bool
    line: LineStyleType


STYLES: Final = {
    Family.INTEGER: FamilyStyle(
        label="integers", colour=_BLUE, marker="s", filled=True, line="solid"
    ),
    Family.MINIFLOAT: FamilyStyle(
        label="minifloats", colour=_VERMILION, marker="o", filled=False, line=(0, (4.5, 1.8))
    ),
    Family.MIXED: FamilyStyle(
        label="mixed", colour=_GREEN, marker="D", filled=True, line=(0, (1.2, 1.4))
    ),
}

_SETTINGS: Final[dict[str, Any]] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "lutwise",
    "svg.fonttype": "path",
    "path.simplify": False,
}


@contextmanager
def plot_context(*, live_text: bool = False) -> Iterator[None]:
    """Draw with the settings of this module, whatever the user's are; restore those afterwards.

    Args:
        live_text: Keep text in SVG as text, for pages; else as outlines that look the same
            everywhere.
    """
    settings = {**_SETTINGS, "svg.fonttype": "none" if live_text else "path"}
    with matplotlib.style.context(["default", settings]), warnings.catch_warnings():
        # A name in a script that the font lacks is no reason to fail; boxes stand for it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of a size in inches that needs no display."""
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """Return a picture for slides and papers."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, metadata={"Software": "lutwise"})
    return buffer.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """Return a picture that scales, without a date."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "lutwise"})
    return buffer.getvalue()


def inline_svg(figure: Figure) -> str:
    """Return the ``<svg>`` element for a page; its colours are CSS variables with a default.

    The background is left to the page, and so is the size.
    """
    figure.patch.set_visible(False)
    text = svg_bytes(figure).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height|version)="[^"]*"', "", head)
    for colour, variable in THEME_VARIABLES.items():
        rest = re.sub(
            rf"(fill|stroke|stop-color): {colour}\b",
            rf"\1: var(--{variable}, {colour})",
            rest,
        )
        # Hatches hold colours as attributes, which take no variables.
        rest = re.sub(
            rf'(fill|stroke)="{colour}"', rf'style="\1: var(--{variable}, {colour})"', rest
        )
    return f"{head}>{rest}".strip()


def strip_spines(axes: Axes) -> None:
    """Leave the left and lower edge of a plot only."""
    axes.spines[["top", "right"]].set_visible(False)


def short_count(value: float, _position: int | None = None) -> str:
    """Return a tick label such as ``500``, ``20k`` or ``1.5M``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
