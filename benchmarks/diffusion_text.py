# SPDX-License-Identifier: Apache-2.0
"""The sections of ``docs/consumers/diffusion-results.md``, each from one record."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.diffusion_probes import OPPOSITE, SEEN
from benchmarks.write_results import table
from lutwise.consumers.diffusion.sweep_result import Cell, Spread, SweepSummary

__all__ = [
    "calibration_section",
    "claims_sections",
    "compensation_section",
    "goal",
    "schedule_section",
    "short_table",
    "speed_section",
    "table_section",
]

Record = Mapping[str, Any]

ALLOWED = 1.1
"""How much above the worst of the float model's seeds a compensated model may be."""


def spread(found: Spread | None, digits: int = 3) -> str:
    """Return a mean with its range over seeds."""
    if found is None:
        return ""
    low, mean, high = (number(x, digits) for x in (found.low, found.mean, found.high))
    return mean if low == high else f"{mean} ({low} to {high})"


def number(value: float, digits: int = 3) -> str:
    """Return a number with so many digits, and an exponent only where it is small."""
    text = f"{value:#.{digits}g}"
    return f"{value:.0f}" if "e+" in text else text.rstrip(".")


def values(found: Sequence[float], digits: int = 3) -> str:
    """Return the mean of values with their range."""
    return spread(Spread.of(found), digits)


def interval(found: Record, digits: int = 2) -> str:
    """Return a mean difference with its 95 % interval."""
    if found["low"] is None:
        return f"{found['mean']:+.{digits}g}"
    low, mean, high = (f"{found[k]:+.{digits}g}" for k in ("low", "mean", "high"))
    return f"{mean} ({low} to {high})"


def pick(
    summary: SweepSummary, steps: int, n: int, formats: str, compensation: str, order: int = 0
) -> Cell | None:
    """Return a cell; None where there is none."""
    for cell in summary.cells:
        setting = cell.setting
        if (setting.steps, setting.interval, str(setting.formats), setting.order) == (
            steps, n, formats, order,
        ) and cell.compensation == ("none" if setting.exact else compensation):  # fmt: skip
            return cell
    return None


def goal(record: Record, compensations: Record | None) -> str:
    """Return how the compensated W8A8 model stands at 20 steps, by interval.

    Args:
        record: The table of formats and intervals.
        compensations: Of other compensations and forecasts.
    """
    summary = SweepSummary.from_json(record)
    exact = summary.floats().get(20)
    if exact is None or exact.frechet is None:
        return ""
    more = summary if compensations is None else SweepSummary.from_json(compensations)
    wanted = [(summary, 0, "none"), (summary, 0, "std"), (more, 1, "std"), (more, 1, "moments")]
    rows = []
    for n in sorted({cell.setting.interval for cell in summary.cells}):
        cells = [pick(of, 20, n, "int8/int8", method, order) for of, order, method in wanted]
        found = [cell.frechet if cell is not None else None for cell in cells]
        if found[0] is None:
            continue
        least = min((one for one in found if one is not None), key=lambda one: one.mean)
        rows.append(
            (n, *map(spread, found),
             f"{least.mean / exact.frechet.mean:.2f}",
             "yes" if least.mean <= ALLOWED * exact.frechet.high else "no")
        )  # fmt: skip
    heads = ("N", "int8, reuse", "std", "forecast of order 1, std", "order 1, moments",
             "least over the float mean",
             f"least within {ALLOWED:g} of float's worst seed")  # fmt: skip
    return (
        "## Int8 with a cache, 20 steps\n\nFrechet distance to the real digits, mean and range of "
        f"{summary.seeds} seeds, {summary.samples} samples each. Float without a cache: "
        f"{spread(exact.frechet)}.\n\n" + table(heads, rows)
    )


def short_table(record: Record) -> str:
    """Return the Frechet distances of all formats, steps and intervals in one small table."""
    summary = SweepSummary.from_json(record)
    columns = [
        (steps, n)
        for steps in summary.floats()
        for n in sorted({c.setting.interval for c in summary.cells if c.setting.steps == steps})
    ]
    rows = []
    for formats in dict.fromkeys(str(cell.setting.formats) for cell in summary.cells):
        cells = [pick(summary, steps, n, formats, "std") for steps, n in columns]
        means = [cell.frechet.mean if cell and cell.frechet else None for cell in cells]
        rows.append((f"`{formats}`", *("" if mean is None else number(mean) for mean in means)))
    return (
        "Frechet distance with `std` compensation and reuse, by steps T and interval N, mean of "
        f"{summary.seeds} seeds with {summary.samples} samples each:\n\n"
        + table(("weights / inputs", *(f"T {steps}, N {n}" for steps, n in columns)), rows)
    )


