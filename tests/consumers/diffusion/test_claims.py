# SPDX-License-Identifier: Apache-2.0
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import diffusion_claims, diffusion_schedule, write_diffusion
from benchmarks.diffusion_probes import (
    OPPOSITE,
    SEEN,
    UNDECIDED,
    at_once,
    base_job,
    int8_times,
    paired,
    redundancy,
    similarity,
    similarity_of_neighbours,
)
from benchmarks.diffusion_schedule import descend
from benchmarks.diffusion_text import number, schedule_section
from lutwise.consumers.diffusion.grid import Formats, Grid
from lutwise.consumers.diffusion.job import CalibrationChoice, DitJob
from lutwise.consumers.diffusion.sweep import sweep_dit
from lutwise.consumers.diffusion.zoo import MODELS
from lutwise.quant.ranges import RangeMethod, RangeSearch
from lutwise.workspace import Steps


@pytest.fixture
def base(saved: Path) -> DitJob:
    found = base_job(str(saved), steps=4, samples=12)
    quick = RangeSearch(method=RangeMethod.MAX)
    return replace(
        found,
        recipe=replace(found.recipe, weight_range=quick, activation_range=quick),
        calibration=CalibrationChoice(samples=20, trajectories=8),
        fit_samples=6,
    )


@pytest.fixture
def table(base: DitJob, tmp_path: Path) -> dict[str, Any]:
    grid = Grid(
        steps=(3, 4),
        intervals=(1, 2),
        formats=(Formats("float", "float"), Formats("int8", "int8")),
        orders=(0, 1),
        calibrations=("random", "tap"),
        compensations=("none", "std"),
        seeds=2,
    )
    return sweep_dit(lambda: base, grid, tmp_path / "table")


def test_sweeps_of_different_compensations_are_joined() -> None:
    def sweep(*methods: str, samples: int = 9) -> dict[str, Any]:
        grid = {"steps": [4], "compensations": list(methods)}
        cells = [{"name": f"T4 +{method}"} for method in methods]
        return {"model": "m", "samples": samples, "grid": grid, "cells": cells}

    first, second = sweep("none", "std"), sweep("none", "moments")
    found = write_diffusion.joined(first, second)
    assert found == sweep("none", "std", "moments")
    assert write_diffusion.joined(None, second) is second
    with pytest.raises(ValueError, match="other samples: 9 and 8"):
        write_diffusion.joined(first, sweep("none", samples=8))


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([1.1, 1.2, 1.15], SEEN),
        ([0.9, 0.8, 0.85], OPPOSITE),
        ([1.5, 0.5, 1.1], UNDECIDED),
        ([2.0], UNDECIDED),
    ],
)
def test_verdict_needs_an_interval_off_zero(values: list[float], verdict: str) -> None:
    assert paired(values, [1.0] * len(values))["verdict"] == verdict


