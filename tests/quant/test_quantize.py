# SPDX-License-Identifier: Apache-2.0
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from lutwise.errors import (
    CalibrationError,
    ConfigError,
    ModelError,
    UnsupportedLayerError,
)
from lutwise.quant import reference
from lutwise.quant.executor import Statistics, execute, trace
from lutwise.quant.formats import IntFormat
from lutwise.quant.lower import lower
from lutwise.quant.network import Add, Conv, Linear, Network, Pool, snap
from lutwise.quant.quantize import Samples, collect_samples, prepare, quantize
from lutwise.quant.quantized import QuantizedModel, predict
from lutwise.quant.recipe import Recipe, build_recipe
from lutwise.quant.state import from_state, to_state
from tests.quant.nets import INPUT_SHAPE, NETS, make
from tests.strategies import FLOAT32_FORMATS

PAIRS = [
    ("int4", "uint4"),
    ("int8", "uint8"),
    ("e2m1", "ue2m2"),
    ("e4m3", "ue4m4"),
    ("e3m0", "ue3m1"),
]


def recipe(weights: str = "int4", acts: str = "uint4", **changes: Any) -> Recipe:
    if "unsigned" in changes:
        changes["activations.unsigned"] = changes.pop("unsigned")
    return build_recipe({"weights": weights, "activations": acts}, changes=changes, where="test")


def quantized(name: str, settings: Recipe) -> tuple[QuantizedModel, torch.Tensor]:
    net, images = make(name)
    prepared = prepare(net, INPUT_SHAPE, settings, name=name)
    samples = collect_samples(prepared, images[:16], batch=5, seed=0)
    return quantize(prepared, samples, images[:16], settings), images


@pytest.mark.parametrize("name", NETS)
def test_prepared_model_computes_what_the_model_computes(name: str) -> None:
    net, images = make(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    prepared = prepare(net, INPUT_SHAPE, recipe(), name=name)
    expected = net(images.clone()).detach()
    torch.testing.assert_close(prepared.graph(images), expected, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in prepared.graph.modules())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("mode", ["dataflow", "layerwise"])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("weights", "acts"), PAIRS)
def test_exact_executor_agrees_with_fake_quantization(
    name: str, mode: str, weights: str, acts: str
) -> None:
    model, images = quantized(name, recipe(weights, acts, mode=mode))
    fake = predict(model, images).numpy()
    network = lower(model)
    exact = execute(network, images.numpy(), batch=7)
    exact = exact * float(network.tensors[network.output].scale)
    # They differ where float32 rounds the other way at a tie, which moves an output by steps.
    noise = np.abs(exact - fake).max() / np.abs(fake).max()
    assert noise < (0.02 if weights in ("int8", "e4m3") else 0.2)
    assert np.median(np.abs(exact - fake)) < 0.01 * np.abs(fake).max()


