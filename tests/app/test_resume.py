# SPDX-License-Identifier: Apache-2.0
"""A run that is killed between two layers continues to the same bytes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

SETTINGS = ("--weights", "e2m1", "--acts", "ue2m2", "--calib-images", "64", "--eval-images", "40",
            "--check-images", "10")  # fmt: skip


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "lutwise", "run", "zoo/resnet8", *SETTINGS, *more,
            "--out", str(out)]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file a run leaves but its log."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("events.jsonl", ".lock")
    }


@pytest.mark.parametrize("algorithm", ["gptq", "block_rounding"])
def test_a_run_killed_between_layers_continues_to_the_same_bytes(
    tmp_path: Path, algorithm: str
) -> None:
    more = ("--algorithms", f"equalize,{algorithm},bias_correction")
    whole, cut = tmp_path / "whole" / "run", tmp_path / "cut" / "run"
    subprocess.run(command(whole, *more), check=True, capture_output=True)
    process = subprocess.Popen(
        command(cut, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while len(list((cut / ".steps").glob(f"{algorithm}-*.npz"))) < 2:
        assert process.poll() is None, "ended before it was killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((cut / ".steps").glob("quantize-*"))
    finished = len(list((cut / ".steps").glob(f"{algorithm}-*.npz")))
    subprocess.run(command(cut, *more), check=True, capture_output=True)
    assert contents(cut) == contents(whole)
    steps = [f'"{algorithm}-' in line for line in (cut / "events.jsonl").read_text().splitlines()]
    wanted = sum(
        f'"{algorithm}-' in line for line in (whole / "events.jsonl").read_text().splitlines()
    )
    # The kill may fall between a layer's file and its line.
    assert wanted - 1 <= sum(steps) <= wanted, "a finished layer was computed again"
    assert finished >= 2
    assert not list((cut / ".steps").glob(f"{algorithm}-*")), "parts of the result are left"


def test_the_best_preset_writes_what_it_tried_and_decided(tmp_path: Path) -> None:
    out = tmp_path / "best"
    subprocess.run(command(out, "--preset", "best"), check=True, capture_output=True)
    trials = json.loads((out / "metrics.json").read_text())["search"]
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert trials[0]["change"] == "start"
    assert len(trials) >= 5
    kept = [t["divergence"] for t in trials if t["kept"]]
    assert kept == sorted(kept, reverse=True)
    assert min(t["divergence"] for t in trials) == kept[-1]
    assert recipe["search"] is False
    # The recipe that was written gives the same model without a search.
    again = tmp_path / "again" / "best"
    plain = [sys.executable, "-m", "lutwise", "run", "zoo/resnet8", "--recipe",
             str(out / "recipe.yaml"), *SETTINGS[4:], "--out", str(again)]  # fmt: skip
    subprocess.run(plain, check=True, capture_output=True)
    assert (again / "weights.safetensors").read_bytes() == (
        out / "weights.safetensors"
    ).read_bytes()
