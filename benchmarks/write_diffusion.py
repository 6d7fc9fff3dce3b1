# SPDX-License-Identifier: Apache-2.0
"""Write ``docs/consumers/diffusion-results.md`` and its pictures from ``docs/results/dit_*.json``.

The short tables in ``diffusion.md`` are written, too.

    python benchmarks/write_diffusion.py
    python benchmarks/write_diffusion.py --collect SWEEPS --claims CLAIMS.json

``SWEEPS`` holds what `quantize dit sweep` wrote as ``sweep.json`` and ``samples.npz``, renamed:
``table`` (formats, intervals, steps), ``compensation`` and ``moments`` (two parts of one table),
``calibration`` and ``calibration32``.
Sections whose file is missing are left out.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

if not __package__:  # run as a script: the benchmarks are a package of the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.diffusion_text import (
    calibration_section,
    claims_sections,
    compensation_section,
    goal,
    schedule_section,
    short_table,
    speed_section,
    table_section,
)
from benchmarks.write_results import DATA, DOCS
from lutwise.consumers.diffusion.pictures import as_images, draw_grid
from lutwise.consumers.diffusion.sweep_plots import trade_off_figure
from lutwise.consumers.diffusion.sweep_result import SweepSummary
from lutwise.export.plot_style import plot_context, png_bytes
from lutwise.files import write_atomic
from lutwise.workspace import to_json

SWEEPS = ("table", "compensation", "moments", "calibration", "calibration32")
SHOWN = 10
PICTURED = {
    "float": "T20 N1 float",
    "int8/int8, N=1": "T20 N1 int8/int8 random",
    "int4/int4, N=1": "T20 N1 int4/int4 random",
    "int8/int8, N=3": "T20 N3 int8/int8 random",
    "int8/int8, N=3, std": "T20 N3 int8/int8 random +std",
    "int8/int8, N=5": "T20 N5 int8/int8 random",
    "int8/int8, N=5, std": "T20 N5 int8/int8 random +std",
    "int4/int4, N=5": "T20 N5 int4/int4 random",
    "int4/int4, N=5, std": "T20 N5 int4/int4 random +std",
}
"""Cells in the picture of samples, by what it calls them."""
HEAD = """# Diffusion transformers: results

Written by `benchmarks/write_diffusion.py` from `../results/dit_*.json`. The methods and what is
measured: [diffusion transformers](diffusion.md).
"""


def collect(folder: Path, claims: Path | None) -> None:
    """Copy finished sweeps into ``docs/results``, without what only their own pages show.

    Args:
        folder: Of the sweeps.
        claims: What `benchmarks.diffusion_claims` wrote.
    """
    for name in SWEEPS:
        path = folder / f"{name}.json"
        if path.exists():
            write_atomic(DATA / f"dit_{name}.json", to_json(slim(json.loads(path.read_bytes()))))
    if claims is not None:
        write_atomic(DATA / "dit_claims.json", claims.read_bytes())
    if (folder / "table.npz").exists():
        write_atomic(DATA / "dit_samples.json", to_json(samples_of(folder / "table.npz")))


def slim(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sweep without what is by step."""
    left_out = {"variance_by_step_and_channel", "paired_mse_by_step"}
    cells = [
        {
            **cell,
            "seeds": [{k: v for k, v in s.items() if k not in left_out} for s in cell["seeds"]],
        }
        for cell in sweep["cells"]
    ]
    return {**sweep, "cells": cells}


def samples_of(path: Path) -> dict[str, Any]:
    """Return samples for the picture, as grey values 0 .. 255 by cell."""
    with np.load(path) as kept:
        names = kept["cells"].tolist()
        latents = dict(zip(names, torch.from_numpy(kept["latents"][:, :SHOWN]), strict=True))
        labels = kept["labels"][:SHOWN].tolist()
    return {
        "labels": labels,
        "cells": {
            label: np.rint(255 * as_images(latents[name], None)).astype(int).tolist()
            for label, name in PICTURED.items()
            if name in latents
        },
    }


def read(name: str) -> dict[str, Any] | None:
    """Return a result; None where there is none."""
    path = DATA / f"dit_{name}.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def joined(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return one sweep with the cells of two that differ in their compensations."""
    if first is None or second is None:
        return first or second
    alike = ("model", "samples", "grid")
    for name in alike:
        one, other = (
            {k: v for k, v in found[name].items() if k != "compensations"}
            if name == "grid" else found[name]
            for found in (first, second)
        )  # fmt: skip
        if one != other:
            raise ValueError(f"the sweeps have other {name}: {one} and {other}")
    held = {cell["name"] for cell in first["cells"]}
    methods = dict.fromkeys(first["grid"]["compensations"] + second["grid"]["compensations"])
    return {
        **first,
        "grid": {**first["grid"], "compensations": list(methods)},
        "cells": first["cells"] + [cell for cell in second["cells"] if cell["name"] not in held],
    }


def between_marks(page: str, text: str) -> str:
    """Return a page with a text in place of what stands between its two marks."""
    begin, end = (f"<!-- results: {mark} -->\n" for mark in ("begin", "end"))
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the page lacks {begin.strip()} or {end.strip()}")
    return f"{before}{begin}{text.strip()}\n{end}{after}"


def pictures(table: Mapping[str, Any], samples: Mapping[str, Any] | None) -> str:
    """Draw the pictures; return the part of the page that shows them."""
    summary = SweepSummary.from_json(table)
    with plot_context():
        write_atomic(DOCS / "images" / "dit_trade_off.png", png_bytes(trade_off_figure(summary)))
    found = "![Frechet distance over bit operations](../images/dit_trade_off.png)\n"
    if samples is not None:
        rows = {
            label: (np.array(images) / 255).astype(np.float32)
            for label, images in samples["cells"].items()
        }
        draw_grid(rows, [str(i) for i in samples["labels"]], DOCS / "images" / "dit_samples.png")
        found += (
            "\n![samples of the same noise and class in each column, 20 steps]"
            "(../images/dit_samples.png)\n"
        )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect", type=Path, help="folder of finished sweeps")
    parser.add_argument("--claims", type=Path, help="what diffusion_claims.py wrote")
    args = parser.parse_args(argv)
    if args.collect:
        collect(args.collect, args.claims)
    table, claims, speed = read("table"), read("claims"), read("speed")
    compensation = joined(read("compensation"), read("moments"))
    parts = [HEAD]
    if table is not None:
        parts += [goal(table, compensation), pictures(table, read("samples")), table_section(table)]
    schedule = read("schedule")
    if schedule is not None:
        parts.append(schedule_section(schedule))
    if compensation is not None:
        parts.append(compensation_section(compensation))
    calibrations = [found for name in SWEEPS[3:] if (found := read(name)) is not None]
    if calibrations:
        parts.append(calibration_section(calibrations))
    if claims is not None:
        parts.append(claims_sections(claims))
        if speed is not None:
            parts.append(speed_section(claims, speed))
    page = "\n".join(part.strip() + "\n" for part in parts)
    write_atomic(DOCS / "consumers" / "diffusion-results.md", page.encode())
    if table is not None:
        path = DOCS / "consumers" / "diffusion.md"
        text = short_table(table) + "\n" + goal(table, compensation).partition("\n\n")[2]
        write_atomic(path, between_marks(path.read_text(encoding="utf-8"), text).encode())


if __name__ == "__main__":
    main()