def naive(network: Network, image: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Run one image with fractions, a product at a time; the independent oracle."""
    held: dict[str, Any] = {network.input: image}
    for node in network.nodes:
        x = held[node.inputs[0]]
        spec = network.tensors[node.output]
        if isinstance(node, Conv | Linear):
            assert node.requantizer is not None
            held[node.output] = _naive_layer(node, x, spec)
        elif isinstance(node, Add):
            assert node.requantizer is not None
            total = sum(
                np.vectorize(Fraction)(held[n]) * Fraction(2) ** s
                for n, s in zip(node.inputs, node.shifts, strict=True)
            )
            held[node.output] = _naive_requantize(node.requantizer, spec, total)
        elif isinstance(node, Pool) and not node.maximum:
            assert node.requantizer is not None
            wide = np.vectorize(Fraction)(x).sum(axis=(1, 2), keepdims=True)
            assert node.kernel == x.shape[1:]
            held[node.output] = _naive_requantize(node.requantizer, spec, wide)
        else:
            one = Network(
                name="one", input=node.inputs[0], output=node.output, nodes=(node,),
                tensors=network.tensors,
            )  # fmt: skip
            held[node.output] = execute(one, np.asarray(x, np.float32)[None])[0]
    return held


def _naive_requantize(requantizer: Any, spec: Any, total: Any) -> Any:
    result = np.empty(total.shape)
    for index, value in np.ndenumerate(total):
        c = index[0] if len(requantizer.multiplier) > 1 else 0
        factor = Fraction(int(requantizer.multiplier[c])) / Fraction(2) ** int(requantizer.shift[c])
        rounded = float(reference.quantize(spec.format, value * factor))
        result[index] = min(max(rounded, requantizer.low), requantizer.high)
    return result


def _naive_layer(node: Conv | Linear, x: Any, spec: Any) -> Any:
    unit = Fraction(2) ** node.accumulator.unit_exponent
    weights = np.vectorize(Fraction)(node.weight_values)
    bias = [int(b) * unit for b in node.bias_codes]
    if isinstance(node, Linear):
        total = np.array(
            [(w * np.vectorize(Fraction)(x)).sum() + b for w, b in zip(weights, bias, strict=True)]
        )
        return _naive_requantize(node.requantizer, spec, total)
    top, left, bottom, right = node.padding
    wide = np.vectorize(Fraction)(np.pad(x, ((0, 0), (top, bottom), (left, right))))
    total = np.empty(spec.shape, dtype=object)
    depth, height, width = weights.shape[1:]
    for c, row, column in np.ndindex(*spec.shape):
        first = c // (len(weights) // node.groups) * depth
        r, k = row * node.stride[0], column * node.stride[1]
        total[c, row, column] = (
            weights[c] * wide[first : first + depth, r : r + height, k : k + width]
        ).sum() + bias[c]
    return _naive_requantize(node.requantizer, spec, total)


@pytest.mark.parametrize("name", ["residual", "depthwise"])
@pytest.mark.parametrize(("weights", "acts"), [*PAIRS, ("e6m1", "ue6m2")])
def test_exact_executor_matches_fractions(name: str, weights: str, acts: str) -> None:
    model, images = quantized(name, recipe(weights, acts, output="int8"))
    network = lower(model)
    image = images[:1, :, :, :].numpy()
    (found,) = trace(network, image, keep=True)
    expected = naive(network, image[0])
    for tensor, values in expected.items():
        assert np.array_equal(found[tensor][0], values), tensor


def test_wide_sums_are_decided_with_fractions() -> None:
    # Cancellation: 2**60 - 2**60 + small, which float64 loses, next to a rounding threshold.
    model, images = quantized("residual", recipe("e6m1", "ue6m2", output="e2m1"))
    network, counts = lower(model), Statistics()
    execute(network, images.numpy(), statistics=counts)
    assert counts.results > 0
    assert any(layer.accumulator.magnitude_bits > 53 for layer in network.layers())


@pytest.mark.parametrize("fmt", FLOAT32_FORMATS, ids=str)
def test_every_format_quantizes_a_residual_net(fmt: Any) -> None:
    weights = fmt.as_signed().name
    acts = fmt.as_unsigned().name
    model, images = quantized("residual", recipe(weights, acts))
    network = lower(model)
    exact = execute(network, images[:2].numpy())
    assert np.isfinite(exact).all()
    for layer in network.layers():
        assert layer.weight_format.name == weights
        source = network.tensors[layer.input].format
        assert source is not None
        assert source.name in {acts, fmt.as_unsigned().as_signed().name, "int8"}


def test_unsigned_formats_go_to_tensors_that_are_never_negative() -> None:
    network = lower(quantized("residual", recipe())[0])
    formats = {name: str(t.format) for name, t in network.tensors.items() if t.format}
    assert formats["conv1"] == "int4"
    assert {f for n, f in formats.items() if n.startswith(("relu", "add_1"))} == {"uint4"}
    network = lower(quantized("residual", recipe(unsigned=False))[0])
    assert {str(t.format) for t in network.tensors.values() if t.format} == {"int4", "int8"}


def test_addends_differ_by_powers_of_two() -> None:
    for pair in PAIRS:
        network = lower(quantized("residual", recipe(*pair))[0])
        adds = [n for n in network.nodes if isinstance(n, Add)]
        assert len(adds) == 2
        for add in adds:
            first, second = (network.tensors[n].scale for n in add.inputs)
            assert first / second == Fraction(2) ** (add.shifts[0] - add.shifts[1])
            assert min(add.shifts) == 0


def test_concatenated_tensors_share_format_and_scale() -> None:
    network = lower(quantized("branches", recipe())[0])
    (concat,) = (n for n in network.nodes if type(n).__name__ == "Concat")
    kinds = {(network.tensors[n].format, network.tensors[n].scale) for n in concat.inputs}
    assert len(kinds) == 1


def test_multipliers_are_exact() -> None:
    network = lower(quantized("chain", recipe())[0])
    for layer in network.layers():
        if layer.requantizer is None:
            continue
        source, target = network.tensors[layer.input], network.tensors[layer.output]
        pairs = zip(layer.requantizer.multiplier, layer.requantizer.shift, strict=True)
        for scale, (m, k) in zip(layer.weight_scales, pairs, strict=True):
            assert source.scale * scale / target.scale == Fraction(int(m)) / Fraction(2) ** int(k)
            assert 1 << 15 <= m <= 1 << 16


@pytest.mark.parametrize(
    "ratio", [Fraction(1), Fraction(3, 7), Fraction(10**9, 3), Fraction(1, 2**70)]
)
def test_snap_keeps_sixteen_bits(ratio: Fraction) -> None:
    multiplier, shift = snap(ratio)
    assert 1 << 15 <= multiplier <= 1 << 16
    assert abs(Fraction(multiplier) / Fraction(2) ** shift / ratio - 1) <= Fraction(1, 1 << 16)


def test_state_round_trip() -> None:
    model, images = quantized("residual", recipe("e2m1", "ue2m2"))
    again = from_state(model.prepared, *to_state(model))
    assert torch.equal(predict(again, images), predict(model, images))
    tensors, meanings = to_state(model)
    del tensors["stem.values"]
    with pytest.raises(ModelError, match="does not belong to residual"):
        from_state(model.prepared, tensors, meanings)


def test_power_of_two_scales() -> None:
    changes = {"weights.scale": "power_of_two", "activations.scale": "power_of_two"}
    network = lower(quantized("residual", recipe(**changes))[0])
    for tensor in network.tensors.values():
        assert (
            Fraction(2)
            ** (tensor.scale.numerator.bit_length() - tensor.scale.denominator.bit_length())
            == tensor.scale
        )


def test_overrides_and_ends() -> None:
    settings = build_recipe(
        {
            "weights": "int4",
            "activations": "uint4",
            "first_layer": "int8",
            "last_layer": "e4m3",
            "overrides": [{"layers": "conv[12]", "weights": "e2m1", "activations": "ue3m2"}],
        },
        changes={},
        where="test",
    )
    network = lower(quantized("residual", settings)[0])
    assert [layer.weight_format.name for layer in network.layers()] == [
        "int8",
        "e2m1",
        "e2m1",
        "e4m3",
    ]
    assert str(network.tensors["conv1"].format) == "e3m1"


def test_an_override_must_match_a_layer() -> None:
    settings = build_recipe(
        {"overrides": [{"layers": "nosuch*", "weights": "int2"}]}, changes={}, where="test"
    )
    with pytest.raises(ConfigError, match=r"'nosuch\*' matches no layer of residual"):
        quantized("residual", settings)


def test_a_dead_channel_does_not_widen_the_accumulator() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    conv = net[0]
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    conv.weight.data[1] *= 1e-12
    conv.bias.data[1] = 3.0
    images = torch.randn(8, *INPUT_SHAPE)
    settings = recipe("int8", "uint8")
    prepared = prepare(net, INPUT_SHAPE, settings, name="dead")
    samples = collect_samples(prepared, images, batch=4, seed=0)
    model = quantize(prepared, samples, images, settings)
    layer = next(lower(model).layers())
    assert layer.accumulator.bits <= 21  # 27 products of 127 * 128, once more for the bias
    noise = predict(model, images) - prepared.graph(images)
    assert noise.abs().max() < 0.05


def test_bias_correction_centres_the_outputs() -> None:
    def shift(algorithms: list[str]) -> float:
        model, images = quantized("chain", recipe("int2", "uint4", algorithms=algorithms))
        difference = predict(model, images[:16]) - model.prepared.graph(images[:16])
        return float(difference.mean(0).abs().max())

    assert shift(["bias_correction"]) < 0.3 * shift([])


class _Gelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(11, 8), nn.Linear(8, 4), nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.act(self.a(x)))  # type: ignore[no-any-return]


def test_float_operations_are_refused_in_dataflow_and_run_layerwise() -> None:
    images = torch.randn(4, 3, 11, 11)
    settings = recipe()
    prepared = prepare(_Gelu(), INPUT_SHAPE, settings, name="gelu")
    samples = collect_samples(prepared, images, batch=2, seed=0)
    with pytest.raises(UnsupportedLayerError, match=r"'act' \(GELU\) cannot be part of a dataflow"):
        quantize(prepared, samples, images, settings)
    settings = recipe(mode="layerwise")
    model = quantize(prepared, samples, images, settings)
    assert torch.isfinite(predict(model, images)).all()
    assert [type(node).__name__ for node in lower(model).nodes] == [
        "Quantize", "Linear", "Operator", "Quantize", "Linear",
    ]  # fmt: skip


class _Recurrent(nn.Module):
    """One layer that runs three times, with a norm that another layer has as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.norm.running_var = torch.rand(4) + 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        for _ in range(2):
            x = torch.relu(self.norm(self.again(x)))
        return self.head(self.again(x).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", ["dataflow", "layerwise"])
def test_layers_that_run_several_times_are_several_layers(mode: str) -> None:
    torch.manual_seed(0)
    net, images = _Recurrent().eval(), torch.randn(16, *INPUT_SHAPE)
    settings = recipe(mode=mode, algorithms={"bias_correction": {}})
    prepared = prepare(net, INPUT_SHAPE, settings, name="net", images=images)
    torch.testing.assert_close(predict(prepared.graph, images), predict(net, images))
    model = quantize(prepared, collect_samples(prepared, images, batch=8, seed=0), images, settings)
    network = lower(model)
    assert [n.name for n in network.layers()] == ["stem", "again", "again_2", "again_3", "head"]
    exact = execute(network, images.numpy()) * float(network.tensors[network.output].scale)
    np.testing.assert_allclose(predict(model, images).numpy(), exact, rtol=0, atol=1e-5)
    save(to_state(model)[0])  # tensors of their own


@pytest.mark.parametrize("kind", ["float32", "power_of_two"])
def test_raised_scales_stay_of_their_kind(kind: str) -> None:
    net, images = make("chain")
    layer = net.get_submodule("body.4")
    assert isinstance(layer, nn.Conv2d)
    with torch.no_grad():
        layer.weight[0] *= 1e-12
    settings = recipe(**{"weights.scale": kind})
    prepared = prepare(net, INPUT_SHAPE, settings, name="net", images=images)
    model = quantize(prepared, collect_samples(prepared, images, batch=8, seed=0), images, settings)
    (scales,) = (w.scales for name, w in model.weights.items() if name == "body_4")
    assert scales[0] > 1e-9
    assert bool((torch.frexp(scales)[0] == 0.5).all()) == (kind == "power_of_two")


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() > 0 else x


def _nan_net() -> nn.Module:
    conv = nn.Conv2d(3, 2, 3)
    conv.weight.data[0, 0, 0, 0] = float("nan")
    return nn.Sequential(conv)


@pytest.mark.parametrize(
    ("net", "shape", "error", "message"),
    [
        (_nan_net(), INPUT_SHAPE, ModelError, r"1 of 54 numbers in '0\.weight' are not finite"),
        (nn.Conv2d(1, 2, 3), INPUT_SHAPE, ModelError, "does not run on images of shape"),
        (_Branching(), (3,), UnsupportedLayerError, "must not branch or loop"),
        (nn.Sequential(nn.ReLU()), INPUT_SHAPE, UnsupportedLayerError, "no Conv2d or Linear"),
    ],
    ids=["nan", "shape", "branch", "nothing"],
)
def test_unusable_models_are_refused(
    net: nn.Module, shape: tuple[int, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepare(net, shape, recipe(), name="net")


def test_unusable_calibration_is_refused() -> None:
    prepared = prepare(make("chain")[0], INPUT_SHAPE, recipe(), name="chain")
    with pytest.raises(CalibrationError, match="at least one image"):
        collect_samples(prepared, torch.zeros(0, *INPUT_SHAPE), batch=1, seed=0)
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        collect_samples(prepared, torch.full((1, *INPUT_SHAPE), torch.inf), batch=1, seed=0)


def test_samples_are_reproducible() -> None:
    prepared = prepare(make("chain")[0], INPUT_SHAPE, recipe(), name="chain")
    images = make("chain")[1]
    first, second = (collect_samples(prepared, images, batch=5, seed=3) for _ in range(2))
    assert isinstance(first, Samples)
    assert all(torch.equal(first.numbers[n], second.numbers[n]) for n in first.numbers)


def test_input_format_follows_the_sign_of_the_images() -> None:
    net, images = make("chain")
    prepared = prepare(net, INPUT_SHAPE, recipe(), name="chain")
    samples = collect_samples(prepared, images.abs(), batch=5, seed=0)
    network = lower(quantize(prepared, samples, images.abs(), recipe()))
    first = next(network.layers())
    assert network.tensors[first.input].format == IntFormat(bits=8, signed=False)


@pytest.mark.parametrize("mode", ["dataflow", "layerwise"])
def test_a_factor_scales_all_activations_but_image_and_logits(mode: str) -> None:
    changes: dict[str, Any] = {"mode": mode, "output": "int8"}
    plain, _ = quantized("residual", recipe(**changes))
    scaled, _ = quantized("residual", recipe(**{**changes, "activations.factor": 0.5}))
    first, second = ({**m.outputs, **m.layer_inputs} for m in (plain, scaled))
    ratios = {name: second[name].scale / first[name].scale for name in first}
    assert set(ratios.values()) == {0.5, 1.0}
    ends = [name for name, ratio in ratios.items() if ratio == 1]
    assert len(ends) == (2 if mode == "dataflow" else 1)
