# SPDX-License-Identifier: Apache-2.0
"""The process that hosts Yosys: ``python -m lutwise.hw.yosys_worker``, in an empty folder.

A Yosys error ends the process that hosts it, and what Yosys numbered before changes what it
makes of the next unit. So this process only loads the cell library and serves every request in
a fork of itself: a unit cannot harm its successors, and its netlist does not depend on its
predecessors.

It reads one JSON request per line and answers ``{"status": N}``: 0 when it did what was asked
for, else how the fork ended. What Yosys prints goes to the standard error stream.

``{"verilog": PATH, "top": NAME, "flow": NAME, "netlist": PATH}`` maps a module and writes its
netlist. ``{"miter": PATH, "top": NAME, "units": {NAME: PATH}, "steps": N, "counterexample":
PATH}`` proves by induction over up to so many clock cycles that the output ``equal`` of a module
stays 1 while ``legal`` is 1; if that fails, the counterexample has been written.
"""

import json
import os
import re
import resource
import sys
import traceback
from pathlib import Path
from typing import Any, Final

__all__ = ["main"]

# Reading all of cells_sim.v costs more than mapping a small unit; these cells are enough.
_CELLS: Final = frozenset(
    {
        *("LUT1", "LUT2", "LUT3", "LUT4", "LUT5", "LUT6", "LUT6_2", "MUXF7", "MUXF8", "INV"),
        *("CARRY4", "CARRY8", "FDRE", "FDSE", "FDCE", "FDPE", "GND", "VCC"),
        *("RAM32M16", "RAM64M8"),
    }
)
# The default script of abc restructures logic before it maps it; the other one maps what is there
# to the fewest LUTs.
_SCRIPTS: Final = {"lean": "", "area": "-script +strash;if,-a,-C,32,-F,4,-A,6"}
_MODULE: Final = re.compile(r"((?:\(\*[^\n]*\*\)\s*\n)*module\s+(\w+)\b.*?endmodule)", re.DOTALL)


class _Yosys:
    """A Yosys design that holds the small cell library."""

    def __init__(self) -> None:
        import pyosys
        from pyosys import libyosys

        self._run_pass = libyosys.run_pass
        self._design: Any = libyosys.Design()
        cells = Path(pyosys.__file__).parent / "share" / "xilinx" / "cells_sim.v"
        modules = _MODULE.findall(cells.read_text(encoding="utf-8"))
        Path("cells.v").write_text(
            "\n".join(body for body, name in modules if name in _CELLS), encoding="utf-8"
        )
        self._run("read_verilog -lib cells.v")

    def _run(self, command: str) -> None:
        self._run_pass(command, self._design)

    def map(self, request: dict[str, str]) -> None:
        """Map one module and write its netlist."""
        flow, top = request["flow"], request["top"]
        if flow == "abc9":
            self._run("design -reset")
            self._run("read_verilog -lib -specify +/xilinx/cells_sim.v")
        self._run(f"read_verilog -sv -icells -D LUTWISE_ALU {request['verilog']}")
        self._run(f"hierarchy -check -top {top}")
        synth = (
            "synth_xilinx -family xcup -noiopad -nodsp -noclkbuf -nosrl -flatten -nowidelut "
            f"-top {top} -run "
        )
        self._run(f"{synth}prepare:coarse")
        self._run(f"{synth}coarse:map_memory")
        self._run(f"{synth}map_ffram:map_luts")
        if flow == "abc9":
            self._run(f"{synth}map_luts:finalize")
        else:
            # One pass of plain abc. Functions of five inputs and fewer cost less: they can share
            # a site with another one.
            self._run("opt_expr -mux_undef -noclkinv")
            self._run(f"abc -luts 2:2,3,6:5 {_SCRIPTS[flow]}")
            self._run("clean")
            self._run("techmap -map +/xilinx/lut_map.v -map +/xilinx/cells_map.v -D LUT_WIDTH=6")
            self._run("xilinx_dffopt")
            self._run("opt_lut_ins -tech xilinx")
            self._run("clean")
        self._run("blackbox =A:whitebox")
        self._run(f"write_json {request['netlist']}")

    def prove(self, request: dict[str, Any]) -> None:
        """Prove that a module says ``equal``; end with an error if it need not."""
        for name, path in request["units"].items():
            # Each unit has its own copy of the modules below it, so they may differ.
            self._run("design -reset")
            self._run("read_verilog -sv cells.v")
            self._run(f"read_verilog -sv -icells -D LUTWISE_ALU {path}")
            self._run(f"hierarchy -check -top {name}")
            self._run("proc")
            self._run("flatten")
            self._run(f"design -stash {name}_alone")
        self._run("design -reset")
        self._run(f"read_verilog -sv {request['miter']}")
        for name in request["units"]:
            self._run(f"design -copy-from {name}_alone -as {name} {name}")
        self._run(f"hierarchy -check -top {request['top']}")
        self._run("proc")
        self._run("flatten")
        self._run("opt -full")
        self._run(
            f"sat -verify -tempinduct -tempinduct-inductonly -maxsteps {request['steps']} "
            "-set legal 1 -prove equal 1 -show-ports "
            f"-dump_json {request['counterexample']} {request['top']}"
        )


def _serve_in_fork(yosys: _Yosys, request: dict[str, Any]) -> int:
    """Serve one request in a fork and return how that ended."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if "miter" in request:
                yosys.prove(request)
            else:
                yosys.map(request)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Serve requests until the standard input is closed."""
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    yosys = _Yosys()
    answers.write(json.dumps({"status": 0}) + "\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps({"status": _serve_in_fork(yosys, json.loads(line))}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
