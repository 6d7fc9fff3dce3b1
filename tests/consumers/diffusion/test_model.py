# SPDX-License-Identifier: Apache-2.0
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from lutwise.consumers.diffusion.model import (
    SCHEDULER_DEFAULTS,
    Dit,
    load_dit,
    null_class,
    save_dit,
)
from lutwise.consumers.diffusion.stock import (
    AutoencoderKL,
    DDIMScheduler,
    DiTTransformer2DModel,
)
from lutwise.errors import ConfigError, ModelError

WEIGHTS = "diffusion_pytorch_model.safetensors"


def assert_same(left: nn.Module, right: nn.Module) -> None:
    mine, other = left.state_dict(), right.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[key], other[key]) for key in mine)


def test_saved_model_is_read_again(dit: Dit, saved: Path) -> None:
    again = load_dit(saved)
    assert type(again.transformer) is DiTTransformer2DModel
    assert_same(again.transformer, dit.transformer)
    assert again.sha256 == dit.sha256
    assert again.latent_shape == (2, 4, 4)
    assert again.classes == 5
    assert again.scheduler == dit.scheduler
    assert not again.transformer.training
    assert not any(p.requires_grad for p in again.transformer.parameters())


def test_saved_model_is_read_by_diffusers(dit: Dit, saved: Path) -> None:
    stock = DiTTransformer2DModel.from_pretrained(saved / "transformer", local_files_only=True)
    assert_same(stock, dit.transformer)
    scheduler = DDIMScheduler.from_pretrained(saved / "scheduler", local_files_only=True)
    assert scheduler.config.clip_sample is False


def test_pipeline_at_the_shape_of_dit_xl_2_goes_both_ways(
    make_dit: Callable[..., Dit], tmp_path: Path
) -> None:
    """DiT-XL/2 with all its 28 layers, 16 heads and 1000 classes, 16 channels in place of 1152."""
    from diffusers import DiTPipeline

    transformer = make_dit(
        num_attention_heads=16,
        attention_head_dim=1,
        num_layers=28,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
        sample_size=8,
    ).transformer
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    pipeline = DiTPipeline(transformer, vae, DDIMScheduler(**SCHEDULER_DEFAULTS))
    pipeline.save_pretrained(tmp_path / "xl")
    dit = load_dit(tmp_path / "xl")
    assert_same(dit.transformer, transformer)
    assert null_class(dit.transformer) == 1000
    found = dit.load_vae()
    assert found is not None
    assert_same(found, vae)
    save_dit(dit, tmp_path / "again")
    again = DiTPipeline.from_pretrained(
        tmp_path / "xl",
        transformer=DiTTransformer2DModel.from_pretrained(tmp_path / "again" / "transformer"),
        local_files_only=True,
    )
    assert_same(again.transformer, transformer)


def test_bare_transformer_is_read(dit: Dit, saved: Path) -> None:
    bare = load_dit(saved / "transformer")
    assert_same(bare.transformer, dit.transformer)
    assert bare.scheduler == SCHEDULER_DEFAULTS
    assert bare.load_vae() is None


def test_checkpoint_of_the_general_class_is_read(dit: Dit, saved: Path) -> None:
    path = saved / "transformer" / "config.json"
    config = json.loads(path.read_text())
    config |= {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "sigma": 1}
    path.write_text(json.dumps(config))
    assert_same(load_dit(saved).transformer, dit.transformer)


def test_pickled_weights_are_read(dit: Dit, saved: Path) -> None:
    folder = saved / "transformer"
    state = safetensors.torch.load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / "diffusion_pytorch_model.bin")
    assert_same(load_dit(saved).transformer, dit.transformer)


def test_shards_are_read(dit: Dit, tmp_path: Path) -> None:
    dit.transformer.save_pretrained(tmp_path, max_shard_size="10KB")  # type: ignore[operator]
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same(load_dit(tmp_path).transformer, dit.transformer)


def test_shards_outside_the_folder_are_not_read(dit: Dit, tmp_path: Path) -> None:
    dit.transformer.save_pretrained(tmp_path, max_shard_size="10KB")  # type: ignore[operator]
    path = tmp_path / f"{WEIGHTS}.index.json"
    index = json.loads(path.read_text())
    first = next(iter(index["weight_map"]))
    index["weight_map"][first] = "../elsewhere.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(ModelError, match="names no files in weight_map"):
        load_dit(tmp_path)


def test_half_precision_becomes_float32(dit: Dit, saved: Path) -> None:
    folder = saved / "transformer"
    state = safetensors.torch.load_file(folder / WEIGHTS)
    safetensors.torch.save_file({k: v.half() for k, v in state.items()}, folder / WEIGHTS)
    found = load_dit(saved).transformer.state_dict()
    assert {v.dtype for v in found.values()} == {torch.float32}


def break_nothing_there(folder: Path) -> None:
    shutil.rmtree(folder)


def break_config_text(folder: Path) -> None:
    (folder / "transformer" / "config.json").write_text("{")


def break_config_kind(folder: Path) -> None:
    (folder / "transformer" / "config.json").write_text("[]")


def break_no_config(folder: Path) -> None:
    (folder / "transformer" / "config.json").unlink()


def break_class(folder: Path) -> None:
    (folder / "transformer" / "config.json").write_text('{"_class_name": "UNet2DModel"}')


def break_norm(folder: Path) -> None:
    (folder / "transformer" / "config.json").write_text(
        '{"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single"}'
    )


def break_values(folder: Path) -> None:
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patch_size": 0}))


