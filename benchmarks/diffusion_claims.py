# SPDX-License-Identifier: Apache-2.0
"""Test what "Q&C: When Quantization Meets Cache" (arXiv 2503.02508) claims; write what came out.

    python -m benchmarks.diffusion_claims --table T.json --compensation C.json \
        --calibration K.json --calibration K32.json --speed docs/results/dit_speed.json --json OUT

The tables are what `quantize dit sweep` wrote; they hold most of the answers. Sampled here is what
they lack (`benchmarks.diffusion_probes`): how alike calibration samples are with a cache,
compensations fitted all at once, and the time of real int8. Intervals are 95 % of Student's t over
seeds, paired by seed; the model is the same for all of them.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import circumstances, write_record
from benchmarks.diffusion_probes import (
    add_job_options,
    at_once,
    int8_times,
    job_of,
    paired,
    redundancy,
)
from lutwise.workspace import Steps

Table = Mapping[str, Any]
Cell = Mapping[str, Any]


def find(table: Table, **wanted: Any) -> Cell | None:
    """Return the cell of a sweep with some values, None where it has none."""
    for cell in table["cells"]:
        if all(cell[name] == value for name, value in wanted.items()):
            found: Cell = cell
            return found
    return None


def by_seed(cell: Cell, *path: str) -> list[float]:
    """Return a number of a cell, by seed."""

    def at(seed: Any) -> float:
        for key in path:
            seed = seed[key]
        return float(seed)

    return [at(seed) for seed in cell["seeds"]]


def exposure(table: Table) -> dict[str, Any]:
    """Return errors of quantization, cache and both, and whether they add up."""
    rows = []
    for both in table["cells"]:
        if both["interval"] == 1 or both["weights"] == "float" or both["compensation"] != "none":
            continue
        same = {"steps": both["steps"], "compensation": "none"}
        formats = {"weights": both["weights"], "activations": both["activations"]}
        cache = find(
            table, **same, interval=both["interval"], order=both["order"], weights="float",
            activations="float",
        )  # fmt: skip
        alone = find(table, **same, interval=1, calibration=both["calibration"], **formats)
        if cache is None or alone is None:
            continue
        q, c, qc = (by_seed(cell, "paired_mse", "value") for cell in (alone, cache, both))
        sums = [a + b for a, b in zip(q, c, strict=True)]
        rows.append(
            {
                **{k: both[k] for k in ("steps", "interval", "order", "weights", "activations")},
                "quantized": q,
                "cached": c,
                "both": qc,
                "ratio_to_sum": [a / b for a, b in zip(qc, sums, strict=True)],
                "difference": paired(qc, sums),
                "by_step": {
                    name: mean_by_step(cell)
                    for name, cell in (("quantized", alone), ("cached", cache), ("both", both))
                },
            }
        )
    return {
        "claim": "quantization and cache together amplify exposure bias: their error is more than "
        "the sum of both",
        "rows": rows,
    }


def mean_by_step(cell: Cell) -> list[float]:
    """Return the mean squared error to the float trajectory by step, over seeds."""
    steps = zip(*(seed["paired_mse_by_step"] for seed in cell["seeds"]), strict=True)
    return [statistics.fmean(values) for values in steps]


def choices(tables: Sequence[Table]) -> dict[str, Any]:
    """Return what TAP and uniform draws change against random ones; less is better."""
    rows = []
    for table in tables:
        for cell in table["cells"]:
            if cell["calibration"] in ("", "random"):
                continue
            same = ("steps", "interval", "order", "weights", "activations", "compensation")
            base = find(table, calibration="random", **{name: cell[name] for name in same})
            if base is None:
                continue
            for measure, path in measures_of(cell).items():
                rows.append(
                    {
                        **{name: cell[name] for name in same},
                        "samples": table["calibration"]["samples"],
                        "calibration": cell["calibration"],
                        "measure": measure,
                        "random": by_seed(base, *path),
                        "chosen": by_seed(cell, *path),
                        "gain": paired(by_seed(base, *path), by_seed(cell, *path)),
                    }
                )
    return {"claim": "TAP calibrates better than random samples", "rows": rows}


def measures_of(cell: Cell) -> dict[str, tuple[str, ...]]:
    """Return the measures of a cell, and where its seeds have them."""
    found: dict[str, tuple[str, ...]] = {"paired_mse": ("paired_mse", "value")}
    if "frechet" in cell["seeds"][0]:
        found["frechet"] = ("frechet", "value")
    return found


def recovery(table: Table) -> dict[str, Any]:
    """Return what each compensation changes against none; and order 1 against reuse."""
    rows = []
    for cell in table["cells"]:
        same = {k: cell[k] for k in ("steps", "interval", "weights", "activations", "calibration")}
        if cell["compensation"] != "none":
            against = find(table, **same, order=cell["order"], compensation="none")
        elif cell["order"]:
            against = find(table, **same, order=0, compensation="none")
        else:
            continue
        if against is None:
            continue
        for measure, path in measures_of(cell).items():
            rows.append(
                {
                    **same,
                    "order": cell["order"],
                    "compensation": cell["compensation"],
                    "measure": measure,
                    "before": by_seed(against, *path),
                    "after": by_seed(cell, *path),
                    "gain": paired(by_seed(against, *path), by_seed(cell, *path)),
                }
            )
    return {"claim": "variance compensation recovers quality", "rows": rows}


def speed(table: Table, block: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the paper's 12.7 taken apart: steps, bits and cache, in theory and measured.

    Args:
        table: Sweep with the float model at several steps and intervals.
        block: What `benchmarks.dit_speed` wrote, of one wide block.
        measured: Of `int8_times`.
    """
    floats = [c for c in table["cells"] if c["weights"] == c["activations"] == "float"]
    floats = [c for c in floats if c["compensation"] == "none" and not c["order"]]
    plain = {c["steps"]: c for c in floats if c["interval"] == 1}
    most = max(plain)
    rows = [
        {
            "factor": "steps",
            "from": most,
            "to": count,
            "theory": plain[most]["cost"]["macs"] / cell["cost"]["macs"],
            "measured": ratios(plain[most], cell),
        }
        for count, cell in plain.items()
        if count < most
    ]
    rows += [
        {
            "factor": "cache",
            "steps": c["steps"],
            "to": c["interval"],
            "theory": plain[c["steps"]]["cost"]["macs"] / c["cost"]["macs"],
            "measured": ratios(plain[c["steps"]], c),
        }
        for c in floats
        if c["interval"] > 1
    ]
    return {
        "claim": "12.7 times faster: 5 by steps (250 to 50), 1.96 by bits, 1.28 by cache",
        "rows": rows,
        "wide_block": [
            {"batch": row["batch"], "processor_speedup": row["processor_speedup"]}
            for row in block["rows"]
        ],
        "this_model": measured,
    }


