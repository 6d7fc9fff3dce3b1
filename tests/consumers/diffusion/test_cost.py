# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lutwise.consumers.diffusion.caching import cached
from lutwise.consumers.diffusion.cost import DitCost, LayerFormats, dit_cost
from lutwise.consumers.diffusion.forecast import Reuse
from lutwise.consumers.diffusion.layers import DitSize, dit_layers
from lutwise.consumers.diffusion.schedule import CacheSchedule
from lutwise.consumers.diffusion.stock import DiTTransformer2DModel
from lutwise.cost_models.library import lut_per_mac
from lutwise.errors import ConfigError
from lutwise.quant.formats import parse_element, parse_weight

TINY: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 6,
    "num_layers": 3,
    "in_channels": 2,
    "out_channels": 4,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
}
ALL = np.ones((1, 3, 2), dtype=np.bool_)


@pytest.fixture(scope="module", params=[{}, {"attention_bias": False, "patch_size": 4}])
def model(request: pytest.FixtureRequest) -> nn.Module:
    made: nn.Module = DiTTransformer2DModel(**(TINY | request.param))
    return made.eval()


def size_of(model: nn.Module) -> DitSize:
    return DitSize.of(model.config)  # type: ignore[arg-type]


def run(model: nn.Module, samples: int) -> None:
    with torch.no_grad():
        model(
            torch.zeros(samples, 2, 8, 8),
            timestep=torch.full((samples,), 10),
            class_labels=torch.zeros(samples, dtype=torch.int64),
        )


