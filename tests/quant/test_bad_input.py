# SPDX-License-Identifier: Apache-2.0
"""Degenerate models and images give finite results, or an error that says what is wrong."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lutwise.errors import CalibrationError, DataError
from lutwise.quant.algorithms import list_algorithms
from lutwise.quant.data import dataset_of
from lutwise.quant.executor import execute
from lutwise.quant.lower import lower
from lutwise.quant.quantize import collect_samples, prepare, quantize
from lutwise.quant.quantized import predict
from lutwise.quant.recipe import build_recipe
from tests.quant.nets import INPUT_SHAPE, make

ALGORITHMS = [[], ["equalize", "bias_correction"], *([a.name] for a in list_algorithms())]


def check_finite(net: nn.Module, images: torch.Tensor, **settings: Any) -> None:
    """Quantize a net and make sure that every executor gives finite numbers."""
    recipe = build_recipe(
        {"weights": "e2m1", "activations": "ue2m2", **settings}, changes={}, where="test"
    )
    prepared = prepare(net, INPUT_SHAPE, recipe, name="net", images=images)
    samples = collect_samples(prepared, images, batch=64, seed=0)
    model = quantize(prepared, samples, images, recipe)
    assert torch.isfinite(predict(model, images)).all()
    for weight in model.weights.values():
        assert torch.isfinite(weight.real()).all()
        assert (weight.scales > 0).all()
    assert np.isfinite(execute(lower(model), images.numpy())).all()


def dead_channels(net: nn.Module) -> None:
    """Set the weights of one channel of each layer to zero, but not its bias."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data[0] = 0


def dead_layer(net: nn.Module) -> None:
    """Set all weights of the layer in the middle to zero: its output is constant."""
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    layers[len(layers) // 2].weight.data.zero_()


def dead_net(net: nn.Module) -> None:
    """Set all weights and biases to zero."""
    for parameter in net.parameters():
        parameter.data.zero_()


def constant_norms(net: nn.Module) -> None:
    """Let batch norms have seen tensors without variance."""
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_var is not None
            norm.running_var.zero_()


def tiny_weights(net: nn.Module) -> None:
    """Set a layer's weights to numbers below the smallest normal float32."""
    next(m for m in net.modules() if isinstance(m, nn.Conv2d)).weight.data.fill_(1e-40)


DAMAGES = [dead_channels, dead_layer, dead_net, constant_norms, tiny_weights]


@pytest.mark.parametrize("algorithms", ALGORITHMS, ids=lambda names: "+".join(names) or "none")
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda function: function.__name__)
def test_degenerate_weights_give_finite_results(
    damage: Callable[[nn.Module], None], algorithms: list[str]
) -> None:
    net, images = make("chain")
    damage(net)
    check_finite(net, images, algorithms=algorithms)


@pytest.mark.parametrize("algorithms", ALGORITHMS, ids=lambda names: "+".join(names) or "none")
@pytest.mark.parametrize("value", [0.0, 0.5, -3.0, 1e-30])
def test_constant_images_give_finite_results(value: float, algorithms: list[str]) -> None:
    net, images = make("residual")
    check_finite(net, torch.full_like(images, value), algorithms=algorithms)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda function: function.__name__)
@pytest.mark.parametrize("mode", ["dataflow", "layerwise"])
@pytest.mark.parametrize("scale", ["float32", "power_of_two"])
@pytest.mark.parametrize("method", ["max", "percentile", "mse"])
def test_every_range_search_copes(
    damage: Callable[[nn.Module], None], mode: str, scale: str, method: str
) -> None:
    net, images = make("residual")
    damage(net)
    how = {"range": method, "scale": scale}
    check_finite(
        net,
        images,
        mode=mode,
        weights={"format": "int4", **how},
        activations={"format": "uint4", **how},
    )


@pytest.mark.parametrize("algorithms", ALGORITHMS, ids=lambda names: "+".join(names) or "none")
def test_one_image_is_enough(algorithms: list[str]) -> None:
    net, images = make("depthwise")
    check_finite(net, images[:1], algorithms=algorithms)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_no_numbers_are_refused(value: float) -> None:
    net, images = make("chain")
    images[3, 0, 2, 2] = value
    recipe = build_recipe({}, changes={}, where="test")
    prepared = prepare(net, INPUT_SHAPE, recipe, name="chain")
    with pytest.raises(CalibrationError, match=r"chain: the output of node '\w+' is NaN or inf"):
        collect_samples(prepared, images, batch=5, seed=0)
    with pytest.raises(DataError, match=r"some: 1 of 24 images hold NaN or infinity.*image 3"):
        dataset_of(images.numpy(), name="some")


def test_sums_that_overflow_are_refused() -> None:
    net, images = make("chain")
    recipe = build_recipe({}, changes={}, where="test")
    prepared = prepare(net, INPUT_SHAPE, recipe, name="chain")
    with pytest.raises(CalibrationError, match="are they normalised as in training"):
        collect_samples(prepared, images * 1e38, batch=5, seed=0)
