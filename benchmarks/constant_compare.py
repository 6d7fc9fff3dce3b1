# SPDX-License-Identifier: Apache-2.0
"""Constant units beside plain Verilog and beside da4ml, through the same synthesis.

python benchmarks/constant_compare.py --runs runs/a --out constant.json

Every line is one matrix of random or real weights. *plain* is one expression per output
(``3 * x0 - 5 * x1 ...``); *da4ml* (PyPI, not needed for anything else here) writes the adder
graph that it finds for the same integers. Both get integers: where inputs are minifloats, the
tables that make integers of codes are counted for the constant unit only. Each kind is mapped
with all flows, and the fewest sites count. All netlists are compared with the matrix.
"""

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import circumstances, write_record
from benchmarks.constant_units import random_unit
from lutwise.hw.constant_number import number_bits, number_range
from lutwise.hw.constant_unit import ConstantUnit
from lutwise.hw.constant_verify import verify_constant_unit
from lutwise.hw.layers import constant_unit
from lutwise.hw.netlist import Netlist, bits_of, from_bits
from lutwise.hw.synthesis import Flow, Synthesizer, measure
from lutwise.quant.formats import parse_element, parse_weight
from lutwise.quant.network_file import load_network

RANDOM = [
    ("int2", "uint4", 64, 16),
    ("int4", "uint4", 32, 8),
    ("int4", "uint4", 32, 16),
    ("int4", "int8", 16, 8),
    ("e2m1", "ue2m2", 32, 8),
    ("int6", "uint6", 16, 8),
    ("int8", "uint8", 9, 4),
    ("e4m3", "ue4m3", 9, 2),
]
MOST_PRODUCTS = 150


@dataclass(frozen=True)
class Design:
    """A circuit from integers to sums.

    Args:
        verilog: All its modules.
        top: The top one.
        ports: Names of its input and its output.
        inputs: Width per input; 0 where it is not used.
        outputs: Width, sign and power of two of a step, per output.
    """

    verilog: str
    top: str
    ports: tuple[str, str]
    inputs: list[int]
    outputs: list[tuple[int, bool, int]]


def plain(matrix: npt.NDArray[np.int64], bounds: tuple[int, int], bits: int) -> Design:
    """Write one expression per output."""
    outputs, inputs = matrix.shape
    reach = int(np.abs(matrix).sum(axis=1).max()) * max(map(abs, bounds))
    wide = reach.bit_length() + 1
    signed = bounds[0] < 0
    lines = [f"module plain (input [{inputs * bits - 1}:0] a, output [{outputs * wide - 1}:0] y);"]
    for at in range(inputs):
        code = f"a[{at * bits}+:{bits}]"
        number = code if signed else f"{{1'b0, {code}}}"
        lines.append(f"wire signed [{bits - signed}:0] x{at} = {number};")
    for row, weights in enumerate(matrix.tolist()):
        text = f"{wide}'sd0"
        for at, weight in enumerate(weights):
            if weight:
                text += f" {'-' if weight < 0 else '+'} {wide}'sd{abs(weight)} * x{at}"
        lines.append(f"wire signed [{wide - 1}:0] y{row} = {text};")
        lines.append(f"assign y[{row * wide}+:{wide}] = y{row};")
    text = "\n".join([*lines, "endmodule", ""])
    return Design(text, "plain", ("a", "y"), [bits] * inputs, [(wide, True, 0)] * outputs)


def da4ml(matrix: npt.NDArray[np.int64], bounds: tuple[int, int]) -> Design | None:
    """Let da4ml write its adder graph; ``None`` where it is not installed."""
    if importlib.util.find_spec("da4ml") is None:
        return None
    package, rtl, trace, types = (
        importlib.import_module(f"da4ml{name}")
        for name in ("", ".codegen.rtl.verilog", ".trace", ".types")
    )
    inputs = matrix.shape[1]
    low, high = (np.full(inputs, float(bound)) for bound in bounds)
    hardware = trace.HWConfig(1, -1, -1)
    numbers = trace.FixedVariableArray.from_lhs(low, high, np.ones(inputs), hwconf=hardware)
    found = trace.comb_trace(numbers, numbers @ np.ascontiguousarray(matrix.T.astype(np.float32)))
    folder = Path(str(package.__file__)).parent / "codegen" / "rtl" / "verilog" / "source"
    sources = [path.read_text() for path in sorted(folder.glob("*.v"))]
    modules = [text for text in sources if "$readmem" not in text]
    kinds = [types.minimal_kif(interval) for interval in found.out_qint]
    return Design(
        "\n".join(["`timescale 1ns / 1ps", *modules, rtl.comb_logic_gen(found, "da4ml")]),
        "da4ml",
        ("model_inp", "model_out"),
        [sum(map(int, types.minimal_kif(interval))) for interval in found.inp_qint],
        [(sum(map(int, kind)), bool(kind[0]), -int(kind[2])) for kind in kinds],
    )


