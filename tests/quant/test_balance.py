# SPDX-License-Identifier: Apache-2.0
"""SmoothQuant and bias absorption: the float function stays, quantization gets better."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.nets import with_outliers
from lutwise.errors import CalibrationError, ConfigError
from lutwise.quant.algorithms.smooth_quant import smoothing_scales
from lutwise.quant.brevitas_facade import finish, trace
from lutwise.quant.data import Split, load_data
from lutwise.quant.evaluate import sqnr_db
from lutwise.quant.executor import execute
from lutwise.quant.folding import find_readers, rescale
from lutwise.quant.graph import ChannelScale, PreparedModel, prepare_graph
from lutwise.quant.lower import lower
from lutwise.quant.models import load_model
from lutwise.quant.quantize import collect_samples, prepare, quantize
from lutwise.quant.quantized import QuantizedModel, predict
from lutwise.quant.recipe import Recipe, build_recipe
from lutwise.quant.state import from_state, to_state
from lutwise.quant.zoo.transformer import Vit
from tests.quant.nets import INPUT_SHAPE, NETS, make

BALANCING: dict[str, dict[str, Any]] = {
    "half": {"smooth_quant": {}},
    "all": {"smooth_quant": {"alpha": 1.0, "images": 5}},
    "search": {"smooth_quant": {"search": True}},
    "bias": {"bias_absorption": {}},
    "both": {"equalize": {}, "bias_absorption": {}, "smooth_quant": {}},
}


def recipe(weights: str, acts: str, algorithms: dict[str, Any], **changes: Any) -> Recipe:
    settings = {"weights": weights, "activations": acts, "algorithms": algorithms}
    return build_recipe(settings, changes=changes, where="test")


def layerwise(algorithms: dict[str, Any], fmt: str = "int8") -> Recipe:
    return recipe(fmt, fmt, algorithms, mode="layerwise")


def run(net: nn.Module, images: torch.Tensor, settings: Recipe) -> QuantizedModel:
    shape = tuple(images.shape[1:])
    prepared = prepare(net, shape, settings, name="net", images=images)
    samples = collect_samples(prepared, images, batch=8, seed=0)
    return quantize(prepared, samples, images, settings)


def plain(net: nn.Module, shape: tuple[int, ...]) -> PreparedModel:
    return prepare_graph(finish(trace(net)), shape, name="net")


def noise_db(model: QuantizedModel, net: nn.Module, images: torch.Tensor) -> float:
    return sqnr_db(predict(net, images).numpy(), predict(model, images).numpy())


def scales_in(model: PreparedModel) -> int:
    return sum(isinstance(module, ChannelScale) for module in model.graph.modules())


class Mixture(nn.Module):
    """Norms of vectors and of images, siblings, and activations that a factor passes or not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.groupnorm = nn.GroupNorm(2, 8)
        self.grouped = nn.Conv2d(8, 12, 3, stride=2, groups=4)
        self.leaky = nn.Sequential(nn.PReLU(), nn.LeakyReLU(), nn.MaxPool2d(2))
        self.depthwise = nn.Conv2d(12, 24, 1, groups=12)
        self.norm = nn.LayerNorm(24)
        self.rms = nn.RMSNorm(16)
        self.query, self.key, self.value = (nn.Linear(24, 16) for _ in range(3))
        self.gelu, self.mix, self.head = nn.GELU(), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.leaky(self.grouped(self.groupnorm(self.stem(x))))
        x = torch.transpose(torch.flatten(self.depthwise(x), 2), 1, 2)
        x = self.norm(x)
        x = torch.sigmoid(self.query(x)) * self.key(x) + self.value(x)
        return self.head(torch.mean(self.rms(self.mix(self.gelu(x))), 1))  # type: ignore[no-any-return]


