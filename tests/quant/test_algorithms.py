# SPDX-License-Identifier: Apache-2.0
"""Every algorithm on small nets of every topology: what must hold whatever the numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lutwise.errors import ConfigError, UnsupportedLayerError
from lutwise.quant.algorithms import resolve
from lutwise.quant.algorithms.learned_rounding import LearnedRoundingConfig, learn
from lutwise.quant.algorithms.soft_rounding import SoftRounding
from lutwise.quant.blocks import find_blocks
from lutwise.quant.formats import parse_weight
from lutwise.quant.graph import Kind, layer_nodes
from lutwise.quant.keep import Keep, Tensors, compute
from lutwise.quant.kernels import quantize as to_grid
from lutwise.quant.quantize import collect_samples, prepare, quantize
from lutwise.quant.quantized import QuantizedModel, predict
from lutwise.quant.recipe import Override, Recipe, build_recipe
from lutwise.quant.solvers import loss
from lutwise.quant.walk import walk
from tests.quant.nets import INPUT_SHAPE, NETS, make

ROUNDING: dict[str, dict[str, Any]] = {
    "none": {},
    "gptq": {"gptq": {}},
    "gptq swept": {"gptq": {"sweeps": 2, "order": "natural", "quantized_inputs": False}},
    "gpfq": {"gpfq": {}},
    "qronos": {"qronos": {}},
    "qronos centered": {"qronos": {"centered": True}, "bias_correction": {}},
    "learned": {"learned_rounding": {"iterations": 60}},
    "block": {"block_rounding": {"iterations": 30}},
}
CORRECTING: dict[str, dict[str, Any]] = {"norm_reestimation": {}, "bias_correction": {}}


def recipe(fmt: str, algorithms: dict[str, Any], **changes: Any) -> Recipe:
    settings = {"weights": fmt, "activations": fmt, "algorithms": algorithms}
    return build_recipe(settings, changes=changes, where="test")


def run(name: str, settings: Recipe, keep: Keep = compute) -> tuple[QuantizedModel, torch.Tensor]:
    net, images = make(name)
    prepared = prepare(net, INPUT_SHAPE, settings, name=name)
    samples = collect_samples(prepared, images, batch=8, seed=0)
    return quantize(prepared, samples, images, settings, keep=keep), images


def noise(model: QuantizedModel, images: torch.Tensor) -> float:
    wanted = predict(model.prepared.graph, images)
    return ((predict(model, images) - wanted).square().sum() / wanted.square().sum()).item()


@pytest.mark.parametrize("mode", ["dataflow", "layerwise"])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("rounding", ROUNDING)
def test_minifloats_with_one_exponent_bit_are_the_narrow_integers(
    name: str, rounding: str, mode: str
) -> None:
    algorithms = {"equalize": {}, **ROUNDING[rounding], **CORRECTING}
    outputs = []
    for fmt in ("e1m2", "int4"):
        # unsigned e1m2 has a code more than uint4's narrow grid, so signs stay
        settings = recipe(fmt, algorithms, mode=mode, **{"activations.unsigned": False})
        settings = settings.model_copy(update={"input": "e1m6"})
        model, images = run(name, settings)
        outputs.append((model, predict(model, images)))
    (first, _), (second, _) = outputs
    for node, weight in first.weights.items():
        assert torch.equal(weight.real(), second.weights[node].real())


SOLVERS = [r for r in ROUNDING if r not in ("none", "block")]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("rounding", SOLVERS)
def test_rounding_algorithms_win_on_the_layers(name: str, rounding: str) -> None:
    model, _ = run(name, recipe("int3", ROUNDING[rounding], mode="layerwise"))
    gains = [gain for changes in model.changes.values() for gain in changes.values()]
    assert len(model.changes) == len(model.weights)
    assert sum(gains) > 0.5


@pytest.mark.parametrize("name", ["chain", "residual", "branches"])
@pytest.mark.parametrize("rounding", SOLVERS)
def test_rounding_algorithms_beat_rounding_to_nearest(name: str, rounding: str) -> None:
    plain, images = run(name, recipe("int3", {}, mode="layerwise"))
    better, _ = run(name, recipe("int3", ROUNDING[rounding], mode="layerwise"))
    assert noise(better, images) < noise(plain, images)


@pytest.mark.parametrize("name", NETS)
def test_block_rounding_brings_blocks_closer_to_the_float_model(name: str) -> None:
    settings = recipe("int3", {"block_rounding": {"iterations": 150}}, mode="layerwise")
    model, _ = run(name, settings)
    gains = [changes["block_rounding"] for changes in model.changes.values()]
    assert len(gains) == len(model.weights)
    assert min(gains) > -0.2  # measured on fewer images than it was decided on
    assert max(gains) > 1


@pytest.mark.parametrize("rounding", [r for r in ROUNDING if r != "none"])
def test_weights_on_the_grid_change_under_no_algorithm(rounding: str) -> None:
    """A format with no quantization error on a tensor changes nothing."""
    torch.manual_seed(2)
    layer = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    with torch.no_grad():
        codes = torch.randint(-7, 8, layer.weight.shape).float()
        codes[:, 0, 0, 0] = 7  # the range search meets the scale exactly
        layer.weight.copy_(codes * 0.25)
    net = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(4, 5, 3))
    images = torch.randint(-100, 101, (8, 3, 6, 6)).float()
    images[0, 0, 0, :2] = torch.tensor([127.0, -127.0])
    settings = recipe("int4", ROUNDING[rounding], mode="layerwise")
    prepared = prepare(net, (3, 6, 6), settings, name="grid")
    samples = collect_samples(prepared, images, batch=8, seed=0)
    model = quantize(prepared, samples, images, settings)
    first = layer_nodes(prepared)[0]
    assert torch.equal(model.weights[first.name].real(), layer.weight)


@pytest.mark.parametrize("name", NETS)
def test_norm_reestimation_restores_means_and_variances(name: str) -> None:
    def worst(algorithms: dict[str, Any]) -> float:
        settings = recipe("int3", algorithms, mode="layerwise", **{"activations.format": "int8"})
        model, images = run(name, settings)
        found = 0.0
        for step in walk(model, images.split(8)):
            if not isinstance(step.layer, nn.Conv2d):
                continue
            wanted, given = torch.cat(step.floats), torch.cat(step.quantized)
            deviation = wanted.std((0, 2, 3))
            alive = (deviation > 0) & (given.std((0, 2, 3)) > 0)
            ratio = (given.std((0, 2, 3)) / deviation)[alive]
            offset = ((given - wanted).mean((0, 2, 3)) / deviation)[alive]
            found = max(found, (ratio - 1).abs().max().item(), offset.abs().max().item())
        return found

    assert worst({}) > 0.1
    # Not exactly: biases are rounded at the very end.
    assert worst({"norm_reestimation": {"largest_gain": 1000.0}}) < 0.02


def test_two_rounding_algorithms_are_refused() -> None:
    with pytest.raises(ConfigError, match="gptq and qronos both round the weights"):
        resolve({"gptq": {}, "qronos": {}})
    with pytest.raises(ConfigError, match=r"gptq\.centered leaves the means of errors"):
        resolve({"gptq": {"centered": True}})
    with pytest.raises(ConfigError, match=r"gptq\.order is one of natural, activity, got 'random'"):
        resolve({"gptq": {"order": "random"}})


def test_norm_reestimation_needs_scales_per_channel() -> None:
    settings = recipe("int4", {"norm_reestimation": {}}, **{"weights.granularity": "tensor"})
    with pytest.raises(ConfigError, match="granularity: channel"):
        run("chain", settings)


@pytest.mark.parametrize("rounding", ["gptq", "learned", "block"])
def test_finished_layers_are_remembered(rounding: str) -> None:
    settings = recipe("e2m1", {**ROUNDING[rounding], "bias_correction": {}})
    store: dict[str, Tensors] = {}

    def remember(name: str, work: Callable[[], Tensors]) -> Tensors:
        store[name] = work()
        return store[name]

    first, _ = run("residual", settings, remember)
    assert len(store) == len(find_blocks(first.prepared) if rounding == "block" else first.weights)

    kept = dict(list(store.items())[:2])
    computed = []

    def resume(name: str, work: Callable[[], Tensors]) -> Tensors:
        if name not in kept:
            computed.append(name)
            return work()
        return kept[name]

    second, _ = run("residual", settings, resume)
    assert computed == list(store)[2:]
    for node, weight in first.weights.items():
        assert torch.equal(weight.values, second.weights[node].values)
    assert first.changes == second.changes


@pytest.mark.parametrize("name", NETS)
def test_blocks_cover_the_graph_with_one_way_in_and_out(name: str) -> None:
    prepared = prepare(make(name)[0], INPUT_SHAPE, recipe("int4", {}), name=name)
    blocks = find_blocks(prepared)
    nodes = [n for n in prepared.graph.graph.nodes if n.op not in ("placeholder", "output")]
    assert [n for block in blocks for n in block.nodes] == nodes
    for i, block in enumerate(blocks):
        inside = {*block.nodes, block.entry}
        assert all(s in inside for n in block.nodes for s in n.all_input_nodes)
        assert any(prepared.kinds[n.name] is Kind.LAYER for n in block.nodes)
        if i:
            assert block.entry is blocks[i - 1].nodes[-1]
    # a residual block is one block
    adds = [n for n in nodes if prepared.kinds[n.name] is Kind.ADD]
    for add in adds:
        (block,) = [b for b in blocks if add in b.nodes]
        assert len(block.nodes) > 1


@pytest.mark.parametrize("fmt", ["int3", "e2m1", "e3m0", "e4m3"])
def test_soft_rounding_chooses_between_the_neighbours(fmt: str) -> None:
    torch.manual_seed(0)
    parsed = parse_weight(fmt, narrow=True)
    weights = torch.randn(1, 6, 40) * parsed.max_value / 3
    soft = SoftRounding(parsed, weights)
    start = soft.weights(soft.share()).detach()
    torch.testing.assert_close(start, weights.clamp(parsed.min_value, parsed.max_value))
    rounded = soft.rounded()
    assert torch.equal(to_grid(parsed, rounded), rounded)
    inside = weights.abs() < parsed.max_value
    assert ((rounded - weights).abs() <= soft.gap * (1 + 1e-6))[inside].all()


def test_learned_rounding_lowers_the_loss_of_correlated_inputs() -> None:
    torch.manual_seed(0)
    fmt = parse_weight("int4", narrow=True)
    x = torch.randn(200, 40) @ (torch.randn(40, 40) / 6 + torch.eye(40))
    h, weights = (x.T @ x)[None], torch.randn(1, 16, 40) * 2.5
    nearest = to_grid(fmt, weights)
    settings = LearnedRoundingConfig(iterations=200, sweeps=0)
    learned = learn(fmt, weights, h, nearest, settings)
    before, after = loss(weights, nearest, h), loss(weights, learned, h)
    assert (after <= before).all()
    assert after.sum() < 0.8 * before.sum()
    same = learn(fmt, nearest, h, nearest, settings)
    assert torch.equal(same, nearest)


def test_layers_stay_in_float_where_the_recipe_says_so_and_nowhere_else() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2), nn.Conv2d(4, 2, 1)
    )

    def settings(**changes: Any) -> Recipe:
        return recipe("int4", {}, **changes)

    with pytest.raises(UnsupportedLayerError, match=r"ConvTranspose2d.*would stay in float"):
        prepare(net, (3, 8, 8), settings(mode="layerwise"), name="net")
    with pytest.raises(ConfigError, match="mode: layerwise"):
        prepare(net, (3, 8, 8), settings(float_layers=["2"]), name="net")
    allowed = settings(mode="layerwise", float_layers=["2", "3"])
    prepared = prepare(net, (3, 8, 8), allowed, name="net")
    assert [str(n.target) for n in layer_nodes(prepared)] == ["0"]


def test_overrides_of_activations_have_to_match_a_tensor() -> None:
    settings = recipe("int4", {}).model_copy(
        update={"overrides": (Override(layers="nothing*", activations="int8"),)}
    )
    with pytest.raises(ConfigError, match=r"nothing\*.*match no tensor"):
        run("chain", settings)
