# SPDX-License-Identifier: Apache-2.0
"""Pictures of what formats cost: LUTs over bits, and accuracy over LUTs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from matplotlib.axes import Axes

from lutwise.cost_models.layer_cost import LayerSize, Memory, layer_price
from lutwise.cost_models.library import lut_per_mac
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
from lutwise.hw.bounds import accumulator_range, width_of_range
from lutwise.quant.formats import FloatFormat, Format, IntFormat, parse_element, parse_weight

__all__ = ["accuracy_png", "luts_png", "mac_luts", "unit_luts"]

Row = Mapping[str, Any]
Price = Callable[[str], float]

LANES: Final = 8
PRODUCTS: Final = 576
"""Products per output of the layer whose requantizer is shared out: 64 channels, 3 x 3."""

_SHADES: Final = {1: "#8a3b00", 2: "#d55e00", 3: "#e98a3c", 4: "#f0b27a", 5: "#f7d4b5"}
_MARKS: Final = {1: "v", 2: "o", 3: "^", 4: "D", 5: "P"}


def mac_luts(name: str) -> float:
    """Return LUTs per product of a unit of eight lanes with one format on both sides."""
    return lut_per_mac(parse_weight(name), parse_element(name), LANES).value


def unit_luts(name: str) -> float:
    """Return LUTs per product of a layer unit of one output: buffer, requantizer and control too.

    A layer of ``PRODUCTS`` products and 64 outputs, one at a time; results in the inputs' format,
    weights elsewhere.
    """
    weights, activations = parse_weight(name), parse_element(name)
    size = LayerSize(
        weights=weights,
        activations=activations,
        output=activations,
        accumulator_bits=width_of_range(*accumulator_range(weights, activations, PRODUCTS)),
        groups=1,
        outputs=64,
        products=PRODUCTS,
        pe=1,
        simd=LANES,
    )
    return layer_price(size, Memory.BLOCK).luts / LANES


def _formats() -> list[Format]:
    found: list[Format] = [IntFormat(bits=bits, narrow=True) for bits in range(2, 9)]
    for bits in range(3, 9):
        for exponent in range(1, min(5, bits - 1) + 1):
            fmt = FloatFormat(exponent_bits=exponent, mantissa_bits=bits - 1 - exponent)
            reach = accumulator_range(fmt, fmt, 1024)
            if width_of_range(*reach) <= 64:
                found.append(fmt)
    return found


def luts_png() -> bytes:
    """Draw LUTs per product over bits: the bare unit, and a layer unit with all that belongs."""
    with plot_context():
        figure = new_figure(8.8, 3.9)
        panels: list[tuple[str, Price]] = [
            ("dot product of 8 lanes", mac_luts),
            ("layer unit of 8 lanes: with requantizer, buffer, control", unit_luts),
        ]
        for place, (title, price) in enumerate(panels):
            axes = figure.add_subplot(1, 2, place + 1)
            _luts_panel(axes, title, price)
        figure.subplots_adjust(left=0.075, right=0.985, top=0.92, bottom=0.13, wspace=0.18)
        return png_bytes(figure)


def _luts_panel(axes: Axes, title: str, price: Price) -> None:
    strip_spines(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    formats = _formats()
    integers = [fmt for fmt in formats if isinstance(fmt, IntFormat)]
    style = STYLES[Family.INTEGER]
    axes.plot(
        [fmt.bits for fmt in integers], [price(fmt.name) for fmt in integers],
        color=style.colour, marker=style.marker, markersize=4.5, linewidth=1.4, label="integers",
    )  # fmt: skip
    for exponent, shade in _SHADES.items():
        split = [
            fmt for fmt in formats if isinstance(fmt, FloatFormat) and fmt.exponent_bits == exponent
        ]
        if not split:
            continue
        axes.plot(
            [fmt.bits for fmt in split], [price(fmt.name) for fmt in split],
            color=shade, marker=_MARKS[exponent], markersize=4.5, linewidth=1.0,
            linestyle=(0, (4, 1.6)), markerfacecolor="white", label=f"E{exponent}",
        )  # fmt: skip
    axes.set_title(title, loc="left", color=INK, fontsize=9)
    axes.set_xlabel("bits, the same format on both sides")
    axes.set_ylabel("LUTs per product")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left")


def accuracy_png(rows: Sequence[Row]) -> bytes:
    """Draw accuracy over LUTs per product for each net, with the front of each family.

    Args:
        rows: Of `imagenet_grid.py`; those of ``best`` with one format on both sides are drawn.
    """
    rows = [row for row in rows if row["tool"] == "best" and row["weights"] == row["activations"]]
    nets = list(dict.fromkeys(row["net"] for row in rows))
    with plot_context():
        figure = new_figure(4.4 * len(nets), 3.9)
        for place, net in enumerate(nets):
            axes = figure.add_subplot(1, len(nets), place + 1)
            _accuracy_panel(axes, net, [row for row in rows if row["net"] == net])
        figure.subplots_adjust(left=0.075, right=0.985, top=0.92, bottom=0.13, wspace=0.18)
        return png_bytes(figure)


def _accuracy_panel(axes: Axes, net: str, rows: Sequence[Row]) -> None:
    strip_spines(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    reference = 100 * rows[0]["float_accuracy"]["value"]
    axes.axhline(reference, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
    for family in (Family.INTEGER, Family.MINIFLOAT):
        style = STYLES[family]
        mine = [
            (mac_luts(row["weights"]), 100 * row["accuracy"]["value"], row)
            for row in rows
            if isinstance(parse_element(row["weights"]), IntFormat) == (family is Family.INTEGER)
        ]
        mine.sort(key=lambda point: point[:2])
        axes.plot(
            [x for x, _, _ in mine], [y for _, y, _ in mine], linestyle="none", color=style.colour,
            marker=style.marker, markersize=4.5,
            markerfacecolor=style.colour if style.filled else "white", label=style.label,
        )  # fmt: skip
        front = _front(mine)
        axes.plot(
            [x for x, _, _ in front], [y for _, y, _ in front], color=style.colour,
            linestyle=style.line, linewidth=1.1, drawstyle="steps-post",
        )  # fmt: skip
        below = family is Family.MINIFLOAT
        for x, y, row in front:  # the others would hide each other's names
            axes.annotate(
                row["weights"], (x, y), xytext=(4, -10) if below else (-4, 4),
                textcoords="offset points", color=style.colour, fontsize=7,
                ha="left" if below else "right",
            )  # fmt: skip
    axes.set_title(f"{net}, {rows[0]['images']} images", loc="left", color=INK, fontsize=9)
    axes.set_xlabel("LUTs per product, dot product of 8 lanes")
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.legend(loc="lower right")


def _front(points: Sequence[tuple[float, float, Row]]) -> list[tuple[float, float, Row]]:
    """Return the points that no cheaper one reaches."""
    found: list[tuple[float, float, Row]] = []
    for point in points:
        if not found or point[1] > found[-1][1]:
            found.append(point)
    return found
