# SPDX-License-Identifier: Apache-2.0
"""Models that cannot be traced are refused with the place and the reason."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lutwise.errors import LutwiseError, ModelError, UnsupportedLayerError
from lutwise.quant.brevitas_facade import finish, trace


class Net(nn.Module):
    """A linear layer, and whatever `forward` makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)


class Branches(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() > 0 else x


class Loops(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(x.shape[0]):
            x = self.layer(x)
        return x


class LeavesTorch(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y * float(x.max())


class Nested(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        block = nn.ModuleDict({"norm": nn.LayerNorm(4), "attn": inner})
        self.layers = nn.ModuleList([nn.ModuleDict(), block])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        block = self.layers[1]
        assert isinstance(block, nn.ModuleDict)
        return block["attn"](block["norm"](x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("inner", "line", "reason"),
    [
        (Branches, "return self.layer(x) if x.sum() > 0 else x", "inputs to control flow"),
        (Loops, "for _ in range(x.shape[0]):", "cannot be interpreted as an integer"),
        (LeavesTorch, "return y * float(x.max())", "float() argument must be"),
    ],
)
def test_the_module_and_line_that_cannot_be_traced_are_named(
    inner: type[nn.Module], line: str, reason: str
) -> None:
    with pytest.raises(UnsupportedLayerError) as caught:
        trace(Nested(inner()))
    message = str(caught.value)
    assert f"module 'layers.1.attn' ({inner.__name__})" in message
    assert re.search(rf"{re.escape(__file__)}:\d+ `{re.escape(line)}`", message)
    assert reason in message
    assert "give the model as ONNX" in message


def test_code_of_the_model_itself_is_named() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"trace Branches: its own code, .*\.py:"):
        trace(Branches())


class Several(Net):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y + mask


class OnlyByName(Net):
    def forward(self, *, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


class NoForward(Net):
    pass


class SharedStatistics(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))


@pytest.mark.parametrize(
    ("net", "error", "message"),
    [
        (Several, ModelError, r"one tensor of images, got Several .*argument: 'mask'"),
        (OnlyByName, ModelError, "fills in the other inputs"),
        (NoForward, UnsupportedLayerError, 'missing the required "forward"'),
        (SharedStatistics, UnsupportedLayerError, "batch norm '1' of SharedStatistics has no"),
    ],
)
def test_other_models_are_refused(
    net: Callable[[], nn.Module], error: type[LutwiseError], message: str
) -> None:
    with pytest.raises(error, match=message):
        trace(net())


class Variadic(Net):
    def forward(self, *xs: torch.Tensor) -> torch.Tensor:
        return self.layer(xs[0])  # type: ignore[no-any-return]


class WithDefaults(Net):
    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, *, twice: bool = True, **more: Any
    ) -> torch.Tensor:
        x = self.layer(x)
        if twice:
            x = self.layer(x)
        return x if mask is None else x + mask


@pytest.mark.parametrize("net", [Variadic, WithDefaults])
def test_inputs_with_defaults_keep_them(net: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, images = net(), torch.randn(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(finish(trace(model))(images), model(images))


def test_batch_norm_without_weights_is_folded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False))
    images = torch.randn(5, 3, 6, 6)
    model(3 * images + 1)  # settles statistics that are not trivial
    traced = finish(trace(model.eval()))
    with torch.no_grad():
        torch.testing.assert_close(traced(images), model(images))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in traced.modules())


@pytest.mark.parametrize(
    ("clamp", "low", "high"),
    [
        (torch.relu, 0, 9),
        (lambda x: x.relu(), 0, 9),
        (lambda x: x.clamp(min=0), 0, 9),
        (lambda x: torch.clamp(x, 0), 0, 9),
        (lambda x: x.clamp_(0, 6), 0, 6),
        (lambda x: torch.clip(x, min=-1, max=1.5), -1, 1.5),
    ],
)
def test_clamps_are_found_in_every_spelling(clamp: Any, low: float, high: float) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return clamp(self.layer(x))  # type: ignore[no-any-return]

    graph = finish(trace(Net()))
    names = {type(m).__name__ for m in graph.modules()}
    assert names & {"ReLU", "Hardtanh"}
    x = torch.linspace(-9, 9, 19)
    (found,) = (m for m in graph.modules() if isinstance(m, nn.ReLU | nn.Hardtanh))
    assert torch.equal(found(x), x.clamp(low, high))
