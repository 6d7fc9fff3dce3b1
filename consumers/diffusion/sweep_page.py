# SPDX-License-Identifier: Apache-2.0
"""The page of a sweep."""

from collections.abc import Mapping, Sequence
from typing import Final

from lutwise.consumers.diffusion.sweep_plots import AXES, trade_off_svg
from lutwise.consumers.diffusion.sweep_result import Cell, Spread, SweepSummary
from lutwise.export.markup import Cell as TableCell
from lutwise.export.markup import Markup, facts, join, table, tag
from lutwise.export.page import figure, page, picture, section
from lutwise.export.text import file_size, short

__all__ = ["sweep_page"]

_TOLERANCE: Final = 1.1
"""How much worse than the worst of the float model's seeds the headline's cell may be."""


def sweep_page(summary: SweepSummary, pictures: Mapping[int, tuple[bytes, bytes]]) -> str:
    """Return the page.

    Args:
        summary: The sweep.
        pictures: Grid of samples and curves of variances, as PNG, by number of steps.
    """
    count = len(summary.cells)
    return page(
        f"{summary.model}: quality and cost",
        tag("h1", f"{summary.model}: quality against cost of quantization and cache"),
        tag("p", f"{count} cells · {summary.samples} samples for each of {summary.seeds} seeds",
            class_="sub"),
        _headline(summary),
        section(
            "Quality against cost",
            *(
                figure(
                    trade_off_svg(summary, axis),
                    f"{_quality_name(summary)} of {count} cells over {axis.label}; the table below "
                    "has the numbers.",
                    _caption(axis.name),
                    wide=True,
                )
                for axis in AXES
            ),
        ),
        section("All cells", _table(summary)),
        section(
            "Samples",
            *(
                picture(
                    samples,
                    f"Samples of each cell at {steps} steps, side by side",
                    f"{steps} steps. Each column starts from the same noise and class.",
                )
                for steps, (samples, _) in pictures.items()
            ),
        ),
        section(
            "Variance over time",
            *(
                picture(
                    curves,
                    f"Variance of latents over {steps} steps, relative to the float model's",
                    f"{steps} steps, means over seeds, the longest interval. The model's input at "
                    "each step, after its correction.",
                )
                for steps, (_, curves) in pictures.items()
            ),
        ),
        section("What was measured", facts(list(summary.facts))),
        section("How to read these numbers", _notes(summary)),
    )  # fmt: skip


def _caption(axis: str) -> str:
    if axis == "bops":
        return (
            "Bit operations are multiply-accumulates times the bits of both factors, for one "
            "sample, by theory. Bars are the range over seeds. Labels name the best cells for "
            "their cost."
        )
    return (
        "Processor time as measured. Fake quantization computes in float and is slower than the "
        "float model, whatever the format: this shows what the cache saves, not what fewer bits "
        "save."
    )


def _quality_name(summary: SweepSummary) -> str:
    return "Frechet distance" if summary.measured else "Squared error"


def _headline(summary: SweepSummary) -> Markup:
    floats = summary.floats()
    cards = []
    for steps, exact in floats.items():
        cells = [c for c in summary.cells if c.setting.steps == steps and not c.setting.exact]
        if exact.frechet is None or not cells:
            continue
        allowed = _TOLERANCE * exact.frechet.high
        good = [c for c in cells if c.frechet is not None and c.frechet.mean <= allowed]
        title = tag(
            "span",
            f"fewest bit operations within {_TOLERANCE:g} of float's worst seed, {steps} steps",
        )
        if not good:
            best = min(cells, key=lambda c: c.frechet.mean if c.frechet else float("inf"))
            cards.append(
                tag("div", title, tag("b", "none"),
                    tag("span", f"nearest: {best.name}, {_spread(best.frechet)}"), class_="card")
            )  # fmt: skip
            continue
        best = min(good, key=lambda c: (c.cost["bops"], c.frechet.mean if c.frechet else 0.0))
        ratio = exact.cost["bops"] / best.cost["bops"]
        cards.append(
            tag("div", title, tag("b", f"{ratio:.1f} times fewer"), tag("span", best.name),
                tag("span", f"{_spread(best.frechet)}; float {_spread(exact.frechet)}"),
                class_="card")
        )  # fmt: skip
    return tag("div", *cards, class_="cards") if cards else join()


