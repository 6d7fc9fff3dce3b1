# SPDX-License-Identifier: Apache-2.0
"""The convolutional and linear nets of the built-in zoo, for 28x28 grey images."""

from itertools import pairwise

from torch import Tensor, nn

__all__ = ["Cnn", "Mlp", "MobileNet", "ResNet8"]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is 1x1 where the shape changes.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        stride: Of the first convolution and the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))  # type: ignore[no-any-return]


class ResNet8(nn.Module):
    """Residual net of 78 k parameters.

    Args:
        classes: Width of the last layer.
        channels: Image channels.

    Reference:
        The image-classification topology of MLPerf Tiny, arXiv 2106.07597.
    """

    def __init__(self, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.stages = nn.Sequential(
            ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2), ResidualBlock(32, 64, 2)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, channels, 28, 28) to logits (n, classes)."""
        return self.head(self.flatten(self.pool(self.stages(self.stem(x)))))  # type: ignore[no-any-return]


def _conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project; with a shortcut where the shape stays.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        stride: Of the depthwise convolution.
        expansion: Channels inside, as a multiple of ``inputs``.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        inner = inputs * expansion
        self.body = nn.Sequential(
            *_conv_bn(inputs, inner, 1),
            nn.ReLU6(),
            *_conv_bn(inner, inner, 3, stride, inner),
            nn.ReLU6(),
            *_conv_bn(inner, outputs, 1),
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        y: Tensor = self.body(x)
        return x + y if self.shortcut else y


class MobileNet(nn.Module):
    """Depthwise net with inverted residuals, 97 k parameters.

    Args:
        classes: Width of the last layer.
        channels: Image channels.

    Reference:
        MobileNetV2, arXiv 1801.04381.
    """

    def __init__(self, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_conv_bn(channels, 16, 3, 2),
            nn.ReLU6(),
            InvertedResidual(16, 24, 1),
            InvertedResidual(24, 24, 1),
            InvertedResidual(24, 40, 2),
            InvertedResidual(40, 40, 1),
            InvertedResidual(40, 64, 2),
            InvertedResidual(64, 64, 1),
            *_conv_bn(64, 128, 1),
            nn.ReLU6(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, channels, 28, 28) to logits (n, classes)."""
        return self.head(self.flatten(self.pool(self.features(x))))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Three hidden layers of 64: 60 k parameters.

    Args:
        classes: Width of the last layer.
        pixels: Of an image, all channels.

    Reference:
        The topology (TFC) of FINN's first example, arXiv 1612.07119, table 2.
    """

    def __init__(self, classes: int = 10, pixels: int = 784) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        widths = (pixels, 64, 64, 64)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU())
                for a, b in pairwise(widths)
            )
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, h, w) to (n, classes)."""
        return self.head(self.layers(self.flatten(x)))  # type: ignore[no-any-return]


class Cnn(nn.Module):
    """A chain of three strided 3x3 convolutions and a linear layer: 11 k parameters.

    Args:
        classes: Width of the last layer.
        channels: Image channels.
    """

    def __init__(self, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        widths = (channels, 8, 16, 32)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in pairwise(widths)
            )
        )
        self.flatten = nn.Flatten()
        self.head = nn.Linear(widths[-1] * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, 28, 28) to (n, classes)."""
        return self.head(self.flatten(self.layers(x)))  # type: ignore[no-any-return]
