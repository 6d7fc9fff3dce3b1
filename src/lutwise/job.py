# SPDX-License-Identifier: Apache-2.0
"""What is quantized and measured: a model, images, and how they are looked at."""

from dataclasses import dataclass
from typing import Any

import torch

from lutwise.cost_models.folding import Folding
from lutwise.errors import ConfigError, ModelError
from lutwise.quant.data import Dataset, Split, check_disjoint, load_data
from lutwise.quant.models import LoadedModel

__all__ = ["Job", "load_job"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """What is quantized and measured; the same for every point of a sweep.

    Args:
        model: The float model.
        calibration: Images to calibrate on.
        evaluation: Labelled images to measure on, or None.
        folding: Of the hardware that is priced.
        check_images: Evaluation images on which the exported file is compared, at most.
        threads: Of every executor.
    """

    model: LoadedModel
    calibration: Dataset
    evaluation: Dataset | None
    folding: Folding
    check_images: int
    threads: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of an image."""
        return self.calibration.image_shape


def load_job(
    model: LoadedModel,
    *,
    calib: str | None,
    evaluation: str | None,
    calib_images: int,
    eval_images: int | None,
    seed: int,
    folding: Folding,
    check_images: int,
    threads: int,
) -> Job:
    """Load the images of a job.

    Args:
        model: The model.
        calib: Spec of the calibration images; None for the model's own.
        evaluation: Spec of the evaluation images; None for the model's own, if it has some.
        calib_images: At most.
        eval_images: At most; None for all.
        seed: Of the choice of images.
        folding: Of the hardware that is priced.
        check_images: Images on which the exported file is compared, at most.
        threads: Of every executor.

    Raises:
        ConfigError: There is no calibration data to fall back on.
        DataError: Images are missing, do not fit, or are in both sets; or the model has no such
            class as a label says.
        ModelError: Accuracy is to be measured, and the model is no classifier of the images.
    """
    calib = calib or model.data
    evaluation = evaluation or (model.data if calib == model.data else None)
    if calib is None:
        raise ConfigError(
            f"{model.name} has no images of its own; give --calib (a folder of images, a folder "
            "with labels.csv, or an .npz file)"
        )
    shared: dict[str, Any] = {"preprocessing": model.preprocessing, "seed": seed}
    shape = model.input_shape
    calibration = load_data(
        calib, input_shape=shape, split=Split.CALIB, limit=calib_images, **shared
    )
    measured = None
    if evaluation is not None:
        shape = shape or calibration.image_shape
        measured = load_data(
            evaluation,
            input_shape=shape,
            split=Split.EVAL,
            limit=eval_images,
            classes=_classes(model, calibration),
            **shared,
        )
        check_disjoint(calibration, measured)
    return Job(
        model=model,
        calibration=calibration,
        evaluation=measured,
        folding=folding,
        check_images=check_images,
        threads=threads,
    )


@torch.no_grad()
def _classes(model: LoadedModel, images: Dataset) -> int:
    """Return how many classes a model tells apart; running it on an image is how to know."""
    try:
        logits = model.module(torch.from_numpy(images.slice(0, 1)))
    except Exception as error:
        raise ModelError(
            f"{model.name} does not run on an image of shape {images.image_shape} (channels, "
            f"height, width) of {images.name}: {error}"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(
            f"to measure accuracy a model has to give one tensor of shape (images, classes), got "
            f"{found} from {model.name}; wrap it so, or leave --eval out"
        )
    return logits.shape[1]
