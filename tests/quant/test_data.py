# SPDX-License-Identifier: Apache-2.0
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lutwise.errors import DataError
from lutwise.quant.data import (
    ChannelOrder,
    Dataset,
    Preprocessing,
    Split,
    balanced_subset,
    check_disjoint,
    dataset_of,
    load_data,
)

GREY = Preprocessing(channels=ChannelOrder.GREY, mean=(0.5,), std=(0.25,))
RGB = Preprocessing(channels=ChannelOrder.RGB, mean=(0.0,) * 3, std=(1.0,) * 3, divisor=1.0)
BGR = Preprocessing(channels=ChannelOrder.BGR, mean=(1.0, 2.0, 3.0), std=(1.0,) * 3, divisor=1.0)
FASHION = Preprocessing(channels=ChannelOrder.GREY, mean=(0.2860,), std=(0.3530,))


def picture(seed: int, height: int = 6, width: int = 8) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_picture(path: Path, seed: int, height: int = 6, width: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, height, width)).save(path)


def image_folder(root: Path, classes: int = 3, each: int = 4) -> Path:
    for c in range(classes):
        for i in range(each):
            write_picture(root / f"c{c}" / f"{i}.png", seed=100 * c + i)
    return root


def labels_folder(root: Path, table: str) -> Path:
    for i in range(4):
        write_picture(root / f"{i}.png", seed=i)
    (root / "labels.csv").write_text(table)
    return root


def npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_builtin_set_is_balanced_and_disjoint() -> None:
    calib = load_data("zoo/fashion_mnist", FASHION, (1, 28, 28), split=Split.CALIB, classes=10)
    test = load_data("zoo/fashion_mnist", FASHION, (1, 28, 28), split=Split.EVAL, classes=10)
    assert (len(calib), len(test)) == (256, 2000)
    assert calib.labels is not None
    assert test.labels is not None
    assert set(np.bincount(calib.labels)) == {25, 26}
    assert set(np.bincount(test.labels)) == {200}
    assert abs(calib.images.mean()) < 0.1
    assert len(set(calib.hashes)) == 256
    assert len(set(test.hashes)) == 2000
    check_disjoint(calib, test)


def test_image_folder_labels_are_sorted_folders(tmp_path: Path) -> None:
    data = load_data(str(image_folder(tmp_path)), RGB, (3, 6, 8), split=Split.EVAL, classes=3)
    assert data.labels is not None
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.images.dtype == np.float32
    assert np.array_equal(data.images[5].transpose(1, 2, 0), picture(101))


def test_loose_images_have_no_labels(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 0)
    (tmp_path / "notes.txt").write_text("hello")
    data = load_data(str(tmp_path), RGB, None, split=Split.CALIB)
    assert data.labels is None
    assert len(data) == 1
    (images, labels), *rest = data.batches(8)
    assert images.shape == (1, 3, 6, 8)
    assert labels is None
    assert not rest


TABLE = "file,label,name,split\n0.png,4,a,calib\n1.png,0,b,eval\n2.png,2,c,eval\n3.png,1,d,calib\n"


@pytest.mark.parametrize(
    ("split", "labels"), [(Split.CALIB, [4, 1]), (Split.EVAL, [0, 2]), (None, [4, 0, 2, 1])]
)
def test_labels_file_chooses_by_split(
    split: Split | None, labels: list[int], tmp_path: Path
) -> None:
    data = load_data(str(labels_folder(tmp_path, TABLE)), RGB, (3, 6, 8), split=split, classes=5)
    assert data.labels is not None
    assert data.labels.tolist() == labels


def test_labels_file_finds_images_in_a_folder_beside_it(tmp_path: Path) -> None:
    labels_folder(tmp_path / "images", TABLE)
    (tmp_path / "images" / "labels.csv").rename(tmp_path / "labels.csv")
    assert len(load_data(str(tmp_path), RGB, None, split=None)) == 4


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_npz_of_bytes_in_both_layouts(layout: str, tmp_path: Path) -> None:
    images = np.stack([picture(i) for i in range(3)])
    stored = images if layout == "nhwc" else images.transpose(0, 3, 1, 2)
    path = npz(tmp_path / "a.npz", images=stored, labels=np.arange(3))
    data = load_data(path, BGR, (3, 6, 8), split=Split.EVAL)
    wanted = (
        images[..., ::-1].transpose(0, 3, 1, 2) - np.array([1, 2, 3], np.float32)[:, None, None]
    )
    assert np.array_equal(data.images, wanted)