@contextmanager
def counted_by_hooks(model: nn.Module) -> Iterator[dict[str, int]]:
    """Count multiply-accumulates of linear layers and convolutions by module."""
    counts: dict[str, int] = {}

    def hook(name: str, weight: torch.Tensor) -> Any:
        def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            positions = output.numel() // weight.shape[0]
            counts[name] = counts.get(name, 0) + positions * weight.numel()

        return count

    handles = [
        module.register_forward_hook(hook(name, module.weight))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    yield counts
    for handle in handles:
        handle.remove()


def macs_of_operators(model: nn.Module, samples: int) -> int:
    """Count by torch's own counter, which knows attention only as two matrix products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(model, samples)
    return int(counter.get_total_flops()) // 2


def test_macs_of_each_layer_are_those_that_hooks_count(model: nn.Module) -> None:
    with counted_by_hooks(model) as counts:
        run(model, 1)
    layers = dit_layers(size_of(model))
    assert {layer.name: layer.macs for layer in layers if layer.weights} == counts
    assert sum(layer.macs for layer in layers) == macs_of_operators(model, 1)


def test_weights_and_float_parameters_are_those_of_the_model(model: nn.Module) -> None:
    cost = dit_cost(size_of(model), ALL, {}, guided=False)
    total = sum(p.numel() for p in model.parameters())
    assert cost.weight_bits + cost.float_parameter_bits == 32 * total
    weights = {layer.name: layer.weights for layer in dit_layers(size_of(model)) if layer.weights}
    modules = dict(model.named_modules())
    assert weights == {name: modules[name].weight.numel() for name in weights}


def test_inputs_are_those_that_the_model_reads(model: nn.Module) -> None:
    read: dict[str, int] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: read.__setitem__(name, inputs[0].numel())
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    run(model, 1)
    for handle in handles:
        handle.remove()
    assert {x.name: x.inputs for x in dit_layers(size_of(model)) if x.weights} == read


def test_macs_under_a_cache_and_guidance_are_those_that_hooks_count(model: nn.Module) -> None:
    attention = ((True,) * 3, (False, True, True), (True, False, False), (False, True, False))
    feed_forward = ((True,) * 3, (True, False, True), (True, True, True), (False,) * 3)
    schedule = CacheSchedule(attention=attention, feed_forward=feed_forward)
    cost = dit_cost(size_of(model), np.stack([attention, feed_forward], axis=-1), {}, guided=True)
    with cached(model, schedule, Reuse) as cache:
        for step in range(4):
            cache.begin(step)
            assert cost.step_macs[step] == macs_of_operators(model, 2)
    assert cost.macs == sum(cost.step_macs) == sum(layer.macs for layer in cost.layers)
    size = size_of(model)
    # Every part of a block but the last feed-forward layers is kept: 3 + 3 outputs, both halves.
    assert cost.cache_bits == 32 * 2 * 6 * size.tokens * size.width


def uniform(weights: str, activations: str, size: DitSize) -> dict[str, LayerFormats]:
    formats = LayerFormats(weights=parse_weight(weights), activations=parse_element(activations))
    return {x.name: formats for x in dit_layers(size) if x.weights and x.name != "pos_embed.proj"}


def test_bits_and_operations_follow_the_formats() -> None:
    size = DitSize.of(TINY | {"attention_bias": True})
    plain = dit_cost(size, ALL, {}, guided=False)
    assert plain.bops == 32 * 32 * plain.macs
    assert plain.lut_per_mac is None
    assert plain.lane_luts is None
    assert plain.priced_share == 0
    formats = uniform("int4", "int8", size)
    cost = dit_cost(size, ALL, formats, guided=False)
    layers = {x.name: x for x in dit_layers(size)}
    quantized = sum(layers[name].macs for name in formats)
    assert cost.bops == 4 * 8 * quantized + 32 * 32 * (cost.macs - quantized)
    weights = sum(layers[name].weights for name in formats)
    assert cost.weight_bits == 4 * weights + 32 * layers["pos_embed.proj"].weights
    assert cost.priced_share == quantized / cost.macs
    half = dit_cost(size, ALL, {}, guided=False, float_bits=16)
    assert half.bops == 16 * 16 * plain.macs
    assert 2 * half.activation_bits == plain.activation_bits
    only_weights = dict.fromkeys(formats, LayerFormats(weights=parse_weight("int4")))
    assert dit_cost(size, ALL, only_weights, guided=False).bops == (
        4 * 32 * quantized + 32 * 32 * (cost.macs - quantized)
    )


def test_prices_are_those_of_the_library_weighted_by_work() -> None:
    size = DitSize.of(TINY | {"attention_bias": True})
    cost = dit_cost(size, ALL, uniform("int8", "int8", size), guided=False)
    prices = [x.lut_per_mac for x in cost.layers if x.lut_per_mac is not None]
    usual = lut_per_mac(parse_weight("int8"), parse_element("int8"), 8).value
    # Accumulators here are narrower than for 1024 products: some LUTs less per lane.
    assert all(usual - 2 < price.value <= usual for price in prices)
    assert cost.lut_per_mac is not None
    assert min(p.value for p in prices) < cost.lut_per_mac < max(p.value for p in prices)
    assert cost.lane_luts is not None
    assert cost.requantizer_luts is not None
    assert cost.lane_luts == pytest.approx(cost.lut_per_mac + cost.requantizer_luts / 8)
    narrow = dit_cost(size, ALL, uniform("e2m1", "e2m1", size), guided=False)
    assert narrow.lut_per_mac is not None
    assert narrow.lut_per_mac < cost.lut_per_mac
    assert cost.to_json()["lut_per_mac"] == round(cost.lut_per_mac, 3)


def interval(size: DitSize, every: int, steps: int) -> DitCost:
    table = np.zeros((steps, size.blocks, 2), dtype=np.bool_)
    table[::every] = True
    return dit_cost(size, table, {}, guided=False)


def test_dit_xl_2_has_its_published_size() -> None:
    """118.6 GMACs and 675 M parameters at 32x32 latents (arXiv 2212.09748, table 9)."""
    size = DitSize(
        heads=16, head_width=72, blocks=28, in_channels=4, out_channels=8, sample_size=32,
        patch_size=2, classes=1000,
    )  # fmt: skip
    one = interval(size, 1, 1)
    assert one.macs == pytest.approx(118.64e9, rel=0.01)
    # diffusers has an embedder and a class table per block instead of one for all.
    shared = 27 * ((256 + 1152 + 2) * 1152 + 1001 * 1152)
    parameters = (one.weight_bits + one.float_parameter_bits) // 32
    assert parameters - shared == pytest.approx(675e6, rel=0.01)
    assert interval(size, 2, 50).macs / interval(size, 1, 50).macs == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.ones((4, 2, 2), dtype=np.bool_), r"\(steps, 3, 2\), got bool of shape \(4, 2, 2\)"),
        (np.ones((4, 3, 2)), "got float64"),
        (np.ones((0, 3, 2), dtype=np.bool_), "at least 1, got 0"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(table: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dit_cost(DitSize.of(TINY | {"attention_bias": True}), table, {}, guided=False)


def test_bad_input_is_refused() -> None:
    size = DitSize.of(TINY | {"attention_bias": True})
    with pytest.raises(ConfigError, match="'proj_out_9' is none"):
        dit_cost(size, ALL, {"proj_out_9": LayerFormats()}, guided=False)
    with pytest.raises(ConfigError, match="'patch_size', this one has not"):
        DitSize.of({k: v for k, v in TINY.items() if k != "patch_size"})
    with pytest.raises(ConfigError, match="8 pixels in patches of 3"):
        replace(size, patch_size=3)
