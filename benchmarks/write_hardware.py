# SPDX-License-Identifier: Apache-2.0
"""Write ``docs/hardware.md`` and its pictures from the atlas and the files in ``docs/results``.

python benchmarks/write_hardware.py
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a script: the benchmarks are a package of the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.hardware_plots import accuracy_png, luts_png, mac_luts, unit_luts
from benchmarks.write_results import DATA, DOCS, table
from lutwise.cost_models.library import dot_product_table, is_fitted, relative_error
from lutwise.cost_models.published import finn_mvau_luts
from lutwise.hw.output_stage import Form, form_for, result_codes
from lutwise.quant.formats import IntFormat, parse_element

GOALS = {
    "int2": 6.1, "int3": 11.1, "int4": 17.5, "int6": 33.1, "int8": 53.6, "e1m2": 14.8,
    "e2m1": 19.6, "e3m0": 29.3, "e2m3": 48.3, "e3m2": 57.0, "e3m4": 84.3, "e4m3": 104.5,
}  # fmt: skip
"""The smallest units of this project's prototypes, LUTs per product at 8 lanes."""
PLAIN = {"int2": 9.1, "int4": 30.8, "int8": 100.9, "e2m1": 35.4, "e4m3": 146.9}
"""Verilog operators through the synthesizer's default flow, the same measure."""

HEAD = """# What formats cost in hardware

Written by `benchmarks/write_hardware.py` from the atlas in `cost_models/data` and the files in
`results/`. How the units are built and counted: [circuits](concepts/hardware.md); how prices are
made: [prices](concepts/cost.md). LUTs are estimated LUT6 sites of UltraScale+ from Yosys netlists,
not the result of a vendor's placer.
"""

LEFT_OUT = """## What is not modelled

Placement, routing, congestion and the clock of UltraScale+; power; the sliding windows in front of
convolutions, stream buffers between layers, adders and pools; DSP blocks but for a count of how
many could take the products. A vendor's tools would change the counts: they pack LUTs by timing as
well, merge shift registers and constants, and may put sums where this count puts an adder.

Published figures to compare with: a 4 x 4 multiplier in 11 LUTs and 2 CARRY4 on 7-series
(arXiv 2510.21533; the two digit rows here are counted as 11.5 LUTs); radix-4 Booth rows fused with
their adders, 42 to 52 % below a vendor's multipliers (Walters, Computers 5(4):20, 2016), which is
the row used here. The floor of a Booth product, one LUT for two bits of a row, is about
(W + 1) * ceil(A / 2): 10 for `int4`, 21 for `int6`, 36 for `int8`. With sums and accumulator the
units of 8 lanes are 1.5, 1.4 and 1.3 times as large. Generalised parallel counters such as
(6,0,6;5) remove 1.75 bits per LUT where a chain of adders removes one, but their LUTs have no input
left: products would have to be made in LUTs of their own, which the adders here do on the side.
"""


def costs() -> str:
    """Return the section on LUTs per product."""
    rows = []
    atlas = dot_product_table()
    by_name = {
        u.weights: row for u, row in atlas.items() if u.weights == u.activations and u.lanes == 8
    }
    for name, goal in GOALS.items():
        found, row = mac_luts(name), by_name[name]
        plain = PLAIN.get(name)
        rows.append(
            (
                f"`{name}`", f"{found:.1f}", f"{goal:.1f}", f"{found / goal - 1:+.0%}",
                f"{plain:.1f}" if plain else "", row.style, row.depth, f"{row.delay_ns:.1f}",
            )
        )  # fmt: skip
    heads = ("format", "LUTs per product", "before", "change", "plain Verilog", "architecture",
             "LUT levels", "estimated ns")  # fmt: skip
    return (
        "## LUTs per product\n\nDot products of 8 lanes, one format on both sides, exact sums of "
        "1024 products. *Before* are the smallest units of this project's prototypes, "
        "made with the same tools (Booth rows or tables, an adder tree); *plain Verilog* is "
        "operators through the synthesizer's default flow, where it was measured.\n\n"
        f"{table(heads, rows)}\n![LUTs per product over bits](images/luts_per_mac.png)\n\n"
        "The chains that save LUTs take time: 10 LUT levels instead of 6 for `int4`. `pipeline` "
        "takes the accumulator out of that path.\n\n"
    )


