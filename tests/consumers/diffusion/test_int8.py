# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import Tensor, nn

from lutwise.consumers.diffusion import int8
from lutwise.consumers.diffusion.fake_quant import (
    Clock,
    FakeQuantLinear,
    QuantizedInput,
    QuantizedLayer,
    TimeGroups,
)
from lutwise.consumers.diffusion.int8 import (
    Backend,
    Int8Linear,
    Int8Scales,
    available_backends,
    fastest_backend,
    largest_scales,
    scales_of,
    to_int8,
)
from lutwise.errors import CalibrationError, ConfigError, UnsupportedLayerError
from lutwise.quant import kernels
from lutwise.quant.formats import parse_element, parse_weight
from lutwise.quant.quantized import QuantizedWeight

SHAPES = [(1, 8, 5), (7, 30, 64), (64, 128, 33), (3, 512, 16)]


def layer(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    generator = torch.Generator().manual_seed(inputs + outputs)
    made = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


def rows(count: int, inputs: int) -> Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(count)) * 3


@torch.no_grad()
def fake(linear: nn.Linear, scales: Int8Scales, x: Tensor, *, exact: bool) -> Tensor:
    """Fake quantization by the core's own kernels, in float32 or with exact sums."""
    step = scales.weight.reshape(-1, 1)
    x_step = torch.tensor(scales.input, dtype=torch.float32)
    if exact:
        codes = kernels.quantize(parse_weight("int8"), linear.weight / step).double()
        x_codes = kernels.quantize(parse_element("int8"), x / x_step).double()
        product = x_codes @ codes.t() * (step.double().reshape(-1) * scales.input)
        return product if linear.bias is None else product + linear.bias.double()
    weight = kernels.quantize_scaled(parse_weight("int8"), linear.weight, step)
    values = kernels.quantize_scaled(parse_element("int8"), x, x_step)
    return nn.functional.linear(values, weight, linear.bias)


