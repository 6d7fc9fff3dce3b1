# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lutwise.consumers.diffusion.compensation import Compensation
from lutwise.consumers.diffusion.job import CalibrationChoice, DitJob, Use
from lutwise.consumers.diffusion.model import Dit
from lutwise.consumers.diffusion.quantized import load_quantized
from lutwise.consumers.diffusion.recipe import DitRecipe
from lutwise.consumers.diffusion.run import DitRun, run_dit
from lutwise.consumers.diffusion.sampling import SamplingSettings
from lutwise.consumers.diffusion.schedule import CacheSchedule, Part
from lutwise.consumers.diffusion.tap import TapParameters
from lutwise.errors import ConfigError, ModelError
from lutwise.quant.ranges import RangeMethod, RangeSearch
from lutwise.workspace import Steps

MAX = RangeSearch(method=RangeMethod.MAX)


@pytest.fixture
def make_job(dit: Dit) -> Callable[..., DitJob]:
    def make(**changes: Any) -> DitJob:
        plain = DitJob(
            dit=dit,
            recipe=DitRecipe(weights="int8", activations="int8", weight_range=MAX,
                             activation_range=MAX),
            sampling=SamplingSettings(steps=4, batch=20),
            schedule=CacheSchedule.every(2, steps=4, blocks=3),
            calibration=CalibrationChoice(samples=20, trajectories=8),
            fit_samples=12,
            samples=20,
        )  # fmt: skip
        return replace(plain, **changes)

    return make