def families() -> str:
    """Return how much more a minifloat costs than the integer of its width."""
    pairs = [("int3", "e2m0"), ("int4", "e2m1"), ("int4", "e3m0"), ("int5", "e2m2"),
             ("int6", "e2m3"), ("int6", "e3m2"), ("int8", "e2m5"), ("int8", "e3m4"),
             ("int8", "e4m3")]  # fmt: skip
    rows = [
        (
            f"`{minifloat}` / `{integer}`",
            f"{mac_luts(minifloat) / mac_luts(integer):.2f}",
            f"{unit_luts(minifloat) / unit_luts(integer):.2f}",
        )
        for integer, minifloat in pairs
    ]
    return (
        "## Minifloats beside integers\n\n"
        + table(("", "dot product", "layer unit, with requantizer"), rows)
        + "\nThe layer unit has one output at a time, 8 products per cycle of 576, results in "
        "the inputs' format, weights in block RAM: the least favourable sharing of a "
        "requantizer.\n\n"
        "Damsgaard et al. (TCAD 2025, 10.1109/TCAD.2024.3511343) report minifloat units 20 to "
        "180 % "
        "above integers of the same width, and 60 to 300 % with conversion. Here it is -11 to "
        "+67 % "
        "and -2 to +57 %: the widest step of the shift costs nothing, and the requantizer of a "
        "wide "
        "integer is no small thing either.\n\n"
    )


def requantizers() -> str:
    """Return the section on what turns sums into codes."""
    record = json.loads((DATA / "output_stages.json").read_text(encoding="utf-8"))
    found = {(row["output"], row["channels"], row["form"]): row for row in record["stages"]}
    names = dict.fromkeys(row["output"] for row in record["stages"])
    channels = tuple(dict.fromkeys(row["channels"] for row in record["stages"]))
    rows = []
    for name in names:
        cells = [f"`{name}`"]
        for count in channels:
            chosen = form_for(len(result_codes(parse_element(name))), count)
            for form in (Form.THRESHOLDS, Form.MULTIPLY):
                row = found.get((name, count, form.value))
                luts = str(row["luts"]) if row else ""
                cells.append(f"**{luts}**" if luts and form is chosen else luts)
        rows.append(tuple(cells))
    heads = ("results", *(
        f"{form}, {count} channel{'s' * (count > 1)}"
        for count in channels for form in ("thresholds", "multiply")
    ))  # fmt: skip
    vectors = sum(row["vectors"] for row in record["stages"])
    return (
        "## Requantizers\n\nLUTs that turn a sum of "
        f"{record['accumulator_bits']} bits into a code, exactly rounded, for one output lane: "
        "a binary search among thresholds, or bias, multiplier of "
        f"{record['multiplier_bits']} bits, rounding and saturation. The numbers of one channel "
        "are constants, those of more lie in LUT ROMs; here they are random, in real layers many "
        "columns of the ROMs are equal. Bold: what a layer unit takes. "
        f"{vectors:,} sums in {len(record['stages'])} netlists against the model: "
        f"{sum(row['mismatches'] for row in record['stages'])} mismatches.\n\n"
        f"{table(heads, rows)}\n"
        "Thresholds are far smaller while their ROMs are: a layer unit takes them for up to 960 "
        "thresholds in a lane, the channels that it serves times the results less one. With "
        "several channels the multiply form of a signed minifloat takes 15 to 40 % "
        "more than that of the integer of its width: it needs the absolute value, the leading one "
        "and a shift.\n\n"
    )


def pareto() -> str:
    """Return the section on accuracy over LUTs."""
    rows = [
        row
        for row in json.loads((DATA / "grid.json").read_text(encoding="utf-8"))["rows"]
        if row["tool"] == "best" and row["weights"] == row["activations"]
    ]
    (DOCS / "images" / "accuracy_luts.png").write_bytes(accuracy_png(rows))
    lines = []
    for net in dict.fromkeys(row["net"] for row in rows):
        for label, price in (("dot product", mac_luts), ("layer unit", unit_luts)):
            points = sorted(
                (price(row["weights"]), row["accuracy"]["value"], row["weights"])
                for row in rows
                if row["net"] == net
            )
            front: list[tuple[float, float, str]] = []
            for point in points:
                if not front or point[1] > front[-1][1]:
                    front.append(point)
            names = ", ".join(f"`{name}` {100 * value:.1f}" for _, value, name in front)
            lines.append((net, label, names))
    return (
        "## Where each family is Pareto-optimal\n\nAccuracy of the recipe `best` on 750 ImageNet "
        "images ([results](results.md)) over LUTs per product. In order of their price, the "
        "points that no cheaper "
        "one reaches (top-1, %):\n\n"
        + table(("net", "priced as", "front"), lines)
        + "\n![accuracy over LUTs per product](images/accuracy_luts.png)\n\n"
        "The paper (arXiv 2311.12359) concludes that minifloats promise better accuracy from 4 "
        "bits up while integers often "
        "stay on the front in LUTs. So it is here: both families are on the front, minifloats at "
        "3 to 5 bits, integers at 4 "
        "and 6 bits and above, and neighbours on it are mostly within the confidence intervals of "
        "each other. Four exponent bits buy nothing on these nets.\n\n"
    )


