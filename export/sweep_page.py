# SPDX-License-Identifier: Apache-2.0
"""The page of a sweep."""

from collections.abc import Mapping, Sequence
from typing import Final

from lutwise.export.markup import Cell, Markup, facts, join, table, tag
from lutwise.export.page import figure, page, section
from lutwise.export.plots import sweep_svg
from lutwise.export.points import Family, Point, SweepResult, fronts
from lutwise.export.text import count, decibel, file_size, interval, percent, short

__all__ = ["cheapest_within", "sweep_page"]

_TOLERANCE: Final = 0.01
"""Loss of accuracy that the headline allows."""

_FAMILY_NAMES: Final = {
    Family.INTEGER: "integers",
    Family.MINIFLOAT: "minifloats",
    Family.MIXED: "mixed formats",
}


def cheapest_within(result: SweepResult, points: Sequence[Point]) -> Point | None:
    """Return the point of fewest folded LUTs that loses at most one point of accuracy.

    Args:
        result: The sweep, for the float accuracy.
        points: To choose from.

    Returns:
        The point, of equal ones the more accurate; None where all lose more.
    """
    # One image more or less is at least 1e-9 of any data set; rounding is far below that.
    least = result.float_accuracy.value - _TOLERANCE - 1e-9
    good = [p for p in points if p.accuracy.value >= least]
    return min(good, key=lambda p: (p.luts_folded, -p.accuracy.value, p.name), default=None)


