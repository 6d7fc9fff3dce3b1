# SPDX-License-Identifier: Apache-2.0
"""Images and labels to calibrate and evaluate with.

Images are read once, cut and scaled, and kept in memory as bytes (a quarter of float32); they
are normalised a batch at a time. Which images a limit takes depends on the seed alone.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from lutwise.errors import DataError
from lutwise.quant.data_sources import Pixels, Source, Split, open_source
from lutwise.quant.preprocessing import (
    IMAGENET,
    ChannelOrder,
    Interpolation,
    Preprocessing,
)

__all__ = [
    "BUILTIN",
    "IMAGENET",
    "ChannelOrder",
    "Dataset",
    "Interpolation",
    "Preprocessing",
    "Split",
    "balanced_subset",
    "check_disjoint",
    "dataset_of",
    "load_data",
]

BUILTIN: Final = ("zoo/fashion_mnist",)
"""Sets that ship with the package."""

_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Images of one shape, in memory. `dataset_of` makes one.

    Args:
        name: For people.
        pixels: Shape (n, c, h, w), read-only: uint8 to be normalised, or float32 as it is.
        labels: Classes, shape (n,), or None.
        preprocessing: That made the pixels and normalises them; None where pixels are float32.
        hashes: Of each image's pixels.
        fingerprint: SHA-256 over images, labels and preprocessing, hexadecimal.
    """

    name: str
    pixels: Pixels
    labels: npt.NDArray[np.int64] | None
    preprocessing: Preprocessing | None
    hashes: tuple[bytes, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of an image: (c, h, w)."""
        return self.pixels.shape[1:]

    @property
    def images(self) -> npt.NDArray[np.float32]:
        """All images as the model sees them, a new array of shape (n, c, h, w)."""
        return self.slice(0, len(self))

    def slice(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return images ``start`` to ``stop`` as the model sees them, a new array."""
        part = self.pixels[start:stop]
        if self.preprocessing is None or part.dtype == np.float32:
            return part.astype(np.float32, copy=True)
        return self.preprocessing.normalise(part.astype(np.uint8, copy=False))

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Iterate over (images, labels), at most ``size`` images at a time.

        Raises:
            DataError: The size is not positive.
        """
        if size < 1:
            raise DataError(f"a batch has at least one image, got {size}")
        for start in range(0, len(self), size):
            images = torch.from_numpy(self.slice(start, start + size))
            labels = None
            if self.labels is not None:
                labels = torch.from_numpy(self.labels[start : start + size].copy())
            yield images, labels


def dataset_of(
    pixels: Pixels,
    labels: npt.NDArray[np.int64] | None = None,
    *,
    name: str,
    preprocessing: Preprocessing | None = None,
) -> Dataset:
    """Make a dataset from arrays.

    Args:
        pixels: Shape (n, c, h, w): float32 as the model sees it, or uint8 for ``preprocessing``
            to normalise (not to cut or scale). The array becomes read-only.
        labels: Classes, shape (n,).
        name: For people.
        preprocessing: Needed for uint8.

    Raises:
        DataError: Shapes do not fit, there are no images, or one holds NaN or infinity.
    """
    if pixels.ndim != 4 or 0 in pixels.shape:
        raise DataError(f"{name}: images of shape (n, c, h, w) are needed, got {pixels.shape}")
    if labels is not None and labels.shape != (len(pixels),):
        raise DataError(
            f"{name}: one label per image is needed, got {len(pixels)} images and labels of shape "
            f"{labels.shape}"
        )
    if pixels.dtype == np.float32:
        bad = ~np.isfinite(pixels).all(axis=(1, 2, 3))
        if bad.any():
            raise DataError(
                f"{name}: {bad.sum()} of {len(pixels)} images hold NaN or infinity, the first is "
                f"image {bad.argmax()}"
            )
    elif pixels.dtype != np.uint8 or preprocessing is None:
        raise DataError(
            f"{name}: images are float32, or uint8 with a preprocessing, got {pixels.dtype}"
        )
    if not pixels.flags.c_contiguous:
        pixels = pixels.copy()
    pixels.setflags(write=False)
    hashes = tuple(hashlib.blake2b(image, digest_size=16).digest() for image in pixels)
    total = hashlib.sha256(f"{pixels.dtype} {pixels.shape} {preprocessing}\n".encode())
    total.update(b"".join(hashes))
    if labels is not None:
        labels = labels.astype(np.int64)
        labels.setflags(write=False)
        total.update(labels.tobytes())
    return Dataset(
        name=name,
        pixels=pixels,
        labels=labels,
        preprocessing=preprocessing,
        hashes=hashes,
        fingerprint=total.hexdigest(),
    )


def balanced_subset(
    labels: npt.NDArray[np.int64] | None, total: int, limit: int, seed: int
) -> npt.NDArray[np.int64]:
    """Choose ``limit`` of ``total`` images, the classes as equal as possible.

    Args:
        labels: Classes, shape (total,); None to choose evenly from all.
        total: Images there are.
        limit: Images wanted; all where there are fewer.
        seed: Of the choice.

    Returns:
        Indices in ascending order.
    """
    order = np.random.default_rng(seed).permutation(total)
    if labels is None:
        return np.sort(order[:limit])
    # rank of each image among those of its class, in the shuffled order; low ranks go first
    shuffled = labels[order]
    by_class = np.argsort(shuffled, kind="stable")
    counts = np.unique(shuffled, return_counts=True)[1]
    ranks = np.empty(total, np.int64)
    ranks[by_class] = np.concatenate([np.arange(c) for c in counts])
    return np.sort(order[np.argsort(ranks, kind="stable")][:limit])


def load_data(
    spec: str,
    preprocessing: Preprocessing | None,
    input_shape: tuple[int, ...] | None,
    *,
    split: Split | None,
    limit: int | None = None,
    seed: int = 0,
    classes: int | None = None,
) -> Dataset:
    """Load images.

    Args:
        spec: ``zoo/fashion_mnist``, a directory with a folder per class (sorted names are the
            classes), a directory with ``labels.csv`` (columns ``file``, ``label``, ``split``),
            or an ``.npz`` file of ``images`` and ``labels`` (or ``calib_images``, ...).
        preprocessing: Of the model. Not needed for float32 images.
        input_shape: (c, h, w) that the model wants; None to take what comes.
        split: What the images are for; evaluation needs labels. None for all.
        limit: Images at most, balanced between classes.
        seed: Of the choice that a limit makes.
        classes: Of the model, to check labels against.

    Raises:
        DataError: There are no such images, or they do not fit the model.
    """
    if limit is not None and limit < 1:
        raise DataError(f"{spec}: a limit of at least one image is needed, got {limit}")
    source = _open(spec, split)
    _check_labels(source, split, classes)
    index = np.arange(len(source))
    if limit is not None:
        index = balanced_subset(source.labels, len(source), limit, seed)
    channels = input_shape[0] if input_shape else None
    pixels = source.load(index, preprocessing, channels)
    if input_shape is not None and pixels.shape[1:] != tuple(input_shape):
        raise DataError(
            f"{source.name}: the model wants images of shape {tuple(input_shape)} (channels, "
            f"height, width), got {pixels.shape[1:]}; give a preprocessing with the model's size"
        )
    labels = None if source.labels is None else source.labels[index]
    raw = pixels.dtype == np.float32
    return dataset_of(
        pixels, labels, name=source.name, preprocessing=None if raw else preprocessing
    )


def _open(spec: str, split: Split | None) -> Source:
    if not spec.startswith("zoo/"):
        return open_source(Path(spec), split=split)
    if spec not in BUILTIN:
        raise DataError(f"built-in images are {', '.join(BUILTIN)}, not {spec!r}")
    if split is None:
        raise DataError(f"{spec} has a calibration and an evaluation part: say which")
    file = resources.files("lutwise.quant.zoo") / f"{spec.removeprefix('zoo/')}.npz"
    with resources.as_file(file) as path:
        source = open_source(path, split=split)
    return replace(source, name=f"{spec} ({split.value})")


def _check_labels(source: Source, split: Split | None, classes: int | None) -> None:
    labels = source.labels
    if labels is None:
        if split is Split.EVAL:
            raise DataError(
                f"{source.name}: evaluation needs labels and there are none; use a folder per "
                "class, a labels.csv with a column `label`, or an .npz with `labels`"
            )
        return
    if len(labels) != len(source):
        raise DataError(
            f"{source.name}: one label per image is needed, got {len(source)} images and "
            f"{len(labels)} labels"
        )
    top = classes if classes is not None else np.iinfo(np.int64).max
    bad = (labels < 0) | (labels >= top)
    if bad.any():
        raise DataError(
            f"{source.name}: {bad.sum()} labels are out of range, the first is "
            f"{labels[bad.argmax()]} of image {bad.argmax()}; labels count from 0"
            + (f" and the model has {classes} classes" if classes is not None else "")
        )
    folders = source.class_folders
    if split is Split.EVAL and folders is not None and classes not in (None, folders):
        raise DataError(
            f"{source.name} has {folders} class folders and the model {classes} classes, so the "
            "order of folders does not say which class is which; use a labels.csv"
        )


def check_disjoint(calib: Dataset, evaluation: Dataset) -> None:
    """Make sure that no image is in both sets.

    Images count as equal where their pixels, cut and scaled, are equal byte for byte.

    Raises:
        DataError: Some are; the message has their number and the first few indices.
    """
    seen = set(calib.hashes)
    shared = [i for i, h in enumerate(evaluation.hashes) if h in seen]
    if shared:
        first = ", ".join(map(str, shared[:_SHOWN])) + (", ..." if len(shared) > _SHOWN else "")
        raise DataError(
            f"{len(shared)} of {len(evaluation)} evaluation images ({evaluation.name}) are also "
            f"calibration images ({calib.name}): numbers {first}; accuracy measured on images "
            "that were calibrated on is too good, so give other images"
        )
