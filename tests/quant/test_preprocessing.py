# SPDX-License-Identifier: Apache-2.0
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lutwise.errors import ConfigError
from lutwise.quant.preprocessing import IMAGENET, ChannelOrder, Interpolation, Preprocessing

GREY = Preprocessing(channels=ChannelOrder.GREY, mean=(0.5,), std=(0.25,))
RGB = Preprocessing(channels=ChannelOrder.RGB, mean=(0.0,) * 3, std=(1.0,) * 3, divisor=1.0)
BGR = Preprocessing(channels=ChannelOrder.BGR, mean=(1.0, 2.0, 3.0), std=(1.0,) * 3, divisor=1.0)


def picture(seed: int, height: int = 6, width: int = 8) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_normalise_is_the_formula_in_float32() -> None:
    pixels = np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2) * 30
    wanted = (torch.from_numpy(pixels.copy()).float() / 255 - 0.5) / 0.25
    assert np.array_equal(GREY.normalise(pixels), wanted.numpy())


def test_bgr_reverses_the_colours() -> None:
    image = Image.fromarray(picture(0))
    assert np.array_equal(BGR.pixels(image), RGB.pixels(image)[::-1])
    x = BGR.normalise(BGR.pixels(image)[None])
    assert x[0, 0, 0, 0] == picture(0)[0, 0, 2] - 1.0


def resized(**options: Any) -> Preprocessing:
    return Preprocessing(channels=ChannelOrder.RGB, mean=(0.0,) * 3, std=(1.0,) * 3, **options)


@pytest.mark.parametrize(
    ("preprocessing", "box", "scaled"),
    [
        (resized(size=4), (0, 0, 30, 21), (4, 4)),
        (resized(size=4, crop_fraction=0.8), (7, 2, 23, 18), (4, 4)),
        (resized(size=12, crop_padding=4), (8, 3, 23, 18), (12, 12)),
        (resized(size=12, crop_padding=3), (7, 3, 23, 19), (12, 12)),
    ],
    ids=["whole", "fraction", "padding", "padding_odd"],
)
def test_crop_then_scale_cuts_the_centre(
    preprocessing: Preprocessing, box: tuple[int, int, int, int], scaled: tuple[int, int]
) -> None:
    image = Image.fromarray(picture(1, 21, 30))
    wanted = image.crop(box).resize(scaled, Image.Resampling.BICUBIC)
    assert np.array_equal(preprocessing.pixels(image).transpose(1, 2, 0), np.asarray(wanted))


def test_scale_then_crop_cuts_the_centre() -> None:
    image = Image.fromarray(picture(1, 21, 30))
    wanted = image.resize((20, 14), Image.Resampling.BILINEAR).crop((4, 1, 16, 13))
    found = resized(size=12, short_side=14, interpolation=Interpolation.BILINEAR).pixels(image)
    assert np.array_equal(found.transpose(1, 2, 0), np.asarray(wanted))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1"])
@pytest.mark.parametrize("preprocessing", [GREY, RGB], ids=["grey", "rgb"])
def test_pictures_of_any_8_bit_mode_are_converted(mode: str, preprocessing: Preprocessing) -> None:
    image = Image.fromarray(picture(0)).convert(mode)
    assert preprocessing.pixels(image).shape == (preprocessing.channels.count, 6, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0.0,)}, "needs 3 means"),
        ({"std": (1.0, 0.0, 1.0)}, "std and divisor must be positive"),
        ({"mean": (0.0, float("nan"), 0.0)}, "finite numbers"),
        ({"divisor": -1.0}, "std and divisor must be positive"),
        ({"size": 0}, "size must be at least 1"),
        ({"crop_fraction": 0.5}, "need size"),
        ({"size": 8, "crop_fraction": 0.5, "short_side": 9}, "exclude each other"),
        ({"size": 8, "crop_fraction": 1.5}, "crop_fraction lies in (0, 1]"),
        ({"size": 8, "crop_padding": -1}, "must not be negative"),
        ({"size": 8, "short_side": 7}, "short_side 7 is less than size 8"),
    ],
    ids=str,
)
def test_bad_preprocessing_is_refused(change: dict[str, Any], message: str) -> None:
    values = {"channels": ChannelOrder.RGB, "mean": (0.0,) * 3, "std": (1.0,) * 3, **change}
    with pytest.raises(ConfigError, match=re.escape(message)):
        Preprocessing(**values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mean is missing"),
        ("mean=0;std", "'std' is not KEY=VALUE"),
        ("mean=0;std=1;colour=red", "keys: channels, mean"),
        ("mean=0;mean=1;std=1", "each key once"),
        ("mean=zero;std=1", "could not convert"),
        ("mean=0;std=1;channels=cmyk", "'cmyk' is not a valid ChannelOrder"),
        ("mean=0;std=1;size=8.5", "invalid literal"),
        ("lmagenet", "presets: imagenet"),
    ],
)
def test_bad_preprocessing_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Preprocessing.parse(text)


NUMBERS = st.floats(-1e3, 1e3, allow_nan=False)
POSITIVE = st.floats(1e-3, 1e3)


@pytest.mark.property
@given(data=st.data(), channels=st.sampled_from(ChannelOrder))
def test_preprocessing_text_reads_back(data: st.DataObject, channels: ChannelOrder) -> None:
    count = channels.count
    ways: list[dict[str, Any]] = [{}, {"crop_fraction": 0.875}, {"crop_padding": 2}]
    ways.append({"short_side": 10})
    crop = data.draw(st.sampled_from([{}, *({"size": 9, **way} for way in ways)]))
    preprocessing = Preprocessing(
        channels=channels,
        mean=tuple(data.draw(st.lists(NUMBERS, min_size=count, max_size=count))),
        std=tuple(data.draw(st.lists(POSITIVE, min_size=count, max_size=count))),
        divisor=data.draw(POSITIVE),
        interpolation=data.draw(st.sampled_from(Interpolation)),
        **crop,
    )
    assert Preprocessing.parse(str(preprocessing)) == preprocessing
    assert Preprocessing.parse("imagenet") is IMAGENET