def break_shape(folder: Path) -> None:
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_head_dim": 16}))


def break_weights(folder: Path) -> None:
    path = folder / "transformer" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def break_no_weights(folder: Path) -> None:
    (folder / "transformer" / WEIGHTS).unlink()


def break_nan(folder: Path) -> None:
    path = folder / "transformer" / WEIGHTS
    state = safetensors.torch.load_file(path)
    state["proj_out_1.weight"][0, 0] = torch.nan
    safetensors.torch.save_file(state, path)


def break_missing_layer(folder: Path) -> None:
    path = folder / "transformer" / WEIGHTS
    state = safetensors.torch.load_file(path)
    del state["proj_out_1.weight"]
    safetensors.torch.save_file(state, path)


def break_scheduler(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text("nothing")


def break_prediction(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "sample"}')


def break_layer_shape(folder: Path) -> None:
    path = folder / "transformer" / WEIGHTS
    state = safetensors.torch.load_file(path)
    state["proj_out_1.weight"] = state["proj_out_1.weight"][:-1].clone()
    safetensors.torch.save_file(state, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_nothing_there, "does not exist; give a folder with transformer/config.json"),
        (break_config_text, "config.json is damaged"),
        (break_config_kind, "holds a list, not a configuration"),
        (break_no_config, "holds no diffusers model"),
        (break_class, "is no DiT: wanted _class_name DiTTransformer2DModel .* got 'UNet2DModel'"),
        (break_norm, "is no DiT: .* with 'ada_norm_single'"),
        (break_values, "describes no DiT: sizes .* whole numbers from 1, got 0 for patch_size"),
        (break_shape, r"not those of its config.json: for .* is wanted, got \("),
        (break_layer_shape, "are not those of its config.json: .*size mismatch"),
        (break_weights, "is no whole safetensors file"),
        (break_no_weights, "has no weights: wanted one of diffusion_pytorch_model"),
        (break_nan, "1 of 512 numbers of 'proj_out_1.weight' are NaN"),
        (break_missing_layer, "Missing key.*proj_out_1.weight"),
        (break_scheduler, "scheduler_config.json is damaged"),
        (break_prediction, "predicts noise .* got 'sample'"),
    ],
)
def test_damage_is_named(saved: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(saved)
    with pytest.raises(ModelError, match=message):
        load_dit(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 10**9}, "1000000000 blocks are wanted, got 3"),
        ({"num_layers": "3"}, "whole numbers from 1, got '3' for blocks"),
        ({"num_layers": True}, "whole numbers from 1, got True for blocks"),
        ({"num_attention_heads": 10**9}, "the shape .* is wanted"),
        ({"in_channels": 10**9}, "the shape .* is wanted"),
        ({"out_channels": 10**9}, "the shape .* is wanted"),
        ({"num_embeds_ada_norm": 10**9}, "the shape .* is wanted"),
        ({"num_embeds_ada_norm": None}, "got None for classes"),
        ({"sample_size": 10**6}, "250000000000 tokens, more than 65536"),
        ({"sample_size": [4, 4]}, r"got \[4, 4\] for sample_size"),
        ({"activation_fn": "geglu"}, "one of gelu-approximate, gelu, got 'geglu'"),
        ({"dropout": 2.0}, "describes no DiT that can be built: ValueError"),
    ],
)
def test_configurations_that_do_not_fit_fill_no_memory(
    saved: Path, changes: dict[str, object], message: str
) -> None:
    path = saved / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=message):
        load_dit(saved)


def test_file_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="is a file; give a folder"):
        load_dit(path)


class Harmful:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_pickled_autoencoder_is_read_and_its_code_is_not_run(
    saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2)
    vae.save_pretrained(saved / "vae", safe_serialization=False)
    found = load_dit(saved).load_vae()
    assert found is not None
    assert_same(found, vae)
    assert capfd.readouterr().err == ""
    ran = saved / "ran"
    torch.save({"harm": Harmful(ran)}, saved / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot read the autoencoder [^\n]*$"):
        load_dit(saved).load_vae()
    assert not ran.exists()


def test_pickled_code_is_not_run(saved: Path) -> None:
    ran = saved / "ran"
    (saved / "transformer" / WEIGHTS).unlink()
    torch.save({"harm": Harmful(ran)}, saved / "transformer" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="holds code or objects, not just tensors"):
        load_dit(saved)
    assert not ran.exists()


def test_damaged_autoencoder_is_named(saved: Path) -> None:
    (saved / "vae").mkdir()
    (saved / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ModelError, match="cannot read the autoencoder"):
        load_dit(saved).load_vae()


def test_only_the_stock_class_is_written(dit: Dit, tmp_path: Path) -> None:
    class Mine(DiTTransformer2DModel):  # type: ignore[misc]
        pass

    other = replace(dit, transformer=Mine(**dict(dit.config)))
    with pytest.raises(ModelError, match="only the stock DiTTransformer2DModel"):
        save_dit(other, tmp_path)


def test_model_without_null_class_takes_no_guidance(dit: Dit) -> None:
    embedder = dit.transformer.transformer_blocks[0].norm1.emb.class_embedder  # type: ignore
    embedder.embedding_table = nn.Embedding(5, 16)
    with pytest.raises(ConfigError, match="its 5 classes only; use guidance 1"):
        null_class(dit.transformer)


def test_zoo_model_makes_digits(digits_dit: Dit) -> None:
    assert digits_dit.latent_shape == (1, 8, 8)
    assert digits_dit.classes == 10
    assert null_class(digits_dit.transformer) == 10
