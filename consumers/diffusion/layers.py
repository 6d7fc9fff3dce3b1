# SPDX-License-Identifier: Apache-2.0
"""The layers of a DiT that multiply, with their sizes, without building the model."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from lutwise.consumers.diffusion.schedule import Part
from lutwise.errors import ConfigError

__all__ = ["DitLayer", "DitSize", "dit_layers"]

_TIME_CHANNELS: Final = 256
"""Width of the sinusoidal embedding of a timestep."""

_HIDDEN: Final = 4
"""Width of the feed-forward layer over that of the block."""

_MODULATIONS: Final = 6
"""Vectors that the adaptive norm of a block makes: shift, scale and gate, twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DitSize:
    """Sizes of a DiT.

    Args:
        heads: Attention heads.
        head_width: Channels of a head.
        blocks: Transformer blocks.
        in_channels: Of the latents.
        out_channels: Of the prediction.
        sample_size: Height and width of the latents.
        patch_size: Of a token.
        classes: Without the one for no class.
        attention_bias: Whether queries, keys and values have biases.

    Raises:
        ConfigError: A size is no positive whole number, or patches do not fill the latents.
    """

    heads: int
    head_width: int
    blocks: int
    in_channels: int
    out_channels: int
    sample_size: int
    patch_size: int
    classes: int
    attention_bias: bool = True

    def __post_init__(self) -> None:
        for size in fields(self):
            value = getattr(self, size.name)
            # A configuration is a file that anyone may have written; bool is a kind of int.
            if size.type is int and (type(value) is not int or value < 1):
                raise ConfigError(
                    f"sizes of a DiT are whole numbers from 1, got {value!r} for {size.name}"
                )
        if self.sample_size % self.patch_size:
            raise ConfigError(
                f"latents of a DiT are whole patches, got {self.sample_size} pixels in patches of "
                f"{self.patch_size}"
            )

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "DitSize":
        """Return the sizes in a configuration of ``DiTTransformer2DModel``.

        Raises:
            ConfigError: One is missing or out of range.
        """
        try:
            return cls(
                heads=config["num_attention_heads"],
                head_width=config["attention_head_dim"],
                blocks=config["num_layers"],
                in_channels=config["in_channels"],
                out_channels=config["out_channels"] or config["in_channels"],
                sample_size=config["sample_size"],
                patch_size=config["patch_size"],
                classes=config["num_embeds_ada_norm"],
                attention_bias=config["attention_bias"],
            )
        except KeyError as error:
            raise ConfigError(f"a DiT's configuration has {error}, this one has not") from error

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.heads * self.head_width

    @property
    def tokens(self) -> int:
        """Patches of the latents."""
        return (self.sample_size // self.patch_size) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DitLayer:
    """A layer that multiplies, for one sample and forward pass.

    Args:
        name: Of the module; products of attention are ``...attn1.scores`` and ``...attn1.values``.
        block: It belongs to; None for what is around the blocks.
        part: That a cache may leave out; None where it always runs.
        dot_length: Products per output.
        outputs: Outputs of a row.
        rows: Rows per sample.
        inputs: Numbers that it reads, weights apart.
        weights: Weights; 0 where both operands are activations.
        biases: Biases.
        runs: Times that it runs in a forward pass.
    """

    name: str
    block: int | None
    part: Part | None
    dot_length: int
    outputs: int
    rows: int
    inputs: int
    weights: int
    biases: int
    runs: int = 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one sample and forward pass."""
        return self.dot_length * self.outputs * self.rows * self.runs


def dit_layers(size: DitSize) -> tuple[DitLayer, ...]:
    """Return the layers of a DiT in their order."""
    width, tokens = size.width, size.tokens
    patch = size.patch_size**2
    layers = [_linear("pos_embed.proj", size.in_channels * patch, width, tokens)]
    for block in range(size.blocks):
        layers += _block(size, block)
    layers.append(_linear("proj_out_1", width, 2 * width, 1))
    layers.append(_linear("proj_out_2", width, patch * size.out_channels, tokens))
    return tuple(layers)


def _block(size: DitSize, block: int) -> list[DitLayer]:
    width, tokens = size.width, size.tokens
    before = f"transformer_blocks.{block}."
    # The modulation of the output asks the embedder of block 0 once more.
    runs = 2 if block == 0 else 1
    embedder = f"{before}norm1.emb.timestep_embedder."
    attention, feed_forward = (block, Part.ATTENTION), (block, Part.FEED_FORWARD)
    layers = [
        _linear(f"{embedder}linear_1", _TIME_CHANNELS, width, 1, (block, None), runs=runs),
        _linear(f"{embedder}linear_2", width, width, 1, (block, None), runs=runs),
        _linear(f"{before}norm1.linear", width, _MODULATIONS * width, 1, (block, None)),
    ]
    layers += [
        _linear(f"{before}attn1.{name}", width, width, tokens, attention, bias=size.attention_bias)
        for name in ("to_q", "to_k", "to_v")
    ]
    rows = tokens * size.heads
    layers += [
        _product(f"{before}attn1.scores", size.head_width, tokens, rows, 2 * tokens * width, block),
        _product(
            f"{before}attn1.values", tokens, size.head_width, rows,
            tokens * (rows + width), block,
        ),
        _linear(f"{before}attn1.to_out.0", width, width, tokens, attention),
        _linear(f"{before}ff.net.0.proj", width, _HIDDEN * width, tokens, feed_forward),
        _linear(f"{before}ff.net.2", _HIDDEN * width, width, tokens, feed_forward),
    ]  # fmt: skip
    return layers


def _linear(
    name: str,
    inputs: int,
    outputs: int,
    rows: int,
    place: tuple[int | None, Part | None] = (None, None),
    *,
    runs: int = 1,
    bias: bool = True,
) -> DitLayer:
    block, part = place
    return DitLayer(
        name=name, block=block, part=part, dot_length=inputs, outputs=outputs, rows=rows,
        inputs=inputs * rows, weights=inputs * outputs, biases=outputs if bias else 0, runs=runs,
    )  # fmt: skip


def _product(
    name: str, dot_length: int, outputs: int, rows: int, inputs: int, block: int
) -> DitLayer:
    return DitLayer(
        name=name, block=block, part=Part.ATTENTION, dot_length=dot_length, outputs=outputs,
        rows=rows, inputs=inputs, weights=0, biases=0,
    )  # fmt: skip