def test_run_writes_what_it_found(make_job: Callable[..., DitJob], tmp_path: Path) -> None:
    job = make_job()
    metrics = run_dit(job, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_bytes()) == metrics
    first, second, third = metrics["models"]
    assert [m["model"] for m in metrics["models"]] == [
        "float", "W int8, A int8, cached", "... and std",
    ]  # fmt: skip
    assert "paired_mse" not in first
    assert second["paired_mse"]["value"] > 0
    assert len(third["paired_mse_by_step"]) == 4
    assert third["paired_mse_by_step"][0] == 0
    assert first["bit_operations_per_sample"] == 1024 * first["macs_per_sample"]
    assert second["macs_per_sample"] < first["macs_per_sample"]
    assert torch.tensor(first["variance_by_step_and_channel"]).shape == (4, 2)
    assert metrics["cache"]["computed"] == {"attention": 0.5, "feed_forward": 0.5}
    for name in ("samples.png", "variance.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    # What was written is what was used.
    compensation = Compensation.load(tmp_path / "compensation.safetensors")
    assert compensation.gain.tolist() == metrics["compensation"]["gain"]
    assert CacheSchedule.load(tmp_path / "schedule.json") == job.schedule
    again = load_quantized(job.dit, tmp_path)
    run = DitRun(job, Steps(tmp_path / ".steps", tmp_path / "events.jsonl"))
    for name, layer in run.quantized.layers.items():
        other = again.layers[name]
        assert layer.weight is not None
        assert other.weight is not None
        assert torch.equal(layer.weight.real(), other.weight.real())


def test_same_run_finds_its_steps_again(make_job: Callable[..., DitJob], tmp_path: Path) -> None:
    metrics = run_dit(make_job(), tmp_path)
    events = (tmp_path / "events.jsonl").read_text()
    said: list[str] = []

    def tell(step: str, share: float | None = None) -> None:
        said.append(step)

    assert run_dit(make_job(), tmp_path, tell=tell) == metrics
    assert (tmp_path / "events.jsonl").read_text() == events
    assert said == ["measure", "draw"]


def test_another_compensation_keeps_the_other_steps(
    make_job: Callable[..., DitJob], tmp_path: Path
) -> None:
    run_dit(make_job(), tmp_path)
    before = len((tmp_path / "events.jsonl").read_text().splitlines())
    run_dit(make_job(compensation="least_squares"), tmp_path)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()[before:]
    assert [json.loads(line)["step"] for line in lines] == ["dit-compensation", "dit-sample"]


def test_without_quantization_and_cache_nothing_differs(
    make_job: Callable[..., DitJob], tmp_path: Path
) -> None:
    job = make_job(
        recipe=DitRecipe(weights="float", activations="float"),
        schedule=CacheSchedule.none(steps=4, blocks=3),
    )
    metrics = run_dit(job, tmp_path)
    assert [m["model"] for m in metrics["models"]] == ["float", "W float, A float", "... and std"]
    for entry in metrics["models"][1:]:
        assert entry["paired_mse"]["value"] == 0
        assert entry["psnr_db"] is None
    assert metrics["compensation"]["gain"] == [[1.0, 1.0]] * 4


def test_no_compensation_leaves_two_models(make_job: Callable[..., DitJob], tmp_path: Path) -> None:
    metrics = run_dit(make_job(compensation="none", order=1), tmp_path)
    assert len(metrics["models"]) == 2
    assert not (tmp_path / "compensation.safetensors").exists()


def test_each_use_has_noise_of_its_own(make_job: Callable[..., DitJob]) -> None:
    seeds = [
        make_job(sampling=SamplingSettings(steps=4, seed=seed)).noise(use).seed
        for seed in range(4)
        for use in Use
    ]
    assert len(set(seeds)) == len(seeds)


def test_classes_take_turns(make_job: Callable[..., DitJob]) -> None:
    assert make_job().labels(7).tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert make_job(classes=(4, 2)).labels(5).tolist() == [4, 2, 4, 2, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 1}, "at least 2 samples"),
        ({"order": -1}, "order of at least 0"),
        ({"compensation": "magic"}, "one of none, printed, .* got 'magic'"),
        ({"classes": (1, 5)}, r"has classes 0 .. 4, got \(1, 5\)"),
        (
            {"schedule": CacheSchedule.every(2, steps=5, blocks=3, parts=[Part.ATTENTION])},
            "for 5 steps and sampling takes 4",
        ),
    ],
)
def test_bad_jobs_are_refused(
    make_job: Callable[..., DitJob], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_job(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"calibration": CalibrationChoice(samples=33, trajectories=8)},
            "takes 33 samples, and 8 trajectories of 4 steps have 32",
        ),
        (
            {
                "calibration": CalibrationChoice(
                    samples=20, trajectories=8, tap=TapParameters(candidate_steps=(1, 3, 9))
                )
            },
            "takes 20 samples, and 8 trajectories of 2 steps have 16",
        ),
        (
            {"recipe": DitRecipe(timestep_groups=5)},
            "5 groups of timesteps .* 4 steps are too few",
        ),
    ],
)
def test_too_little_to_calibrate_on_is_refused_before_anything_is_sampled(
    make_job: Callable[..., DitJob], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_dit(make_job(**changes), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("scheduler", "error", "message"),
    [
        ({"num_train_timesteps": 3}, ConfigError, "has 3 timesteps, got 4 steps"),
        ({"num_train_timesteps": "many"}, ConfigError, "makes no ddpm: [^\n]*$"),
        ({"trained_betas": [0.1]}, ModelError, "takes no 4 steps of ddpm: IndexError"),
        ({"steps_offset": 900}, ModelError, "takes no 4 steps of ddpm: IndexError"),
        ({"timestep_spacing": "magic"}, ModelError, "magic is not supported"),
        ({"clip_sample_range": None}, ModelError, "check its scheduler_config.json"),
    ],
)
def test_bad_schedulers_are_refused_before_anything_is_sampled(
    make_job: Callable[..., DitJob],
    dit: Dit,
    scheduler: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        make_job(dit=replace(dit, scheduler=scheduler))


def test_bad_calibration_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of random, uniform, tap, got 'best'"):
        CalibrationChoice(method="best")
    with pytest.raises(ConfigError, match="at least one sample"):
        CalibrationChoice(samples=0)
