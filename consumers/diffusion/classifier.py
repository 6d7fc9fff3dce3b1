# SPDX-License-Identifier: Apache-2.0
"""The small classifier whose features the Frechet distance compares.

An Inception net says little of 8x8 grey images; a net trained on the same images does. Distances
in its features are comparable with each other, not with published FIDs.
"""

import json
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lutwise.errors import ConfigError, DataError, ModelError
from lutwise.files import write_atomic
from lutwise.quant.checkpoints import load_into, load_state

__all__ = ["FeatureClassifier"]

_KEY: Final = "lutwise.feature_classifier"
_BATCH: Final = 1024


class FeatureClassifier(nn.Module):
    """Two convolutions and two linear layers; 36 k parameters for 1x8x8 images.

    Features go through SiLU, not ReLU: a feature that is zero on all images would make their
    covariance singular.

    Args:
        classes: Width of the last layer.
        channels: Image channels.
        size: Height and width of an image, a multiple of 4.
        features: Width of the layer before the last.

    Raises:
        ConfigError: A size is not positive, or the image is no multiple of 4.
    """

    def __init__(
        self, *, classes: int = 10, channels: int = 1, size: int = 8, features: int = 64
    ) -> None:
        super().__init__()
        if min(classes, channels, size, features) < 1 or size % 4:
            raise ConfigError(
                "a feature classifier has positive sizes and images of a multiple of 4 pixels, got "
                f"classes={classes}, channels={channels}, size={size}, features={features}"
            )
        self.classes, self.channels, self.size, self.width = classes, channels, size, features
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (size // 4) ** 2, features),
            nn.SiLU(),
        )
        self.head = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images in [-1, 1], shape (n, channels, size, size), to logits (n, classes)."""
        return self.head(self.body(images))  # type: ignore[no-any-return]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return the features of images, shape (n, features), a batch at a time.

        Args:
            images: In [-1, 1], shape (n, channels, size, size).

        Raises:
            DataError: The shape is another.
        """
        wanted = (self.channels, self.size, self.size)
        if images.ndim != 4 or tuple(images.shape[1:]) != wanted or not len(images):
            raise DataError(
                f"the classifier takes images of shape (n, {', '.join(map(str, wanted))}) with "
                f"n >= 1, got {tuple(images.shape)}"
            )
        return torch.cat([self.body(batch) for batch in images.split(_BATCH)])

    def save(self, path: Path) -> None:
        """Write weights and sizes as safetensors.

        Raises:
            OutputError: The place cannot be written.
        """
        sizes = {
            "classes": self.classes,
            "channels": self.channels,
            "size": self.size,
            "features": self.width,
        }
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        write_atomic(path, save(state, metadata={_KEY: json.dumps(sizes)}))

    @classmethod
    def load(cls, path: Path) -> "FeatureClassifier":
        """Read what `save` wrote; the net is in evaluation mode.

        Raises:
            ModelError: The file is missing, damaged, or of another net.
        """
        state = load_state(path)
        try:
            with safe_open(path, framework="pt") as held:
                sizes = json.loads((held.metadata() or {})[_KEY])
            net = cls(**{name: int(sizes[name]) for name in sorted(sizes)})
        except (KeyError, TypeError, ValueError, SafetensorError, ConfigError) as error:
            raise ModelError(
                f"{path} is no file of a feature classifier ({type(error).__name__}: {error}); "
                "benchmarks/train_dit.py writes one"
            ) from error
        load_into(net, state, str(path))
        return net.eval()
