# SPDX-License-Identifier: Apache-2.0
"""Operations that stay in float: the exact executor, qonnx, ONNX Runtime and torch."""

from collections.abc import Callable
from math import erf, prod
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lutwise.errors import UnsupportedLayerError
from lutwise.export.graph import GraphBuilder
from lutwise.export.operators import _erf, _Writer, erf_table
from lutwise.export.qonnx import to_qonnx
from lutwise.export.run import compare
from lutwise.quant.evaluate import sqnr_db
from lutwise.quant.executor import execute
from lutwise.quant.graph import ChannelScale
from lutwise.quant.lower import lower
from lutwise.quant.network import Network, Operator
from lutwise.quant.operation import Operation
from lutwise.quant.operators import apply
from lutwise.quant.quantize import collect_samples, prepare, quantize
from lutwise.quant.quantized import QuantizedModel
from lutwise.quant.recipe import build_recipe

TOKENS, WIDTH = 6, 8
Between = Callable[..., Any]


class Around(nn.Module):
    """Something between two layers, on (n, tokens, width)."""

    def __init__(self, between: Between, module: nn.Module | None = None) -> None:
        super().__init__()
        self.before, self.between, self.module = nn.Linear(WIDTH, WIDTH), between, module
        self.positions = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        with torch.no_grad():
            out = self.middle(torch.zeros(2, TOKENS, WIDTH))
        self.after = nn.Linear(out.shape[-1], 3)

    def middle(self, x: Any) -> Any:
        if self.module is not None:
            return self.module(x)
        wanted = self.between.__code__.co_argcount
        return self.between(x) if wanted == 1 else self.between(x, self)

    def forward(self, x: Any) -> Any:
        return self.after(self.middle(self.before(x)))