_HEADER: Final = (
    "cell", "weights / inputs", "steps", "N", "compensation", "calibration", "Frechet distance",
    "jackknife error", "to float samples", "squared error", "PSNR", "class as wanted", "MACs",
    "BOPs", "LUTs per MAC", "cache", "seconds", "processor seconds",
)  # fmt: skip
_NUMERIC: Final = frozenset({2, 3, *range(6, 18)})


def _table(summary: SweepSummary) -> Markup:
    marked = frozenset(i for i, cell in enumerate(summary.cells) if cell.setting.exact)
    return table(
        _HEADER,
        [_row(cell) for cell in summary.cells],
        numeric=_NUMERIC,
        sortable=True,
        marked=marked,
        caption="Means over seeds, with the smallest and the largest. A click on a heading sorts. "
        "Marked: the float model without a cache.",
    )


def _row(cell: Cell) -> Sequence[str | TableCell]:
    setting, cost = cell.setting, cell.cost
    luts, error = cost["lut_per_mac"], cell.frechet_error
    accuracy = cell.accuracy
    return [
        cell.name,
        str(setting.formats),
        TableCell(str(setting.steps), setting.steps),
        TableCell(str(setting.interval) if setting.interval else setting.cache, setting.interval),
        "" if setting.exact else cell.compensation,
        setting.calibration,
        _number(cell.frechet),
        TableCell("" if error is None else f"{error:.2f}", error),
        _number(cell.frechet_to_float),
        _number(cell.paired_mse),
        _number(cell.psnr_db),
        TableCell(
            "" if accuracy is None else f"{100 * accuracy.mean:.1f} %",
            None if accuracy is None else accuracy.mean,
        ),
        TableCell(short(cost["macs"]), cost["macs"]),
        TableCell(short(cost["bops"]), cost["bops"]),
        TableCell("" if luts is None else f"{luts:.1f}", luts),
        TableCell(file_size(cost["cache_bits"] / 8), cost["cache_bits"]),
        TableCell(f"{cell.seconds.mean:.1f}", cell.seconds.mean),
        TableCell(f"{cell.processor_seconds.mean:.1f}", cell.processor_seconds.mean),
    ]


def _number(spread: Spread | None) -> TableCell:
    return TableCell(_spread(spread), None if spread is None else spread.mean)


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    low, mean, high = (f"{value:.3g}" for value in (spread.low, spread.mean, spread.high))
    return mean if low == high else f"{mean} ({low} to {high})"


def _notes(summary: SweepSummary) -> Markup:
    notes = [
        "Each seed has other noise, other calibration samples and another fit of the "
        "compensation. The range over seeds is all of that together.",
        "What a compensation is fitted on, and what a model is calibrated on, has other noise "
        "than what is measured.",
        "Squared error and PSNR compare samples of the same noise one by one. A model may leave "
        "the float model's trajectories and still make good samples.",
        "The cache is that of one sample, in float32; with guidance it holds both halves.",
    ]
    if summary.measured:
        notes.append(
            "Frechet distances are between features of a small classifier trained on the same "
            "images; they compare with each other, not with published FIDs, and are too large by "
            "about a constant over the number of samples. Whether samples are of their class says "
            "little: it is a sanity check."
        )
    else:
        notes.append(
            "No classifier for this model's images ships, so there is no Frechet distance. Samples "
            "are compared with the float model's only."
        )
    return tag("ul", *(tag("li", note) for note in notes))
