# SPDX-License-Identifier: Apache-2.0
"""Which layers are quantized, and what is said about the others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lutwise.errors import ConfigError, ModelError, UnsupportedLayerError
from lutwise.quant.brevitas_facade import finish, trace
from lutwise.quant.graph import (
    Kind,
    PreparedModel,
    check_supported,
    layer_nodes,
    prepare_graph,
    unsupported_layers,
)


class Net(nn.Module):
    """Modules by name and a function of them."""

    def __init__(self, run: Callable[[Any, torch.Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.table = nn.Parameter(torch.randn(8, 8))
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


def prepared(net: nn.Module, shape: tuple[int, ...], **options: Any) -> PreparedModel:
    return prepare_graph(finish(trace(net)), shape, name="net", **options)


def vectors(run: Callable[[Any, torch.Tensor], Any], **modules: nn.Module) -> PreparedModel:
    """Return a net of a linear layer and others on five vectors of eight numbers."""
    return prepared(Net(run, first=nn.Linear(8, 8), **modules), (5, 8))


def pictures(layer: nn.Module) -> PreparedModel:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), layer)
    return prepared(net, (3, 8, 8))


UNSUPPORTED: dict[str, tuple[Callable[[], PreparedModel], dict[str, str]]] = {
    "ConvTranspose2d": (lambda: pictures(nn.ConvTranspose2d(4, 4, 2)), {"1": "ConvTranspose2d"}),
    "padding mode": (
        lambda: pictures(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
        {"1": "Conv2d"},
    ),
    "Conv1d": (
        lambda: vectors(lambda m, x: m.conv(m.first(x)), conv=nn.Conv1d(5, 2, 3)),
        {"conv": "Conv1d"},
    ),
    "Conv3d": (
        lambda: prepared(
            nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.Linear(16, 2)), (1, 4, 4, 4)
        ),
        {"0": "Conv3d"},
    ),
    "MultiheadAttention": (
        lambda: vectors(
            lambda m, x: m.attn(m.first(x), x, x)[0],
            attn=nn.MultiheadAttention(8, 2, batch_first=True),
        ),
        {"attn": "MultiheadAttention"},
    ),
    "LSTM": (
        lambda: vectors(lambda m, x: m.rnn(m.first(x))[0], rnn=nn.LSTM(8, 8, batch_first=True)),
        {"rnn": "LSTM"},
    ),
    "Embedding": (
        lambda: vectors(lambda m, x: m.first(m.words((x > 0).long())), words=nn.Embedding(2, 8)),
        {"words": "Embedding"},
    ),
    "Bilinear": (
        lambda: vectors(lambda m, x: m.pair(m.first(x), x), pair=nn.Bilinear(8, 8, 2)),
        {"pair": "Bilinear"},
    ),
    "matrix product": (lambda: vectors(lambda m, x: m.first(x) @ m.table.t()), {"table": "matmul"}),
    "function": (lambda: vectors(lambda m, x: F.linear(m.first(x), m.table)), {"table": "linear"}),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_layers_that_would_stay_in_float_are_named(case: str) -> None:
    make, expected = UNSUPPORTED[case]
    model = make()
    assert unsupported_layers(model) == expected
    ((name, what),) = expected.items()
    with pytest.raises(UnsupportedLayerError) as caught:
        check_supported(model, ["another"])
    assert f"net: the weights of '{name}' ({what}) would stay in float" in str(caught.value)
    assert f"`float_layers: [{name}]`" in str(caught.value)
    check_supported(model, [f"{name[0]}*"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: pictures(nn.GroupNorm(2, 4)),
        lambda: pictures(nn.LayerNorm((4, 8, 8))),
        lambda: pictures(nn.PReLU(4)),
        lambda: vectors(lambda m, x: F.scaled_dot_product_attention(m.first(x), x, x)),
        lambda: vectors(lambda m, x: m.first(x)[:, :1] + m.table),
    ],
    ids=["GroupNorm", "LayerNorm", "PReLU", "attention without weights", "positions"],
)
def test_elementwise_weights_are_no_layers(make: Callable[[], PreparedModel]) -> None:
    model = make()
    assert unsupported_layers(model) == {}
    check_supported(model)


def three_layers(**options: Any) -> PreparedModel:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    return prepared(net, (8,), **options)


def test_float_layers_are_not_quantized() -> None:
    model = three_layers(float_layers=["[04]"])
    assert [node.target for node in layer_nodes(model)] == ["2"]
    assert unsupported_layers(model) == {"0": "Linear", "4": "Linear"}
    assert list(three_layers().kinds.values()).count(Kind.LAYER) == 3
    check_supported(model, ["[04]"])


def test_a_glob_of_float_layers_must_match() -> None:
    with pytest.raises(ConfigError, match=r"'5' matches no layer of net, whose layers are 0, 2, 4"):
        three_layers(float_layers=["0", "5"])


def test_a_glob_may_name_a_layer_that_is_float_anyhow() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2))
    model = prepared(net, (3, 8, 8), float_layers=["1"])
    assert [node.target for node in layer_nodes(model)] == ["0"]


def test_some_layer_must_be_left() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"net has no Conv2d or Linear.*only '0' \(Lin"):
        three_layers(float_layers=["*"])


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda m, x: {"out": m.first(x), "aux": x}, "got a dict of out, aux"),
        (lambda m, x: (m.first(x), x), "got a tuple"),
        (lambda m, x: [m.first(x)], "got a list"),
    ],
    ids=["dict", "tuple", "list"],
)
def test_other_outputs_than_one_tensor_are_refused(
    run: Callable[[Any, torch.Tensor], Any], message: str
) -> None:
    with pytest.raises(ModelError, match=f"wanted one output tensor, {message}; wrap the model"):
        vectors(run)