def _heads(x: Any) -> Any:
    parts = torch.reshape(torch.cat([x, x, x], 2), (-1, TOKENS, 3, 2, WIDTH // 2))
    return torch.permute(parts, (2, 0, 3, 1, 4))


def _attention(x: Any) -> Any:
    parts = _heads(x)
    query, key, value = parts[0], parts[1], parts[2]
    mixed = torch.matmul(torch.softmax(query @ key.transpose(-2, -1) * 0.5, dim=-1), value)
    return mixed.transpose(1, 2).reshape(-1, TOKENS, WIDTH)


def _fused(x: Any) -> Any:
    query, key, value = _heads(x).unbind(0)[0], _heads(x)[1], _heads(x).select(0, 2)
    mixed = F.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).flatten(2)


def _classed(x: Any, net: Around) -> Any:
    return torch.cat([net.token.expand(x.shape[0], -1, -1), x], 1)[:, 0]


def _chunks(x: Any) -> Any:
    first, second = torch.chunk(x, 2, 2)[0], torch.split(x, WIDTH // 2, 2)[1]
    return torch.cat([second * torch.sigmoid(first), first - second], -1)


BETWEEN: dict[str, Between] = {
    "positions": lambda x, net: x + net.positions,
    "constant minus": lambda x: 1.5 - x,
    "divided": lambda x: x / 3.0,
    "negated": lambda x: -x,
    "silu": lambda x: F.silu(x),
    "gelu": lambda x: F.gelu(x),
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": lambda x: torch.tanh(x),
    "hardswish": lambda x: F.hardswish(x),
    "softmax": lambda x: x.softmax(1),
    "layer norm": lambda x: F.layer_norm(x, (WIDTH,)),
    "mean": lambda x: x.mean(1),
    "mean that keeps": lambda x: x - x.mean((1, 2), keepdim=True),
    "attention": _attention,
    "fused attention": _fused,
    "class token": _classed,
    "chunks": _chunks,
    "slices": lambda x: torch.cat([x[..., 1::2], x[:, :, 0:4:1]], 2),
    "index": lambda x: x[:, 2],
    "unsqueezed": lambda x: torch.squeeze(torch.unsqueeze(x, 1) * 2, 1),
}  # fmt: skip
MODULES: dict[str, nn.Module] = {
    "LayerNorm": nn.LayerNorm((TOKENS, WIDTH), eps=1e-3),
    "GELU": nn.GELU(approximate="tanh"),
    "Softmax": nn.Softmax(-1),
    "Sigmoid": nn.Sigmoid(),
    "SiLU": nn.SiLU(),
    "Hardsigmoid": nn.Hardsigmoid(),
    "Hardswish": nn.Hardswish(),
    "Tanh": nn.Tanh(),
    "ChannelScale": ChannelScale(torch.rand(WIDTH) + 0.5),
}


def quantized(net: nn.Module, images: torch.Tensor, fmt: str, **more: Any) -> QuantizedModel:
    settings = build_recipe(
        {"weights": fmt, "activations": fmt, "mode": "layerwise", "preset": "fast", **more},
        changes={},
        where="test",
    )
    prepared = prepare(net.eval(), tuple(images.shape[1:]), settings, name="net", images=images)
    samples = collect_samples(prepared, images, batch=8, seed=0)
    return quantize(prepared, samples, images, settings)


def check(model: QuantizedModel, images: torch.Tensor) -> Network:
    """Compare everything that can run a network."""
    network = lower(model)
    file = to_qonnx(network)
    onnx.checker.check_model(file, full_check=True)
    expected = execute(network, images.numpy())
    compare(network, file, images.numpy(), expected=expected, batch=16).raise_if_differs()
    # The network's scales are snapped and its float operations rounded once.
    with torch.no_grad():
        assert sqnr_db(model(images).numpy(), expected) > 40
    return network


@pytest.mark.parametrize("name", [*BETWEEN, *MODULES])
def test_what_stays_in_float_is_the_same_everywhere(name: str) -> None:
    torch.manual_seed(0)
    net = Around(BETWEEN.get(name, lambda x: x), MODULES.get(name))
    images = torch.randn(21, TOKENS, WIDTH)
    model = quantized(net, images, "int8")
    network = check(model, images)
    assert any(isinstance(node, Operator) for node in network.nodes)
    for tensor in network.tensors.values():
        assert prod(tensor.shape) > 0


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda x: x.reshape(-1, WIDTH), "mixes the images"),
        (lambda x: x * x.mean(), "mixes the images"),
        (lambda x: x - x.mean(0, keepdim=True), "mixes the images"),
        (lambda x: torch.softmax(x, 0), "mixes the images"),
        (lambda x: torch.flip(x, (1,)), "no form of it"),
        (lambda x: x.permute(1, 0, 2), "first axis is not the batch"),
        (lambda x: torch.sigmoid(x.transpose(0, 1)).transpose(0, 1), "has the batch elsewhere"),
        (lambda x: x[0:1] + x, "mixes the images"),
        (lambda x: x[:, [2, 1]], "no form of it"),
    ],
    ids=[
        "merged",
        "mean",
        "mean of images",
        "softmax of images",
        "flip",
        "batch second",
        "sigmoid",
        "first image",
        "list",
    ],
)
def test_what_has_no_form_is_refused(between: Between, reason: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(8, TOKENS, WIDTH)
    model = quantized(Around(between), images, "int8")
    with pytest.raises(UnsupportedLayerError, match=f"net: node .*{reason}"):
        lower(model)


def test_every_operation_has_a_definition_that_rounds_once() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6)
    rows: dict[Operation, tuple[list[torch.Tensor], dict[str, Any], torch.Tensor]] = {}
    wide = x.double()
    for operation, expected in {
        Operation.ADD: wide + wide,
        Operation.SUBTRACT: wide - wide,
        Operation.MULTIPLY: wide * wide,
        Operation.DIVIDE: wide / wide,
    }.items():
        rows[operation] = ([x, x], {}, expected)
    for operation, expected in {
        Operation.NEGATE: -wide,
        Operation.SIGMOID: 1 / (1 + (-wide).exp()),
        Operation.SILU: wide / (1 + (-wide).exp()),
        Operation.TANH: wide.tanh(),
        Operation.GELU: wide * (1 + (wide / 2**0.5).erf()) / 2,
        Operation.GELU_TANH: wide
        * (1 + ((2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)).tanh())
        / 2,
        Operation.HARD_SIGMOID: (wide / 6 + 0.5).clamp(0, 1),
        Operation.HARD_SWISH: wide * (wide / 6 + 0.5).clamp(0, 1),
    }.items():
        rows[operation] = ([x], {}, expected)
    centred = wide - wide.mean(-1, keepdim=True)
    norm = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    weight = torch.rand(6)
    rows |= {
        Operation.MATMUL: ([x, x.mT.contiguous()], {}, wide @ wide.mT),
        Operation.SOFTMAX: ([x], {"axis": 1}, wide.exp() / wide.exp().sum(1, keepdim=True)),
        Operation.LAYER_NORM: (
            [x, weight, weight], {"axis": 2, "epsilon": 1e-3}, norm * weight + weight,
        ),
        Operation.MEAN: ([x], {"axes": (1, 2), "keep": 0}, wide.sum((1, 2)) / 24),
        Operation.RESHAPE: ([x], {"shape": (24,)}, wide.reshape(3, 24)),
        Operation.TRANSPOSE: ([x], {"order": (0, 2, 1)}, wide.mT),
        Operation.SELECT: ([x], {"axis": 2, "index": 3}, wide[:, :, 3]),
        Operation.SLICE: (
            [x], {"axis": 2, "start": 1, "stop": 6, "step": 2}, wide[:, :, 1:6:2],
        ),
        Operation.REPEAT: ([x, weight.reshape(1, 6)], {}, weight.double().expand(3, 6)),
    }  # fmt: skip
    assert set(rows) == set(Operation)
    for operation, (operands, attributes, expected) in rows.items():
        found = apply(operation, operands, attributes)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected.float(), rtol=1.3e-7, atol=1e-12, msg=operation)


def test_the_table_gives_the_error_function() -> None:
    points = np.concatenate([np.linspace(-7, 7, 20_001), [0.0, 1e-300, -1e-9, 6.0, -6.0, 1e30]])
    b = GraphBuilder()
    x = b.input("x", (1,))
    wide = b.cast(x, np.float64, "wide")
    writer = _Writer(b, "erf", (1,))
    y = _erf(writer, wide)
    file = b.build(name="erf", inputs=["x"], outputs=[y.name], metadata={})
    single = points.astype(np.float32)[:, None]
    session = onnxruntime.InferenceSession(
        file.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": single})
    expected = np.array([erf(float(value)) for value in single[:, 0]])
    assert np.abs(found[:, 0] - expected).max() < 2.0**-51
    assert erf_table().shape == (97, 12)
