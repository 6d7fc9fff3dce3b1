# SPDX-License-Identifier: Apache-2.0
"""The command line from the outside: results, exit codes, messages."""

import csv
import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from lutwise.export.runnable import NETWORK_FILE
from lutwise.files import locked
from lutwise.quant import zoo
from lutwise.quant.network_file import save_network
from tests.app.command import quantize
from tests.app.processes import seconds_until_gone
from tests.quant.nets import network_of

RESNET = Path(zoo.__file__).parent / "resnet8.safetensors"
FEW = ["--calib-images", "32", "--eval-images", "60", "--threads", "1", "--quiet"]


def test_run_writes_what_it_says(tmp_path: Path) -> None:
    out = tmp_path / "a"
    done = quantize("run", "zoo/resnet8", "--weights", "e2m1", "--acts", "ue2m2", "--out", out,
                    "--check-images", 20, "--json", *FEW)  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["accuracy"]["low"] < result["accuracy"]["value"] < result["accuracy"]["high"]
    assert [c["mismatches"] for c in result["export"]["checks"]] == [0, 0]
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest["outputs"]) == {
        "recipe.yaml", "weights.safetensors", "model.qonnx", "network.safetensors", "cost.json",
        "layers.csv", "metrics.json",
    }  # fmt: skip
    assert (out / "report.html").stat().st_size > 10_000
    assert done.stderr == ""

    again = quantize("run", "zoo/resnet8", "--recipe", out / "recipe.yaml", "--out",
                     tmp_path / "b", "--check-images", 20, *FEW)  # fmt: skip
    assert again.returncode == 0, again.stderr
    for name in manifest["outputs"]:
        if name not in ("metrics.json",):  # holds the run's name
            assert (out / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name

    priced = quantize("estimate", out, "--pe", 1, "--simd", 1, "--json")
    assert priced.returncode == 0, priced.stderr
    luts = json.loads(priced.stdout)["total"]["folded"]["luts"]
    assert 0 < luts < result["luts_folded"]["dot_products"]
    read = quantize("estimate", out / "model.qonnx", "--pe", 1, "--simd", 1, "--json")
    assert read.stdout == priced.stdout
    refused = quantize("convert", out / "model.qonnx", tmp_path / "qcdq.onnx")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: FloatQuant 'stem.0/weight_values")
    assert not (tmp_path / "qcdq.onnx").exists()


def test_files_for_tools_and_every_executor(tmp_path: Path) -> None:
    out = tmp_path / "a"
    done = quantize("run", "zoo/cnn", "--weights", "e2m1", "--acts", "ue2m2", "--out", out,
                    "--for", "finn", "--check-images", 8, "--json", *FEW)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (written,) = json.loads(done.stdout)["exports"]
    assert written["written"] == str(out / "model.finn.onnx")
    assert written["check"]["differing"] == 0
    assert written["check"]["numbers"] > 10_000

    target = tmp_path / "h.onnx"
    made = quantize("export", out, "--for", "hls4ml", "--out", target, "--images", 4, "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["check"]["data"].startswith("normally distributed")

    data = ("--data", "zoo/fashion_mnist", "--images", 16)
    same = quantize("check", f"exact:{out}", out, *data, "--json")
    assert same.returncode == 0, same.stdout
    found = json.loads(same.stdout)
    assert (found["second"], found["output"]) == (f"onnxruntime:{out}/model.qonnx", None)
    assert found["tensors"] > 5
    files = quantize("check", f"exact:{out}", out / "model.finn.onnx", *data, "--tolerance", 1e-5)
    assert files.returncode == 0, files.stdout
    torch = quantize("check", f"torch:{out}", f"exact:{out}", *data, "--tolerance", 1e-4, "--json")
    apart = json.loads(torch.stdout)
    assert apart["tensors"] == found["tensors"]
    # Fake quantization sums in float32: codes next to a tie may differ, few do.
    for difference in apart["differences"]:
        if difference["tensor"] != "head":
            assert difference["differing"] < 2e-3 * difference["numbers"]
    moved = quantize("check", f"torch:{tmp_path}", out)
    assert moved.returncode == 1
    assert "network.safetensors" in moved.stderr


def test_files_for_tools_are_refused_by_name(tmp_path: Path) -> None:
    out = tmp_path / "a"
    done = quantize("run", "zoo/cnn", "--weights", "int4", "--acts", "int8", "--mode", "layerwise",
                    "--out", out, "--check-images", 0, *FEW)  # fmt: skip
    assert done.returncode == 0, done.stderr
    refused = quantize("export", out, "--for", "finn")
    assert refused.returncode == 1
    assert "has no form for FINN" in refused.stderr
    assert "quantize the model in mode dataflow" in refused.stderr
    assert not (out / "model.finn.onnx").exists()


def test_run_names_the_layer_that_dominates(tmp_path: Path) -> None:
    ruin = "overrides=[{layers: stages.1.conv2, weights: int2}]"
    loud = [word for word in FEW if word != "--quiet"]
    done = quantize("run", "zoo/resnet8", "--preset", "fast", "--set", ruin, "--out", tmp_path,
                    "--check-images", 0, *loud)  # fmt: skip
    assert done.returncode == 0, done.stderr
    warned = done.stderr[done.stderr.index("warning: ") :].splitlines()
    assert warned[0].startswith("warning: stages.1.conv2 (conv) makes ")
    assert warned[1:] == [
        "for the recipe:", "  overrides:", '    - {layers: "stages.1.conv2", weights: int8}',
    ]  # fmt: skip
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [a["layer"] for a in metrics["advice"]] == ["stages.1.conv2"]
    assert metrics["diagnosis"]["images"] == 32
    assert "Layers that dominate the error" in (tmp_path / "report.html").read_text()
    with (tmp_path / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    worst = max(rows, key=lambda row: float(row["error_share"]))
    assert worst["layer"] == "stages.1.conv2"
    assert all("bias_correction_gain_db" in row for row in rows)


SPACE = """
recipe: {algorithms: []}
points:
  - {weights: int3, activations: uint3}
  - {weights: e2m1, activations: ue2m2}
  - {weights: e2m2, activations: ue2m3}
"""


def contents(folder: Path) -> dict[str, bytes]:
    """Everything a sweep wrote but the times."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "events.jsonl"
    }


def test_a_killed_sweep_continues_to_the_same_bytes(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)

    def command(out: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "lutwise", "sweep", "zoo/resnet8", "--space", str(space)),
            *("--out", str(out), "--check-images", "10", *FEW),
        ]

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert quantize(*command(whole)[3:]).returncode == 0
    process = subprocess.Popen(command(cut), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (cut / "points" / "int3-uint3" / "report.html").exists():
        assert process.poll() is None, "ended before it was killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cut / "sweep.json").exists()
    before = len((cut / "events.jsonl").read_text().splitlines())
    assert quantize(*command(cut)[3:]).returncode == 0
    assert contents(cut) == contents(whole)
    events = (cut / "events.jsonl").read_text().splitlines()
    assert len(events) == len((whole / "events.jsonl").read_text().splitlines())
    assert before > 0


@pytest.mark.parametrize("to_all", [True, False], ids=["terminal", "parent"])
def test_an_interrupted_parallel_sweep_stops_and_continues(tmp_path: Path, to_all: bool) -> None:
    space, out = tmp_path / "space.yaml", tmp_path / "out"
    space.write_text(SPACE)
    arguments = ["sweep", "zoo/resnet8", "--space", str(space), "--out", str(out),
                 "--check-images", "10", *FEW]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "lutwise", *arguments, "--jobs", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not (out / "events.jsonl").exists():
        assert process.poll() is None, "ended before it was interrupted"
        time.sleep(0.02)
    (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)
    start = time.monotonic()
    printed, said = process.communicate()
    assert time.monotonic() - start < 4  # about one on an idle machine
    assert process.returncode == 130
    assert printed == ""
    assert said.strip() == "interrupted; the same command continues where it stopped"
    assert seconds_until_gone(process) < 2
    assert not list(out.rglob(".*.part"))
    assert not (out / "sweep.json").exists()
    before = finished_steps(out)
    assert before
    assert quantize(*arguments).returncode == 0
    assert not set(before) & set(finished_steps(out)[len(before) :])


def finished_steps(out: Path) -> list[str]:
    lines = (out / "events.jsonl").read_text().splitlines()
    return [json.loads(line)["result"] for line in lines]


def test_a_directory_has_one_writer(tmp_path: Path) -> None:
    out = tmp_path / "busy"
    for command in (["run"], ["sweep"]):
        with locked(out):
            done = quantize(*command, "zoo/resnet8", "--out", out, *FEW)
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: another process is writing {str(out)!r}")
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_parallel_points_give_the_same(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)
    for jobs in (1, 2):
        done = quantize("sweep", "zoo/resnet8", "--space", space, "--out", tmp_path / str(jobs),
                        "--jobs", jobs, "--check-images", 10, *FEW)  # fmt: skip
        assert done.returncode == 0, done.stderr
    first, second = contents(tmp_path / "1"), contents(tmp_path / "2")
    assert first == second


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch BOOM",)


def broken(tmp_path: Path, case: str) -> list[object]:
    """Return the arguments of a call that must fail, and make the files it needs."""
    out = ["--out", tmp_path / "out", *FEW]
    match case:
        case "missing file":
            return ["run", tmp_path / "no.safetensors", "--arch", "zoo/resnet8", *out]
        case "truncated":
            path = tmp_path / "cut.safetensors"
            path.write_bytes(RESNET.read_bytes()[:100_000])
            return ["run", path, "--arch", "zoo/resnet8", *out]
        case "hostile pickle":
            path = tmp_path / "bomb.pt"
            path.write_bytes(pickle.dumps({"state_dict": _Bomb()}))
            return ["run", path, "--arch", "zoo/resnet8", *out]
        case "wrong architecture":
            return ["run", RESNET, "--arch", "zoo/mobilenet", *out]
        case "wrong image size":
            path = tmp_path / "big.npz"
            np.savez(path, images=np.zeros((4, 1, 32, 32), np.float32), labels=np.zeros(4, int))
            return ["run", "zoo/resnet8", "--calib", path, *out]
        case "empty data":
            (tmp_path / "images").mkdir()
            return ["run", "zoo/resnet8", "--calib", tmp_path / "images", *out]
        case "nan weights":
            path = tmp_path / "nan.safetensors"
            state = load_file(RESNET)
            state["head.weight"][0, 0] = torch.nan
            save_file(state, path)
            return ["run", path, "--arch", "zoo/resnet8", "--calib", "zoo/fashion_mnist", *out]
        case "unwritable":
            (tmp_path / "file").write_text("")
            return ["run", "zoo/resnet8", "--out", tmp_path / "file" / "run", *FEW]
        case "recipe key":
            path = tmp_path / "r.yaml"
            path.write_text("wieghts: int4\n")
            return ["run", "zoo/resnet8", "--recipe", path, *out]
        case "unknown class":
            path = tmp_path / "eleven.npz"
            images = np.zeros((2, 28, 28), np.uint8)
            images[0] = 1
            np.savez(path, images=images, labels=np.array([9, 10]))
            return ["run", "zoo/resnet8", "--eval", path, "--calib", "zoo/fashion_mnist", *out]
        case "unknown class in labels.csv":
            Image.new("L", (28, 28)).save(tmp_path / "a.png")
            (tmp_path / "labels.csv").write_text("file,label\na.png,10\n")
            return ["run", "zoo/resnet8", "--eval", tmp_path, "--calib", "zoo/fashion_mnist", *out]
        case "more class folders":
            for number in range(11):
                (tmp_path / "eval" / f"{number:02d}").mkdir(parents=True)
                Image.new("L", (28, 28), number).save(tmp_path / f"eval/{number:02d}/a.png")
            return ["run", "zoo/resnet8", "--eval", tmp_path / "eval", "--calib",
                    "zoo/fashion_mnist", *out]  # fmt: skip
        case "same images":
            return ["run", "zoo/resnet8", "--calib", "zoo/fashion_mnist", "--eval",
                    _calibration_as_file(tmp_path), *out]  # fmt: skip
        case _:
            return ["run", "zoo/resnet8", "--weights", case, *out]


def _calibration_as_file(tmp_path: Path) -> Path:
    with np.load(Path(zoo.__file__).parent / "fashion_mnist.npz") as data:
        path = tmp_path / "copy.npz"
        np.savez(path, images=data["calib_images"], labels=data["calib_labels"])
    return path


@pytest.mark.parametrize(
    ("case", "code", "message"),
    [
        ("missing file", 1, "no.safetensors"),
        ("truncated", 1, "cut.safetensors"),
        ("hostile pickle", 1, "bomb.pt"),
        ("wrong architecture", 1, "zoo/mobilenet"),
        ("wrong image size", 1, "(1, 28, 28)"),
        ("empty data", 1, "images"),
        ("nan weights", 1, "head.weight"),
        ("unwritable", 1, "cannot write"),
        ("recipe key", 2, "wieghts: unknown key"),
        ("unknown class", 1, "eleven.npz: 1 labels are out of range, the first is 10 of image 1"),
        ("unknown class in labels.csv", 1, "the model has 10 classes"),
        ("more class folders", 1, "the first is 10 of image 10"),
        ("same images", 1, "also calibration images"),
        ("e0m3", 2, "no format 'e0m3'"),
        ("int9", 2, "no format 'int9'"),
        ("e9m9", 2, "no format 'e9m9'"),
    ],
)
def test_bad_input_gets_one_message(tmp_path: Path, case: str, code: int, message: str) -> None:
    done = quantize(*broken(tmp_path, case))
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "BOOM").exists()
    assert not Path("BOOM").exists()


NET = """
from torch import nn


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
"""


def test_a_model_without_preprocessing_is_told_one(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.save(layers.state_dict(), tmp_path / "net.pt")
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    out = tmp_path / "out"
    command = ("run", tmp_path / "net.pt", "--arch", f"{tmp_path / 'net.py'}:build",
               "--trust-code", "--calib", tmp_path / "images.npz", "--weights", "int4",
               "--preset", "fast", "--out", out, "--quiet", "--threads", 1)  # fmt: skip
    without = quantize(*command)
    assert without.returncode == 1
    assert "give one with --preprocessing" in without.stderr
    wrong = quantize(*command, "--preprocessing", "mean=0.5")
    assert wrong.returncode == 2
    assert "std is missing" in wrong.stderr
    assert not out.exists()
    done = quantize(*command, "--preprocessing", "mean=0.5;std=0.25")
    assert done.returncode == 0, done.stderr
    noted = json.loads((out / "manifest.json").read_text())["inputs"]["model"]["preprocessing"]
    assert (noted["mean"], noted["std"], noted["channels"]) == ([0.5], [0.25], "grey")
    # The run notes it, so what reads the run can prepare images too.
    file = quantize("export", out, "--for", "finn", "--data", tmp_path / "images.npz", "--json")
    assert file.returncode == 0, file.stderr
    assert json.loads(file.stdout)["check"]["images"] == 12


@pytest.mark.parametrize("clock", ["nan", "inf"])
def test_a_clock_that_is_no_number_is_refused(priced: Path, clock: str) -> None:
    done = quantize("estimate", priced, "--clock", clock, "--json")
    assert done.returncode == 2
    assert done.stderr == f"error: the clock is a positive number of MHz, got {clock}\n"
    assert done.stdout == ""


def test_more_images_than_memory_holds_get_one_message(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    net = nn.Sequential(nn.Linear(4, 2)).eval()
    network = network_of(net, torch.randn(8, 4), "int4", "uint4", "dataflow")
    (folder / NETWORK_FILE).write_bytes(save_network(network))
    done = quantize("verify", folder, "--rtl", "--images", 10**13)
    assert done.returncode == 1
    assert done.stderr.startswith("error: not enough memory: ")
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in folder.iterdir()] == [NETWORK_FILE]


def test_estimate_of_another_file_says_what_it_wants(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<html>")
    done = quantize("estimate", tmp_path / "report.html")
    assert done.returncode == 1
    assert "report.html is no valid QONNX file" in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run"], "Missing argument 'MODEL'"),
        (["run", "zoo/resnet8", "--set", "x"], "wants KEY=VALUE"),
        (["sweep", "zoo/resnet8"], "Missing option '--out'"),
        (["frobnicate"], "No such command"),
    ],
)
def test_wrong_usage_exits_with_two(args: list[str], message: str) -> None:
    done = quantize(*args)
    assert done.returncode == 2
    assert message in done.stderr


def test_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    # A file-size limit fails writes as a full disk does.
    command = f"ulimit -f 64; trap '' XFSZ; exec {sys.executable} -m lutwise run zoo/resnet8"
    done = subprocess.run(
        ["bash", "-c", f"{command} --out {out} {' '.join(FEW)}"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.rglob(".*.npz.*"))
    assert not (out / "metrics.json").exists()


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = quantize("run", "zoo/mobilenet", "--dry-run", "--json", "--out", out, *FEW)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["macs"] > 1e6
    assert len(plan["layers"]) > 20
    about = plan["seconds_about"]
    assert 0 < about["low"] < about["value"] < about["high"]
    assert sum(plan["seconds_by_step"].values()) == pytest.approx(about["value"], rel=0.02, abs=0.2)
    assert {"calibrate", "find ranges", "bias_correction", "check in qonnx"} <= set(
        plan["seconds_by_step"]
    )
    assert plan["memory_mib_at_most"] == pytest.approx(
        sum(plan["memory_mib_by_purpose"].values()), abs=len(plan["memory_mib_by_purpose"])
    )
    layers = {layer["layer"] for layer in plan["layers"]}
    assert {layer["layer"] for layer in plan["largest_layers"]} <= layers
    assert not out.exists()
    done = quantize("sweep", "zoo/resnet8", "--dry-run", "--json", "--out", out, *FEW)
    assert len(json.loads(done.stdout)["points"]) >= 12
    assert not out.exists()


def test_dry_run_counts_the_candidates_of_a_search() -> None:
    def seconds(*args: str) -> dict[str, float]:
        done = quantize("run", "zoo/resnet8", "--dry-run", "--json", *args, *FEW)
        assert done.returncode == 0, done.stderr
        found: dict[str, float] = json.loads(done.stdout)["seconds_by_step"]
        return found

    once = seconds("--preset", "balanced")
    best = seconds("--preset", "best")
    (ranges,) = (step for step in best if step.startswith("find ranges, "))
    models = int(ranges.removeprefix("find ranges, ").removesuffix(" models"))
    assert models >= 6
    assert best[ranges] > 0.4 * models * once["find ranges"]
    assert best[f"norm_reestimation, {models} models"] > 0
    assert best[f"qronos, {models} models"] > once["qronos"]


def test_doctor_names_the_tools() -> None:
    found = json.loads(quantize("doctor", "--json").stdout)
    assert "torch" in found["versions"]
    assert "equalize" in found["algorithms"]
    assert "zoo/resnet8" in found["zoo"]
    have = importlib.util.find_spec("diffusers") is not None
    assert found["can"]["diffusion transformers (diffusers)"] is have


def test_check_says_where_files_differ(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    for path, value in zip(paths, (1.0, 2.0), strict=True):
        x, y = (
            onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", 3]) for n in "xy"
        )
        constant = onnx.numpy_helper.from_array(np.array(value, np.float32), "c")
        nodes = [
            onnx.helper.make_node("Relu", ["x"], ["r"]),
            onnx.helper.make_node("Add", ["r", "c"], ["y"], name="sum"),
        ]
        graph = onnx.helper.make_graph(nodes, "g", [x], [y], [constant])
        opset = onnx.helper.make_opsetid("", 20)
        onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    same = quantize("check", paths[0], "--images", 5)
    assert same.returncode == 0, same.stderr
    differs = quantize("check", *paths, "--images", 5, "--json")
    assert differs.returncode == 1
    found = json.loads(differs.stdout)
    assert [d["tensor"] for d in found["differences"]] == ["y"]
    assert found["output"]["differing"] == found["outputs"] == 15
    missing = quantize("check", tmp_path / "none.onnx")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: ")
    assert "none.onnx" in missing.stderr


def test_report_and_estimate_refuse_other_folders(tmp_path: Path) -> None:
    for command in ("report", "estimate"):
        done = quantize(command, tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith("error: cannot read")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", "null", '{"layers": [{"name": 3}]}', '{"model": 1}']
)
@pytest.mark.parametrize(("command", "file"), [("report", "sweep.json"), ("estimate", "cost.json")])
def test_damaged_results_are_named(tmp_path: Path, command: str, file: str, content: str) -> None:
    (tmp_path / file).write_text(content)
    done = quantize(command, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / file} is damaged: ")
    assert "command writes it again" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.fixture
def priced(tmp_path: Path) -> Path:
    """Return a run of which only the prices are left: two layers, the first one slower."""
    first = {
        "name": "a", "kind": "conv", "macs": 72 * 16 * 100, "weight_bits": 72 * 16 * 4,
        "dot_length": 72, "outputs": 16, "groups": 1, "weights": "int4", "activations": "uint4",
        "accumulator_bits": 14, "output": "uint4",
    }  # fmt: skip
    second = {**first, "name": "b", "macs": 72 * 16}
    (tmp_path / "cost.json").write_text(json.dumps({"layers": [first, second]}))
    return tmp_path


def test_folding_within_a_budget_and_from_its_file(priced: Path) -> None:
    file = priced / "folding.json"
    found = quantize("estimate", priced, "--folding", "auto", "--budget", "lut=2000",
                     "--clock", 250, "--folding-out", file, "--json")  # fmt: skip
    assert found.returncode == 0, found.stderr
    total = json.loads(found.stdout)["total"]
    assert total["folded"]["luts"] <= 2000
    assert total["bottleneck"] == "a"
    assert total["inputs_per_second"] == round(250e6 / total["folded"]["cycles"], 1)
    again = quantize("estimate", priced, "--folding", file, "--clock", 250, "--json")
    assert again.stdout == found.stdout
    table = quantize("estimate", priced, "--folding", file)
    assert "bottleneck: a, " in table.stdout
    assert len([line for line in table.stdout.splitlines() if "uint4" in line]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--folding", "auto"), "--folding auto and --budget lut=N belong together"),
        (("--budget", "lut=100"), "--folding auto and --budget lut=N belong together"),
        (("--folding", "auto", "--budget", "lut=many"), "wants lut=N, such as lut=50000"),
        (("--folding", "auto", "--budget", "lut=-1"), "wants lut=N, such as lut=50000"),
        (("--folding", "auto", "--budget", "bram=4"), "wants lut=N, such as lut=50000"),
        (("--folding", "auto", "--budget", "lut=nan"), "wants lut=N, such as lut=50000"),
        (("--folding", "auto", "--budget", "lut=10"), "a budget of 10 LUTs is not enough"),
        (("--folding", "none.json"), "cannot read the folding none.json"),
        (("--folding", "cost.json"), "the folding names layers that the network lacks: layers"),
        (("--folding", "."), "cannot read the folding ."),
        (("--folding", "deep.json"), "cannot read the folding"),
    ],
)
def test_impossible_foldings_are_refused(
    priced: Path, arguments: tuple[str, ...], words: str
) -> None:
    (priced / "deep.json").write_text("[" * 100_000)
    place = {name: str(priced / name) for name in ("cost.json", "deep.json", ".")}
    done = quantize("estimate", priced, *(place.get(one, one) for one in arguments))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words.rstrip(".") in done.stderr
    assert done.stdout == ""


def test_a_price_list_that_contradicts_itself_is_damaged(tmp_path: Path) -> None:
    layer = {
        "name": "a", "kind": "conv", "macs": 64, "weight_bits": 32, "dot_length": 4, "outputs": 2,
        "weights": "int4", "activations": "uint4", "accumulator_bits": 10, "output": "uint4",
        "groups": 1,
    }  # fmt: skip
    path = tmp_path / "cost.json"
    path.write_text(json.dumps({"layers": [layer]}))
    assert quantize("estimate", tmp_path).returncode == 0
    for change in (
        {"dot_length": 0}, {"weights": "int9"}, {"outputs": 3}, {"accumulator_bits": -1},
        {"macs": "many"}, {"output": 7}, {"groups": 3},
    ):  # fmt: skip
        path.write_text(json.dumps({"layers": [{**layer, **change}]}))
        done = quantize("estimate", tmp_path)
        assert done.returncode == 1, change
        assert done.stderr.startswith(f"error: {path} is damaged: "), change
