# SPDX-License-Identifier: Apache-2.0
import importlib.metadata
import json
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from lutwise.cli import cli
from lutwise.errors import ConfigError, ToolError
from lutwise.hw import synthesis
from lutwise.hw.cli_support import synthesize_dot_product
from lutwise.hw.dot_product import smallest_units
from lutwise.hw.store import Store
from lutwise.hw.synthesis import FLOW_REVISION, Flow, Synthesizer, tool_name
from lutwise.quant.formats import parse_element, parse_weight

_AND = "module top (input a, input b, output y); assign y = a & b; endmodule\n"


@pytest.mark.rtl
def test_result_counts_a_small_module(synthesizer: Synthesizer) -> None:
    result = synthesizer.synthesize(_AND, "top")
    assert (result.luts, result.carry8, result.ffs, result.depth) == (1, 0, 0, 1)
    assert result.tool.startswith("yosys ")
    assert result.to_dict()["flow"] == "lean"


@pytest.mark.rtl
@pytest.mark.parametrize(
    ("verilog", "message"),
    [
        ("module top (input a", "syntax error"),
        ("module other; endmodule", "top"),
    ],
    ids=["syntax", "no top"],
)
def test_refused_text_raises_and_spares_the_next_unit(
    verilog: str, message: str, synthesizer: Synthesizer
) -> None:
    with pytest.raises(ToolError, match=message) as caught:
        synthesizer.map(verilog, "top")
    assert caught.value.tool == "yosys"
    assert synthesizer.synthesize(_AND + "// next\n", "top").luts == 1


@pytest.mark.rtl
def test_dead_worker_is_replaced(synthesizer: Synthesizer) -> None:
    synthesizer.synthesize(_AND + "// before\n", "top")
    process = synthesizer._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert synthesizer.synthesize(_AND + "// after\n", "top").luts == 1
    assert synthesizer._process is not process


@pytest.mark.rtl
def test_worker_that_hangs_is_stopped_and_replaced(synthesizer: Synthesizer) -> None:
    synthesizer.synthesize(_AND + "// started\n", "top")
    process = synthesizer._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    limit, synthesizer.time_limit_s = synthesizer.time_limit_s, 0.3
    try:
        with pytest.raises(ToolError, match=r"no answer within 0\.3 s"):
            synthesizer.map(_AND + "// hangs\n", "top")
    finally:
        synthesizer.time_limit_s = limit
    assert synthesizer.synthesize(_AND + "// again\n", "top").luts == 1


@pytest.mark.rtl
@pytest.mark.usefixtures("synthesizer")
def test_memory_limit_holds(store: Store) -> None:
    with (
        Synthesizer(memory_limit_mb=60, store=store) as small,
        pytest.raises(ToolError, match="did not start"),
    ):
        small.map(_AND, "top")


@pytest.mark.rtl
def test_netlist_does_not_depend_on_earlier_units(synthesizer: Synthesizer, store: Store) -> None:
    first = synthesize_dot_product(
        parse_weight("int4"), parse_element("int4"), 4, "table", synthesizer=synthesizer
    )
    with Synthesizer(store=store) as fresh:
        again = synthesize_dot_product(
            parse_weight("int4"), parse_element("int4"), 4, "table", synthesizer=fresh
        )
    assert first == again


@pytest.mark.rtl
def test_kept_netlists_are_used_and_corrupt_ones_made_again(
    synthesizer: Synthesizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesizer, "store", Store(tmp_path))
    before = synthesizer.synthesize(_AND, "top")
    kept = list(tmp_path.rglob("*.json.gz"))
    assert len(kept) == 1
    monkeypatch.setattr(synthesizer, "_run", _refuse)
    assert synthesizer.synthesize(_AND, "top") == before
    monkeypatch.undo()
    monkeypatch.setattr(synthesizer, "store", Store(tmp_path))
    kept[0].write_bytes(b"damaged")
    assert synthesizer.synthesize(_AND, "top") == before


def _refuse(verilog: str, top: str, flow: Flow) -> dict[str, object]:
    raise AssertionError("it was kept")


