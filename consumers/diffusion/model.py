# SPDX-License-Identifier: Apache-2.0
"""Diffusion transformers from and to folders of diffusers. Nothing is downloaded or run.

Two layouts are known: a pipeline (``transformer/``, ``scheduler/``, perhaps ``vae/``), as
``DiTPipeline.save_pretrained`` writes it, and the bare transformer (``config.json`` beside its
weights). What is kept is always the stock class, so that diffusers reads it again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from lutwise.consumers.diffusion.layers import DitSize
from lutwise.consumers.diffusion.stock import (
    AutoencoderKL,
    DiTTransformer2DModel,
    all_settings,
    blocks_of,
    config_of,
    known_settings,
)
from lutwise.consumers.diffusion.zoo import MODELS
from lutwise.errors import ConfigError, ModelError
from lutwise.files import write_atomic
from lutwise.quant.checkpoints import State, check_finite, load_state, state_sha256
from lutwise.workspace import to_json

__all__ = ["SCHEDULER_DEFAULTS", "Dit", "load_dit", "null_class", "save_dit"]

SCHEDULER_DEFAULTS: Final[dict[str, Any]] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "beta_schedule": "linear",
    "clip_sample": False,
}
"""Of a bare transformer, which says nothing of its scheduler: how the published DiTs were
trained (arXiv 2212.09748, section 4)."""

_CONFIG: Final = "config.json"
_SCHEDULER: Final = "scheduler_config.json"
_WEIGHTS: Final = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
)
_INDEX: Final = "diffusion_pytorch_model.safetensors.index.json"
_NORM: Final = "ada_norm_zero"

_ACTIVATIONS: Final = ("gelu-approximate", "gelu")
"""Of the feed-forward layers; gated ones have other sizes, which costs do not know."""

_MOST_TOKENS: Final = 1 << 16
"""Published DiTs have 256 and 1024; embeddings of positions are computed, not read."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dit:
    """A diffusion transformer and what belongs to it.

    Args:
        name: For people.
        transformer: The stock class, float32, in evaluation mode, without gradients.
        scheduler: Configuration of its noise schedule, as diffusers writes it.
        folder: Where it was read from.
        sha256: Of its weights.
    """

    name: str
    transformer: nn.Module
    scheduler: Mapping[str, Any]
    folder: Path
    sha256: str

    @property
    def config(self) -> Any:
        """The transformer's configuration."""
        return config_of(self.transformer)

    @property
    def classes(self) -> int:
        """How many classes it can make."""
        return int(self.config.num_embeds_ada_norm)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what it denoises."""
        size = int(self.config.sample_size)
        return int(self.config.in_channels), size, size

    @property
    def vae_folder(self) -> Path | None:
        """Folder of the autoencoder whose latents it denoises; None where it makes pixels."""
        folder = self.folder / "vae"
        return folder if (folder / _CONFIG).is_file() else None

    def load_vae(self) -> nn.Module | None:
        """Read the autoencoder, if there is one.

        Raises:
            ModelError: It is damaged.
        """
        if self.vae_folder is None:
            return None
        # Else diffusers looks for the one kind of file and complains before it takes the other.
        safe = any((self.vae_folder / name).exists() for name in (_WEIGHTS[0], _INDEX))
        try:
            vae = AutoencoderKL.from_pretrained(
                self.vae_folder, local_files_only=True, use_safetensors=safe
            )
        except Exception as error:
            # diffusers promises no error type: OS-, Value-, Type-, Key- and SafetensorErrors
            reason = (str(error).splitlines() or [""])[0]
            raise ModelError(
                f"cannot read the autoencoder in {self.vae_folder}: {reason}; fetch or save it "
                "again"
            ) from error
        found: nn.Module = vae.float().eval().requires_grad_(requires_grad=False)
        return found


def null_class(transformer: nn.Module) -> int:
    """Return the label that stands for no class.

    It follows the classes, so it is read from the model: 1000 for ImageNet, 10 for ten digits.

    Raises:
        ConfigError: The model was made without one.
    """
    classes = int(config_of(transformer).num_embeds_ada_norm)
    table = blocks_of(transformer)[0].norm1.emb.class_embedder.embedding_table
    if table.num_embeddings <= classes:
        raise ConfigError(
            f"guidance needs a null class, and this model has embeddings for its {classes} classes "
            "only; use guidance 1"
        )
    return classes


def load_dit(spec: str | Path) -> Dit:
    """Read a diffusion transformer.

    Args:
        spec: A folder, or ``zoo/NAME``.

    Raises:
        ModelError: The folder is missing, holds no DiT, or is damaged.
    """
    folder = MODELS.get(str(spec), Path(spec))
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ModelError(
            f"a diffusers folder of a DiT is needed, {str(folder)!r} {what}; give a folder with "
            f"transformer/{_CONFIG}, or one of {', '.join(MODELS)}"
        )
    piped = (folder / "transformer").is_dir()
    part = folder / "transformer" if piped else folder
    config, state = _dit_config(part), _read_weights(part)
    _check_sizes(config, state, part)
    transformer = _build(config, part)
    _load(transformer, state, part)
    transformer = transformer.float().eval().requires_grad_(requires_grad=False)
    return Dit(
        name=str(spec) if str(spec) in MODELS else folder.resolve().name,
        transformer=transformer,
        scheduler=_scheduler_config(folder / "scheduler" if piped else folder),
        folder=folder,
        sha256=state_sha256(transformer.state_dict()),
    )


def save_dit(dit: Dit, folder: Path) -> None:
    """Write transformer and scheduler so that diffusers and `load_dit` read them.

    The autoencoder, which nothing here changes, stays where it is.

    Raises:
        ModelError: The transformer is no stock DiT, which diffusers would not read again.
        OutputError: The place cannot be written.
    """
    if type(dit.transformer) is not DiTTransformer2DModel:
        raise ModelError(
            f"only the stock DiTTransformer2DModel can be written, got "
            f"{type(dit.transformer).__name__}"
        )
    write_atomic(folder / "scheduler" / _SCHEDULER, to_json(dict(dit.scheduler)))
    stock: Any = dit.transformer
    stock.save_pretrained(folder / "transformer")


def _dit_config(folder: Path) -> dict[str, Any]:
    config = _read_config(folder / _CONFIG, f"{folder} holds no diffusers model")
    name, norm = config.get("_class_name"), config.get("norm_type", _NORM)
    # Checkpoints from before DiT had a class of its own are of the general one.
    if name not in ("DiTTransformer2DModel", "Transformer2DModel") or norm != _NORM:
        raise ModelError(
            f"{folder / _CONFIG} is no DiT: wanted _class_name DiTTransformer2DModel with "
            f"norm_type {_NORM}, got {name!r} with {norm!r}"
        )
    return config


def _scheduler_config(folder: Path) -> dict[str, Any]:
    path = folder / _SCHEDULER
    if not path.exists():
        return dict(SCHEDULER_DEFAULTS)
    config = _read_config(path, "")
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise ModelError(
            f"{path}: a DiT predicts noise (prediction_type epsilon), got "
            f"{config['prediction_type']!r}"
        )
    return config


def _read_config(path: Path, missing: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(f"{missing}: {path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: {error}; save the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}, not a configuration")
    return content


def _check_sizes(config: Mapping[str, Any], state: State, folder: Path) -> None:
    """Make sure that weights are of the sizes of a configuration, before either fills memory."""
    settings = all_settings(DiTTransformer2DModel, config)
    try:
        size = DitSize.of(settings)
    except ConfigError as error:
        raise ModelError(f"{folder / _CONFIG} describes no DiT: {error}") from error
    if size.tokens > _MOST_TOKENS:
        raise ModelError(
            f"{folder / _CONFIG}: latents of {size.sample_size} pixels in patches of "
            f"{size.patch_size} are {size.tokens} tokens, more than {_MOST_TOKENS}"
        )
    if settings["activation_fn"] not in _ACTIVATIONS:
        raise ModelError(
            f"{folder / _CONFIG}: activation_fn of a DiT is one of {', '.join(_ACTIVATIONS)}, got "
            f"{settings['activation_fn']!r}"
        )
    patch = size.patch_size
    table = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    wanted = {
        "pos_embed.proj.weight": (size.width, size.in_channels, patch, patch),
        "proj_out_2.weight": (patch**2 * size.out_channels, size.width),
        table: (size.classes + 1, size.width),
    }
    for name, shape in wanted.items():
        found = tuple(state[name].shape) if name in state else "nothing"
        if found != shape:
            raise _other_weights(folder, f"for {name} the shape {shape} is wanted, got {found}")
    blocks = {name.split(".")[1] for name in state if name.startswith("transformer_blocks.")}
    if len(blocks) != size.blocks:
        raise _other_weights(folder, f"{size.blocks} blocks are wanted, got {len(blocks)}")


def _other_weights(folder: Path, reason: str) -> ModelError:
    return ModelError(
        f"the weights in {folder} are not those of its {_CONFIG}: {reason}; save the model again"
    )


def _build(config: Mapping[str, Any], folder: Path) -> nn.Module:
    try:
        built: nn.Module = DiTTransformer2DModel(**known_settings(DiTTransformer2DModel, config))
    except Exception as error:
        # any: the values come from a file, and the class checks few of them
        raise ModelError(
            f"{folder / _CONFIG} describes no DiT that can be built: "
            f"{type(error).__name__}: {error}"
        ) from error
    return built


def _read_weights(folder: Path) -> State:
    for name in _WEIGHTS:
        if (folder / name).exists():
            return load_state(folder / name)
    if (folder / _INDEX).exists():
        shards = _read_config(folder / _INDEX, "").get("weight_map")
        if not isinstance(shards, dict) or not all(_is_name(n) for n in shards.values()):
            raise ModelError(
                f"{folder / _INDEX} names no files in weight_map; save the model again"
            )
        state: State = {}
        for name in sorted(set(shards.values())):
            state.update(load_state(folder / name))
        return state
    raise ModelError(f"{folder} has no weights: wanted one of {', '.join(_WEIGHTS)}, or {_INDEX}")


def _is_name(name: object) -> bool:
    """Whether it names a file in the same folder, and nothing outside."""
    return isinstance(name, str) and Path(name).name == name


@torch.no_grad()
def _load(transformer: nn.Module, state: State, folder: Path) -> None:
    check_finite(state, str(folder))
    derived = {name for name, _ in transformer.named_buffers()} - transformer.state_dict().keys()
    given = {name: value for name, value in state.items() if name not in derived}
    try:
        transformer.load_state_dict(given)
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise _other_weights(folder, reason[:400]) from error