def any_net(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a net in evaluation mode and 24 images."""
    torch.manual_seed(3)
    if name == "mixture":
        net: nn.Module = Mixture()
    elif name == "vit":
        net = Vit()
    else:
        return make(name)
    with torch.no_grad():
        for parameter in net.parameters():  # norms with slopes and offsets
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval(), torch.randn(24, *((1, 28, 28) if name == "vit" else INPUT_SHAPE))


@pytest.mark.parametrize("name", [*NETS, "mixture", "vit"])
def test_any_scales_leave_the_function(name: str) -> None:
    net, images = any_net(name)
    prepared = plain(net, tuple(images.shape[1:]))
    expected = predict(prepared.graph, images)
    weights = {key: value.clone() for key, value in prepared.graph.state_dict().items()}
    tensors = find_readers(prepared)
    for readers in tensors:
        rescale(prepared, readers, torch.exp(torch.randn(readers.channels)))
    found = predict(prepared.graph, images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for readers in tensors:
        for node in readers.layers:
            weight = prepared.graph.state_dict()[f"{node.target}.weight"]
            assert not torch.equal(weight, weights[f"{node.target}.weight"])
    assert scales_in(prepared) == sum(readers.maker is None for readers in tensors)


@pytest.mark.parametrize("mode", ["dataflow", "layerwise"])
@pytest.mark.parametrize("balancing", BALANCING)
@pytest.mark.parametrize("name", NETS)
def test_algorithms_leave_the_function(name: str, balancing: str, mode: str) -> None:
    net, images = make(name)
    settings = recipe("int4", "uint4", BALANCING[balancing], mode=mode)
    prepared = prepare(net, INPUT_SHAPE, settings, name=name, images=images)
    expected = predict(net, images.clone())
    torch.testing.assert_close(predict(prepared.graph, images), expected, rtol=1e-4, atol=1e-4)
    if mode == "dataflow":
        assert scales_in(prepared) == 0


@pytest.mark.parametrize("mode", ["dataflow", "layerwise"])
@pytest.mark.parametrize("fmt", ["int8", "e4m3"])
@pytest.mark.parametrize("name", NETS)
def test_exact_executor_agrees_with_fake_quantization(name: str, fmt: str, mode: str) -> None:
    net, images = make(name)
    model = run(net, images, recipe(fmt, fmt, BALANCING["both"], mode=mode))
    fake, network = predict(model, images).numpy(), lower(model)
    exact = execute(network, images.numpy(), batch=7)
    exact = exact * float(network.tensors[network.output].scale)
    # They differ where float32 rounds the other way at a tie, which moves an output by steps.
    assert np.abs(exact - fake).max() < 0.02 * np.abs(fake).max()
    assert np.median(np.abs(exact - fake)) < 0.01 * np.abs(fake).max()


def makers(net: nn.Module, shape: tuple[int, ...]) -> dict[str, str | None]:
    """Return, by the first layer that reads a tensor, what can take its division in."""
    return {
        "+".join(str(n.target) for n in r.layers): str(r.maker.target) if r.maker else None
        for r in find_readers(plain(net, shape))
    }


def test_the_division_goes_into_layers_and_norms() -> None:
    assert makers(any_net("mixture")[0], INPUT_SHAPE) == {
        "stem": None,  # the image
        "grouped": "groupnorm",
        "depthwise": "grouped",
        "query+key+value": "norm",
        "mix": None,  # GELU
        "head": None,  # a mean of tokens
    }
    assert makers(make("residual")[0], INPUT_SHAPE) == {
        "stem": None,
        "conv1": None,  # the shortcut reads it, too
        "conv2": None,
        "head": None,
    }
    assert makers(make("branches")[0], INPUT_SHAPE) == {
        "squeeze": None,
        "left+right": "squeeze",
        "last": None,  # a concatenation
    }


@pytest.mark.parametrize(
    ("between", "maker"),
    [
        ([], "0"),
        ([nn.ReLU(), nn.ZeroPad2d(1), nn.AvgPool2d(2)], "0"),
        ([nn.ReLU6()], None),
        ([nn.Hardtanh()], None),
        ([nn.ConstantPad2d(1, 0.5)], None),
        ([nn.Sigmoid()], None),
    ],
    ids=["nothing", "pooled", "relu6", "hardtanh", "pad", "sigmoid"],
)
def test_only_what_a_positive_factor_passes_is_looked_through(
    between: list[nn.Module], maker: str | None
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), *between, nn.Conv2d(4, 2, 1))
    assert makers(net, (3, 8, 8)) == {"0": None, str(len(between) + 1): maker}


@pytest.mark.parametrize(("size", "maker"), [(3, "0"), (4, None)])
def test_flattening_is_looked_through_where_a_channel_is_one_number(
    size: int, maker: str | None
) -> None:
    numbers = 4 * (size - 2) ** 2
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(numbers, 2))
    assert makers(net, (3, size, size)) == {"0": None, "3": maker}


class Twice(nn.Module):
    """A layer that runs twice, and two more."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.tied, self.last = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.shared(nn.functional.relu(self.shared(x)))
        return self.last(nn.functional.relu(self.tied(x)))  # type: ignore[no-any-return]


def test_shared_weights_are_copied() -> None:
    net = Twice()
    found = {"shared": None, "shared_2": "shared", "tied": "shared_2", "last": "tied"}
    assert makers(net, (8,)) == found
    net.last.weight = net.tied.weight
    assert makers(net, (8,)) == {"last_2" if k == "last" else k: v for k, v in found.items()}


def brute_force_scales(layer: nn.Conv2d | nn.Linear, x: torch.Tensor, alpha: float) -> list[float]:
    """Equation 4, one channel at a time; gradients say which weights read it."""
    found = []
    for channel in range(x.shape[1]):
        probe = torch.zeros_like(x)
        probe[:, channel] = 1.0
        (gradient,) = torch.autograd.grad(layer(probe).square().sum(), layer.weight)
        read = layer.weight.detach()[gradient != 0]
        peak, largest = x[:, channel].abs().max().item(), read.abs().max().item()
        found.append(peak**alpha / largest ** (1 - alpha))
    return found


LAYERS: dict[str, Callable[[], nn.Conv2d | nn.Linear]] = {
    "linear": lambda: nn.Linear(6, 4),
    "conv": lambda: nn.Conv2d(6, 4, 3),
    "grouped": lambda: nn.Conv2d(6, 8, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(6, 12, 3, groups=6),
}


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", LAYERS)
def test_scales_follow_the_equation(name: str, alpha: float) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    linear = isinstance(layer, nn.Linear)
    images = torch.randn(9, 6) if linear else torch.randn(9, 6, 7, 7)
    norm = nn.LayerNorm(6) if linear else nn.GroupNorm(1, 6)
    with torch.no_grad():
        norm.weight.copy_(torch.exp(torch.randn(6)))
    net = nn.Sequential(norm, layer)
    wanted = torch.tensor(brute_force_scales(layer, norm(images).detach(), alpha))
    settings = layerwise({"smooth_quant": {"alpha": alpha}})
    prepared = prepare(net, tuple(images.shape[1:]), settings, name="net", images=images)
    slopes = prepared.graph.get_submodule("0").weight
    assert isinstance(slopes, torch.Tensor)
    scales = norm.weight.detach() / slopes
    torch.testing.assert_close(scales / scales[0], wanted / wanted[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(scales.median(), torch.tensor(1.0))


def test_dead_channels_get_one_and_scales_are_limited() -> None:
    inputs = torch.tensor([0.0, 1.0, 1e-30, 4.0, 1.0, 1e30])
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    scales = smoothing_scales(inputs, weights, 0.5)
    assert scales.tolist() == [1.0, 1.0, 2.0**-10, 2.0, 1.0, 2.0**10]
    assert smoothing_scales(torch.zeros(3), torch.ones(3), 0.5).tolist() == [1.0] * 3


def test_planted_outliers_are_smoothed_away() -> None:
    loaded = load_model("zoo/vit")
    assert loaded.data is not None
    calib, measured = (
        torch.from_numpy(
            load_data(
                loaded.data, loaded.preprocessing, loaded.input_shape, split=split, limit=64
            ).slice(0, 64)
        )
        for split in (Split.CALIB, Split.EVAL)
    )
    net = with_outliers(loaded.module)
    torch.testing.assert_close(
        predict(net, measured), predict(loaded.module, measured), rtol=1e-3, atol=1e-3
    )

    def found(net: nn.Module, algorithms: dict[str, Any]) -> float:
        return noise_db(run(net, calib, layerwise(algorithms)), net, measured)

    before = found(loaded.module, {})
    assert found(net, {}) < before - 8
    for settings in ({}, {"search": True}):
        assert found(net, {"smooth_quant": settings}) > before - 1


@pytest.mark.parametrize("fmt", ["int8", "int4", "int3", "e2m1", "e4m3"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_search_is_never_worse_than_nothing(fmt: str, granularity: str, spread: float) -> None:
    """One layer behind a norm: what the search compares is the error of the whole model."""
    torch.manual_seed(1)
    norm, layer = nn.LayerNorm(32), nn.Linear(32, 24)
    with torch.no_grad():
        norm.weight.copy_(torch.exp(spread * torch.randn(32)))
    net, images = nn.Sequential(norm, layer), torch.randn(16, 32)
    errors = []
    for algorithms in ({}, {"smooth_quant": {"search": True}}):
        settings = recipe(
            fmt, fmt, algorithms, mode="layerwise", **{"weights.granularity": granularity}
        )
        model = run(net, images, settings)
        errors.append((predict(model, images) - predict(net, images)).square().sum().item())
    nothing, searched = errors
    assert searched <= nothing * (1 + 1e-3)  # the bias is rounded, which no search sees
    if spread:
        assert searched < 0.99 * nothing


def test_search_leaves_tensors_alone_that_it_would_make_worse() -> None:
    """Inputs and weights on the grids: every scale but one adds an error."""
    torch.manual_seed(0)
    codes = torch.randint(-7, 8, (16, 8)).float()
    codes[0] = 7.0
    layer = nn.Linear(8, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-7, 8, (4, 8)).float())
        layer.weight[:, 0] = 7.0
    net = nn.Sequential(nn.Tanh(), layer)
    images = torch.atanh(codes / 7.5)

    def found(config: dict[str, Any]) -> int:
        settings = layerwise({"smooth_quant": config}, "int4")
        return scales_in(prepare(net, (8,), settings, name="grid", images=images))

    assert found({}) == 1
    assert found({"search": True}) == 0


def test_layerwise_models_get_operations_that_keep_signs_and_the_image() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 1), nn.GELU(), nn.Conv2d(4, 2, 1)
    )
    images = torch.randn(12, *INPUT_SHAPE)
    model = run(net, images, recipe("int4", "uint4", {"smooth_quant": {}}, mode="layerwise"))
    assert scales_in(model.prepared) == 2
    formats = {name: str(q.format) for name, q in model.layer_inputs.items()}
    assert list(formats.values()) == ["int8", "uint4", "int4"]
    (scale,) = (n for n in model.graph.graph.nodes if n.target == "2_input_scale")
    assert model.prepared.shapes[scale.name] == (4, 9, 9)


def test_state_round_trip() -> None:
    net, images = any_net("mixture")
    model = run(net, images, layerwise(BALANCING["both"]))
    assert scales_in(model.prepared) == 2
    again = from_state(model.prepared, *to_state(model))
    assert torch.equal(predict(again, images), predict(model, images))


def chain_of(*layers: nn.Module, bias: float) -> tuple[nn.Sequential, torch.Tensor]:
    """Return layers with ReLUs between them, the first one's biases raised, and images."""
    torch.manual_seed(0)
    net = nn.Sequential(layers[0])
    for layer in layers[1:]:
        net.extend([nn.ReLU(), layer])
    with torch.no_grad():
        first = net[0].bias
        assert isinstance(first, torch.Tensor)
        first[::2] += bias
    return net, torch.randn(32, 6) if isinstance(layers[0], nn.Linear) else torch.randn(32, 6, 7, 7)


CHAINS: dict[str, Callable[[], tuple[nn.Module, ...]]] = {
    "linear": lambda: (nn.Linear(6, 8), nn.Linear(8, 5, bias=False)),
    "conv": lambda: (nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 5, 3, stride=2, dilation=2)),
    "grouped": lambda: (nn.Conv2d(6, 8, 1), nn.Conv2d(8, 12, 3, padding="valid", groups=4)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_absorbed_biases_make_room_for_the_signal(name: str) -> None:
    net, images = chain_of(*CHAINS[name](), bias=20.0)
    settings = layerwise({"bias_absorption": {}}, "int4")
    prepared = prepare(net, tuple(images.shape[1:]), settings, name="net", images=images)
    expected = predict(net, images)
    torch.testing.assert_close(predict(prepared.graph, images), expected, rtol=1e-4, atol=1e-4)
    lowest = prepared.graph.get_submodule("0")(images).movedim(1, 0).flatten(1).amin(1)
    assert (lowest < 1e-4).all()

    def noise(algorithms: dict[str, Any]) -> float:
        settings = recipe("int8", "int4", algorithms, mode="layerwise")
        return noise_db(run(net, images, settings), net, images)

    assert noise({"bias_absorption": {}}) > noise({}) + 6


@pytest.mark.parametrize(
    ("layers", "bias"),
    [
        ((nn.Linear(6, 8), nn.Linear(8, 5)), 0.0),
        ((nn.Conv2d(6, 8, 3), nn.Conv2d(8, 5, 3, padding=1)), 20.0),
        ((nn.Conv2d(6, 8, 3), nn.Linear(5, 5)), 20.0),
    ],
    ids=["no bias", "padding", "another axis"],
)
def test_nothing_is_absorbed_where_it_cannot_be(layers: tuple[nn.Module, ...], bias: float) -> None:
    net, images = chain_of(*layers, bias=bias)
    settings = layerwise({"bias_absorption": {}})
    prepared = prepare(net, tuple(images.shape[1:]), settings, name="net", images=images)
    before = plain(net, tuple(images.shape[1:])).graph.state_dict()
    for key, value in prepared.graph.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", ["smooth_quant", "bias_absorption"])
def test_images_are_needed(name: str) -> None:
    net, images = chain_of(*CHAINS["conv"](), bias=0.0)
    settings = recipe("int8", "int8", {name: {}})
    for given in (None, images[:0]):
        with pytest.raises(ConfigError, match=f"{name} looks at calibration images .* got none"):
            prepare(net, (6, 7, 7), settings, name="net", images=given)
    with pytest.raises(CalibrationError, match="is NaN or infinite on calibration images"):
        prepare(net, (6, 7, 7), settings, name="net", images=images * torch.nan)


@pytest.mark.parametrize("config", [{"alpha": -0.1}, {"alpha": 1.5}, {"images": 0}])
def test_settings_are_checked(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"an alpha in 0\.\.1 and at least one image, got alpha="):
        layerwise({"smooth_quant": config})
