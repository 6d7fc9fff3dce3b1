# SPDX-License-Identifier: Apache-2.0
import importlib.metadata
import os
import signal
from pathlib import Path

import pytest

from lutwise.errors import ConfigError, ToolError
from lutwise.hw import synthesis
from lutwise.hw.cli_support import synthesize_dot_product
from lutwise.hw.store import Store
from lutwise.hw.synthesis import Flow, Synthesizer
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
        parse_weight("int4"), parse_element("int4"), 4, "star", synthesizer=synthesizer
    )
    with Synthesizer(store=store) as fresh:
        again = synthesize_dot_product(
            parse_weight("int4"), parse_element("int4"), 4, "star", synthesizer=fresh
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
def test_report_picks_the_smallest_style(synthesizer: Synthesizer) -> None:
    report = synthesize_dot_product(
        parse_weight("e2m1"), parse_element("e2m1"), 2, synthesizer=synthesizer
    )
    assert report["luts"] == min(report["tried"].values())
    assert report["luts_per_mac"] == report["luts"] / 2
    assert report["verification"]["mismatches"] == 0


@pytest.mark.rtl
def test_structure_beats_plain_verilog(synthesizer: Synthesizer) -> None:
    plain, best = (
        synthesize_dot_product(
            parse_weight("int4"), parse_element("int4"), 4, style, synthesizer=synthesizer
        )
        for style in ("plain", "auto")
    )
    assert plain["flow"] == "abc9"
    assert best["luts"] < 0.8 * plain["luts"]


def test_unknown_style_is_refused() -> None:
    with pytest.raises(ConfigError, match="no style 'magic'; wanted one of auto, plain, star"):
        synthesize_dot_product(parse_weight("int4"), parse_element("int4"), 1, "magic")
