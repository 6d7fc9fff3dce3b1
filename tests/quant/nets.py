# SPDX-License-Identifier: Apache-2.0
"""Small random nets of every topology that dataflow graphs can hold."""

import torch
from torch import nn

from lutwise.quant.lower import lower
from lutwise.quant.network import Network
from lutwise.quant.quantize import collect_samples, prepare, quantize
from lutwise.quant.recipe import build_recipe


class Chain(nn.Module):
    """Convolutions with batch norm, both poolings, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU6(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Dropout(), nn.Linear(12, 5),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)  # type: ignore[no-any-return]


class Residual(nn.Module):
    """A sum of a signed and an unsigned tensor, then one of two unsigned ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(x + self.conv1(x))
        x = x + self.relu(self.conv2(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Depthwise(nn.Module):
    """Asymmetric padding, depthwise and grouped convolutions, a norm that nothing absorbs."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU6()
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.stem(self.pad(x)))
        x = x + self.grouped(self.act(self.depthwise(x)))
        x = self.act(self.norm(x))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]


class Branches(nn.Module):
    """Concatenation of two branches, as in SqueezeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(3, 4, 1)
        self.left = nn.Conv2d(4, 6, 1)
        self.right = nn.Conv2d(4, 6, 3, padding=1)
        self.last = nn.Conv2d(12, 5, 1)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.squeeze(x))
        x = torch.cat([nn.functional.relu(self.left(x)), nn.functional.relu(self.right(x))], 1)
        x = nn.functional.relu(self.last(self.pool(x)))
        return x.mean((2, 3))


NETS: dict[str, type[nn.Module]] = {
    "chain": Chain,
    "residual": Residual,
    "depthwise": Depthwise,
    "branches": Branches,
}
INPUT_SHAPE = (3, 11, 11)


def make(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a net with settled batch norms, in evaluation mode, and 24 images."""
    torch.manual_seed(sum(map(ord, name)))
    net = NETS[name]()
    images = torch.randn(24, *INPUT_SHAPE)
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(images.clone())
    return net.eval(), images


def network_of(
    net: nn.Module, images: torch.Tensor, weights: str, activations: str, mode: str
) -> Network:
    """Return a net rounded to nearest, as the exact executor and exports take it."""
    settings = build_recipe(
        {"weights": weights, "activations": activations, "mode": mode, "preset": "fast"},
        changes={},
        where="test",
    )
    prepared = prepare(net, tuple(images.shape[1:]), settings, name="net", images=images)
    samples = collect_samples(prepared, images, batch=8, seed=0)
    return lower(quantize(prepared, samples, images, settings))
