# SPDX-License-Identifier: Apache-2.0
"""From a picture to the numbers that a model was trained on."""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from lutwise.errors import ConfigError, DataError

__all__ = ["IMAGENET", "PRESETS", "ChannelOrder", "Interpolation", "Preprocessing"]

_WIDE_MODES: Final = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class Interpolation(Enum):
    """How pixels between pixels are made when a picture is scaled."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"

    @property
    def resampling(self) -> Image.Resampling:
        """Pillow's name for it."""
        return Image.Resampling[self.name]


class ChannelOrder(Enum):
    """Which colours a model sees, in which order."""

    GREY = "grey"
    RGB = "rgb"
    BGR = "bgr"

    @property
    def count(self) -> int:
        """Channels of an image."""
        return 1 if self is ChannelOrder.GREY else 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Crop, scale and normalise: ``x = (pixel / divisor - mean) / std`` per channel.

    Without ``size`` pictures keep their size. With it the model sees a square of that side, cut
    in one of four ways: the centre square of ``crop_fraction`` of the short side, then scaled;
    the centre square of ``size / (size + crop_padding)`` of the short side, then scaled; the
    picture scaled so that its short side is ``short_side``, then the centre square; or, with
    none of the three, the whole picture scaled.

    Args:
        channels: Colours and their order; a colour picture is turned to grey where this says so.
        mean: Per channel, in the unit of ``pixel / divisor``.
        std: Per channel, in the same unit.
        divisor: 255 where mean and std are in 0..1, 1 where they are in 0..255.
        size: Side of the square that the model sees, in pixels.
        crop_fraction: Part of the short side to cut, in (0, 1].
        crop_padding: Pixels around the square in the training pictures.
        short_side: Short side of the scaled picture, in pixels.
        interpolation: For scaling.

    Raises:
        ConfigError: The values do not go together.
    """

    channels: ChannelOrder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    divisor: float = 255.0
    size: int | None = None
    crop_fraction: float | None = None
    crop_padding: int | None = None
    short_side: int | None = None
    interpolation: Interpolation = Interpolation.BICUBIC

    def __post_init__(self) -> None:
        count = self.channels.count
        if len(self.mean) != count or len(self.std) != count:
            raise ConfigError(
                f"preprocessing of {self.channels.value} pictures needs {count} means and as many "
                f"standard deviations, got mean={self.mean}, std={self.std}"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std, self.divisor))):
            raise ConfigError(f"preprocessing needs finite numbers, got {self}")
        if min(*self.std, self.divisor) <= 0:
            raise ConfigError(
                f"std and divisor must be positive, got std={self.std}, divisor={self.divisor}"
            )
        if self.size is not None and self.size < 1:
            raise ConfigError(f"size must be at least 1 pixel, got {self.size}")
        crops = (self.crop_fraction, self.crop_padding, self.short_side)
        given = [c for c in crops if c is not None]
        if len(given) > 1 or (given and self.size is None):
            raise ConfigError(
                "crop_fraction, crop_padding and short_side exclude each other and need size, "
                f"got {self}"
            )
        if self.crop_fraction is not None and not 0 < self.crop_fraction <= 1:
            raise ConfigError(f"crop_fraction lies in (0, 1], got {self.crop_fraction}")
        if self.crop_padding is not None and self.crop_padding < 0:
            raise ConfigError(f"crop_padding must not be negative, got {self.crop_padding}")
        if self.short_side is not None and self.size is not None and self.short_side < self.size:
            raise ConfigError(f"short_side {self.short_side} is less than size {self.size}")

    def __str__(self) -> str:
        parts = [
            f"channels={self.channels.value}",
            f"mean={','.join(map(repr, self.mean))}",
            f"std={','.join(map(repr, self.std))}",
            f"divisor={self.divisor!r}",
        ]
        sizes = ("size", "crop_fraction", "crop_padding", "short_side")
        parts += [f"{k}={getattr(self, k)!r}" for k in sizes if getattr(self, k) is not None]
        return ";".join([*parts, f"interpolation={self.interpolation.value}"])

    @classmethod
    def parse(cls, text: str) -> "Preprocessing":
        """Read what ``str`` writes, or the name of a preset.

        Args:
            text: For example ``channels=rgb;mean=0,0,0;std=1,1,1;size=224;crop_fraction=0.875``
                or ``imagenet``. Without ``channels`` one mean means grey, three mean RGB.

        Raises:
            ConfigError: The text does not describe a preprocessing.
        """
        if text in PRESETS:
            return PRESETS[text]
        values: dict[str, str] = {}
        for part in filter(None, (p.strip() for p in text.split(";"))):
            key, equals, value = part.partition("=")
            if key not in cls.__dataclass_fields__ or not equals or key in values:
                raise ConfigError(
                    f"preprocessing {text!r}: {part!r} is not KEY=VALUE with each key once; keys: "
                    f"{', '.join(cls.__dataclass_fields__)}; presets: {', '.join(PRESETS)}"
                )
            values[key] = value
        try:
            mean, std = (tuple(map(float, values.pop(k).split(","))) for k in ("mean", "std"))
            channels = ChannelOrder(values.pop("channels", "grey" if len(mean) == 1 else "rgb"))
            interpolation = Interpolation(values.pop("interpolation", "bicubic"))
            numbers = {
                k: float(v) if k in ("divisor", "crop_fraction") else int(v)
                for k, v in values.items()
            }
        except KeyError as e:
            raise ConfigError(f"preprocessing {text!r}: {e.args[0]} is missing") from e
        except ValueError as e:
            raise ConfigError(f"preprocessing {text!r}: {e}") from e
        return cls(
            channels=channels,
            mean=mean,
            std=std,
            interpolation=interpolation,
            **numbers,  # type: ignore[arg-type]
        )

    def pixels(self, picture: Image.Image) -> npt.NDArray[np.uint8]:
        """Cut and scale a picture.

        Args:
            picture: Of 8 bits per channel; alpha is dropped.

        Returns:
            Pixels, shape (channels, h, w), colours in the model's order.

        Raises:
            DataError: The picture has more than 8 bits per channel, or is too small to be cut.
        """
        if picture.mode in _WIDE_MODES:
            raise DataError(f"pixels of 8 bits are needed, the picture's mode is {picture.mode!r}")
        grey = self.channels is ChannelOrder.GREY
        picture = self._cut(picture.convert("L" if grey else "RGB"))
        array = np.asarray(picture, dtype=np.uint8)
        array = array[None] if grey else array.transpose(2, 0, 1)
        if self.channels is ChannelOrder.BGR:
            array = array[::-1]
        return np.ascontiguousarray(array)

    def _cut(self, picture: Image.Image) -> Image.Image:
        size = self.size
        if size is None:
            return picture
        width, height = picture.size
        resampling = self.interpolation.resampling
        if self.short_side is not None:
            scale = self.short_side / min(width, height)
            width, height = (max(self.short_side, int(scale * v)) for v in (width, height))
            picture = picture.resize((width, height), resampling)
            # torchvision rounds the offset of its centre crop half to even
            left, top = round((width - size) / 2), round((height - size) / 2)
            return picture.crop((left, top, left + size, top + size))
        if self.crop_fraction is None and self.crop_padding is None:
            return picture.resize((size, size), resampling)
        if self.crop_padding is not None:
            side = int(size / (size + self.crop_padding) * min(width, height))
            left, top = (width - side + 1) // 2, (height - side + 1) // 2
        else:
            side = int((self.crop_fraction or 1.0) * min(width, height))
            left, top = (width - side) // 2, (height - side) // 2
        if side < 1:
            raise DataError(f"a picture of {width}x{height} pixels is too small to be cut")
        return picture.crop((left, top, left + side, top + side)).resize((size, size), resampling)

    def normalise(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn pixels (n, channels, h, w) into what the model sees, float32 throughout."""
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (self.mean, self.std))
        result: npt.NDArray[np.float32] = pixels.astype(np.float32)
        result /= np.float32(self.divisor)
        result -= mean
        result /= std
        return result


IMAGENET: Final = Preprocessing(
    channels=ChannelOrder.RGB,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    size=224,
    short_side=256,
    interpolation=Interpolation.BILINEAR,
)
"""What most ImageNet models of torchvision were evaluated with."""

PRESETS: Final[dict[str, Preprocessing]] = {"imagenet": IMAGENET}
"""Names that `Preprocessing.parse` takes."""