def table_section(record: Record) -> str:
    """Return the table of steps, formats and intervals."""
    summary = SweepSummary.from_json(record)
    parts = [
        f"## Steps, formats, intervals\n\n{summary.samples} samples for each of {summary.seeds} "
        "seeds; a seed has other noise, other calibration samples and another fit. In brackets the "
        "smallest and the largest. FD: Frechet distance to the real digits in features of the "
        "classifier; MSE: to the float model's samples of the same noise, N = 1. MACs and bit "
        "operations are shares of the float model's at the same number of steps. Seconds are of "
        "the processor, for all samples, with fake quantization: no format makes it faster.\n"
    ]
    for steps, exact in summary.floats().items():
        rows = [
            _table_row(summary, cell, exact)
            for cell in summary.cells
            if cell.setting.steps == steps
            and cell.compensation == "none"
            and not cell.setting.order
        ]
        (between,) = [found for key, found in record["float"].items() if int(key) == steps]
        apart = [pair["value"] for pair in between["between_seeds"]]
        said = ""
        if apart:
            said = f"The float model's samples of two seeds are {values(apart)} apart.\n\n"
        parts.append(f"### {steps} steps\n\n{said}{table(_TABLE_HEADS, rows)}")
    return "\n".join(parts)


_TABLE_HEADS = (
    "weights / inputs", "N", "FD", "FD, std", "MSE", "MSE, std", "class as wanted", "MACs",
    "bit operations", "LUTs per MAC", "cache, kB", "seconds",
)  # fmt: skip


def _table_row(summary: SweepSummary, cell: Cell, exact: Cell) -> tuple[object, ...]:
    setting, cost = cell.setting, cell.cost
    std = None
    if not setting.exact:
        std = pick(summary, setting.steps, setting.interval, str(setting.formats), "std")
    luts = cost["lut_per_mac"]
    return (
        f"`{setting.formats}`",
        setting.interval,
        spread(cell.frechet),
        "" if std is None else spread(std.frechet),
        spread(cell.paired_mse, 2),
        "" if std is None else spread(std.paired_mse, 2),
        "" if cell.accuracy is None else f"{100 * cell.accuracy.mean:.1f} %",
        *_shares(cost, exact),
        "" if luts is None else f"{luts:.1f}",
        f"{cost['cache_bits'] / 8000:.1f}",
        f"{cell.processor_seconds.mean:.1f}",
    )


def _shares(cost: Mapping[str, Any], exact: Cell) -> tuple[str, str]:
    """Return MACs and bit operations as shares of the float model's."""
    return (
        f"{cost['macs'] / exact.cost['macs']:.3f}",
        f"{cost['bops'] / exact.cost['bops']:.4f}",
    )


def _seconds(cells: Iterable[Cell]) -> str:
    """Return least and most of the processor seconds of cells."""
    seconds = [cell.processor_seconds.mean for cell in cells]
    return f"{min(seconds):.1f} to {max(seconds):.1f}"


def compensation_section(record: Record) -> str:
    """Return distances, errors, operations and seconds of every compensation."""
    summary = SweepSummary.from_json(record)
    methods = record["grid"]["compensations"]
    exact = summary.floats()[summary.cells[0].setting.steps]
    rows, others = [], []
    for setting in dict.fromkeys(cell.setting for cell in summary.cells):
        if setting.exact:
            continue
        cells = {c.compensation: c for c in summary.cells if c.setting == setting}
        rows.append(
            (
                f"`{setting.formats}`", setting.interval, setting.order,
                *(spread(cells[method].frechet) for method in methods),
            )
        )  # fmt: skip
        errors = (cells[method].paired_mse for method in methods)
        cost = cells[methods[0]].cost
        others.append(
            (
                f"`{setting.formats}`", setting.interval, setting.order,
                *("" if error is None else number(error.mean, 2) for error in errors),
                *_shares(cost, exact), _seconds(cells.values()),
            )
        )  # fmt: skip
    return (
        f"## Compensations\n\nFrechet distance at {exact.setting.steps} steps, "
        f"{summary.samples} samples for each of {summary.seeds} seeds; float without a cache "
        f"{spread(exact.frechet)}. Order 0 reuses, order 1 goes on in a straight line, as "
        "TaylorSeer does. Fitted in sequence.\n\n"
        + table(("weights / inputs", "N", "order", *methods), rows)
        + "\nSquared error to the float model's samples of the same noise, mean of seeds; "
        "operations as shares of the float model's, which a compensation does not change; "
        "processor seconds of all methods, with fake quantization.\n\n"
        + table(
            ("weights / inputs", "N", "order", *methods, "MACs", "bit operations", "seconds"),
            others,
        )
    )