def test_interval_is_students() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t of 2 degrees of freedom 4.3027."""
    found = paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found["mean"] == 2
    assert found["high"] - 2 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert found["low"] == pytest.approx(4 - found["high"])


def test_similarity_is_the_mean_cosine_of_pairs() -> None:
    rows = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    flat = rows.flatten(1)
    pairs = [
        torch.nn.functional.cosine_similarity(flat[i], flat[j], dim=0)
        for i in range(7)
        for j in range(7)
        if i != j
    ]
    assert similarity(rows) == pytest.approx(float(torch.stack(pairs).mean()))


def test_neighbours_are_those_in_time() -> None:
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert similarity_of_neighbours(torch.stack([first, first, first])) == pytest.approx(1)
    assert similarity_of_neighbours(torch.stack([first, -first])) == pytest.approx(-1)
    turned = first.flip(0)
    assert similarity_of_neighbours(torch.stack([first, turned])) == pytest.approx(0)


def test_redundancy_compares_each_interval_with_none(base: DitJob) -> None:
    found = redundancy(base, [1, 2, 4], seeds=2)
    assert found["trajectories"] == 8
    assert [(row["what"], row["interval"]) for row in found["rows"][:2]] == [
        ("latents, all pairs", 2), ("latents, all pairs", 4),
    ]  # fmt: skip
    assert len(found["rows"]) == 8
    for row in found["rows"]:
        assert row["difference"] == paired(row["with"], row["without"])
        assert -1 <= min(row["with"]) <= max(row["with"]) <= 1
    # Nothing is left behind on the model.
    norms = [block.norm1 for block in base.dit.transformer.transformer_blocks]  # type: ignore
    assert not any(norm._forward_hooks for norm in norms)


def test_gains_fitted_at_once_and_in_sequence_differ(base: DitJob, tmp_path: Path) -> None:
    steps = Steps(tmp_path / "steps", tmp_path / "events.jsonl")
    found = at_once(base, steps, 2, ("none", "std"), seeds=2)
    none, std = found["rows"]
    # No compensation is the same however it is fitted.
    assert none["sequence"] == none["at_once"]
    assert std["sequence"] != std["at_once"]
    assert std["gain"] == paired(std["at_once"], std["sequence"])


def test_int8_is_timed_beside_float(base: DitJob, tmp_path: Path) -> None:
    steps = Steps(tmp_path / "steps", tmp_path / "events.jsonl")
    found = int8_times(base, steps, [1, 2], repetitions=2)
    assert set(found["speedup"]) == {"float N=1", "int8 N=1", "float N=2", "int8 N=2"}
    assert found["speedup"]["float N=1"] == 1
    assert all(value > 0 for value in found["milliseconds_per_step"].values())


def test_record_has_every_claim_and_the_page_tells_it(
    table: dict[str, Any],
    saved: Path,
    tmp_path: Path,
    make_speed: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, out = tmp_path / "table" / "sweep.json", tmp_path / "claims.json"
    diffusion_claims.main(
        ["--model", str(saved), "--table", str(path), "--compensation", str(path),
         "--calibration", str(path), "--speed", str(make_speed()), "--steps", "4", "--intervals",
         "1", "2", "--samples", "20", "--trajectories", "8", "--calib-samples", "20",
         "--fit-samples", "12", "--seeds", "2", "--repetitions", "1",
         "--state", str(tmp_path / "state"), "--json", str(out)]
    )  # fmt: skip
    record = json.loads(out.read_bytes())
    exposure = record["exposure"]["rows"]
    assert {(r["steps"], r["interval"], r["order"]) for r in exposure} == {
        (3, 2, 0), (3, 2, 1), (4, 2, 0), (4, 2, 1),
    }  # fmt: skip
    row = exposure[0]
    both = diffusion_claims.find(
        table, steps=row["steps"], interval=2, order=row["order"], weights="int8",
        calibration="random", compensation="none",
    )  # fmt: skip
    assert both is not None
    assert row["both"] == [seed["paired_mse"]["value"] for seed in both["seeds"]]
    for ratio, q, c, qc in zip(
        row["ratio_to_sum"], row["quantized"], row["cached"], row["both"], strict=True
    ):
        assert ratio == pytest.approx(qc / (q + c))
    # Only squared errors: no classifier knows this model's images.
    choices = record["choices"]["rows"]
    assert {r["calibration"] for r in choices} == {"tap"}
    assert {r["measure"] for r in choices} == {"paired_mse"}
    recovery = record["recovery"]["rows"]
    assert {(r["order"], r["compensation"]) for r in recovery} == {
        (0, "std"), (1, "none"), (1, "std"),
    }  # fmt: skip
    factors = {(r["factor"], r["to"]): r["theory"] for r in record["speed"]["rows"]}
    assert factors["steps", 3] == pytest.approx(4 / 3)
    assert 1 < factors["cache", 2] < 2

    monkeypatch.setattr(write_diffusion, "DATA", tmp_path / "data")
    monkeypatch.setattr(write_diffusion, "DOCS", tmp_path / "docs")
    sweeps = tmp_path / "sweeps"
    sweeps.mkdir()
    for name in write_diffusion.SWEEPS:
        shutil.copy(path, sweeps / f"{name}.json")
    (tmp_path / "data").mkdir()
    shutil.copy(make_speed(), tmp_path / "data" / "dit_speed.json")
    marks = "<!-- results: begin -->\nold\n<!-- results: end -->\n"
    short = tmp_path / "docs" / "consumers" / "diffusion.md"
    short.parent.mkdir(parents=True)
    short.write_text(f"# Title\n\n{marks}\nrest\n")
    write_diffusion.main(["--collect", str(sweeps), "--claims", str(out)])
    assert "| weights / inputs | T 3, N 1 | T 3, N 2 | T 4, N 1" in short.read_text()
    assert "old" not in short.read_text()
    assert short.read_text().startswith("# Title\n\n<!-- results: begin -->\n")
    assert short.read_text().endswith("<!-- results: end -->\n\nrest\n")
    page = (tmp_path / "docs" / "consumers" / "diffusion-results.md").read_text()
    for title in ("### 4 steps", "## Compensations", "### 12.7 times faster"):
        assert title in page
    both_over_sum = f"{min(row['ratio_to_sum']):#.3g} to {max(row['ratio_to_sum']):#.3g}"
    assert both_over_sum in page
    assert (tmp_path / "docs" / "images" / "dit_trade_off.png").read_bytes()[:4] == b"\x89PNG"
    # What is by step stays out of the repository, and the page comes back from what is left.
    assert "by_step" not in (tmp_path / "data" / "dit_table.json").read_text()
    write_diffusion.main([])
    assert (tmp_path / "docs" / "consumers" / "diffusion-results.md").read_text() == page


@pytest.fixture
def make_speed(tmp_path: Path) -> Callable[[], Path]:
    def make() -> Path:
        path = tmp_path / "speed.json"
        path.write_text(
            json.dumps(
                {"tokens": 256, "rows": [{"batch": 1, "processor_speedup": {"int8 N=1": 3}}]}
            )
        )
        return path

    return make


def test_descent_finds_the_nearest_best() -> None:
    """Squared distance from a target has one minimum, and moves of one step reach it."""
    target = (0, 7, 12, 18)
    best, tried = descend(
        (0, 5, 10, 15),
        20,
        lambda found: sum((a - b) ** 2 for a, b in zip(found, target, strict=True)),
    )
    assert best == target
    assert min(tried, key=lambda row: row["value"])["refreshes"] == list(target)
    assert all(row["refreshes"][0] == 0 and row["refreshes"][-1] < 20 for row in tried)
    assert len({tuple(row["refreshes"]) for row in tried}) == len(tried)


def test_searched_schedule_is_measured_beside_the_even_one(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "schedule.json"
    diffusion_schedule.main(
        ["--model", str(saved), "--steps", "4", "--interval", "2", "--orders", "0",
         "--search-samples", "6", "--samples", "8", "--fit-samples", "6", "--calib-samples", "20",
         "--trajectories", "8", "--seeds", "2", "--state", str(tmp_path / "state"), "--json",
         str(out), "--compensations", "none", "moments"]
    )  # fmt: skip
    record = json.loads(out.read_bytes())
    even, searched = record["rows"]
    assert even["refreshes"] == [0, 2]
    assert searched["macs"] == even["macs"] < even["float_macs"]
    assert even["values"]["float"] == [0, 0]
    assert all(len(even["values"][name]) == 2 for name in ("none", "moments"))
    assert even["values"]["none"] != even["values"]["moments"]
    values = {tuple(trial["refreshes"]): trial["value"] for trial in record["tried"]["0"]}
    assert values[tuple(searched["refreshes"])] == min(values.values())
    assert "0, 2" in schedule_section(record)


def test_schedule_is_measured_on_a_model_that_the_search_has_not_seen(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(MODELS["zoo/dit-digits"], other)
    out = tmp_path / "schedule.json"
    diffusion_schedule.main(
        ["--also", str(other), "--steps", "2", "--interval", "2", "--orders", "0",
         "--search-samples", "4", "--samples", "4", "--fit-samples", "4", "--calib-samples", "4",
         "--trajectories", "2", "--seeds", "1", "--state", str(tmp_path / "state"), "--json",
         str(out), "--compensations", "std"]
    )  # fmt: skip
    record = json.loads(out.read_bytes())
    ours, _, again, _ = record["rows"]
    assert ours["measure"] == "frechet"
    assert ours["values"] == again["values"]
    assert ours["model"]["name"] != again["model"]["name"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.0, "3.00"), (0.00049, "0.000490"), (4.94e-5, "4.94e-05"), (99.97, "100"), (12345, "12345")],
)
def test_numbers_keep_their_digits(value: float, text: str) -> None:
    assert number(value) == text
