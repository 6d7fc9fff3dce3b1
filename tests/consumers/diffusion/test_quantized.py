# SPDX-License-Identifier: Apache-2.0
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from lutwise.consumers.diffusion.calibration import SamplePool
from lutwise.consumers.diffusion.fake_quant import FakeQuantLinear, TimeGroups
from lutwise.consumers.diffusion.model import Dit
from lutwise.consumers.diffusion.quantized import (
    CONFIG_FILE,
    STATE_FILE,
    linear_layers,
    load_quantized,
    quantize_dit,
    save_quantized,
)
from lutwise.consumers.diffusion.recipe import DitRecipe, LayerOverride
from lutwise.consumers.diffusion.sampling import SamplingSettings, sample
from lutwise.errors import CalibrationError, ConfigError, FormatError, ModelError
from lutwise.quant import numerics
from lutwise.quant.formats import values
from lutwise.quant.ranges import RangeMethod, RangeSearch

MAX = RangeSearch(method=RangeMethod.MAX)


def fast(**changes: Any) -> DitRecipe:
    """A recipe without the slower search of ranges."""
    return DitRecipe(**{"weight_range": MAX, "activation_range": MAX, **changes})


@pytest.fixture
def pool(dit: Dit) -> SamplePool:
    labels = torch.arange(6) % 5
    settings = SamplingSettings(steps=5)
    return sample(dit.transformer, dit.scheduler, labels, settings, record=True).pool()


def forward(net: nn.Module, pool: SamplePool) -> torch.Tensor:
    found: torch.Tensor = net(
        pool.latents, timestep=pool.timesteps, class_labels=pool.labels
    ).sample
    return found


def error(net: nn.Module, dit: Dit, pool: SamplePool) -> float:
    return (forward(net, pool) - forward(dit.transformer, pool)).square().mean().item()


def test_every_linear_layer_is_quantized(dit: Dit, pool: SamplePool) -> None:
    quantized = quantize_dit(dit, pool, DitRecipe(weights="int4", activations="e4m3"))
    kinds = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj",
             "ff.net.2", "norm1.linear", "norm1.emb.timestep_embedder.linear_1",
             "norm1.emb.timestep_embedder.linear_2")  # fmt: skip
    names = {f"transformer_blocks.{i}.{kind}" for i in range(3) for kind in kinds}
    assert set(quantized.layers) == names | {"proj_out_1", "proj_out_2"}
    assert not linear_layers(quantized.transformer)
    for name, layer in quantized.layers.items():
        assert layer.weight is not None
        assert layer.input is not None
        assert str(layer.weight.format) == "int4n"
        assert set(layer.weight.values.unique().tolist()) <= set(range(-7, 8))
        assert layer.weight.scales.shape == layer.weight.values.shape[:1]
        assert str(layer.input.format) == "e4m3"
        module = quantized.transformer.get_submodule(name)
        assert isinstance(module, FakeQuantLinear)
        assert torch.equal(module.weight, layer.weight.real())


def test_layer_computes_with_quantized_numbers(dit: Dit, pool: SamplePool) -> None:
    """One layer against lutwise's numpy numerics."""
    name = "transformer_blocks.1.ff.net.2"
    recipe = fast(weights="e2m1", activations="int6")
    quantized = quantize_dit(dit, pool, recipe)
    real, layer = linear_layers(dit.transformer)[name], quantized.layers[name]
    assert layer.weight is not None
    assert layer.input is not None
    x = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(0))
    scales = layer.weight.scales.numpy()[:, None]
    weight = numerics.quantize_scaled(layer.weight.format, real.weight.numpy(), scales)
    source = numerics.quantize_scaled(layer.input.format, x.numpy(), layer.input.scales.numpy())
    wanted = source.astype(np.float64) @ weight.T.astype(np.float64) + real.bias.numpy()
    found = quantized.transformer.get_submodule(name)(x).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_float_model_is_not_changed(dit: Dit, pool: SamplePool) -> None:
    before = copy.deepcopy(dit.transformer.state_dict())
    modules = dict(dit.transformer.named_modules())
    quantize_dit(dit, pool, fast(algorithms={"gptq": {}}, timestep_groups=2))
    assert dict(dit.transformer.named_modules()) == modules
    assert all(torch.equal(v, before[k]) for k, v in dit.transformer.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in dit.transformer.modules())


def test_more_bits_err_less(dit: Dit, pool: SamplePool) -> None:
    errors = [
        error(quantize_dit(dit, pool, fast(weights=f, activations=f)).transformer, dit, pool)
        for f in ("int3", "int4", "int6", "int8")
    ]
    assert errors == sorted(errors, reverse=True)
    power = forward(dit.transformer, pool).square().mean().item()
    assert 0 < errors[-1] < 1e-3 * power


