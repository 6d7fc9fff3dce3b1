# SPDX-License-Identifier: Apache-2.0
"""What samples of a model are worth, beside the float model's of the same noise."""

from dataclasses import asdict
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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
from lutwise.quant.checkpoints import state_sha256

__all__ = ["Judge", "compare", "digits_judge", "judge_of", "variance_by_step"]

_SPREAD: Final = 20
"""Samples from which on a distance has a spread."""


class Judge:
    """Measures samples by themselves, in the features of a classifier.

    Args:
        classifier: Trained on images like the real ones.
        images: Real ones, shape (n, c, h, w).
    """

    def __init__(self, classifier: FeatureClassifier, images: Tensor) -> None:
        self._classifier = classifier
        self.real = classifier.features(images)
        self.sha256 = state_sha256({**classifier.state_dict(), "images": images})

    def features(self, samples: Samples) -> Tensor:
        """Return the features of samples, shape (n, features)."""
        return self._classifier.features(samples.latents)

    @torch.no_grad()
    def share_of_wanted_class(self, samples: Samples) -> float:
        """Return how many samples the classifier takes for their class, 0 .. 1."""
        right = self._classifier(samples.latents).argmax(1) == samples.labels
        return float(right.double().mean())

    @staticmethod
    def distance(features: Tensor, others: Tensor) -> dict[str, float | None]:
        """Return the Frechet distance of two sets of features, and how sure it is.

        Args:
            features: Shape (n, features).
            others: Shape (m, features).

        Returns:
            The value; without its bias of order 1/n; the jackknife's standard error. Of few
            samples only the value.
        """
        value = frechet_distance(features, others)
        if min(len(features), len(others)) < _SPREAD:
            return {"value": value, "unbiased": None, "standard_error": None}
        estimate = frechet_estimate(features, others)
        return {
            "value": value,
            "unbiased": estimate.value,
            "standard_error": estimate.standard_error,
        }

    def measure(self, samples: Samples) -> dict[str, Any]:
        """Return the distance of samples to the real images, and how many are as wanted."""
        return {
            "frechet": self.distance(self.features(samples), self.real),
            "of_the_wanted_class": self.share_of_wanted_class(samples),
        }


def judge_of(dit: Dit) -> Judge | None:
    """Return what measures samples of the model that ships; None for others.

    Features of a classifier are compared with those of all images that ship, trained on or not.
    """
    return digits_judge() if dit.folder == MODELS["zoo/dit-digits"] else None


def digits_judge() -> Judge:
    """Return what measures samples of any model of the digits that ship."""
    digits = load_digits()
    images = torch.cat([digits.train_images, digits.test_images])
    return Judge(FeatureClassifier.load(CLASSIFIER), images)


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
