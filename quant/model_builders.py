# SPDX-License-Identifier: Apache-2.0
"""Architectures: modules without trained weights, by the name that ``--arch`` takes."""

import difflib
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

import torch
from torch import nn

from lutwise.errors import ConfigError, ModelError
from lutwise.quant.preprocessing import ChannelOrder, Interpolation, Preprocessing
from lutwise.quant.torchvision_shim import import_timm, import_torchvision
from lutwise.quant.zoo.architectures import Cnn, Mlp, MobileNet, ResNet8
from lutwise.quant.zoo.imagenet import (
    EFFICIENTNET_LITE0_PREPROCESSING,
    SQUEEZENET1_1_PREPROCESSING,
    EfficientNetLite0,
    SqueezeNet1_1,
)
from lutwise.quant.zoo.transformer import Vit

__all__ = ["ARCH_FORMS", "ZOO", "Architecture", "find_architecture"]

ARCH_FORMS: Final = (
    "zoo/NAME",
    "timm/NAME",
    "torchvision/NAME",
    "package.module:callable (with --trust-code)",
    "path/to/file.py:callable (with --trust-code)",
)
"""What ``--arch`` takes."""

_SEED: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How to build a net, and what it wants.

    Args:
        name: As given.
        build: Makes the module, with random weights.
        input_shape: (c, h, w), None where unknown.
        preprocessing: Of its images, None where unknown.
        data: Spec of the built-in images it was trained on.
        weights: File in the package, None where there is none.
    """

    name: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...] | None = None
    preprocessing: Preprocessing | None = None
    data: str | None = None
    weights: str | None = None

    def module(self) -> nn.Module:
        """Build the module in evaluation mode; the same random weights at each call.

        Raises:
            ModelError: Building it fails, or it is no `nn.Module`.
        """
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_SEED)
                module = self.build()
        except ModelError:
            raise
        except Exception as e:
            # code that is not ours may raise anything
            raise ModelError(f"building {self.name} failed: {type(e).__name__}: {e}") from e
        if not isinstance(module, nn.Module):
            raise ModelError(
                f"{self.name} has to return a torch.nn.Module, got {type(module).__name__}"
            )
        return module.eval()


def _small(name: str, build: Callable[[], nn.Module]) -> Architecture:
    return Architecture(
        name=f"zoo/{name}",
        build=build,
        input_shape=(1, 28, 28),
        preprocessing=Preprocessing(channels=ChannelOrder.GREY, mean=(0.2860,), std=(0.3530,)),
        data="zoo/fashion_mnist",
        weights=f"{name}.safetensors",
    )


def _imagenet(
    name: str, build: Callable[[], nn.Module], preprocessing: Preprocessing
) -> Architecture:
    return Architecture(
        name=f"zoo/{name}",
        build=build,
        input_shape=(3, 224, 224),
        preprocessing=preprocessing,
    )


ZOO: Final[Mapping[str, Architecture]] = {
    a.name: a
    for a in (
        _small("resnet8", ResNet8),
        _small("mobilenet", MobileNet),
        _small("vit", Vit),
        _small("mlp", Mlp),
        _small("cnn", Cnn),
        _imagenet("efficientnet_lite0", EfficientNetLite0, EFFICIENTNET_LITE0_PREPROCESSING),
        _imagenet("squeezenet1_1", SqueezeNet1_1, SQUEEZENET1_1_PREPROCESSING),
    )
}
"""Architectures of the package."""


def find_architecture(spec: str, *, trust_code: bool) -> Architecture:
    """Find an architecture by its name.

    Args:
        spec: One of `ARCH_FORMS`.
        trust_code: Whether code that the spec names may run.

    Raises:
        ModelError: There is no such architecture, a package is missing, or code is not trusted.
    """
    family, slash, name = spec.partition("/")
    if spec.startswith("zoo/"):
        if spec not in ZOO:
            raise ModelError(f"no architecture {spec!r}, the zoo has {', '.join(ZOO)}")
        return ZOO[spec]
    if ":" in spec:
        return Architecture(name=spec, build=_user_callable(spec, trust_code))
    if slash and family == "timm":
        return _timm(name)
    if slash and family == "torchvision":
        return _torchvision(name)
    raise ModelError(f"no architecture {spec!r}; give one of {', '.join(ARCH_FORMS)}")


def _user_callable(spec: str, trust_code: bool) -> Callable[[], nn.Module]:
    if not trust_code:
        raise ModelError(
            f"{spec!r} names code, which runs only with --trust-code; look at it first, it can do "
            "whatever you can"
        )
    place, _, attribute = spec.rpartition(":")
    if not place or not attribute:
        raise ModelError(f"{spec!r} is not package.module:callable or path/to/file.py:callable")
    module = _user_module(place)
    build: object = module
    for part in attribute.split("."):
        build = getattr(build, part, None)
    if not callable(build):
        raise ModelError(f"{place!r} has no callable {attribute!r}")
    return build


def _user_module(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place)
        if not path.is_file():
            raise ModelError(f"no file {place!r} to take the architecture from")
        name = f"lutwise_user_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look their module up
        spec.loader.exec_module(module)
    except ModelError:
        raise
    except Exception as e:
        # code that is not ours may raise anything
        raise ModelError(f"importing {place!r} failed: {type(e).__name__}: {e}") from e
    return module


def _timm(name: str) -> Architecture:
    timm = import_timm()
    if not timm.is_model(name):
        raise ModelError(f"timm has no model {name!r}{_similar(name, timm.list_models())}")
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    preprocessing, shape = None, None
    if config is not None and config.mean and config.input_size:
        shape = tuple(config.input_size)
        preprocessing = _timm_preprocessing(config.to_dict())
    return Architecture(
        name=f"timm/{name}",
        build=lambda: timm.create_model(name, pretrained=False),
        input_shape=shape,
        preprocessing=preprocessing,
    )


def _timm_preprocessing(config: Mapping[str, object]) -> Preprocessing | None:
    _, height, width = _numbers(config["input_size"])
    if height != width:
        return None
    fraction = config.get("crop_pct")
    resize = int(height / fraction) if isinstance(fraction, float) and fraction < 1 else height
    try:
        return Preprocessing(
            channels=ChannelOrder.RGB,
            mean=_numbers(config["mean"]),
            std=_numbers(config["std"]),
            size=int(height),
            short_side=int(resize),
            interpolation=Interpolation(config.get("interpolation", "bicubic")),
        )
    except (ConfigError, ValueError):
        return None


def _torchvision(name: str) -> Architecture:
    models = import_torchvision()
    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(f"torchvision has no classification model {name!r}{_similar(name, known)}")
    transform = models.get_model_weights(name).DEFAULT.transforms()
    size = int(transform.crop_size[0])
    preprocessing = Preprocessing(
        channels=ChannelOrder.RGB,
        mean=_numbers(transform.mean),
        std=_numbers(transform.std),
        size=size,
        short_side=int(transform.resize_size[0]),
        interpolation=Interpolation(transform.interpolation.value),
    )

    def build() -> nn.Module:
        # some constructors warn that a default will change; none of it concerns untrained nets
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            module: nn.Module = models.get_model(name, weights=None)
        return module

    return Architecture(
        name=f"torchvision/{name}",
        build=build,
        input_shape=(3, size, size),
        preprocessing=preprocessing,
    )


def _numbers(values: object) -> tuple[float, ...]:
    assert isinstance(values, list | tuple)
    return tuple(float(v) for v in values)


def _similar(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=4)
    return f", did you mean {' or '.join(close)}?" if close else ""
