# SPDX-License-Identifier: Apache-2.0
"""Sites of constant units over weight formats and shapes: what `constant_luts` looks up.

python benchmarks/constant_units.py --csv cost_models/data/constant_products.csv --runs runs/a

Weights are normal numbers, quantized with one scale per output that maps the largest to the
format's largest. What a unit costs depends on its inputs by the width of their numbers, since
it turns codes into integers first; the sites of that step are left out here. Sites are counted by
the generator. Rows that the file holds are kept.

Then the prices by shape of the layers of finished runs, which nothing here was made of, are held
against what the generator counts for their weights.
"""

import argparse
import csv
import io
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from lutwise.cost_models.constant_cost import constant_luts
from lutwise.cost_models.units import weight_formats
from lutwise.files import write_atomic
from lutwise.hw.bounds import accumulator_range, width_of_range
from lutwise.hw.constant_number import number_bits
from lutwise.hw.constant_unit import ConstantUnit
from lutwise.hw.layers import constant_unit
from lutwise.hw.weighted_layer import MOST_SUM_BITS
from lutwise.quant.formats import Format, parse_element
from lutwise.quant.network_file import load_network
from lutwise.quant.numerics import encode, quantize

ACTIVATIONS = ("uint4", "uint8", "ue4m4", "uint2")
LENGTHS = (9, 36, 144)
MOST_PRODUCTS = 2400
OUTPUTS = (1, 4, 16, 64)
SEEDS = {1: 6, 4: 3, 16: 1, 64: 1}
COLUMNS = ("weights", "number_bits", "outputs", "length", "luts_per_output")


def random_unit(
    weights: Format, activations: Format, length: int, outputs: int, seed: int
) -> ConstantUnit:
    """Return a unit of random weights, as a layer has them."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((1, outputs, length))
    scale = np.abs(drawn).max(axis=2, keepdims=True) / weights.max_value
    codes: npt.NDArray[np.int64] = encode(weights, quantize(weights, drawn / scale)).astype(
        np.int64
    )
    bits = width_of_range(*accumulator_range(weights, activations, length))
    return ConstantUnit(
        name="unit",
        weights=weights,
        activations=activations,
        weight_codes=codes,
        accumulator_bits=max(3, bits + 1),
        stage=None,
        bias=(0,) * outputs,
    )


def rows() -> Iterator[tuple[Format, Format, int, int]]:
    """Yield the rows of the table: weights, activations, outputs, length."""
    activations = map(parse_element, ACTIVATIONS)
    for fmt in activations:
        for weights, outputs, length in product(weight_formats(), OUTPUTS, LENGTHS):
            sums = width_of_range(*accumulator_range(weights, fmt, length))
            if sums < MOST_SUM_BITS and outputs * length <= MOST_PRODUCTS:
                yield weights, fmt, outputs, length


def main() -> None:
    """Count all units that the file does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    kept: list[dict[str, str]] = []
    if args.csv.exists():
        kept = list(csv.DictReader(io.StringIO(args.csv.read_text(encoding="utf-8"))))
    done = {tuple(row[name] for name in COLUMNS[:-1]) for row in kept}
    console = Console(stderr=True)
    for weights, activations, outputs, length in rows():
        bits = number_bits(activations)
        key = (weights.name, str(bits), str(outputs), str(length))
        if key in done:
            continue
        counted = [
            random_unit(weights, activations, length, outputs, seed).counted_sites()
            for seed in range(SEEDS[outputs])
        ]
        sites = [found.shared + found.sums for found in counted]
        kept.append(dict(zip(COLUMNS, (*key, f"{np.mean(sites) / outputs:.2f}"), strict=True)))
        console.print(" ".join(kept[-1].values()))
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        write_atomic(args.csv, text.getvalue().encode())
    sys.stdout.write(f"{len(kept)} rows\n")
    errors = np.array([error for run in args.runs for error in judged(run)])
    if len(errors):
        sys.stdout.write(
            f"{len(errors)} layers: median {np.median(errors):.1%}, 90th percentile "
            f"{np.quantile(errors, 0.9):.1%}, worst {errors.max():.1%}\n"
        )


def judged(run: Path) -> Iterator[float]:
    """Yield how far the price of its shape is off for each layer of a run that is not too large."""
    network = load_network(run / "network.safetensors")
    for node in network.layers():
        if node.weight_codes.size > MOST_PRODUCTS:
            continue
        unit = constant_unit(network, node, name="unit")
        counted = unit.counted_sites()
        price = constant_luts(
            unit.weights, unit.activations, unit.products, unit.channels, groups=unit.groups
        )
        error = price.value / (counted.total - counted.results) - 1
        sys.stderr.write(f"{run.name} {node.name}: {error:+.1%}\n")
        yield abs(error)


if __name__ == "__main__":
    main()