def ratios(slow: Cell, fast: Cell) -> list[float]:
    """Return ratios of processor time, by seed."""
    times = (by_seed(cell, "processor_seconds") for cell in (slow, fast))
    return [a / b for a, b in zip(*times, strict=True)]


def read(path: Path) -> dict[str, Any]:
    """Read a JSON file."""
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--compensation", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, action="append", required=True)
    parser.add_argument("--speed", type=Path, required=True)
    parser.add_argument("--intervals", type=int, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--repetitions", type=int, default=15, help="of timings")
    add_job_options(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    base = job_of(args)
    steps = Steps(args.state, args.state / "events.jsonl")
    table, longest = read(args.table), max(args.intervals)
    timed = int8_times(base, steps, args.intervals, args.repetitions)
    record = {
        **circumstances(args.threads),
        "model": {"name": base.dit.name, "sha256": base.dit.sha256},
        "steps": args.steps,
        "samples": args.samples,
        "seeds": args.seeds,
        "redundancy": redundancy(base, args.intervals, args.seeds),
        "exposure": exposure(table),
        "choices": choices([read(path) for path in args.calibration]),
        "recovery": recovery(read(args.compensation)),
        "fit": at_once(base, steps, longest, ("std", "least_squares", "minimiser"), args.seeds),
        "speed": speed(table, read(args.speed), timed),
    }
    write_record(record, args.json)


if __name__ == "__main__":
    main()