@pytest.mark.parametrize("backend", Backend)
@pytest.mark.parametrize(("count", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_int8_is_fake_quantization_with_exact_sums(
    backend: Backend, count: int, inputs: int, outputs: int, bias: bool
) -> None:
    if backend not in available_backends():
        pytest.skip(f"{backend.value} does not work here")
    linear = layer(inputs, outputs, bias=bias)
    x = rows(count, inputs)
    scales = largest_scales(linear, 5.0)  # smaller than the largest input: some saturate
    assert float(x.abs().max()) > 5.0 or inputs < 30
    found = Int8Linear(linear.weight, linear.bias, scales, backend=backend)(x)
    exact = fake(linear, scales, x, exact=True)
    bias_values = torch.zeros(outputs).double() if linear.bias is None else linear.bias.double()
    product = exact - bias_values
    bound = 2 * torch.finfo(torch.float32).eps * (product.abs() + bias_values.abs())
    assert bool(((found.double() - exact).abs() <= bound).all())
    torch.testing.assert_close(
        found, fake(linear, scales, x, exact=False), rtol=1e-5, atol=1e-5 * inputs**0.5
    )


def test_the_usual_backend_works_here() -> None:
    assert Backend.INT_MM in available_backends()
    assert Backend.ONNXRUNTIME in available_backends()


def test_a_backend_whose_sums_saturate_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(codes: Tensor, scale: Tensor, bias: Tensor) -> int8.MatMul:
        """Unsigned inputs, pairs of products saturated at 16 bits, as ``vpmaddubsw`` does."""
        weights = codes.float().reshape(1, len(codes), -1, 2)

        def multiply(rounded: Tensor) -> Tensor:
            pairs = ((rounded + 128).reshape(len(rounded), 1, -1, 2) * weights).sum(3)
            sums = pairs.clamp(-(2**15), 2**15 - 1).sum(2) - 128 * weights.sum((2, 3))
            return sums * scale + bias

        return multiply

    monkeypatch.setitem(int8._MULTIPLY, Backend.ONEDNN, saturating)
    assert not int8._is_exact(Backend.ONEDNN)

    def broken(codes: Tensor, scale: Tensor, bias: Tensor) -> int8.MatMul:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setitem(int8._MULTIPLY, Backend.ONEDNN, broken)
    assert not int8._is_exact(Backend.ONEDNN)


def test_leading_dimensions_are_kept_and_the_input_is_not_changed() -> None:
    linear = layer(16, 6)
    made = Int8Linear(
        linear.weight, linear.bias, largest_scales(linear, 9.0), backend=Backend.INT_MM
    )
    x = rows(10, 16).reshape(2, 5, 16)
    before = x.clone()
    found = made(x)
    assert found.shape == (2, 5, 6)
    assert torch.equal(x, before)
    assert torch.equal(found.reshape(10, 6), made(x.reshape(10, 16)))
    turned = x.transpose(0, 1)
    assert torch.equal(made(turned), found.transpose(0, 1))


def test_a_channel_of_zeros_gives_its_bias() -> None:
    linear = layer(8, 3)
    with torch.no_grad():
        linear.weight[1] = 0
    scales = largest_scales(linear, 9.0)
    assert scales.weight[1] == 1
    made = Int8Linear(linear.weight, linear.bias, scales, backend=Backend.INT_MM)
    assert bool((made(rows(5, 8))[:, 1] == linear.bias[1]).all())


def test_to_int8_replaces_the_named_layers_of_a_copy() -> None:
    first = layer(16, 32)
    net = nn.Sequential(first, nn.GELU(), nn.ModuleDict({"inner": layer(32, 4)}))
    scales = {"0": largest_scales(first, 9.0)}
    made = to_int8(net, scales)
    assert isinstance(made.get_submodule("0"), Int8Linear)
    assert isinstance(made.get_submodule("2.inner"), nn.Linear)
    assert isinstance(net[0], nn.Linear)
    x = rows(6, 16)
    wanted = fake(first, scales["0"], x, exact=False)
    torch.testing.assert_close(made.get_submodule("0")(x), wanted, rtol=1e-5, atol=1e-4)


def test_weights_that_are_on_the_grid_keep_their_codes() -> None:
    codes = torch.randint(-127, 128, (20, 11), generator=torch.Generator().manual_seed(0))
    step = torch.rand(20, generator=torch.Generator().manual_seed(1)) * 1e-3 + 1e-5
    made = Int8Linear(
        (codes.double() * step.double().reshape(-1, 1)).float(),
        None,
        Int8Scales(input=0.1, weight=step),
        backend=Backend.INT_MM,
    )
    assert torch.equal(made.codes.long(), codes)


def quantized(weights: str, inputs: str, groups: int = 1) -> QuantizedLayer:
    codes = torch.randint(-7, 8, (6, 9), generator=torch.Generator().manual_seed(0)).double()
    return QuantizedLayer(
        weight=QuantizedWeight(
            format=parse_weight(weights), values=codes, scales=torch.linspace(0.01, 0.02, 6)
        ),
        input=QuantizedInput(format=parse_element(inputs), scales=torch.full((groups,), 0.05)),
    )


def test_a_fake_quantized_layer_becomes_an_int8_layer() -> None:
    made = quantized("int8", "int8")
    assert made.weight is not None
    net = nn.Sequential(
        FakeQuantLinear(layer(9, 6), made, Clock(TimeGroups(groups=1, trained=1000)))
    )
    real = to_int8(net, {"0": scales_of(made)})
    converted = real.get_submodule("0")
    assert isinstance(converted, Int8Linear)
    assert torch.equal(converted.codes.double(), made.weight.values)
    x = rows(20, 9)
    torch.testing.assert_close(real(x), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer_", "message"),
    [
        (quantized("int4", "int8"), "int8n and inputs in int8, this layer has int4n and int8"),
        (quantized("int8", "e4m3"), "has int8n and e4m3"),
        (QuantizedLayer(weight=None, input=None), "has float and float"),
        (quantized("int8", "int8", groups=3), "this one has 3 for groups of timesteps"),
    ],
)
def test_other_fake_quantized_layers_are_refused(layer_: QuantizedLayer, message: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=message):
        scales_of(layer_)


@pytest.mark.parametrize("guided", [1, 2])
def test_a_block_of_a_real_dit_runs_in_int8(guided: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    dit = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, in_channels=1, sample_size=8,
        num_embeds_ada_norm=10,
    ).eval()  # fmt: skip
    block = dit.transformer_blocks[0]
    hidden = rows(guided * 16, 16).reshape(guided, 16, 16)
    largest: dict[str, float] = {}
    linears = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
    assert len(linears) == 9
    hooks = [
        m.register_forward_pre_hook(
            lambda _, args, name=n: largest.__setitem__(name, float(args[0].abs().max()))
        )
        for n, m in linears.items()
    ]
    arguments = {
        "timestep": torch.full((guided,), 500),
        "class_labels": torch.zeros(guided, dtype=torch.int64),
    }
    with torch.no_grad():
        wanted = block(hidden, **arguments)
        for hook in hooks:
            hook.remove()
        scales = {name: largest_scales(m, largest[name]) for name, m in linears.items()}
        found = to_int8(block, scales)(hidden, **arguments)
    assert found.shape == wanted.shape
    error = (found - wanted).pow(2).mean() / wanted.pow(2).mean()
    assert 0 < float(error) < 1e-3


def test_fastest_backend_is_one_that_works() -> None:
    assert fastest_backend(32, 16, rows=4) in available_backends()


def test_bad_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = layer(8, 3)
    with pytest.raises(CalibrationError, match=r"positive numbers, got 0\.0 for the input"):
        Int8Scales(input=0.0, weight=torch.ones(3))
    with pytest.raises(CalibrationError, match="positive numbers"):
        Int8Scales(input=1.0, weight=torch.tensor([1.0, torch.nan]))
    scales = Int8Scales(input=1.0, weight=torch.ones(2))
    with pytest.raises(ConfigError, match="3 outputs has as many weight scales, or one, got 2"):
        Int8Linear(linear.weight, None, scales, backend=Backend.INT_MM)
    net = nn.Sequential(linear, nn.LayerNorm(3))
    good = largest_scales(linear, 1.0)
    with pytest.raises(UnsupportedLayerError, match="'1' is LayerNorm"):
        to_int8(net, {"1": good})
    with pytest.raises(UnsupportedLayerError, match="'7' is no module"):
        to_int8(net, {"7": good})
    monkeypatch.setattr(int8, "available_backends", lambda: (Backend.INT_MM,))
    with pytest.raises(ConfigError, match="onednn sums no int8 products exactly on this machine"):
        to_int8(net, {"0": good}, backend=Backend.ONEDNN)


def test_the_speed_benchmark_measures_what_it_says() -> None:
    from benchmarks.dit_speed import INTERVALS, measure

    row = measure(2, (2, 8, 16), Backend.INT_MM, repeats=3, seconds=0.0)
    names = {f"{kind} N={n}" for kind in ("float", "int8") for n in INTERVALS}
    assert set(row["times"]) == names | {"float reuse", "int8 reuse"}
    assert row["repetitions"] == 3
    assert row["backends"] == ["int_mm"]
    assert 0 < row["relative_squared_error"] < 1e-2
    base = row["times"]["float N=1"]["median_ms"]
    for name, ratio in row["speedup"].items():
        assert ratio == round(base / row["times"][name]["median_ms"], 2)
