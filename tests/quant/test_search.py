# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch
from torch import nn

from lutwise.errors import CalibrationError, ConfigError
from lutwise.quant.presets import PRESETS, Preset
from lutwise.quant.recipe import Recipe, build_recipe
from lutwise.quant.search import NOTHING, choose, clips_at_six, divergence, divided


def recipe(**settings: Any) -> Recipe:
    return build_recipe({"weights": "int4", **settings}, changes={}, where="test")


def test_divergence_is_that_of_torch_and_zero_for_equal_outputs() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(7, 5), torch.randn(7, 5)
    expected = torch.nn.functional.kl_div(
        second.double().log_softmax(1), first.double().softmax(1), reduction="batchmean"
    ).item()
    assert divergence(first, second) == pytest.approx(expected)
    assert divergence(first, first + 3) == pytest.approx(0, abs=1e-12)  # shifts say nothing


def test_the_search_finds_what_scores_best_stage_by_stage() -> None:
    def score(change: str, candidate: Recipe) -> float:
        del change
        """Qronos wins with SmoothQuant, and small ranges win anywhere."""
        found = 5.0
        smoothed = "smooth_quant" in candidate.algorithms
        found -= 1.0 * smoothed
        if "qronos" in candidate.algorithms:
            found += -1.0 if smoothed else 1.0
        found += 0.5 * ("norm_reestimation" in candidate.algorithms)
        return found - 0.25 * (candidate.activations.factor < 0.85)

    start = recipe(preset="best", algorithms={"gptq": {}, "bias_correction": {}})
    best, trials = choose(start, score, score, clips_at_six=True)
    assert list(best.algorithms) == ["smooth_quant", "qronos", "bias_correction"]
    assert best.algorithms["qronos"]["centered"]
    assert best.activations.factor == 0.8
    assert not best.search
    assert not best.relu6_to_relu
    assert [t.change for t in trials if t.kept] == [
        "start",
        "smooth_quant",
        "qronos",
        "activations.factor 0.8",
        "all images",
    ]
    assert [t.change for t in trials if t.change.endswith("relu6_to_relu")]
    assert min(t.divergence for t in trials) == score("", best)


def test_candidates_that_cannot_be_are_passed_over() -> None:
    def score(change: str, candidate: Recipe) -> float:
        del candidate
        if change == "equalize":
            raise CalibrationError("no range")
        return 0.5 if change in ("smooth_quant", "all images") else 1.0

    best, trials = choose(recipe(preset="best"), score, score, clips_at_six=False)
    assert "smooth_quant" in best.algorithms
    (failed,) = (t for t in trials if t.change == "equalize")
    assert (failed.divergence, failed.kept) == (NOTHING, False)


def test_a_winner_that_all_images_make_worse_is_given_up() -> None:
    def score(change: str, candidate: Recipe) -> float:
        del candidate
        return 0.5 if change == "smooth_quant" else 1.0

    def settle(change: str, winner: Recipe) -> float:
        assert (change, "smooth_quant" in winner.algorithms) == ("all images", True)
        return 0.6

    best, trials = choose(recipe(preset="best"), score, settle, clips_at_six=False)
    assert "smooth_quant" not in best.algorithms
    assert not best.search
    assert (trials[-1].change, trials[-1].kept) == ("all images", False)


def test_power_of_two_scales_are_not_multiplied() -> None:
    tried: list[str] = []

    def score(change: str, candidate: Recipe) -> float:
        del candidate
        tried.append(change)
        return 1.0

    kinds = {"weights": {"scale": "power_of_two"}, "activations": {"scale": "power_of_two"}}
    choose(
        build_recipe({"preset": "best", **kinds}, changes={}, where=""),
        score,
        score,
        clips_at_six=True,
    )
    assert tried[0] == "start"
    assert not [t for t in tried if t.startswith(("norm_re", "activations.factor"))]


@pytest.mark.parametrize("module", [nn.ReLU6(), nn.functional.relu6], ids=["module", "function"])
def test_relu6_is_found_as_a_module_and_as_a_function(module: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.act = nn.Linear(3, 3), module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.layer(x))  # type: ignore[no-any-return]

    assert clips_at_six(Net())
    assert not clips_at_six(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))


def test_outputs_that_are_no_numbers_say_nothing() -> None:
    reference = torch.zeros(4, 3)
    assert divergence(reference, torch.full((4, 3), torch.nan)) == NOTHING
    single = torch.tensor([[1.0], [2.0]])
    assert divergence(single, single + 2) == pytest.approx(4)


def constant(change: str, candidate: Recipe) -> float:
    del change, candidate
    return 1.0


def test_a_search_without_better_candidates_keeps_the_start() -> None:
    start = recipe(preset="best")
    best, trials = choose(start, constant, constant, clips_at_six=False)
    assert best == start.model_copy(update={"search": False})
    assert sum(t.kept for t in trials) == 1


@pytest.mark.parametrize(
    ("images", "size", "expected"),
    [
        (4, 28, (3, 1)),
        (256, 28, (192, 64)),
        (128, 224, (96, 32)),
        (256, 224, (96, 64)),
        (256, 4096, (1, 64)),
    ],
)
def test_a_quarter_of_the_images_compares(
    images: int, size: int, expected: tuple[int, int]
) -> None:
    assert divided(images, (3, size, size)) == expected


def test_too_few_images_are_refused() -> None:
    with pytest.raises(CalibrationError, match="needs at least 4, got 3"):
        divided(3, (1, 28, 28))


def test_presets_stand_for_algorithms_and_yield_to_what_is_said() -> None:
    assert recipe() == recipe(preset="balanced")
    for preset in Preset:
        found = recipe(preset=preset.value)
        assert list(found.algorithms) == list(PRESETS[preset]["algorithms"])
        assert found.search == (preset is Preset.BEST)
    assert list(recipe(preset="balanced", algorithms=["qronos"]).algorithms) == ["qronos"]
    chosen = build_recipe(
        {"preset": "balanced"}, changes={"algorithms.qronos.centered": False}, where="test"
    )
    assert list(chosen.algorithms) == ["qronos", "bias_correction"]
    assert not chosen.algorithms["qronos"]["centered"]
    with pytest.raises(ConfigError, match="preset is one of fast, balanced, best, got 'bset'"):
        recipe(preset="bset")
