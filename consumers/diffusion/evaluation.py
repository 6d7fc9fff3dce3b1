# SPDX-License-Identifier: Apache-2.0
"""What samples of a model are worth, beside the float model's of the same noise."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from lutwise.consumers.diffusion.classifier import FeatureClassifier
from lutwise.consumers.diffusion.metrics import (
    frechet_distance,
    frechet_estimate,
    paired_mse,
    psnr,
)
from lutwise.consumers.diffusion.model import Dit
from lutwise.consumers.diffusion.sampling import Samples
from lutwise.consumers.diffusion.zoo import CLASSIFIER, MODELS, load_digits

__all__ = ["Judge", "compare", "judge_of", "variance_by_step"]

Judge = Callable[[Samples], dict[str, Any]]
"""Measures samples by themselves."""

_SPREAD: Final = 20
"""Samples from which on a distance has a spread."""


def judge_of(dit: Dit) -> Judge | None:
    """Return what measures samples of the model that ships; None for others.

    Features of a classifier are compared with those of all images that ship, trained on or not.
    """
    if dit.folder != MODELS["zoo/dit-digits"]:
        return None
    classifier = FeatureClassifier.load(CLASSIFIER)
    digits = load_digits()
    real = classifier.features(torch.cat([digits.train_images, digits.test_images]))

    @torch.no_grad()
    def judge(found: Samples) -> dict[str, Any]:
        features = classifier.features(found.latents)
        right = classifier(found.latents).argmax(1) == found.labels
        entry: dict[str, Any] = {
            "frechet_distance": frechet_distance(features, real),
            "of_the_wanted_class": float(right.float().mean()),
        }
        if len(features) >= _SPREAD:
            entry["frechet_unbiased"] = asdict(frechet_estimate(features, real))
        return entry

    return judge


def compare(found: Samples, reference: Samples) -> dict[str, Any]:
    """Return how far samples and their trajectories are from others of the same noise.

    Args:
        found: With trajectory.
        reference: With trajectory, of the same shape.
    """
    assert found.trajectory is not None
    assert reference.trajectory is not None
    error = found.trajectory.double() - reference.trajectory.double()
    ratio = psnr(found.latents, reference.latents)
    return {
        "paired_mse": asdict(paired_mse(found.latents, reference.latents)),
        # JSON has no infinity; nothing differs then.
        "psnr_db": ratio if np.isfinite(ratio) else None,
        "paired_mse_by_step": error.square().mean(dim=(1, 2, 3, 4)).tolist(),
    }


def variance_by_step(samples: Samples) -> npt.NDArray[np.float64]:
    """Return the variance of what the model was given, shape (steps, channels).

    Args:
        samples: With trajectory.
    """
    assert samples.trajectory is not None
    found: npt.NDArray[np.float64] = samples.trajectory.double().var(dim=(1, 3, 4)).numpy()
    return found
