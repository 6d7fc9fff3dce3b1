# SPDX-License-Identifier: Apache-2.0
"""Where images come from: image folders, folders with a ``labels.csv``, ``.npz`` files.

A source knows its labels before any image is read, so that a subset is chosen first and only
its images are loaded.
"""

import csv
import os
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from lutwise.errors import DataError, LutwiseError
from lutwise.quant.preprocessing import ChannelOrder, Preprocessing

__all__ = ["ArraySource", "FileSource", "Pixels", "Source", "Split", "open_source"]

SUFFIXES: Final = frozenset(
    (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
LABELS_FILE: Final = "labels.csv"
IMAGES_FOLDER: Final = "images"
_THREADS: Final = 8

Labels: TypeAlias = npt.NDArray[np.int64]
Pixels: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


class Split(Enum):
    """What images are for."""

    CALIB = "calib"
    EVAL = "eval"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FileSource:
    """Image files.

    Args:
        name: For people.
        files: One per image.
        labels: Classes, shape (n,), or None.
        class_folders: How many class folders the labels were counted from; None where they were
            written down.
    """

    name: str
    files: tuple[Path, ...]
    labels: Labels | None
    class_folders: int | None = None

    def __len__(self) -> int:
        return len(self.files)

    def load(
        self,
        index: npt.NDArray[np.int64],
        preprocessing: Preprocessing | None,
        channels: int | None,
    ) -> Pixels:
        """Read, cut and scale the chosen images.

        Args:
            index: Which, shape (k,).
            preprocessing: How.
            channels: That the model wants (unused: pictures are converted).

        Returns:
            Pixels, uint8, shape (k, c, h, w).

        Raises:
            DataError: A file is no readable image, or sizes differ.
        """
        if preprocessing is None:
            raise DataError(
                f"{self.name}: pictures need a preprocessing (mean, std, size) and the model has "
                "none of its own; give one, for example --preprocessing imagenet"
            )
        prepare: Preprocessing = preprocessing
        files = [self.files[i] for i in index]
        first = _read_picture(files[0], prepare)
        pixels = np.empty((len(files), *first.shape), np.uint8)

        def fill(number: int) -> None:
            image = _read_picture(files[number], prepare)
            if image.shape != first.shape:
                raise DataError(
                    f"images have to be of one size, {files[0]} has {_size(first.shape)} pixels "
                    f"and {files[number]} has {_size(image.shape)}; give a preprocessing with a "
                    "size"
                )
            pixels[number] = image

        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            for _ in pool.map(fill, range(len(files))):
                pass
        return pixels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArraySource:
    """Images in memory.

    Args:
        name: For people.
        images: uint8 of shape (n, h, w), (n, h, w, c) or (n, c, h, w), or float32 of shape
            (n, c, h, w), which then is what the model sees.
        labels: Classes, shape (n,), or None.
        class_folders: Always None.
    """

    name: str
    images: Pixels
    labels: Labels | None
    class_folders: None = None

    def __len__(self) -> int:
        return len(self.images)

    def load(
        self,
        index: npt.NDArray[np.int64],
        preprocessing: Preprocessing | None,
        channels: int | None,
    ) -> Pixels:
        """Take, cut and scale the chosen images; those of the model's size stay as they are.

        Args:
            index: Which, shape (k,).
            preprocessing: How, for uint8 images.
            channels: That the model wants; decides between (n, c, h, w) and (n, h, w, c).

        Returns:
            Pixels, uint8 or float32, shape (k, c, h, w).

        Raises:
            DataError: The channels do not fit, or uint8 images come without a preprocessing.
        """
        if self.images.dtype == np.float32:
            return self.images[index]
        if preprocessing is None:
            raise DataError(
                f"{self.name}: uint8 images need a preprocessing (mean, std) and the model has "
                "none of its own; give one with --preprocessing, or save float32 images as the "
                "model sees them"
            )
        wanted = preprocessing.channels.count
        images = _channels_first(self.images[index], channels or wanted, self.name)  # type: ignore[arg-type]
        if images.shape[1] != wanted:
            raise DataError(
                f"{self.name}: the preprocessing is for {wanted} channels, the images have "
                f"{images.shape[1]}"
            )
        size = preprocessing.size
        if size is not None and images.shape[2:] != (size, size):
            return np.stack([preprocessing.pixels(_picture(i)) for i in images])
        if preprocessing.channels is ChannelOrder.BGR:
            images = images[:, ::-1]
        return np.ascontiguousarray(images)


Source: TypeAlias = FileSource | ArraySource


def open_source(path: Path, *, split: Split | None) -> Source:
    """Open a directory or an ``.npz`` file.

    Args:
        path: Of either.
        split: Which rows of ``labels.csv`` or which arrays; None for all.

    Raises:
        DataError: The path is missing, empty or not understood.
    """
    if path.is_dir():
        if (path / LABELS_FILE).exists():
            return _open_labels_file(path, split)
        return _open_folder(path)
    if not path.exists():
        raise DataError(f"no images at {str(path)!r}: the path does not exist")
    if path.suffix.lower() == ".npz":
        return _open_npz(path, split)
    raise DataError(
        f"images come from a directory or an .npz file, not from {str(path)!r}; give an "
        f"ImageFolder directory, a directory with {LABELS_FILE}, an .npz with `images` and "
        "`labels`, or zoo/fashion_mnist"
    )


def _size(shape: Sequence[int]) -> str:
    return f"{shape[2]}x{shape[1]}"


def _picture(image: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0).copy())


def _read_picture(file: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(file) as picture:
            picture.load()
            return preprocessing.pixels(picture)
    except LutwiseError as e:
        raise DataError(f"{file}: {e}") from e
    except FileNotFoundError as e:
        raise DataError(f"image {file} does not exist") from e
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as e:
        raise DataError(f"{file} is not a readable image: {e}; remove or replace it") from e


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _open_folder(path: Path) -> FileSource:
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = sorted(p for p in path.iterdir() if _is_image(p))
    found = [sorted(p for p in folder.rglob("*") if _is_image(p)) for folder in folders]
    if loose and any(found):
        raise DataError(
            f"{path} holds images beside class folders ({loose[0].name}, {folders[0].name}/); "
            "move the loose images away"
        )
    if not loose and not any(found):
        raise DataError(
            f"no images under {path}: a folder per class, or images, with the suffixes "
            f"{' '.join(sorted(SUFFIXES))} are needed"
        )
    if loose:
        return FileSource(name=path.name, files=tuple(loose), labels=None)
    labels = np.repeat(np.arange(len(found)), [len(f) for f in found]).astype(np.int64)
    files = tuple(f for group in found for f in group)
    return FileSource(name=path.name, files=files, labels=labels, class_folders=len(folders))


def _open_labels_file(path: Path, split: Split | None) -> FileSource:
    table = path / LABELS_FILE
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or ()
            rows = list(enumerate(reader, start=2))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{table} cannot be read: {e}") from e
    if "file" not in columns:
        raise DataError(f"{table} needs a column `file`, it has {list(columns)}")
    if split is not None and "split" in columns:
        splits = {str(row["split"]) for _, row in rows}
        rows = [(n, row) for n, row in rows if row["split"] == split.value]
        if not rows:
            raise DataError(f"{table} has no row of split {split.value!r}, only {sorted(splits)}")
    if not rows:
        raise DataError(f"{table} has no rows")
    files = _listed_files(path, [(line, str(row["file"])) for line, row in rows])
    labels = None
    if "label" in columns:
        try:
            labels = np.array([int(str(row["label"])) for _, row in rows], np.int64)
        except (ValueError, OverflowError) as e:
            raise DataError(f"{table}: labels are class numbers: {e}") from e
    return FileSource(name=path.name, files=files, labels=labels)


def _listed_files(path: Path, rows: Sequence[tuple[int, str]]) -> tuple[Path, ...]:
    """Find the files of (line, name) beside the table or in ``images/`` beside it."""
    table, folder = path / LABELS_FILE, path
    if not (path / rows[0][1]).is_file() and (path / IMAGES_FOLDER).is_dir():
        folder = path / IMAGES_FOLDER
    root, files = path.resolve(), []
    for line, name in rows:
        file = folder / name
        if not file.resolve().is_relative_to(root):
            raise DataError(f"{table} line {line}: {name!r} lies outside of {path}")
        if not file.is_file():
            raise DataError(f"{table} line {line}: image {name!r} does not exist in {folder}")
        files.append(file)
    return tuple(files)


def _open_npz(path: Path, split: Split | None) -> ArraySource:
    prefix = ""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            if split is not None and f"{split.value}_images" in archive.files:
                prefix = f"{split.value}_"
            if f"{prefix}images" not in archive.files:
                raise DataError(f"{path} needs an array `images`, it has {archive.files}")
            images = archive[f"{prefix}images"]
            labels = archive[f"{prefix}labels"] if f"{prefix}labels" in archive.files else None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as e:
        raise DataError(
            f"{path} is not a readable .npz of plain arrays: {e}; pickled objects are refused"
        ) from e
    return ArraySource(
        name=path.name, images=_checked_images(images, path), labels=_checked_labels(labels, path)
    )


def _checked_images(images: npt.NDArray[np.generic], path: Path) -> Pixels:
    if images.dtype == np.float64:
        images = images.astype(np.float32)
    if images.dtype == np.uint8 and images.ndim == 3:
        images = images[:, None]
    if images.dtype not in (np.uint8, np.float32) or images.ndim != 4:
        raise DataError(
            f"{path}: images are uint8 (n, h, w, c) or (n, c, h, w), or float32 (n, c, h, w), got "
            f"{images.dtype} {images.shape}"
        )
    if 0 in images.shape:
        raise DataError(f"{path} holds no images: shape {images.shape}")
    return images  # type: ignore[return-value]


def _checked_labels(labels: npt.NDArray[np.generic] | None, path: Path) -> Labels | None:
    if labels is None:
        return None
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{path}: labels are class numbers, one per image, got {labels.dtype} {labels.shape}"
        )
    return labels.astype(np.int64)


def _channels_first(
    images: npt.NDArray[np.uint8], channels: int, name: str
) -> npt.NDArray[np.uint8]:
    if images.shape[1] == channels:
        return images
    if images.shape[3] == channels:
        return images.transpose(0, 3, 1, 2)
    raise DataError(
        f"{name}: the model wants {channels} channels, images of shape {images.shape[1:]} have "
        "them neither first nor last"
    )