def exact(
    design: Design, netlist: Netlist, matrix: npt.NDArray[np.int64], bounds: tuple[int, int]
) -> bool:
    """Tell whether a netlist computes the sums, on random numbers."""
    count = matrix.shape[1]
    numbers = np.random.default_rng(0).integers(bounds[0], bounds[1] + 1, (count, 256))
    lanes = zip(numbers, design.inputs, strict=True)
    stimuli = np.concatenate([bits_of(lane, bits) for lane, bits in lanes if bits])
    outputs, _ = netlist.simulate({design.ports[0]: stimuli})
    found = outputs[design.ports[1]]
    at = 0
    for row, (wide, signed, step) in zip(matrix @ numbers, design.outputs, strict=True):
        got = from_bits(found[at : at + wide], signed=signed).astype(np.int64)
        if not np.array_equal(got << max(step, 0), row << max(-step, 0)):
            return False
        at += wide
    return True


def fewest(
    design: Design,
    synthesizer: Synthesizer,
    matrix: npt.NDArray[np.int64],
    bounds: tuple[int, int],
) -> int:
    """Return the sites of a design with the flow that suits it best."""
    found = []
    for flow in Flow:
        netlist = synthesizer.map(design.verilog, design.top, flow=flow)
        if not exact(design, netlist, matrix, bounds):
            raise SystemExit(f"{design.top} is wrong")
        found.append(measure(netlist, flow=flow).luts)
    return min(found)


def units(runs: list[Path]) -> Iterator[tuple[str, ConstantUnit]]:
    """Yield what is compared: random units, then small layers of runs."""
    for weights, activations, length, outputs in RANDOM:
        unit = random_unit(parse_weight(weights), parse_element(activations), length, outputs, 0)
        yield "random", unit
    for run in runs:
        network = load_network(run / "network.safetensors")
        for node in network.layers():
            unit = constant_unit(network, node, name="unit")
            if unit.groups == 1 and unit.weight_codes.size <= MOST_PRODUCTS:
                yield f"{run.name} {node.name}", sums_of(unit)


def sums_of(unit: ConstantUnit) -> ConstantUnit:
    """Return a unit whose sums go out, without bias."""
    return ConstantUnit(
        name=unit.name,
        weights=unit.weights,
        activations=unit.activations,
        weight_codes=unit.weight_codes,
        accumulator_bits=unit.accumulator_bits,
        stage=None,
        bias=(0,) * unit.channels,
    )


def row_of(label: str, unit: ConstantUnit, synthesizer: Synthesizer) -> dict[str, Any]:
    """Measure one matrix."""
    matrix = unit.weight_integers[0].astype(np.int64)
    bounds = number_range(unit.activations)
    netlist = synthesizer.map(unit.emit(), unit.name, flow=Flow.AREA)
    proof = verify_constant_unit(unit, netlist)
    if not proof.passed:
        raise SystemExit(f"{label}: {proof.first_mismatch}")
    ours = measure(netlist, flow=Flow.AREA)
    other = da4ml(matrix, bounds)
    products = matrix.size
    return {
        "weights": label,
        "formats": f"{unit.weights.name} x {unit.activations.name}",
        "products": unit.products,
        "outputs": unit.outputs,
        "counted": unit.counted_sites().total,
        "luts": ours.luts,
        "depth": ours.depth,
        "delay_ns": ours.delay_ns,
        "luts_per_product": round(ours.luts / products, 2),
        "plain": fewest(
            plain(matrix, bounds, number_bits(unit.activations)), synthesizer, matrix, bounds
        ),
        "da4ml": fewest(other, synthesizer, matrix, bounds) if other else None,
    }


def main() -> None:
    """Compare all, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    with Synthesizer(time_limit_s=1800) as synthesizer:
        for label, unit in units(args.runs):
            rows.append(row_of(label, unit, synthesizer))
            sys.stderr.write(f"{rows[-1]}\n")
    write_record({**circumstances(1), "rows": rows}, args.out)


if __name__ == "__main__":
    main()