def test_float_layers_stay_as_they_are(dit: Dit, pool: SamplePool) -> None:
    quantized = quantize_dit(dit, pool, fast(weights="float", activations="float"))
    assert torch.equal(forward(quantized.transformer, pool), forward(dit.transformer, pool))


def test_overrides_win_in_order(dit: Dit, pool: SamplePool) -> None:
    overrides = (
        LayerOverride(layers="*.attn1.*", weights="e4m3"),
        LayerOverride(layers="*.attn1.to_v", weights="float", activations="int4"),
        LayerOverride(layers="proj_out_?", weights="float", activations="float"),
    )
    layers = quantize_dit(dit, pool, fast(overrides=overrides)).layers

    def formats(name: str) -> tuple[str, str]:
        found = layers[name]
        return (
            str(found.weight.format if found.weight else None),
            str(found.input.format if found.input else None),
        )

    assert formats("transformer_blocks.0.attn1.to_q") == ("e4m3", "int8")
    assert formats("transformer_blocks.2.attn1.to_v") == ("None", "int4")
    assert formats("transformer_blocks.2.norm1.linear") == ("int8n", "int8")
    assert formats("proj_out_2") == ("None", "None")


def test_timestep_groups_have_ranges_of_their_own(dit: Dit, pool: SamplePool) -> None:
    """Inputs of the first time group, times eight; a layer of the recorded maximum finds them."""
    recipe = fast(timestep_groups=2)
    quantized = quantize_dit(dit, pool, recipe)
    seen: dict[int, float] = {0: 0.0, 1: 0.0}
    name = "transformer_blocks.2.ff.net.0.proj"

    def see(module: nn.Module, args: tuple[torch.Tensor], out: torch.Tensor) -> None:
        for index, time in enumerate(pool.timesteps.tolist()):
            group = int(time >= 500)
            seen[group] = max(seen[group], args[0][index].abs().max().item())

    handle = linear_layers(dit.transformer)[name].register_forward_hook(see)
    forward(dit.transformer, pool)
    handle.remove()
    layer = quantized.layers[name]
    assert layer.input is not None
    np.testing.assert_allclose(layer.input.scales * 127, [seen[0], seen[1]], rtol=1e-6)
    assert seen[0] != seen[1]


def test_each_sample_of_a_mixed_batch_has_the_scale_of_its_time(dit: Dit, pool: SamplePool) -> None:
    recipe = fast(timestep_groups=5, weights="float", activations="int4")
    net = quantize_dit(dit, pool, recipe).transformer
    mixed = forward(net, pool)
    alone = torch.cat(
        [forward(net, pool.take(np.flatnonzero(pool.steps.numpy() == s))) for s in range(5)]
    )
    torch.testing.assert_close(mixed, alone)


def test_groups_cover_the_trained_timesteps() -> None:
    groups = TimeGroups(groups=3, trained=1000)
    found = groups.of(torch.arange(1000))
    assert found.bincount().tolist() == [334, 333, 333]
    assert (found.diff() >= 0).all()


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [("gptq", {}), ("qronos", {}), ("gpfq", {}), ("learned_rounding", {"iterations": 20})],
)
def test_solvers_beat_rounding_to_nearest(
    dit: Dit, pool: SamplePool, algorithm: str, settings: dict[str, Any]
) -> None:
    nearest = quantize_dit(dit, pool, fast(weights="int3", activations="float"))
    solved = quantize_dit(
        dit, pool, fast(weights="int3", activations="float", algorithms={algorithm: settings})
    )
    assert error(solved.transformer, dit, pool) < 0.8 * error(nearest.transformer, dit, pool)
    for layer in solved.layers.values():
        assert layer.weight is not None
        assert set(layer.weight.values.unique().tolist()) <= set(values(layer.weight.format))


def test_guided_calibration_sees_the_null_class(dit: Dit, pool: SamplePool) -> None:
    """The null class's embedding is made large, which only shows where it is used."""
    blocks: Any = dit.transformer.transformer_blocks
    table = blocks[0].norm1.emb.class_embedder.embedding_table.weight
    table[5] *= 50
    recipe = fast()
    name = "transformer_blocks.0.norm1.linear"

    def scale(guided: bool) -> float:
        found = quantize_dit(dit, pool, recipe, guided=guided).layers[name].input
        assert found is not None
        return found.scales.item()

    assert scale(True) > 5 * scale(False)