def calibration_section(records: Sequence[Record]) -> str:
    """Return the distances of every choice of calibration samples."""
    rows = []
    methods: list[str] = records[0]["grid"]["calibrations"]
    for record in records:
        summary = SweepSummary.from_json(record)
        cells = {(c.setting.formats, c.setting.calibration): c for c in summary.cells}
        for formats in dict.fromkeys(c.setting.formats for c in summary.cells):
            if formats.is_float:
                continue
            found = [cells[formats, method] for method in methods]
            rows.append(
                (
                    record["calibration"]["samples"], f"`{formats}`",
                    *(spread(cell.frechet) for cell in found),
                    *(spread(cell.paired_mse, 2) for cell in found),
                    *_shares(found[0].cost, summary.floats()[found[0].setting.steps]),
                    _seconds(found),
                )
            )  # fmt: skip
    first = SweepSummary.from_json(records[0])
    longest = max(cell.setting.interval for cell in first.cells)
    heads = ("samples", "weights / inputs", *(f"FD, {m}" for m in methods),
             *(f"MSE, {m}" for m in methods), "MACs", "bit operations", "seconds")  # fmt: skip
    return (
        f"## Choice of calibration samples\n\n{first.cells[0].setting.steps} steps, N = {longest}, "
        f"no compensation, {first.samples} samples for each of {first.seeds} seeds; ranges by "
        "least squared error, from samples of trajectories with the same cache.\n\n"
        + table(heads, rows)
    )


def schedule_section(record: Record) -> str:
    """Return what steps to refresh at do for as many refreshes."""
    rows = []
    models = list(dict.fromkeys(row["model"]["sha256"] for row in record["rows"]))
    for row in record["rows"]:
        found, floats = dict(row["values"]), row["values"]["float"]
        del found["float"]
        best = min(Spread.of(value).mean for value in found.values())
        rows.append(
            (1 + models.index(row["model"]["sha256"]), values(floats), row["order"],
             ", ".join(map(str, row["refreshes"])), *map(values, found.values()),
             f"{row['macs'] / row['float_macs']:.3f}",
             "yes" if best <= ALLOWED * max(floats) else "no")
        )  # fmt: skip
    heads = ("model", "float", "order", "refreshed at steps", *found, "MACs",
             f"best within {ALLOWED:g} of float's worst seed")  # fmt: skip
    told = ""
    if len(models) > 1:
        told = (
            " Model 1 ships; the others had other seeds of training, and the search has not seen "
            "them."
        )
    return (
        f"## When to refresh\n\nInt8, {record['steps']} steps, the refreshes that N = "
        f"{record['interval']} has: evenly spaced, or where a search on other noise put them "
        "(`benchmarks/diffusion_schedule.py`). Frechet distance, "
        f"{record['samples']} samples for each of {len(floats)} seeds, by compensation.{told}\n\n"
        + table(heads, rows)
    )


def claims_sections(record: Record) -> str:
    """Return what came out of each claim."""
    return "\n".join(
        [
            "## What the paper claims\n\nDifferences are paired by seed, with 95 % intervals of "
            "Student's t over seeds. *Not told apart* is not *shown to be nothing*.\n",
            _redundancy(record["redundancy"]),
            _exposure(record["exposure"]),
            _choices(record["choices"]),
            _recovery(record["recovery"]),
            _fit(record["fit"]),
        ]
    )


def _redundancy(found: Record) -> str:
    rows = [
        (row["what"], row["interval"], values(row["without"]), values(row["with"]),
         interval(row["difference"]), row["difference"]["verdict"])
        for row in found["rows"]
    ]  # fmt: skip
    return (
        "### Calibration samples become redundant under a cache\n\nMean cosine of pairs, of "
        f"{found['trajectories']} trajectories of the float model.\n\n"
        + table(("of", "N", "without", "with a cache", "difference", "more alike"), rows)
    )


