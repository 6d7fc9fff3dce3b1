# SPDX-License-Identifier: Apache-2.0
import torch
from torch import nn

from benchmarks.nets import resnet18_cifar


def test_resnet18_has_the_published_shape() -> None:
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    net = resnet18_cifar(images)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    shortcuts = [m for m in convolutions if m.kernel_size == (1, 1)]
    linears = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert len(convolutions) - len(shortcuts) + len(linears) == 18
    assert len(shortcuts) == 3
    assert max(m.weight[0].numel() for m in convolutions) == 4608  # the longest dot product
    # 11 689 512 parameters with a 7x7 stem and 1000 classes
    stem, head = 64 * 3 * (49 - 9), 513 * (1000 - 10)
    assert sum(p.numel() for p in net.parameters()) == 11_689_512 - stem - head
    assert net(images).shape == (8, 10)


def test_resnet18_is_seeded_and_its_norms_have_seen_the_images() -> None:
    images = 3 + torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    state = torch.random.get_rng_state()
    first, second, other = (resnet18_cifar(images, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first(images), second(images))
    assert not torch.equal(first(images), other(images))
    conv, norm = first.get_submodule("0"), first.get_submodule("1")
    expected = conv(images).mean((0, 2, 3))
    # a momentum of 0.1 and ten batches leave 0.9**10 of the start, which was zero
    torch.testing.assert_close(
        norm.get_buffer("running_mean"), expected * (1 - 0.9**10), rtol=1e-3, atol=1e-4
    )
