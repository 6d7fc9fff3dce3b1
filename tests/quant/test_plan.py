# SPDX-License-Identifier: Apache-2.0
"""Overrides must reach a tensor."""

import pytest

from lutwise.errors import ConfigError
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
