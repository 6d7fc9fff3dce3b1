# SPDX-License-Identifier: Apache-2.0
"""Try combinations of algorithms and keep the one that calibration images speak for.

No evaluation image and no label is looked at: the images for calibration are split, one part
calibrates every candidate, the other compares its outputs with the float model's.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from lutwise.errors import CalibrationError
from lutwise.quant import brevitas_facade
from lutwise.quant.ranges import RangeMethod, ScaleKind
from lutwise.quant.recipe import Granularity, Recipe, build_recipe

__all__ = ["NOTHING", "Trial", "choose", "clips_at_six", "divergence", "divided"]

_HELD_BACK: Final = 0.25
"""Share of the calibration images that compare candidates."""

_CALIBRATING_PIXELS: Final = 96 * 224 * 224
"""Pixels of the images that calibrate a candidate, at most. More hardly change which candidate is
best, and the search's time is theirs; the chosen recipe is calibrated with all images."""

NOTHING: Final = 1e30
"""Divergence of a candidate that gives no outputs to compare."""

Score = Callable[[str, Recipe], float]
"""Quantizes by a recipe, which is given with its change for people, and returns the divergence of
the images that compare."""

Changes = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A candidate that was tried.

    Args:
        change: What it changes of the best one before it, for people.
        divergence: From the float model's outputs, see `divergence`.
        kept: It was the best so far.
    """

    change: str
    divergence: float
    kept: bool


def divergence(reference: torch.Tensor, logits: torch.Tensor) -> float:
    """Return the mean Kullback-Leibler divergence of class probabilities from the float model's.

    Of models with a single output, the mean squared error; `NOTHING` where that is no number.

    Args:
        reference: The float model's logits, shape (n, classes).
        logits: The quantized model's.
    """
    if reference.shape[-1] == 1:
        found = float((reference.double() - logits).square().mean())
    else:
        wanted, got = (t.double().log_softmax(-1) for t in (reference, logits))
        found = float((wanted.exp() * (wanted - got)).sum(-1).mean())
    return found if math.isfinite(found) else NOTHING


def divided(images: int, shape: Sequence[int]) -> tuple[int, int]:
    """Return how many of the calibration images calibrate candidates, and how many compare them.

    Args:
        images: There are so many.
        shape: Of one image, (channels, height, width).

    Raises:
        CalibrationError: There are fewer than four.
    """
    if images < 4:
        raise CalibrationError(
            "`search` (preset best) divides the calibration images and needs at least 4, got "
            f"{images}"
        )
    comparing = max(1, round(images * _HELD_BACK))
    affordable = max(1, _CALIBRATING_PIXELS // math.prod(shape[1:]))
    return min(images - comparing, affordable), comparing


def clips_at_six(model: nn.Module) -> bool:
    """Return whether a model has ReLU6, as a module or a function."""
    graph = brevitas_facade.trace(model)  # which makes modules of functions
    return any(isinstance(module, nn.ReLU6) for module in graph.modules())


def choose(
    recipe: Recipe, score: Score, settle: Score, *, clips_at_six: bool
) -> tuple[Recipe, tuple[Trial, ...]]:
    """Return the best recipe, stage by stage: each stage's winner is where the next one starts.

    Two things are not tried, since they took long and lost: in 12 searches over five formats on
    two nets, learned rounding was never better than Qronos, and percentiles for ranges of
    activations once, by 4 %.

    Args:
        recipe: Where to start from.
        score: Less is better.
        settle: The same for the winner, calibrated with all images, those that compare included.
            It should be better then; a winner that is worse owes its place to the choice of
            images, and the start is kept. (Seen with 3-bit integers on EfficientNet-Lite0, where
            SmoothQuant gave 15 % with 96 images and 1 % with 250.)
        clips_at_six: The model has ReLU6, which may be replaced by ReLU.

    Returns:
        The recipe, with ``search`` off, and what was tried, in order.
    """
    best = start = recipe.model_copy(update={"search": False})
    least = score("start", best)
    trials = [Trial(change="start", divergence=least, kept=True)]
    for stage in (_preparation, _rounding, _correction, _ranges):
        winner = best
        for change, changes in stage(best, clips_at_six):
            candidate = build_recipe(
                best.model_dump(mode="json"), changes=changes, where="a candidate of the search"
            )
            try:
                found = score(change, candidate)
            except CalibrationError:  # that one cannot be; the others may
                found = NOTHING
            trials.append(Trial(change=change, divergence=found, kept=found < least))
            if found < least:
                winner, least = candidate, found
        best = winner
    if len([trial for trial in trials if trial.kept]) > 1:
        found = settle("all images", best)
        trials.append(Trial(change="all images", divergence=found, kept=found <= least))
        if found > least:
            best = start
    return best, tuple(trials)


Options = Sequence[tuple[str, Changes]]


def _with(recipe: Recipe, without: set[str], **more: Mapping[str, Any]) -> Changes:
    kept = {name: s for name, s in recipe.algorithms.items() if name not in without}
    return {"algorithms": {**kept, **more}}


def _preparation(recipe: Recipe, clips_at_six: bool) -> Options:
    if _PREPARATION & set(recipe.algorithms):
        present = sorted(_PREPARATION & set(recipe.algorithms))
        return [("without " + " and ".join(present), _with(recipe, _PREPARATION))]
    options: list[tuple[str, Changes]] = [
        ("equalize", _with(recipe, set(), equalize={})),
        ("smooth_quant", _with(recipe, set(), smooth_quant={})),
        ("smooth_quant search", _with(recipe, set(), smooth_quant={"search": True})),
    ]
    if clips_at_six and not recipe.relu6_to_relu:
        changes = {"relu6_to_relu": True, **_with(recipe, set(), equalize={})}
        options.append(("equalize with relu6_to_relu", changes))
    return options


_PREPARATION: Final = {"equalize", "smooth_quant"}
_ROUNDING: Final = {"gptq", "qronos", "gpfq", "learned_rounding", "block_rounding"}


def _rounding(recipe: Recipe, clips_at_six: bool) -> Options:
    del clips_at_six
    centered = {"centered": "bias_correction" in recipe.algorithms}
    if "qronos" in recipe.algorithms:
        return []
    return [("qronos", _with(recipe, _ROUNDING, qronos=centered))]


def _correction(recipe: Recipe, clips_at_six: bool) -> Options:
    del clips_at_six
    weights = recipe.weights
    free = weights.granularity is Granularity.CHANNEL and weights.scale is ScaleKind.FLOAT32
    if "norm_reestimation" in recipe.algorithms or not free:
        return []
    return [("norm_reestimation", _with(recipe, set(), norm_reestimation={}))]


def _ranges(recipe: Recipe, clips_at_six: bool) -> Options:
    del clips_at_six
    settings = recipe.activations
    options: list[tuple[str, Changes]] = []
    if settings.range is not RangeMethod.MSE:
        options.append(("activations.range mse", {"activations.range": RangeMethod.MSE.value}))
    if settings.scale is ScaleKind.FLOAT32:
        options += [
            (f"activations.factor {f}", {"activations.factor": f * settings.factor})
            for f in _FACTORS
        ]
    return options


_FACTORS: Final = (0.8, 0.9)
"""A range of least squared error clips less than serves the outputs best."""