def test_npz_of_grey_bytes_without_channel_axis_is_scaled(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", images=picture(0)[None, :, :, 0])
    preprocessing = Preprocessing(channels=ChannelOrder.GREY, mean=(0.0,), std=(1.0,), size=4)
    data = load_data(path, preprocessing, (1, 4, 4), split=Split.CALIB)
    wanted = Image.fromarray(picture(0)[:, :, 0]).resize((4, 4), Image.Resampling.BICUBIC)
    assert np.array_equal(data.pixels[0, 0], np.asarray(wanted))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_npz_of_floats_is_taken_as_it_is(dtype: type[Any], tmp_path: Path) -> None:
    images = np.linspace(-2, 2, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4).astype(dtype)
    path = npz(tmp_path / "a.npz", images=images)
    data = load_data(path, None, (3, 4, 4), split=Split.CALIB)
    assert np.array_equal(data.images, images.astype(np.float32))
    assert data.preprocessing is None


def _empty_classes(root: Path) -> str:
    (root / "a").mkdir()
    return str(root)


def _corrupt(root: Path) -> str:
    image_folder(root)
    (root / "c1" / "2.png").write_bytes(b"not a picture")
    return str(root)


def _truncated(root: Path) -> str:
    image_folder(root)
    file = root / "c1" / "2.png"
    file.write_bytes(file.read_bytes()[:60])
    return str(root)


def _wide(root: Path) -> str:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(root / "a.png")
    return str(root)


def _sizes(root: Path) -> str:
    write_picture(root / "a.png", 0)
    write_picture(root / "b.png", 1, 7, 7)
    return str(root)


def _mixed(root: Path) -> str:
    write_picture(image_folder(root) / "loose.png", 0)
    return str(root)


def _text(root: Path) -> str:
    (root / "a.npz").write_text("hello")
    return str(root / "a.npz")


def _damaged(root: Path) -> str:
    path = Path(npz(root / "a.npz", images=np.zeros((2, 8, 8, 3), np.uint8)))
    path.write_bytes(path.read_bytes()[:200])
    return str(path)


def _arrays(**arrays: Any) -> Callable[[Path], str]:
    return lambda root: npz(root / "a.npz", **arrays)


def _table(text: str) -> Callable[[Path], str]:
    return lambda root: str(labels_folder(root, text))


BYTES = np.zeros((2, 6, 8, 3), np.uint8)
NAN = np.array([0.0, np.nan, np.inf], np.float32)[:, None, None, None] * np.ones(
    (3, 3, 6, 8), np.float32
)

# name: (how to make it, options of load_data, part of the message)
BAD: dict[str, tuple[Callable[[Path], str], dict[str, Any], str]] = {
    "missing": (lambda root: str(root / "none"), {}, "the path does not exist"),
    "no_such_builtin": (lambda root: "zoo/cifar", {}, "built-in images are zoo/fashion_mnist"),
    "part_of_builtin": (lambda root: "zoo/fashion_mnist", {"split": None}, "say which"),
    "empty": (str, {}, "no images under"),
    "empty_classes": (_empty_classes, {}, "no images under"),
    "mixed": (_mixed, {}, "holds images beside class folders (loose.png, c0/)"),
    "other_file": (lambda root: str(Path(__file__)), {}, "come from a directory or an .npz file"),
    "corrupt": (_corrupt, {}, "2.png is not a readable image"),
    "truncated": (_truncated, {}, "2.png is not a readable image"),
    "wide": (_wide, {}, "a.png: pixels of 8 bits are needed"),
    "sizes_differ": (_sizes, {}, "a.png has 8x6 pixels and"),
    "size_of_model": (
        lambda root: str(image_folder(root)),
        {"input_shape": (3, 32, 32)},
        "the model wants images of shape (3, 32, 32)",
    ),
    "no_preprocessing": (
        lambda root: str(image_folder(root)),
        {"preprocessing": None},
        "pictures need a preprocessing",
    ),
    "no_labels": (_sizes, {"split": Split.EVAL}, "evaluation needs labels and there are none"),
    "too_few_classes": (
        lambda root: str(image_folder(root)),
        {"split": Split.EVAL, "classes": 10},
        "has 3 class folders and the model 10 classes",
    ),
    "too_many_classes": (
        lambda root: str(image_folder(root)),
        {"classes": 2},
        "4 labels are out of range, the first is 2 of image 8",
    ),
    "negative_label": (_arrays(images=BYTES, labels=[0, -1]), {}, "labels count from 0"),
    "limit": (lambda root: str(image_folder(root)), {"limit": 0}, "a limit of at least one image"),
    "not_npz": (_text, {}, "is not a readable .npz"),
    "damaged_npz": (_damaged, {}, "is not a readable .npz"),
    "pickle": (
        _arrays(images=BYTES, labels=np.array([{}, {}], object)),
        {},
        "pickled objects are refused",
    ),
    "no_images_array": (_arrays(pictures=BYTES), {}, "needs an array `images`, it has ['pict"),
    "integers": (_arrays(images=BYTES.astype(np.int64)), {}, "got int64 (2, 6, 8, 3)"),
    "flat": (_arrays(images=np.zeros((2, 6), np.uint8)), {}, "got uint8 (2, 6)"),
    "no_rows": (_arrays(images=BYTES[:0]), {}, "holds no images: shape (0, 6, 8, 3)"),
    "label_count": (_arrays(images=BYTES, labels=[1]), {}, "got 2 images and 1 labels"),
    "label_type": (_arrays(images=BYTES, labels=[0.5, 1]), {}, "class numbers, one per image"),
    "channels": (_arrays(images=BYTES), {"input_shape": (1, 6, 8)}, "the model wants 1 channels"),
    "channels_of_preprocessing": (
        _arrays(images=BYTES[..., :1]),
        {"input_shape": (1, 6, 8)},
        "the preprocessing is for 3 channels, the images have 1",
    ),
    "bytes_alone": (_arrays(images=BYTES), {"preprocessing": None}, "uint8 images need a prepro"),
    "float_shape": (
        _arrays(images=NAN[:1]),
        {"input_shape": (3, 8, 6)},
        "shape (3, 8, 6) (channels, height, width), got (3, 6, 8)",
    ),
    "nan": (_arrays(images=NAN), {}, "2 of 3 images hold NaN or infinity, the first is image 1"),
    "no_file_column": (_table("name,label\n0.png,1\n"), {}, "needs a column `file`"),
    "no_rows_in_table": (_table("file,label\n"), {}, "has no rows"),
    "no_row_of_split": (
        _table("file,label,split\n0.png,1,train\n"),
        {},
        "has no row of split 'calib', only ['train']",
    ),
    "file_is_missing": (_table("file\n9.png\n"), {}, "line 2: image '9.png' does not exist"),
    "file_is_outside": (_table("file\n../a.png\n"), {}, "'../a.png' lies outside of"),
    "label_is_text": (_table("file,label\n0.png,cat\n"), {}, "labels are class numbers"),
    "label_is_absent": (_table("file,label\n0.png\n"), {}, "labels are class numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_refused(name: str, tmp_path: Path) -> None:
    make, options, message = BAD[name]
    spec = make(tmp_path)
    values = {"preprocessing": RGB, "input_shape": None, "split": Split.CALIB, **options}
    with pytest.raises(DataError, match=re.escape(message)):
        load_data(spec, values.pop("preprocessing"), values.pop("input_shape"), **values)


def test_binary_labels_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match=r"labels.csv cannot be read"):
        load_data(str(tmp_path), RGB, None, split=None)


# ---- subsets, hashes


def test_limit_is_balanced_and_depends_on_the_seed_alone(tmp_path: Path) -> None:
    spec = str(image_folder(tmp_path, classes=3, each=5))

    def load(seed: int) -> Dataset:
        return load_data(spec, RGB, None, split=Split.CALIB, limit=6, seed=seed)

    one, again, other = load(1), load(1), load(2)
    assert one.labels is not None
    assert np.bincount(one.labels).tolist() == [2, 2, 2]
    assert one.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.property
@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    limit=st.integers(1, 80),
    seed=st.integers(0, 9),
)
def test_subset_is_as_balanced_as_can_be(labels: list[int], limit: int, seed: int) -> None:
    array = np.array(labels)
    index = balanced_subset(array, len(labels), limit, seed)
    assert len(set(index)) == min(limit, len(labels))
    assert np.array_equal(index, np.sort(index))
    taken, there = (np.bincount(a, minlength=6) for a in (array[index], array))
    # a class has less than another by two or more only where it is used up
    assert all(taken[c] >= taken.max() - 1 for c in range(6) if taken[c] < there[c])


def test_subset_without_labels_differs_by_seed() -> None:
    one, two = (balanced_subset(None, 100, 10, seed) for seed in (0, 1))
    assert len(set(one)) == 10
    assert not np.array_equal(one, two)


def test_disjoint_sets_pass_and_shared_images_are_counted() -> None:
    images = np.random.default_rng(0).random((9, 1, 4, 4)).astype(np.float32)
    left = dataset_of(images[:6].copy(), name="left")
    check_disjoint(left, dataset_of(images[6:].copy(), name="right"))
    shared = dataset_of(images[4:].copy(), name="right")
    with pytest.raises(
        DataError, match=re.escape("2 of 5 evaluation images (right) are also calibration")
    ):
        check_disjoint(left, shared)


def test_the_same_folder_twice_is_not_disjoint(tmp_path: Path) -> None:
    spec = str(image_folder(tmp_path))
    calib = load_data(spec, RGB, None, split=Split.CALIB, limit=3)
    with pytest.raises(DataError, match="3 of 12 evaluation images"):
        check_disjoint(calib, load_data(spec, RGB, None, split=Split.EVAL))


def test_fingerprint_sees_images_labels_and_preprocessing() -> None:
    pixels, labels = BYTES.transpose(0, 3, 1, 2), np.array([0, 1])
    prints = [
        dataset_of(pixels.copy(), labels, name="a", preprocessing=RGB).fingerprint,
        dataset_of(pixels.copy(), labels[::-1].copy(), name="a", preprocessing=RGB).fingerprint,
        dataset_of(pixels.copy(), None, name="a", preprocessing=RGB).fingerprint,
        dataset_of(pixels.copy(), labels, name="a", preprocessing=BGR).fingerprint,
        dataset_of(pixels + np.uint8(1), labels, name="a", preprocessing=RGB).fingerprint,
    ]
    assert len(set(prints)) == 5
    assert dataset_of(pixels.copy(), labels, name="b", preprocessing=RGB).fingerprint == prints[0]


def test_dataset_is_read_only_and_batches_are_copies() -> None:
    data = dataset_of(np.zeros((3, 1, 2, 2), np.float32), np.arange(3), name="a")
    with pytest.raises(ValueError, match="read-only"):
        data.pixels[0] = 1
    for images, labels in data.batches(2):
        assert labels is not None
        images += 1
        labels += 1
    assert not data.images.any()
    assert data.image_shape == (1, 2, 2)
    with pytest.raises(DataError, match="at least one image, got 0"):
        next(data.batches(0))


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (np.zeros((2, 3), np.float32), None, "images of shape (n, c, h, w) are needed"),
        (np.zeros((0, 1, 2, 2), np.float32), None, "images of shape (n, c, h, w) are needed"),
        (np.zeros((2, 1, 2, 2), np.float32), np.arange(3), "one label per image is needed"),
        (np.zeros((2, 1, 2, 2), np.uint8), None, "or uint8 with a preprocessing"),
    ],
)
def test_bad_arrays_are_refused(pixels: Any, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        dataset_of(pixels, labels, name="a")