def test_quantized_model_is_read_again(dit: Dit, pool: SamplePool, tmp_path: Path) -> None:
    recipe = fast(
        weights="e2m1",
        activations="e4m3",
        overrides=(LayerOverride(layers="proj_out_2", weights="float", activations="float"),),
        timestep_groups=2,
        algorithms={"gptq": {"damping": 0.02}},
    )
    quantized = quantize_dit(dit, pool, recipe)
    save_quantized(quantized, tmp_path)
    again = load_quantized(dit, tmp_path)
    assert torch.equal(forward(again.transformer, pool), forward(quantized.transformer, pool))
    assert again.recipe.to_json() == recipe.to_json()
    assert again.groups == quantized.groups


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def break_missing(folder: Path) -> None:
    (folder / CONFIG_FILE).unlink()


def break_missing_state(folder: Path) -> None:
    (folder / STATE_FILE).unlink()


def break_version(folder: Path) -> None:
    change(folder / CONFIG_FILE, version=99)


def break_recipe(folder: Path) -> None:
    change(folder / CONFIG_FILE, recipe={"weights": "int8"})


def break_source(folder: Path) -> None:
    change(folder / CONFIG_FILE, source_sha256="0" * 64)


def break_layer(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / STATE_FILE)
    del state["proj_out_2.weight_scales"]
    safetensors.torch.save_file(state, folder / STATE_FILE)


def break_codes(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / STATE_FILE)
    state["proj_out_1.weight_codes"] = state["proj_out_1.weight_codes"][:3]
    safetensors.torch.save_file(state, folder / STATE_FILE)


def break_scales(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / STATE_FILE)
    state["proj_out_1.input_scales"][0] = torch.nan
    safetensors.torch.save_file(state, folder / STATE_FILE)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_missing, "cannot read the quantized model .* FileNotFoundError"),
        (break_missing_state, "quantized.safetensors' does not exist"),
        (break_version, "version 99, wanted 1"),
        (break_recipe, "not a recipe of a DiT"),
        (break_source, "belongs to a model with weights 000000000000"),
        (break_layer, "layer 'proj_out_2' of the quantized model is not .* KeyError"),
        (break_codes, r"have codes \(3, 16\)"),
        (break_scales, "numbers of 'proj_out_1.input_scales' are NaN"),
    ],
)
def test_damage_is_named(
    dit: Dit, pool: SamplePool, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    save_quantized(quantize_dit(dit, pool, fast()), tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_quantized(dit, tmp_path)


def test_group_without_samples_is_refused(dit: Dit, pool: SamplePool) -> None:
    late = pool.take(np.flatnonzero(pool.timesteps.numpy() < 500))
    with pytest.raises(CalibrationError, match=r"for 2 of 4 groups .* the first is 500 .. 749"):
        quantize_dit(dit, late, fast(timestep_groups=4))


def test_timesteps_of_another_model_are_refused(dit: Dit) -> None:
    pool = SamplePool(
        latents=torch.zeros(1, 2, 4, 4),
        steps=torch.zeros(1, dtype=torch.int64),
        timesteps=torch.tensor([1000]),
        labels=torch.zeros(1, dtype=torch.int64),
    )
    with pytest.raises(CalibrationError, match=r"has timesteps 0 .. 999, .* 1000 .. 1000"):
        quantize_dit(dit, pool, fast())


def test_override_of_no_layer_is_refused(dit: Dit, pool: SamplePool) -> None:
    recipe = DitRecipe(overrides=(LayerOverride(layers="*.attn2.*", weights="int4"),))
    with pytest.raises(
        ConfigError, match=r"'\*.attn2.\*' matches no linear layer; .*\*.attn1.to_k"
    ):
        quantize_dit(dit, pool, recipe)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"weights": "int9"}, FormatError, "no format 'int9'"),
        ({"activations": "mxfp4"}, FormatError, "shares scales between blocks"),
        ({"overrides": (LayerOverride(layers="*", weights="x"),)}, FormatError, "no format 'x'"),
        ({"timestep_groups": 0}, ConfigError, "timestep_groups=0"),
        ({"algorithms": {"equalize": {}}}, ConfigError, "rounded by one of .*gptq.*got equalize"),
        ({"algorithms": {"gptq": {"centered": True}}}, ConfigError, "centered"),
    ],
)
def test_bad_recipes_are_refused(
    changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        DitRecipe(**changes)


def test_unsigned_activations_are_read_as_signed() -> None:
    assert str(DitRecipe(activations="uint8").activation_format("x")) == "int8"
