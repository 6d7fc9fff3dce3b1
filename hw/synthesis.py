# SPDX-License-Identifier: Apache-2.0
"""Synthesis of units for UltraScale+ with Yosys, in a worker process.

The flow maps to six-input LUTs, carry chains and flip-flops; no DSP, no block RAM, no pads.
"""

import atexit
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import IO, Any, Final

from lutwise.errors import ToolError
from lutwise.hw.netlist import Netlist
from lutwise.hw.packing import pack
from lutwise.hw.store import Store, content_key

__all__ = [
    "FLOW_REVISION",
    "Flow",
    "SynthesisResult",
    "Synthesizer",
    "synthesize",
    "synthesizer_available",
    "tool_name",
]

FLOW_REVISION: Final = 2
"""Counts up whenever the flow or the way of counting changes; part of every key."""


class Flow(Enum):
    """How logic is mapped to LUTs."""

    LEAN = "lean"
    """One pass of abc with its default script: fast, and right for small circuits."""

    AREA = "area"
    """One pass of abc that takes the circuit as it is written and looks for the fewest LUTs."""

    ABC9 = "abc9"
    """The default of ``synth_xilinx``: slower; the fair one for behavioural circuits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisResult:
    """Size and depth of a mapped unit.

    Args:
        luts: LUT6 sites, estimated (see ``lutwise.hw.packing``).
        luts_raw: LUT functions, as Yosys counts them.
        carry8: CARRY8 cells, from the carry chains.
        ffs: Flip-flops.
        depth: LUTs on the longest path.
        delay_ns: Estimated delay of the longest path (see ``Netlist.delay_ns``).
        tool: Name and version of the synthesizer.
        flow: How it was run.
    """

    luts: int
    luts_raw: int
    carry8: int
    ffs: int
    depth: int
    delay_ns: float
    tool: str
    flow: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def synthesizer_available() -> bool:
    """Tell whether the synthesizer is installed."""
    return importlib.util.find_spec("pyosys") is not None


@cache
def _version() -> str:
    try:
        return importlib.metadata.version("pyosys")
    except importlib.metadata.PackageNotFoundError as error:
        raise ToolError(
            "pyosys", "unknown", "it is not installed; install it with 'pip install pyosys'"
        ) from error


def tool_name() -> str:
    """Return name and version of the synthesizer and revision of the flow.

    Raises:
        ToolError: The synthesizer is not installed.
    """
    return f"yosys {_version()} (pyosys; flow {FLOW_REVISION})"


class Synthesizer:
    """A worker process that maps one unit after the other.

    Use as a context manager, or call ``close``. Each unit is mapped in a fork of the worker, so
    its netlist does not depend on the units before it. A unit that Yosys refuses, or that grows
    too large, raises ``ToolError`` with the end of the log; a worker that hangs or dies is
    replaced. The next unit is not affected.

    Args:
        time_limit_s: Wall-clock seconds for one unit.
        memory_limit_mb: Address space of the worker.
        store: Where results are kept.
    """

    def __init__(
        self,
        *,
        time_limit_s: float = 600.0,
        memory_limit_mb: int = 6144,
        store: Store | None = None,
    ) -> None:
        self.time_limit_s = time_limit_s
        self.memory_limit_mb = memory_limit_mb
        self.store = store or Store()
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="lutwise-synth-")

    def __enter__(self) -> "Synthesizer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker and remove its files."""
        self._stop()
        self._folder.cleanup()

    def map(self, verilog: str, top: str, *, flow: Flow = Flow.LEAN) -> Netlist:
        """Synthesize a module to a netlist of primitives.

        Args:
            verilog: Text with all modules.
            top: Name of the top module.
            flow: How to map.

        Raises:
            ToolError: The synthesizer is missing, refused the text, or broke a limit.
        """
        key = content_key("netlist", verilog, top, flow.value, tool_name())
        kept = self.store.get(key)
        if kept is not None:
            with contextlib.suppress(ToolError, KeyError, TypeError, ValueError, AttributeError):
                return Netlist.from_json(kept, top)
        document = _strip(self._run(verilog, top, flow))
        self.store.put(key, document)
        return Netlist.from_json(document, top)

    def synthesize(self, verilog: str, top: str, *, flow: Flow = Flow.LEAN) -> SynthesisResult:
        """Synthesize a module and measure it; arguments and errors as ``map``."""
        return measure(self.map(verilog, top, flow=flow), flow=flow)

    def prove(
        self, miter: str, top: str, units: Mapping[str, str], *, steps: int = 1
    ) -> dict[str, Any] | None:
        """Prove by induction that the output ``equal`` of a module stays 1.

        The induction assumes any state of the registers in which ``equal`` is 1, and inputs
        that keep the output ``legal`` 1.

        Args:
            miter: Text of the module, which instantiates the units.
            top: Its name.
            units: Text with all modules of each unit, by the name of its top module.
            steps: Clock cycles that the induction may look back, at most.

        Returns:
            ``None`` when it is proven, else a counterexample as Yosys writes it (WaveJSON).

        Raises:
            ToolError: The synthesizer is missing, refused the text, or broke a limit.
        """
        files = {"miter.v": miter, **{f"unit_{name}.v": text for name, text in units.items()}}
        request = {
            "miter": "miter.v",
            "top": top,
            "units": {name: f"unit_{name}.v" for name in units},
            "steps": steps,
            "counterexample": "counterexample.json",
        }
        status, document = self._ask(request, files, answer="counterexample.json")
        if status == 0:
            return None
        if status != 1 or document is None:
            raise self._failure(f"proof {top!r}", status)
        return document

    def _run(self, verilog: str, top: str, flow: Flow) -> dict[str, Any]:
        """Let the worker map a module; return the netlist as Yosys wrote it."""
        request = {"verilog": "unit.v", "top": top, "flow": flow.value, "netlist": "unit.json"}
        status, document = self._ask(request, {"unit.v": verilog}, answer="unit.json")
        if status != 0:
            raise self._failure(f"module {top!r}", status)
        if document is None:
            raise self._failure(f"module {top!r}: no netlist", status)
        return document

    def _ask(
        self, request: Mapping[str, Any], files: Mapping[str, str], *, answer: str
    ) -> tuple[int | None, dict[str, Any] | None]:
        """Give the worker files and a request; return its status and the file that it wrote."""
        process = self._start()
        folder = Path(self._folder.name)
        (folder / answer).unlink(missing_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # a dead worker shows in the answer that is missing
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        status = self._answer()
        try:
            document = json.loads((folder / answer).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return status, None
        return status, document if isinstance(document, dict) else None

    def _start(self) -> subprocess.Popen[str]:
        """Return a living worker, with an empty log."""
        if self._process is not None and self._process.poll() is None:
            assert self._log is not None
            self._log.seek(0)
            self._log.truncate()
            return self._process
        self._stop()
        _version()
        folder = Path(self._folder.name)
        self._log = (folder / "log").open("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "lutwise.hw.yosys_worker",
                str(self.memory_limit_mb << 20),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=folder,
            env={**os.environ, "YOSYS_MAX_THREADS": "1"},
            text=True,
            start_new_session=True,  # so that its forks and their helpers end with it
        )
        status = self._answer()
        if status != 0:
            raise self._failure("the worker did not start", status)
        return self._process

    def _answer(self) -> int | None:
        """Wait for one line of the worker; return its status, or ``None`` without one."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(self.time_limit_s):
                return None
        line = process.stdout.readline()
        return int(json.loads(line)["status"]) if line else None

    def _failure(self, what: str, status: int | None) -> ToolError:
        """Describe a failure; end the worker unless it said itself that a unit failed."""
        process = self._process
        assert process is not None
        assert self._log is not None
        self._log.seek(0)
        log = self._log.read()[-4000:]
        reason = f"ended with status {status}"
        if status is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
            ended = process.poll()
            reason = (
                f"no answer within {self.time_limit_s:g} s"
                if ended is None
                else f"the worker ended with status {ended}"
            )
            self._stop()
        return ToolError("yosys", _version(), f"{log}\n{what}: {reason}")

    def _stop(self) -> None:
        """End the worker with its forks."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None


def measure(netlist: Netlist, *, flow: Flow = Flow.LEAN) -> SynthesisResult:
    """Count what a mapped netlist needs."""
    packing = pack(netlist)
    return SynthesisResult(
        luts=packing.luts,
        luts_raw=packing.luts_raw,
        carry8=packing.carry8,
        ffs=netlist.flip_flops,
        depth=netlist.depth(),
        delay_ns=round(netlist.delay_ns(), 2),
        tool=tool_name(),
        flow=flow.value,
    )


@cache
def _shared() -> Synthesizer:
    synthesizer = Synthesizer()
    atexit.register(synthesizer.close)
    return synthesizer


def synthesize(verilog: str, top: str, *, flow: Flow = Flow.LEAN) -> SynthesisResult:
    """Synthesize a module with a worker that this process keeps for all calls.

    Args:
        verilog: Text with all modules.
        top: Name of the top module.
        flow: How to map.

    Raises:
        ToolError: The synthesizer is missing, refused the text, or broke a limit.
    """
    return _shared().synthesize(verilog, top, flow=flow)


def _strip(document: dict[str, Any]) -> dict[str, Any]:
    """Keep of a netlist what ``Netlist.from_json`` reads."""
    modules = {}
    for name, module in document["modules"].items():
        if module.get("attributes", {}).get("blackbox"):
            continue
        cells = {}
        for index, cell in enumerate(module["cells"].values()):
            init = cell.get("parameters", {}).get("INIT")
            cells[str(index)] = {
                "type": cell["type"],
                "connections": cell["connections"],
                "parameters": {} if init is None else {"INIT": init},
            }
        modules[name] = {"ports": module["ports"], "cells": cells}
    return {"modules": modules}
