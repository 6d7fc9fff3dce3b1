# SPDX-License-Identifier: Apache-2.0
"""What is used of diffusers; the one place that imports it.

Importing this module raises ConfigError where diffusers is not installed, or is too old.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lutwise.errors import ConfigError

try:
    from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, DiTTransformer2DModel
except ImportError as error:
    raise ConfigError(
        f"diffusion transformers need diffusers 0.42 or later ({error}); "
        "run `pip install 'lutwise[diffusion]'`"
    ) from error

__all__ = [
    "AutoencoderKL",
    "DDIMScheduler",
    "DDPMScheduler",
    "DiTTransformer2DModel",
    "all_settings",
    "blocks_of",
    "config_of",
    "known_settings",
]


def known_settings(stock: Callable[..., Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that a class of diffusers takes.

    Configurations also hold the class's name, the version that wrote them, and settings of
    related classes.
    """
    names = inspect.signature(stock).parameters
    return {key: value for key, value in config.items() if key in names}


def all_settings(stock: Callable[..., Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every setting of a class of diffusers, with its defaults where nothing is given."""
    names = inspect.signature(stock).parameters
    return {name: config.get(name, names[name].default) for name in names}


def config_of(transformer: nn.Module) -> Any:
    """Return the configuration of a model of diffusers."""
    return transformer.config


def blocks_of(transformer: nn.Module) -> list[Any]:
    """Return the blocks of a DiT."""
    return list(transformer.transformer_blocks)  # type: ignore[arg-type]
