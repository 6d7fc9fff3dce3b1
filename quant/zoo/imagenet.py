# SPDX-License-Identifier: Apache-2.0
"""ImageNet nets of plain layers, for 224x224 images. Their weights are not in the package."""

from typing import Final

import torch
from torch import Tensor, nn

from lutwise.quant.preprocessing import ChannelOrder, Interpolation, Preprocessing

__all__ = [
    "EFFICIENTNET_LITE0_PREPROCESSING",
    "SQUEEZENET1_1_PREPROCESSING",
    "EfficientNetLite0",
    "SqueezeNet1_1",
]

EFFICIENTNET_LITE0_PREPROCESSING: Final = Preprocessing(
    channels=ChannelOrder.RGB,
    mean=(127.0, 127.0, 127.0),
    std=(128.0, 128.0, 128.0),
    divisor=1.0,
    size=224,
    crop_padding=32,
    interpolation=Interpolation.BICUBIC,
)
"""What EfficientNet-Lite0 was trained with."""

SQUEEZENET1_1_PREPROCESSING: Final = Preprocessing(
    channels=ChannelOrder.BGR,
    mean=(103.939, 116.779, 123.68),
    std=(1.0, 1.0, 1.0),
    divisor=1.0,
    size=224,
    crop_fraction=0.875,
    interpolation=Interpolation.BICUBIC,
)
"""What SqueezeNet 1.1 was trained with."""

_STAGES: Final = (
    # repeats, kernel, stride, expansion, inputs, outputs
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
_EPSILON: Final = 1e-3


def _same_conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, *, bias: bool = False
) -> list[nn.Module]:
    """Convolve with TensorFlow's "same" padding, for even sizes where the stride is 2."""
    if stride == 1:
        return [nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, groups=groups, bias=bias)]
    before = (kernel - stride) // 2
    after = kernel - stride - before
    return [
        nn.ZeroPad2d((before, after, before, after)),
        nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=bias),
    ]


def _conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    return [
        *_same_conv(inputs, outputs, kernel, stride, groups),
        nn.BatchNorm2d(outputs, eps=_EPSILON),
    ]


class InvertedBottleneck(nn.Module):
    """Expand, filter depthwise, project; with a shortcut where the shape stays.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Of the depthwise convolution.
        stride: Of the depthwise convolution.
        expansion: Channels inside, as a multiple of ``inputs``.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = [*_conv_bn(inputs, inner, 1), nn.ReLU6()] if expansion != 1 else []
        self.body = nn.Sequential(
            *expand,
            *_conv_bn(inner, inner, kernel, stride, inner),
            nn.ReLU6(),
            *_conv_bn(inner, outputs, 1),
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        y: Tensor = self.body(x)
        return x + y if self.shortcut else y


class EfficientNetLite0(nn.Module):
    """Depthwise net without squeeze-and-excite, 4.7 M parameters.

    Args:
        classes: Width of the last layer.

    Reference:
        EfficientNet, arXiv 1905.11946, in the Lite variant of the TensorFlow TPU repository.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for repeats, kernel, stride, expansion, inputs, outputs in _STAGES:
            for i in range(repeats):
                first = i == 0
                blocks.append(
                    InvertedBottleneck(
                        inputs if first else outputs,
                        outputs,
                        kernel,
                        stride if first else 1,
                        expansion,
                    )
                )
        self.stem = nn.Sequential(*_conv_bn(3, 32, 3, 2), nn.ReLU6())
        self.blocks = nn.Sequential(*blocks)
        self.top = nn.Sequential(*_conv_bn(320, 1280, 1), nn.ReLU6())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, 3, 224, 224) to logits (n, classes)."""
        return self.head(self.flatten(self.pool(self.top(self.blocks(self.stem(x))))))  # type: ignore[no-any-return]


class Fire(nn.Module):
    """Squeeze to few channels, expand by 1x1 and 3x3 side by side.

    Args:
        inputs: Input channels.
        squeezed: Channels between.
        expanded: Output channels of each of the two branches.
    """

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.squeeze_relu = nn.ReLU()
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand1x1_relu = nn.ReLU()
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.expand3x3_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, 2 * expanded, h, w)."""
        x = self.squeeze_relu(self.squeeze(x))
        left = self.expand1x1_relu(self.expand1x1(x))
        right = self.expand3x3_relu(self.expand3x3(x))
        return torch.cat([left, right], 1)


class SqueezeNet1_1(nn.Module):  # noqa: N801 -- the net's name
    """Net of fire modules, 1.2 M parameters. Its "same" padding is TensorFlow's.

    Args:
        classes: Width of the last layer.

    Reference:
        SqueezeNet, arXiv 1602.07360, version 1.1 of its repository.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_same_conv(3, 64, 3, 2, bias=True),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            nn.MaxPool2d(3, 2),
            Fire(128, 32, 128),
            Fire(256, 32, 128),
            nn.MaxPool2d(3, 2),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
            nn.Conv2d(512, classes, 1),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, 3, 224, 224) to logits (n, classes)."""
        return self.flatten(self.pool(self.features(x)))  # type: ignore[no-any-return]
