# SPDX-License-Identifier: Apache-2.0
"""Layer units of finished runs: what they take by synthesis, and what the cost model says.

python benchmarks/layer_units.py runs/a runs/b --csv cost_models/data/layer_units.csv

Every layer is built with several foldings, with its weights in LUTs and without them. Rows that
the file holds are kept, so a run that was stopped goes on where it was.
"""

import argparse
import csv
import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from lutwise.cost_models.layer_cost import LayerSize, Memory, layer_price
from lutwise.files import write_atomic
from lutwise.hw.layer_unit import LayerUnit
from lutwise.hw.layers import layer_unit
from lutwise.hw.output_stage import Form
from lutwise.hw.synthesis import Synthesizer
from lutwise.quant.network_file import load_network

FOLDINGS = [(1, 1), (1, 9), (2, 4), (4, 8), (8, 4), (1, 16), (8, 8), (2, 12), (4, 3)]
FOLDINGS_PER_LAYER = 2
MOST_WEIGHT_BITS = 30_000
COLUMNS = (
    "weights", "activations", "output", "accumulator_bits", "multiplier_bits", "groups", "outputs",
    "products", "pe", "simd", "memory", "luts", "ffs", "style", "tool", "run", "layer",
)  # fmt: skip


def units(folder: Path, seed: int) -> Iterator[tuple[str, LayerUnit]]:
    """Yield the units of a run: layer, folding, weights inside or not."""
    network = load_network(folder / "network.safetensors")
    chosen = random.Random(seed)
    for node in network.layers():
        for pe, simd in chosen.sample(FOLDINGS, FOLDINGS_PER_LAYER):
            for inside in (False, True):
                unit = layer_unit(
                    network, node, name="unit", pe=pe, simd=simd, weights_inside=inside
                )
                bits = len(unit.weight_words) * unit.pe * unit.simd * unit.weights.bits
                if not inside or bits <= MOST_WEIGHT_BITS:
                    yield node.name, unit


def row_of(unit: LayerUnit, run: str, layer: str) -> dict[str, Any]:
    """Return what identifies a unit."""
    size = LayerSize.of(unit)
    multiplies = unit.stage is not None and unit.stage.form is Form.MULTIPLY
    return {
        "weights": size.weights.name,
        "activations": size.activations.name,
        "output": size.output.name if size.output else "",
        "accumulator_bits": size.accumulator_bits,
        "multiplier_bits": size.multiplier_bits if multiplies else 0,
        "groups": size.groups,
        "outputs": size.outputs,
        "products": size.products,
        "pe": size.pe,
        "simd": size.simd,
        "memory": (Memory.LUT if unit.weights_inside else Memory.BLOCK).value,
        "style": str(unit.architecture),
        "run": run,
        "layer": layer,
    }


def main() -> None:
    """Build all units that the file does not hold, and say how far the prices are off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.csv.exists():
        rows = list(csv.DictReader(io.StringIO(args.csv.read_text(encoding="utf-8"))))
    identity = [c for c in COLUMNS if c not in {"luts", "ffs", "tool"}]
    done = {tuple(str(row[c]) for c in identity) for row in rows}
    console = Console(stderr=True)
    with Synthesizer() as synthesizer:
        for folder in args.runs:
            for layer, unit in units(folder, args.seed):
                row = row_of(unit, folder.name, layer)
                if tuple(str(row[c]) for c in identity) in done:
                    continue
                result = synthesizer.synthesize(unit.emit(), "unit", flow=unit.architecture.flow)
                row |= {"luts": result.luts, "ffs": result.ffs, "tool": result.tool}
                rows.append(row)
                console.print(f"{folder.name} {layer} {unit.pe} x {unit.simd}: {result.luts}")
                text = io.StringIO()
                writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
                write_atomic(args.csv, text.getvalue().encode())
    errors = np.abs([price(row) / float(row["luts"]) - 1 for row in rows])
    sys.stdout.write(
        f"{len(rows)} units: median {np.median(errors):.1%}, 90th percentile "
        f"{np.quantile(errors, 0.9):.1%}, worst {errors.max():.1%}\n"
    )


def price(row: dict[str, Any]) -> float:
    """Return what the cost model says of a row."""
    return layer_price(LayerSize.from_row(row), Memory(row["memory"])).luts


if __name__ == "__main__":
    main()