def sweep_page(result: SweepResult, links: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        result: The sweep.
        links: Where the page of a point is, by its name; points without one stand bare.

    Raises:
        ConfigError: The sweep has no points.
    """
    picture = sweep_svg(result)
    best = cheapest_within(result, result.points)
    subtitle = (
        f"{len(result.points)} points · {result.data}, {result.images:,} images · "
        f"{result.mode} mode"
    )
    return page(
        f"{result.model}: accuracy and LUTs",
        tag("h1", f"{result.model}: accuracy against bits and LUTs"),
        tag("p", subtitle, class_="sub"),
        _headline(result, best),
        section(
            "Accuracy against cost",
            figure(
                picture,
                f"Accuracy of {len(result.points)} quantized versions of {result.model} against "
                "bits per weight, bits per multiply-accumulate and LUTs; the table below has the "
                "numbers.",
                "Each step line is the best accuracy that a budget buys. Points of the same "
                "width stand side by side. Labels are the weight formats of Pareto points; the "
                "table has all.",
                wide=True,
            ),
        ),
        section("All points", _table(result, best, links)),
        section("What was measured", _measured(result)),
        section("How to read these numbers", _notes(result)),
    )


def _headline(result: SweepResult, best: Point | None) -> Markup:
    reference = interval(result.float_accuracy)
    if best is None:
        closest = max(result.points, key=lambda p: (p.accuracy.value, -p.luts_folded))
        lead = tag(
            "p", "No point is within one point of the float accuracy, ", reference,
            ". The most accurate is ", tag("b", closest.name), f" with "
            f"{interval(closest.accuracy)}.", class_="lead",
        )  # fmt: skip
    else:
        lead = tag(
            "p", tag("b", best.name), f" needs the fewest LUTs of all points within one point of "
            f"the float accuracy: {interval(best.accuracy)} against {reference}, with "
            f"{_luts(best)} LUTs.", class_="lead",
        )  # fmt: skip
    cards = []
    for family, name in _FAMILY_NAMES.items():
        members = [p for p in result.points if p.family is family]
        if members:
            cards.append(_card(family, name, cheapest_within(result, members), len(members)))
    return join(lead, tag("div", *cards, class_="cards"))


def _card(family: Family, name: str, point: Point | None, members: int) -> Markup:
    title = tag("span", f"fewest LUTs within one point, {name} ({members} tried)")
    if point is None:
        return tag("div", title, tag("b", "none"), class_=f"card {family.value}")
    return tag(
        "div", title, tag("b", f"{count(point.luts_folded)} LUTs"),
        tag("span", f"{point.name}: {interval(point.accuracy)}"),
        tag("span", f"{point.weight_bits:.2f} bits per weight, {file_size(point.model_bytes)}"),
        class_=f"card {family.value}",
    )  # fmt: skip


def _luts(point: Point) -> str:
    return f"{count(point.luts_folded)} (± {percent(point.cost_error, 0)})"


_HEADER: Final = (
    "point", "family", "weights", "activations", "accuracy", "against float", "LUTs folded",
    "LUTs per MAC", "bits per weight", "bits per MAC", "Pareto-optimal in", "agreement", "SQNR",
    "bits per activation", "requantizer LUTs", "LUTs unrolled", "BOPs", "model",
)  # fmt: skip

_NUMERIC: Final = frozenset({4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17})


def _table(result: SweepResult, best: Point | None, links: Mapping[str, str]) -> Markup:
    optimal = fronts(result.points)
    order = sorted(range(len(result.points)), key=lambda i: (result.points[i].luts_folded, i))
    rows = [
        _row(result, result.points[i], [n for n, f in optimal.items() if i in f], links)
        for i in order
    ]
    marked = frozenset(k for k, i in enumerate(order) if result.points[i] is best)
    caption = (
        "Fewest LUTs first. A click on a heading sorts. The marked row is the headline's point."
        if best is not None
        else "Fewest LUTs first. A click on a heading sorts."
    )
    return table(_HEADER, rows, numeric=_NUMERIC, sortable=True, marked=marked, caption=caption)


def _row(
    result: SweepResult, point: Point, optimal: Sequence[str], links: Mapping[str, str]
) -> list[str | Cell]:
    estimate = point.accuracy
    change = estimate.value - result.float_accuracy.value
    link = links.get(point.name)
    spelled = {"weight_bits": "weight bits", "bits_per_mac": "MAC bits", "luts": "LUTs"}
    return [
        Cell(tag("a", point.name, href=link) if link else point.name),
        point.family.value,
        point.weights,
        point.activations,
        Cell(interval(estimate), estimate.value),
        Cell(f"{100 * change:+.2f}", change),
        Cell(f"{count(point.luts_folded)} ± {percent(point.cost_error, 0)}", point.luts_folded),
        Cell(f"{point.luts_per_mac:.1f}", point.luts_per_mac),
        Cell(f"{point.weight_bits:.2f}", point.weight_bits),
        Cell(f"{point.bits_per_mac:.1f}", point.bits_per_mac),
        ", ".join(spelled[name] for name in optimal),
        Cell(percent(point.agreement), point.agreement),
        Cell(decibel(point.sqnr_db), point.sqnr_db),
        Cell(f"{point.activation_bits:.2f}", point.activation_bits),
        Cell(count(point.requantizer_luts), point.requantizer_luts),
        Cell(short(point.luts_full), point.luts_full),
        Cell(short(point.bops), point.bops),
        Cell(file_size(point.model_bytes), point.model_bytes),
    ]


def _measured(result: SweepResult) -> Markup:
    errors = [p.cost_error for p in result.points]
    versions = ", ".join(f"{name} {v}" for name, v in sorted(result.versions.items()))
    stated = [
        (name.replace("_", " "), text) for name, text in sorted(result.assumptions.items())
        if name != "accumulators"
    ]  # fmt: skip
    return facts(
        [
            ("model", result.model),
            ("evaluation images", f"{result.data}, {result.images:,}"),
            ("calibration images", result.calibration or "not recorded"),
            ("float accuracy", interval(result.float_accuracy, 2)),
            ("confidence intervals", result.interval),
            ("graph mode", result.mode),
            ("folding", result.folding or "not recorded"),
            ("accumulators", result.assumptions.get("accumulators", "not recorded")),
            (
                "expected error of the LUTs",
                f"± {percent(min(errors))} to ± {percent(max(errors))}, by point",
            ),
            *stated,
            ("seed", str(result.seed)),
            ("versions", versions or "not recorded"),
        ]
    )


def _notes(result: SweepResult) -> Markup:
    points = len(result.points)
    best = max(result.points, key=lambda p: p.accuracy.value)
    tied = sum(p.accuracy.high >= best.accuracy.low for p in result.points)
    single = result.images / 100
    return tag(
        "ul",
        tag(
            "li",
            f"One point of accuracy is {single:g} of the {result.images:,} images. "
            f"The intervals of {tied} of the {points} points reach that of the most accurate "
            "one: these images alone do not tell them apart.",
        ),
        tag(
            "li",
            f"The headline is chosen among {points} points on the images that it is reported "
            "on, which favours points that were lucky there. Measure the chosen point on other "
            "images before you rely on its last tenths.",
        ),
        tag(
            "li",
            "All points ran the same images, so their errors go together: the difference of two "
            "points is known better than the two intervals suggest.",
        ),
        tag(
            "li",
            "LUTs are estimates, not results of a vendor's place and route. The error beside "
            "them is against synthesis of the units. Two points whose LUTs differ by less than "
            "their errors are not ranked by this sweep.",
        ),
        tag(
            "li",
            "Equal folding means equal work per cycle, not the same use of a device. LUTs per "
            "MAC and bits per MAC count the work without it.",
        ),
    )