def model() -> str:
    """Return the section on the cost model's error."""
    atlas = dot_product_table()
    held = [unit for unit in atlas if not is_fitted(unit)]
    rows = [("lutwise, held out", len(held), *_quantiles([relative_error(u) for u in held]))]
    integers = [
        unit
        for unit in held
        if isinstance(unit.weight_format, IntFormat)
        and isinstance(unit.activation_format, IntFormat)
    ]
    rows.append(
        ("lutwise, held out, two integers", len(integers),
         *_quantiles([relative_error(u) for u in integers]))
    )  # fmt: skip
    finn = []
    for unit in integers:
        row = atlas[unit]
        luts = finn_mvau_luts(
            weight_bits=unit.weight_format.bits,
            activation_bits=unit.activation_format.bits,
            pe=1,
            simd=unit.lanes,
            accumulator_bits=row.ffs,
        )
        finn.append((luts - 300) / row.luts - 1)
    rows.append(("FINN's formula, the same, its constant left out", len(finn), *_quantiles(finn)))
    heads = ("model", "units", "median error", "90th percentile", "worst")
    return (
        "## The cost model\n\nRelative errors against synthesis, of units that nothing was "
        "fitted on.\n\n"
        f"{table(heads, rows)}\n"
    )


def _quantiles(errors: Iterable[float]) -> tuple[str, str, str]:
    sizes = np.abs(list(errors))
    return tuple(f"{np.quantile(sizes, q):.1%}" for q in (0.5, 0.9, 1.0))  # type: ignore[return-value]


def proofs() -> str:
    """Return the section on whole nets in RTL."""
    text = [
        "## A whole net in RTL\n\nEvery layer of ResNet-8 as a layer unit (PE 4, SIMD 8) with "
        "its own weights: real "
        "activations through Verilator with random pauses of writer and reader, every result "
        "against "
        "the exact executor; and LUTs by synthesis (weights outside) against the estimate.\n"
    ]
    for name in ("rtl_int4", "rtl_int5", "rtl_e2m1"):
        record = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
        rows = [_proof_row(row) for row in record["rows"]]
        heads = ("layer", "weights / inputs / results", "values", "mismatches", "acc. bits", "LUTs",
                 "estimate", "error", "ns")  # fmt: skip
        first = record["rows"][1]
        text.append(
            f"\n{first['weights']} / {first['activations']}, {first['simulator']}, "
            f"{record['synthesis']}:\n\n" + table(heads, rows)
        )
    return "".join(text) + "\n"


def _proof_row(row: dict[str, Any]) -> Sequence[object]:
    formats = f"`{row['weights']}` / `{row['activations']}` / "
    return (
        row["layer"], formats + (f"`{row['output']}`" if row["output"] else "sums"),
        row["values"], row["mismatches"], row["accumulator_bits"], row["luts"],
        f"{row['estimate']:.0f}", f"{row['estimate'] / row['luts'] - 1:+.1%}", row["delay_ns"],
    )  # fmt: skip


def clocks() -> str:
    """Return the section on clock rates."""
    record = json.loads((DATA / "clock.json").read_text(encoding="utf-8"))
    found = {(r["weights"], r["lanes"], r["pipeline"]): r for r in record["rows"]}
    rows = []
    for (weights, lanes, pipeline), row in found.items():
        other = found.get((weights, lanes, True))
        if pipeline or other is None:
            continue
        rows.append(
            (f"`{parse_element(weights.removesuffix('n')).name}`", lanes, _span(row["mhz"]),
             _span(other["mhz"]), row["luts"], f"{row['ffs']} / {other['ffs']}")
        )  # fmt: skip
    heads = ("format", "lanes", "MHz, latency 1", "MHz, latency 2", "LUT4", "flip-flops")
    return (
        f"## Clock rates on an ECP5\n\nPlaced and routed with open tools on another family "
        f"({record['device']}, "
        f"{record['placer']}, {len(record['seeds'])} seeds). They rank units; they are no "
        f"UltraScale+ "
        "rates, and LUT4 counts are not LUT6 counts.\n\n" + table(heads, rows) + "\n"
    )


def _span(rates: Sequence[float]) -> str:
    return f"{min(rates):.0f} to {max(rates):.0f}"


def main() -> None:
    """Write the page."""
    (DOCS / "images" / "luts_per_mac.png").write_bytes(luts_png())
    parts = [
        HEAD, costs(), families(), requantizers(), pareto(), model(), proofs(), clocks(), LEFT_OUT,
    ]  # fmt: skip
    (DOCS / "hardware.md").write_text(
        "\n".join(part.strip() + "\n" for part in parts), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