def test_missing_synthesizer_is_named(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    synthesis._version.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", missing)
    try:
        with (
            Synthesizer(store=store) as worker,
            pytest.raises(ToolError, match="pip install pyosys"),
        ):
            worker.map(_AND, "top")
    finally:
        synthesis._version.cache_clear()


@pytest.mark.rtl
@pytest.mark.parametrize("flow", Flow)
def test_every_flow_maps_and_says_so(flow: Flow, synthesizer: Synthesizer) -> None:
    text = "module top (input [7:0] a, b, output [7:0] y); assign y = a + b; endmodule\n"
    result = synthesizer.synthesize(text, "top", flow=flow)
    assert (result.luts, result.flow) == (8, flow.value)
    assert 0.5 < result.delay_ns < 1.0
    assert result.tool == tool_name()


def test_the_revision_of_the_flow_is_part_of_the_tools_name() -> None:
    assert f"flow {FLOW_REVISION})" in tool_name()


@pytest.mark.rtl
def test_report_picks_the_smallest_of_the_best_counts(synthesizer: Synthesizer) -> None:
    w, a = parse_weight("e3m1"), parse_element("e2m1")
    report = synthesize_dot_product(w, a, 2, synthesizer=synthesizer)
    counted = {
        str(unit.architecture): sum(unit.counted_sites().values())
        for unit in smallest_units(w, a, 2)
    }
    assert report["tried"].keys() == counted.keys()
    assert len(counted) > 1
    assert report["luts"] == report["tried"][report["style"]] == min(report["tried"].values())
    assert report["luts_per_mac"] == report["luts"] / 2
    assert report["counted_sites"] == counted[report["style"]]
    assert report["delay_ns"] > 1
    assert report["verification"]["mismatches"] == 0


@pytest.mark.rtl
@pytest.mark.parametrize(
    ("style", "flow"), [("chain-a", "lean"), ("magnitude-table", "area"), ("plain", "abc9")]
)
def test_report_of_one_architecture(style: str, flow: str, synthesizer: Synthesizer) -> None:
    report = synthesize_dot_product(
        parse_weight("int3"), parse_element("uint3"), 2, style, synthesizer=synthesizer
    )
    assert (report["style"], report["flow"]) == (style, flow)
    assert report["tried"] == {style: report["luts"]}
    assert (report["counted_sites"] is None) == (style == "plain")


@pytest.mark.rtl
def test_structure_beats_plain_verilog(synthesizer: Synthesizer) -> None:
    plain, best = (
        synthesize_dot_product(
            parse_weight("int4"), parse_element("int4"), 4, style, synthesizer=synthesizer
        )
        for style in ("plain", "auto")
    )
    assert best["luts"] < 0.8 * plain["luts"]


@pytest.mark.parametrize(
    ("style", "message"),
    [
        ("magic", "no architecture 'magic'; wanted plain, table, chain-w, .*; or auto$"),
        ("array-booth-2", "architecture array-booth-2 does not fit int4n x int4; wanted plain or"),
    ],
)
def test_unusable_styles_are_refused(style: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        synthesize_dot_product(parse_weight("int4"), parse_element("int4"), 1, style)


@pytest.mark.rtl
@pytest.mark.usefixtures("synthesizer")
def test_the_command_reports_a_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTWISE_CACHE", str(tmp_path))
    arguments = ["synth", "int3", "uint3", "--lanes", "2"]
    done = CliRunner().invoke(cli, [*arguments, "--json"])
    report = json.loads(done.stdout)
    assert report["luts"] == min(report["tried"].values())
    shown = CliRunner().invoke(cli, [*arguments, "--style", report["style"]])
    assert f"style: {report['style']}" in shown.stdout
    assert f"counted sites: {report['counted_sites']}" in shown.stdout
    refused = CliRunner().invoke(cli, [*arguments, "--style", "booth"])
    assert isinstance(refused.exception, ConfigError)


_LATCH = """module {name} (input clk, input x, output reg y);
always @(posedge clk) y <= {value};
endmodule
"""
_PAIR = """module top (input clk, input x, output legal, output equal);
wire p, q;
assign legal = 1'b1;
assign equal = p == q;
one one_unit (.clk(clk), .x(x), .y(p));
other other_unit (.clk(clk), .x(x), .y(q));
endmodule
"""


def _latches(one: str, other: str) -> dict[str, str]:
    values = {"one": one, "other": other}
    return {name: _LATCH.format(name=name, value=value) for name, value in values.items()}


@pytest.mark.rtl
def test_a_proof_holds_fails_or_is_no_proof(synthesizer: Synthesizer) -> None:
    assert synthesizer.prove(_PAIR, "top", _latches("x", "~~x")) is None
    found = synthesizer.prove(_PAIR, "top", _latches("x", "x | y"))
    assert found is not None
    assert {"x", "equal"} <= {signal["name"] for signal in found["signal"]}
    with pytest.raises(ToolError, match="syntax error"):
        synthesizer.prove(_PAIR, "top", _latches("x", "x +"))
    with pytest.raises(ToolError, match="miter"):
        synthesizer.prove("module miter; endmodule", "top", {})
    assert synthesizer.synthesize(_AND, "top").luts == 1


@pytest.mark.rtl
def test_a_proof_keeps_the_time_limit(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesizer.synthesize(_AND + "// a worker\n", "top")
    monkeypatch.setattr(synthesizer, "time_limit_s", 0.0)
    with pytest.raises(ToolError, match="no answer within 0 s"):
        synthesizer.prove(_PAIR, "top", _latches("x", "x"))
    monkeypatch.undo()
    assert synthesizer.prove(_PAIR, "top", _latches("x", "x")) is None
