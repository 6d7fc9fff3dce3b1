# SPDX-License-Identifier: Apache-2.0
"""The page of a run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from pydantic import JsonValue

from lutwise.export.layer_plot import layers_svg
from lutwise.export.layer_row import LayerAdvice, LayerRow, PointRow
from lutwise.export.markup import Cell, Markup, facts, join, raw, table, tag
from lutwise.export.page import figure, page, section
from lutwise.export.points import Check, Estimate, RunSummary
from lutwise.export.text import count, decibel, interval, percent

__all__ = ["run_page"]


def run_page(run: RunSummary) -> str:
    """Return the page."""
    data = (
        f"{run.evaluation_data}, {run.evaluation_images:,} images"
        if run.evaluation_data is not None
        else "not evaluated"
    )
    return page(
        f"{run.name}: {run.model}",
        tag("h1", f"{run.model}, quantized"),
        tag("p", f"run {run.name} · {data} · {run.mode} mode", class_="sub"),
        _cards(run),
        section("Accuracy", _accuracy(run)),
        section("The exported file in other executors", _checks(run)),
        section("Layers", _layers(run)),
        section("Cost", _cost(run.cost)),
        section("Recipe", _recipe(run)),
        section("What was used", _used(run)),
        section("Files", _files(run.files)),
    )


def _reported(run: RunSummary) -> tuple[Estimate | None, str]:
    """Return the accuracy that counts, and what gave it."""
    if run.exact_accuracy is not None:
        return run.exact_accuracy, "exact executor"
    return run.fake_accuracy, "fake quantization in float32"


def _cards(run: RunSummary) -> Markup:
    cards = []
    accuracy, source = _reported(run)
    if accuracy is not None:
        low, high = 100 * accuracy.low, 100 * accuracy.high
        ends = f"95 % interval {low:.1f} to {high:.1f}"
        cards.append((f"accuracy, {source}", percent(accuracy.value), ends))
    if run.difference is not None:
        low, high = 100 * run.difference.low, 100 * run.difference.high
        cards.append(
            (
                "against float, on the same images",
                f"{100 * run.difference.value:+.2f} points",
                f"95 % interval {low:+.2f} to {high:+.2f}",
            )
        )
    if run.agreement is not None:
        cards.append(("same class as float", percent(run.agreement), "of the images"))
    luts = [row.dot_product_luts for row in run.layers if row.dot_product_luts is not None]
    if luts:
        parts = [
            sum(getattr(row, name) or 0.0 for row in run.layers)
            for name in ("requantizer_luts", "memory_luts", "control_luts")
        ]
        cards.append(
            (
                "LUTs, folded",
                count(sum(luts) + sum(parts)),
                f"dot products {count(sum(luts))}, requantizers {count(parts[0])}, memory and "
                f"control {count(parts[1] + parts[2])}",
            )
        )
    return tag(
        "div",
        *(
            tag("div", tag("span", top), tag("b", value), tag("span", below), class_="card")
            for top, value, below in cards
        ),
        class_="cards",
    )


def _accuracy(run: RunSummary) -> Markup:
    rows: list[list[str | Cell]] = [
        [name, interval(estimate, 2), what]
        for name, estimate, what in (
            ("float", run.float_accuracy, "the model as it came"),
            ("fake quantization", run.fake_accuracy, "float32, fast, approximate"),
            ("exact", run.exact_accuracy, "integer arithmetic, as hardware computes"),
        )
        if estimate is not None
    ]
    if not rows:
        return tag("p", "Nothing was evaluated: the run had no labelled images.")
    found = [table(("executor", "top-1 accuracy (95 % interval)", "what it is"), rows)]
    pairs = []
    if run.difference is not None:
        d = run.difference
        pairs.append(
            (
                "quantized minus float",
                f"{100 * d.value:+.2f} points ({100 * d.low:+.2f} to {100 * d.high:+.2f}), "
                "paired on the same images",
            )
        )
    if run.agreement is not None:
        pairs.append(("same class as float", percent(run.agreement, 2)))
    if run.sqnr_db is not None:
        pairs.append(("outputs, signal to noise against float", decibel(run.sqnr_db)))
    if run.fake_agreement is not None:
        pairs.append(("fake quantization and exact: same class", percent(run.fake_agreement, 2)))
    pairs.append(("intervals", run.interval))
    return join(*found, facts(pairs))


def _checks(run: RunSummary) -> Markup:
    if run.export_note:
        return tag("p", f"No file was written: {run.export_note}")
    if not run.checks:
        return tag("p", "No other executor ran the file.")
    rows = [_check_row(check) for check in run.checks]
    return join(
        tag("p", "Every output is compared with the exact executor, bit for bit."),
        table(("executor", "images", "outputs", "mismatches"), rows, numeric=frozenset({1, 2, 3})),
    )


def _check_row(check: Check) -> list[str | Cell]:
    if not check.outputs:
        verdict = tag("span", "nothing compared", class_="bad")
    elif check.mismatches:
        verdict = tag("span", f"{check.mismatches:,}", class_="bad")
    else:
        verdict = tag("span", "none", class_="good")
    return [check.executor, f"{check.images:,}", f"{check.outputs:,}", Cell(verdict)]


_Column = tuple[str, Callable[[LayerRow], str | Cell]]


def _number(
    get: Callable[[LayerRow], float | None], show: Callable[[float], str]
) -> Callable[[LayerRow], Cell]:
    def cell(row: LayerRow) -> Cell:
        value = get(row)
        return Cell("") if value is None else Cell(show(value), value)

    return cell


def _whole(value: float) -> str:
    return f"{value:,.0f}"


_COLUMNS: Final[tuple[_Column, ...]] = (
    ("layer", lambda row: row.layer),
    ("kind", lambda row: row.kind or ""),
    ("weights", lambda row: row.weights or ""),
    ("inputs", lambda row: row.inputs or ""),
    ("outputs", lambda row: row.outputs or ""),
    ("share of the error", _number(lambda row: row.error_share, percent)),
    ("error made alone", _number(lambda row: row.alone_share, percent)),
    ("weight count", _number(lambda row: row.weight_count, count)),
    ("dot length", _number(lambda row: row.dot_length, count)),
    ("MACs", _number(lambda row: row.macs, count)),
    ("accumulator bits", _number(lambda row: row.accumulator_bits, count)),
    ("LUTs per MAC", _number(lambda row: row.luts_per_mac, lambda v: f"{v:.1f}")),
    ("price from", lambda row: row.price or ""),
    ("dot product LUTs", _number(lambda row: row.dot_product_luts, _whole)),
    ("requantizer LUTs", _number(lambda row: row.requantizer_luts, _whole)),
    ("memory LUTs", _number(lambda row: row.memory_luts, _whole)),
    ("control LUTs", _number(lambda row: row.control_luts, _whole)),
    ("RAMB18", _number(lambda row: row.block_rams, _whole)),
    ("PE", _number(lambda row: row.pe, count)),
    ("SIMD", _number(lambda row: row.simd, count)),
    ("cycles", _number(lambda row: row.cycles, count)),
    ("weights SQNR", _number(lambda row: row.weight_sqnr_db, decibel)),
    ("outputs SQNR", _number(lambda row: row.output_sqnr_db, decibel)),
    ("logits SQNR without it", _number(lambda row: row.sqnr_without_db, decibel)),
    ("logits SQNR, it alone", _number(lambda row: row.sqnr_alone_db, decibel)),
    ("inputs clipped", _number(lambda row: row.inputs_clipped, lambda v: percent(v, 2))),
    ("outputs clipped", _number(lambda row: row.outputs_clipped, lambda v: percent(v, 2))),
    ("input codes dead", _number(lambda row: row.input_codes_dead, percent)),
    ("output codes dead", _number(lambda row: row.output_codes_dead, percent)),
    ("weight codes dead", _number(lambda row: row.weight_codes_dead, percent)),
    ("weights made zero", _number(lambda row: row.weights_at_zero, percent)),
    ("weights at range ends", _number(lambda row: row.weights_at_ends, percent)),
)

_WORDS: Final = frozenset({"layer", "kind", "weights", "inputs", "outputs", "price from"})
"""Columns that hold no numbers."""


def _layers(run: RunSummary) -> Markup:
    if not run.layers:
        return tag("p", "No layer was recorded.")
    columns = [*_COLUMNS, *_gain_columns(run.layers)]
    rows = [[get(row) for _, get in columns] for row in run.layers]
    # Columns that no layer fills (a layerwise run has no prices) are left out.
    kept = [i for i in range(len(columns)) if any(_shown(row[i]) for row in rows)]
    named = {advice.layer for advice in run.advice}
    return join(
        _advice(run.advice),
        figure(
            layers_svg(run.layers),
            "LUTs, share of the final error, and signal to noise of each layer; the table below "
            "has the numbers.",
            "Share of the final error: how much of the logits' squared error goes when only this "
            "layer is left in float; below zero where its error cancels that of others. A tick is "
            "the error of a model with only this layer quantized. Output noise of a layer "
            f"includes that of all layers before it. {run.diagnosed_images} calibration images.",
        ),
        table(
            [columns[i][0] for i in kept],
            [[row[i] for i in kept] for row in rows],
            numeric=frozenset(k for k, i in enumerate(kept) if columns[i][0] not in _WORDS),
            sortable=True,
            marked=frozenset(i for i, row in enumerate(run.layers) if row.layer in named),
            caption="In the order of execution. A click on a heading sorts.",
        ),
        _points(run.points),
    )


def _gain_columns(rows: Sequence[LayerRow]) -> list[_Column]:
    algorithms = dict.fromkeys(name for row in rows for name in row.gains)
    return [
        (
            f"outputs SQNR won by {name.replace('_', ' ')}",
            _number(lambda row, name=name: row.gains.get(name), decibel),  # type: ignore[misc]
        )
        for name in algorithms
    ]


def _advice(advice: Sequence[LayerAdvice]) -> Markup:
    """Return the box that names the layers which dominate the loss."""
    if not advice:
        return join()
    found = [
        tag("h3", "Layers that dominate the error"),
        *(tag("p", one.text) for one in advice),
    ]
    items = [f"  {one.override}" for one in advice if one.override]
    if items:
        found.append(tag("p", "For the recipe:"))
        found.append(tag("pre", tag("code", "\n".join(["overrides:", *items]))))
    return tag("div", *found, class_="warning", role="note")


def _points(points: Sequence[PointRow]) -> Markup:
    if not points:
        return join()
    rows: list[list[str | Cell]] = [
        [
            point.node,
            point.format,
            Cell(percent(point.error_share), point.error_share),
            Cell(decibel(point.sqnr_alone_db), point.sqnr_alone_db),
            Cell(percent(point.clipped, 2), point.clipped),
            Cell(percent(point.codes_dead), point.codes_dead),
        ]
        for point in points
    ]
    heads = ("node", "format", "share of the error", "logits SQNR, it alone", "clipped")
    return table(
        (*heads, "codes dead"),
        rows,
        numeric=frozenset(range(2, 6)),
        sortable=True,
        caption="Quantizers that belong to no layer: of the image, of sums, of averages.",
    )


def _shown(cell: str | Cell) -> str:
    return cell.text if isinstance(cell, Cell) else cell


_NAMES: Final = {
    "bops": "BOPs",
    "dsps": "DSP48E2",
    "finn": "FINN",
    "lut": "LUT",
    "luts": "LUTs",
    "mac": "MAC",
    "macs": "MACs",
    "mhz": "MHz",
    "mvau": "MVAU",
}


def _cost(cost: Mapping[str, JsonValue]) -> Markup:
    if not cost:
        return tag("p", "Not priced: the model has no form for hardware.")
    assumptions = cost.get("assumptions")
    rest = {name: value for name, value in cost.items() if name != "assumptions"}
    found = [facts(list(_flat(rest, "")))]
    if isinstance(assumptions, dict):
        items = [tag("li", f"{name}: {text}") for name, text in _flat(assumptions, "")]
        found += [tag("p", "What the prices assume:"), tag("ul", *items)]
    return join(*found)


def _flat(values: Mapping[str, JsonValue], before: str) -> Iterator[tuple[str, str]]:
    """Yield names and values of nested mappings in their order."""
    for name, value in values.items():
        words = before + " ".join(_NAMES.get(word, word) for word in name.split("_"))
        if isinstance(value, dict):
            yield from _flat(value, f"{words}: " if name != "total" else "")
        elif isinstance(value, bool) or value is None or isinstance(value, str):
            yield words, str(value)
        elif isinstance(value, list):
            yield words, ", ".join(map(str, value))
        else:
            yield words, count(value)


def _recipe(run: RunSummary) -> Markup:
    recipe = tag(
        "details",
        tag("summary", "The complete recipe, with every default"),
        tag("pre", tag("code", run.recipe_yaml)),
    )
    if not run.trials:
        return recipe
    rows: list[list[str | Cell]] = [
        [trial.change, f"{trial.divergence:.3g}", "kept" if trial.kept else ""]
        for trial in run.trials
    ]
    note = (
        "A search chose it: each change was tried on the best recipe before it, calibrated with a "
        "part of the calibration images and compared with the float model on others. The "
        "divergence is Kullback and Leibler's, of class probabilities; less is better."
    )
    return join(tag("p", note), table(("change", "divergence", ""), rows), recipe)


def _used(run: RunSummary) -> Markup:
    versions = ", ".join(f"{name} {v}" for name, v in sorted(run.versions.items()))
    evaluated = (
        f"{run.evaluation_data}, {run.evaluation_images:,} images"
        if run.evaluation_data is not None
        else "none"
    )
    return facts(
        [
            ("model", run.model),
            ("calibration", f"{run.calibration_data}, {run.calibration_images:,} images"),
            ("evaluation", evaluated),
            ("graph mode", run.mode),
            ("seed", str(run.seed)),
            ("versions", versions or "not recorded"),
        ]
    )


def _files(files: Mapping[str, str]) -> Markup:
    if not files:
        return tag("p", "No file was recorded.")
    rows: list[list[str | Cell]] = [
        [name, Cell(tag("code", digest))] for name, digest in sorted(files.items())
    ]
    return join(table(("file", "SHA-256"), rows), raw("\n"))
