# SPDX-License-Identifier: Apache-2.0
"""Gram matrices against patches that torch itself unfolds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import unfold
from torch.utils.flop_counter import FlopCounterMode

from lutwise.quant.algorithms.problems import LayerProblem
from lutwise.quant.formats import parse_weight
from lutwise.quant.gram import columns, gram, gram_flops, patches, weight_of
from lutwise.quant.quantized import QuantizedWeight


def unfolded(layer: nn.Conv2d | nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Return (groups, patches, n) with torch's own unfold; columns (row, column, channel)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    assert not isinstance(layer.padding, str)
    columns_ = unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    n, _, positions = columns_.shape
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    split = columns_.reshape(n, layer.groups, -1, taps, positions)
    return split.permute(1, 0, 4, 3, 2).reshape(layer.groups, n * positions, -1)


def check(layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = layer.double()
    x, y = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    p, q = unfolded(layer, x), unfolded(layer, y)
    torch.testing.assert_close(patches(layer, x), p)
    torch.testing.assert_close(gram(layer, x.split(2)), p.mT @ p)
    torch.testing.assert_close(gram(layer, x.split(2), y.split(2)), p.mT @ q)
    rows = columns(layer, layer.weight.detach())
    assert torch.equal(weight_of(layer, rows), layer.weight.detach())
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias.zero_()
        wanted = layer(x)
    outputs = p @ rows.mT  # (groups, patches, out / groups)
    flat = wanted.movedim(1, -1) if x.dim() == 4 else wanted
    flat = flat.reshape(-1, len(rows), rows.shape[1]).movedim(1, 0)
    torch.testing.assert_close(outputs, flat)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 4, 3, padding=1),
        nn.Conv2d(6, 4, 3),
        nn.Conv2d(6, 4, 5, padding=2),
        nn.Conv2d(6, 4, 3, padding=2),
        nn.Conv2d(6, 4, (3, 1), padding=(1, 0)),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Conv2d(6, 9, 3, padding=1, groups=3),
        nn.Conv2d(6, 9, 3, padding=1, stride=2, groups=3),
        nn.Conv2d(6, 4, 3, padding=1, dilation=2),
        nn.Conv2d(6, 4, 1, stride=2),
        nn.Conv2d(6, 4, 7, stride=2, padding=3),
    ],
    ids=str,
)
def test_convolutions_give_what_unfolding_gives(layer: nn.Conv2d) -> None:
    check(layer, (5, 6, 7, 9))


@pytest.mark.parametrize("shape", [(7, 6), (3, 4, 6)])
def test_linear_layers_give_their_inputs_second_moments(shape: tuple[int, ...]) -> None:
    check(nn.Linear(6, 4), shape)


@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    groups=st.sampled_from([1, 2, 4]),
)
def test_any_size_kernel_and_padding(
    size: tuple[int, int], kernel: tuple[int, int], padding: tuple[int, int], groups: int
) -> None:
    if any(s + 2 * p < k for s, k, p in zip(size, kernel, padding, strict=True)):
        return
    check(nn.Conv2d(4, 4, kernel, padding=padding, groups=groups), (3, 4, *size))


def test_wide_layers_are_symmetric_though_one_triangle_is_computed() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 700)
    found = gram(nn.Linear(700, 2), [x])[0]
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found, x.T @ x)


def test_no_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        gram(nn.Linear(2, 2), [])


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(6, 4, 3, padding=1), (6, 9, 8)),
        (nn.Conv2d(6, 4, 3), (6, 4, 4)),
        (nn.Conv2d(6, 4, (3, 1), padding=(1, 0)), (6, 5, 5)),
        (nn.Conv2d(6, 6, 5, padding=4, groups=2), (6, 7, 7)),
        (nn.Conv2d(4, 4, 3, padding=1), (4, 2, 2)),
        (nn.Conv2d(60, 4, 3, stride=2, padding=1), (60, 9, 9)),
        (nn.Linear(1200, 4), (5, 1200)),
    ],
)
def test_flops_are_those_that_torch_counts(
    layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...], cross: bool
) -> None:
    x, y = torch.randn(3, *shape), torch.randn(3, *shape)
    with FlopCounterMode(display=False) as counter:
        gram(layer, [x], [y] if cross else None)
    assert 3 * gram_flops(layer, shape, cross=cross) == counter.get_total_flops()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 4, (3, 2), stride=2, padding=(0, 1), groups=2),
        nn.Linear(4, 3),
    ],
)
def test_second_moments_around_means_are_covariances(layer: nn.Conv2d | nn.Linear) -> None:
    shape = (5, 4, 7, 6) if isinstance(layer, nn.Conv2d) else (5, 9, 4)
    inputs = [torch.randn(shape) + 3, torch.randn(shape) - 1]
    floats = [x + 0.1 * torch.randn(shape) for x in inputs]
    weight = layer.weight.detach()
    problem = LayerProblem(
        name="layer",
        layer=layer,
        weight=weight,
        start=QuantizedWeight(format=parse_weight("int4"), values=weight, scales=torch.ones(1)),
        inputs=inputs,
        float_inputs=floats,
    ).around_means()
    p, q = (torch.cat([patches(layer, x) for x in xs], 1).double() for xs in (inputs, floats))
    p, q = (x - x.mean(1, keepdim=True) for x in (p, q))
    for found, left, right in (
        (problem.gram, p, p), (problem.float_gram, q, q), (problem.cross, p, q),
    ):  # fmt: skip
        wanted = left.mT @ right
        torch.testing.assert_close(
            found.double(), wanted, rtol=0, atol=1e-5 * float(left.square().sum() + 30 * 70)
        )


def test_a_constant_channel_has_no_second_moments_around_its_mean() -> None:
    layer = nn.Linear(3, 2)
    x = torch.randn(4096, 3)
    x[:, 1] = 0.3
    problem = LayerProblem(
        name="layer",
        layer=layer,
        weight=layer.weight.detach(),
        start=QuantizedWeight(
            format=parse_weight("int4"), values=layer.weight, scales=torch.ones(1)
        ),
        inputs=[x],
        float_inputs=[],
    ).around_means()
    assert torch.equal(problem.gram[0, 1], torch.zeros(3))
    assert problem.gram[0, 0, 0] > 1000
