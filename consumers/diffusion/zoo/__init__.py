# SPDX-License-Identifier: Apache-2.0
"""What ships with the package: a small diffusion transformer, its images, and a classifier.

``dit-digits`` makes 8x8 digits of a chosen class. It was trained by ``benchmarks/train_dit.py``
on four fifths of the images in ``digits.npz``, which are the test set of "Optical Recognition of
Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI, CC BY 4.0; see ``LICENSE.digits``).
"""

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lutwise.errors import DataError

__all__ = ["CLASSIFIER", "DIGITS", "MODELS", "Digits", "load_digits"]

_FOLDER: Final = Path(__file__).parent

MODELS: Final = {"zoo/dit-digits": _FOLDER / "dit-digits"}
"""Folders of models by the name that people write."""

CLASSIFIER: Final = _FOLDER / "classifier.safetensors"
"""Weights of the classifier whose features are compared."""

DIGITS: Final = _FOLDER / "digits.npz"
"""Images, labels, and which of them were trained on."""

_WHITE: Final = 16
"""Pixels are counts 0 .. 16."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Digits:
    """Images in [-1, 1] of handwritten digits.

    Args:
        train_images: Shape (n, 1, 8, 8).
        train_labels: Shape (n,), 0 .. 9.
        test_images: That no model here was trained on, shape (m, 1, 8, 8).
        test_labels: Shape (m,).
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(path: Path = DIGITS) -> Digits:
    """Read the images that ship with the package.

    Args:
        path: Of an ``.npz`` file with ``images`` (n, 8, 8) of 0 .. 16, ``labels`` (n,) and
            ``train`` (n,), whether a model was trained on them.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as held:
            pixels, labels, train = held["images"], held["labels"], held["train"]
    except (
        OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise DataError(f"cannot read the digits in {path}: {error}; install again") from error
    images = torch.from_numpy(pixels).float()[:, None] / (_WHITE / 2) - 1
    classes, chosen = torch.from_numpy(labels).long(), torch.from_numpy(train).bool()
    return Digits(
        train_images=images[chosen],
        train_labels=classes[chosen],
        test_images=images[~chosen],
        test_labels=classes[~chosen],
    )
