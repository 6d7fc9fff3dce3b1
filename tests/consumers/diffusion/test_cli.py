# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lutwise.consumers.diffusion.schedule import CacheSchedule
from tests.app.command import quantize

FEW = ["--steps", 4, "--samples", 20, "--fit-samples", 12, "--calib-samples", 20,
       "--calib-trajectories", 8, "--range", "max", "--threads", 1, "--quiet"]  # fmt: skip


def test_run_says_what_it_wrote(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = quantize("dit", "run", saved, "--interval", 2, "--out", out, "--json", *FEW)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert all(Path(picture).is_file() for picture in found["pictures"])
    models = json.loads((out / "metrics.json").read_bytes())["models"]
    assert [row["model"] for row in found["models"]] == [m["model"] for m in models]
    assert found["models"][0]["macs"] == "1.000"
    again = quantize("dit", "run", saved, "--interval", 2, "--out", out, *FEW)
    assert again.returncode == 0, again.stderr
    for row in found["models"]:
        assert str(row["paired_mse"]) in again.stdout


def test_model_that_ships_is_measured_by_its_classifier(tmp_path: Path) -> None:
    done = quantize("dit", "run", "zoo/dit-digits", "--acts", "e4m3", "--layer",
                    "proj_out_*=float/float", "--out", tmp_path, "--json", *FEW)  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["models"]
    assert all(row["frechet_distance"] > 0 for row in rows)
    metrics = json.loads((tmp_path / "metrics.json").read_bytes())
    layers = json.loads((tmp_path / "quantized.json").read_bytes())["layers"]
    assert layers["proj_out_1"] == {"weights": "float", "activations": "float"}
    assert layers["transformer_blocks.5.ff.net.2"] == {"weights": "int8n", "activations": "e4m3"}
    # A classifier that was trained on the digits knows what the float model makes of them.
    assert metrics["models"][0]["of_the_wanted_class"] > 0.5
    # Eight bits without a cache change little.
    assert metrics["models"][1]["paired_mse"]["value"] < 1e-2


def test_schedule_file_says_what_is_computed(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    schedule = CacheSchedule.every(4, steps=4, blocks=3)
    schedule.save(tmp_path / "schedule.json")
    done = quantize("dit", "run", saved, "--schedule", tmp_path / "schedule.json",
                    "--compensation", "none", "--json", *FEW)  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Runs with other schedules go to other places.
    out = Path("runs") / "saved-int8-int8-T4-schedule"
    assert json.loads(done.stdout)["out"] == str(out)
    metrics = json.loads((out / "metrics.json").read_bytes())
    assert metrics["cache"]["refreshes"] == [0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--weights", "int9"], 2, "no format 'int9'"),
        (["--weights", "uint8"], 2, "weights of a DiT take both signs"),
        (["--layer", "*=ue2m2"], 2, "weights of a DiT take both signs"),
        (["--compensation", "magic"], 2, "a compensation is one of none, printed"),
        (["--layer", "proj_out_1"], 2, "--layer wants GLOB=WEIGHTS/ACTIVATIONS"),
        (["--layer", "nothing=int4"], 2, "'nothing' matches no linear layer"),
        (["--classes", "a"], 2, "--classes wants numbers"),
        (["--classes", "7"], 2, "has classes 0 .. 4, got (7,)"),
        (["--algorithm", "magic"], 2, "no algorithm 'magic'"),
        (["--guidance", "0"], 2, "guidance is a finite scale of at least 1"),
        (["--schedule", "nothing.json"], 1, "cannot read the schedule nothing.json"),
        (["--schedule", "nothing.json", "--interval", "2"], 2, "--schedule or --interval"),
        (["--interval", "0"], 2, "0 is not in the range"),
        (["--seed", str(2**32)], 2, "is not in the range"),
    ],
)
def test_bad_options_are_named(
    saved: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    done = quantize("dit", "run", saved, "--out", tmp_path / "run", *FEW, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


def test_folder_without_a_dit_is_named(tmp_path: Path) -> None:
    done = quantize("dit", "run", tmp_path, *FEW)
    assert done.returncode == 1
    assert "holds no diffusers model" in done.stderr


@pytest.mark.parametrize("file", ["sweep.json", "manifest.json"])
def test_results_of_other_commands_are_kept(saved: Path, tmp_path: Path, file: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in (file, "metrics.json"):
        (out / name).write_text("{}")
    done = quantize("dit", "run", saved, "--out", out, *FEW)
    assert done.returncode == 2
    assert f"({file}); give another --out" in done.stderr
    assert (out / "metrics.json").read_text() == "{}"


def test_missing_diffusers_is_named() -> None:
    code = (
        "import sys; sys.modules['diffusers'] = None; sys.argv = ['quantize', 'dit', 'run', 'x'];"
        "from lutwise.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'lutwise[diffusion]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from lutwise.cli import cli;"
        "cli(['dit', 'run', '--help'], standalone_mode=False);"
        "print(sorted({'torch', 'numpy', 'rich', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