def _exposure(found: Record) -> str:
    rows = [
        (row["steps"], f"`{row['weights']}/{row['activations']}`", row["interval"],
         values(row["quantized"], 2), values(row["cached"], 2), values(row["both"], 2),
         values(row["ratio_to_sum"]), row["difference"]["verdict"])
        for row in found["rows"]
        if not row["order"]
    ]  # fmt: skip
    heads = ("steps", "weights / inputs", "N", "quantized", "cached", "both", "both over the sum",
             "more than the sum")  # fmt: skip
    return (
        "### Together they amplify exposure bias\n\nSquared error to the float model's samples. "
        "Without amplification the errors add up, and the ratio is 1.\n\n" + table(heads, rows)
    )


def _choices(found: Record) -> str:
    rows = [
        (row["samples"], f"`{row['weights']}/{row['activations']}`", row["calibration"],
         {"frechet": "FD", "paired_mse": "MSE"}[row["measure"]], values(row["random"]),
         values(row["chosen"]), interval(row["gain"]), row["gain"]["verdict"])
        for row in found["rows"]
    ]  # fmt: skip
    heads = ("samples", "weights / inputs", "choice", "measure", "random", "chosen",
             "gain", "better than random")  # fmt: skip
    better, worse = (
        sum(r["gain"]["verdict"] == verdict and r["calibration"] == "tap" for r in found["rows"])
        for verdict in (SEEN, OPPOSITE)
    )
    total = sum(row["calibration"] == "tap" for row in found["rows"])
    return (
        f"### TAP is better than random samples\n\nOf {total} comparisons TAP is better in "
        f"{better} and worse in {worse}; the others are not told apart.\n\n" + table(heads, rows)
    )


def _recovery(found: Record) -> str:
    rows = [
        (f"`{row['weights']}/{row['activations']}`", row["interval"], row["order"],
         row["compensation"], values(row["before"]), values(row["after"]), interval(row["gain"]),
         row["gain"]["verdict"])
        for row in found["rows"]
        if row["measure"] == "frechet"
        and (row["compensation"] == "none" or not row["order"])
    ]  # fmt: skip
    heads = ("weights / inputs", "N", "order", "compensation", "before", "after", "gain", "better")
    return (
        "### Compensation recovers quality\n\nFrechet distance, before: without compensation. Rows "
        "of order 1 without compensation are against reuse.\n\n" + table(heads, rows)
    )


def _fit(found: Record) -> str:
    rows = [
        (row["compensation"], {"frechet": "FD", "paired_mse": "MSE"}[row["measure"]],
         values(row["at_once"]), values(row["sequence"]), interval(row["gain"]),
         row["gain"]["verdict"])
        for row in found["rows"]
    ]  # fmt: skip
    heads = ("compensation", "measure", "at once", "in sequence", "gain", "better in sequence")
    return (
        f"### Gains fitted at once and in sequence\n\nint8, N = {found['rows'][0]['interval']}."
        "\n\n" + table(heads, rows)
    )


def speed_section(claims: Record, block: Record) -> str:
    """Return where the time goes: steps, bits and cache."""
    found = claims["speed"]
    rows = [
        (
            row["factor"],
            f"{row['from']} to {row['to']}" if row["factor"] == "steps"
            else f"N = {row['to']}, {row['steps']} steps",
            f"{row['theory']:.2f}",
            values(row["measured"]),
        )
        for row in found["rows"]
    ]  # fmt: skip
    wide = [
        (name, *(f"{row['processor_speedup'][name]:.1f}" for row in found["wide_block"]))
        for name in found["wide_block"][0]["processor_speedup"]
    ]
    small = found["this_model"]
    rows_small = [
        (name, f"{small['milliseconds_per_step'][name]:.1f}", f"{value:.2f}")
        for name, value in small["speedup"].items()
    ]
    batches = [f"batch {row['batch']}" for row in found["wide_block"]]
    return (
        "### 12.7 times faster, taken apart\n\nThe paper's figure is 5 (250 to 50 steps) times "
        "1.96 (bits, assumed) times 1.28 (cache). Float model, in theory by MACs, measured in "
        "processor time:\n\n"
        + table(("factor", "", "theory", "measured"), rows)
        + f"\nOne block of DiT-XL/2 width ({block['tokens']} tokens), real int8, times faster than "
        "float without a cache, processor time:\n\n"
        + table(("", *batches), wide)
        + f"\nThe digits model ({small['batch']} samples at a time, median of "
        f"{small['repetitions']}), real int8 in all linear layers:\n\n"
        + table(("", "ms per step", "times faster"), rows_small)
    )
