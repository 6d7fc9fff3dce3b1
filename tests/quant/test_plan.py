# SPDX-License-Identifier: Apache-2.0
"""Overrides must reach a tensor, signs are known, and refusals say why."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lutwise.errors import ConfigError, UnsupportedLayerError
from lutwise.quant.brevitas_facade import finish, trace
from lutwise.quant.graph import PreparedModel, prepare_graph
from lutwise.quant.plan import Plan, check_globs, plan_dataflow, plan_layerwise
from tests.quant.nets import INPUT_SHAPE, make


def residual() -> PreparedModel:
    return prepare_graph(finish(trace(make("residual")[0])), INPUT_SHAPE, name="residual")


def dataflow(*, quantize_output: bool = False) -> Plan:
    return plan_dataflow(residual(), input_nonnegative=False, quantize_output=quantize_output)


def test_globs_match_what_makes_a_tensor() -> None:
    check_globs(dataflow(), ["stem", "conv*", "rel?"], name="net", output_is_set=False)
    for glob in ("nosuch*", "head", ""):  # the logits stay exact sums, without a format
        with pytest.raises(ConfigError) as caught:
            check_globs(dataflow(), ["stem", glob], name="net", output_is_set=False)
        message = str(caught.value)
        assert f"the override for {glob!r} match no tensor of net" in message
        assert "are made by conv1, conv2, mean, relu, relu_1, relu_2, stem " in message


def test_the_output_goes_by_its_own_key() -> None:
    plan = dataflow(quantize_output=True)
    check_globs(plan, ["head"], name="net", output_is_set=False)
    with pytest.raises(ConfigError, match="that of the logits `output`"):
        check_globs(plan, ["head"], name="net", output_is_set=True)


def test_layerwise_globs_match_what_reads_a_tensor() -> None:
    plan = plan_layerwise(residual(), input_nonnegative=False)
    check_globs(plan, ["conv1", "head"], name="net", output_is_set=False)
    with pytest.raises(ConfigError, match=r"are read by conv1, conv2, head \(the image's format"):
        check_globs(plan, ["stem"], name="net", output_is_set=False)


class Pooled(nn.Module):
    """Averages behind a ReLU, put into shape by the size of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.conv(x))
        x = nn.functional.adaptive_avg_pool2d(x, 1)
        return self.head(x.view(x.size(0), -1))  # type: ignore[no-any-return]


def test_a_size_has_no_sign() -> None:
    model = prepare_graph(finish(trace(Pooled())), INPUT_SHAPE, name="pooled")
    plan = plan_layerwise(model, input_nonnegative=False)
    signs = {group.modules: group.nonnegative for group in plan.groups}
    assert signs == {("conv",): False, ("head",): True}


class Flattened(nn.Module):
    def __init__(self, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(3, 4, 3), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.how(self.conv(x))


@pytest.mark.parametrize(
    ("how", "what", "shape"),
    [
        (lambda x: torch.flatten(x, 2), "flatten", "(images, 4, 81)"),
        (lambda x: x.flatten(2), "flatten", "(images, 4, 81)"),
        (nn.Flatten(2), "Flatten", "(images, 4, 81)"),
        (nn.Flatten(1, 2), "Flatten", "(images, 36, 9)"),
    ],
    ids=["function", "method", "module", "partly"],
)
def test_a_flattening_of_some_dimensions_is_refused_by_its_name(
    how: Callable[[torch.Tensor], torch.Tensor], what: str, shape: str
) -> None:
    model = prepare_graph(finish(trace(Flattened(how))), INPUT_SHAPE, name="net")
    with pytest.raises(UnsupportedLayerError) as caught:
        plan_dataflow(model, input_nonnegative=False, quantize_output=False)
    message = str(caught.value)
    assert f"({what}) cannot be part of a dataflow graph, since it gives {shape} of" in message
    assert "(images, 4, 9, 9), and flattening has to start at dimension 1" in message


def test_functions_are_refused_by_their_names() -> None:
    model = prepare_graph(finish(trace(Flattened(torch.sigmoid))), INPUT_SHAPE, name="net")
    with pytest.raises(UnsupportedLayerError, match=r"\([Ss]igmoid\) cannot be part"):
        plan_dataflow(model, input_nonnegative=False, quantize_output=False)
