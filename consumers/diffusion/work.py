# SPDX-License-Identifier: Apache-2.0
"""What sampling takes in multiply-accumulates and bit operations, by theory.

Products of weights and inputs, of queries and keys, and of attention and values count; sums,
norms and activation functions do not. Attention itself stays float32 when layers are quantized.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torch import nn

from lutwise.consumers.diffusion.fake_quant import QuantizedLayer
from lutwise.consumers.diffusion.quantized import linear_layers
from lutwise.consumers.diffusion.schedule import CacheSchedule, Part
from lutwise.consumers.diffusion.stock import blocks_of, config_of

__all__ = ["Product", "SamplingWork", "products", "sampling_work"]

_FLOAT_BITS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A matrix product of a forward pass, for one latent.

    Args:
        name: Of the layer, or of the attention that it belongs to.
        macs: Multiply-accumulates.
        block: Index; None outside of blocks.
        part: That may be reused; None where it never is.
    """

    name: str
    macs: int
    block: int | None
    part: Part | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingWork:
    """What one sample takes.

    Args:
        macs: Multiply-accumulates over all steps.
        bit_operations: Multiply-accumulates times the bits of both factors.
    """

    macs: int
    bit_operations: int


def products(transformer: nn.Module) -> tuple[Product, ...]:
    """Return the matrix products of one forward pass of a float DiT, for one latent."""
    config = config_of(transformer)
    tokens = (int(config.sample_size) // int(config.patch_size)) ** 2
    found = []
    for name, layer in linear_layers(transformer).items():
        words = name.split(".")
        block = int(words[1]) if words[0] == "transformer_blocks" else None
        kind = words[2] if block is not None else ""
        part = {"attn1": Part.ATTENTION, "ff": Part.FEED_FORWARD}.get(kind)
        rows = tokens if part is not None or name == "proj_out_2" else 1
        # The modulation of the output reads the embedding of block 0 again.
        runs = 2 if block == 0 and "timestep_embedder" in words else 1
        macs = rows * runs * layer.weight.numel()
        found.append(Product(name=name, macs=macs, block=block, part=part))
    width = int(config.num_attention_heads) * int(config.attention_head_dim)
    found += [
        Product(
            name=f"transformer_blocks.{block}.attn1",
            macs=2 * tokens**2 * width,
            block=block,
            part=Part.ATTENTION,
        )
        for block in range(len(blocks_of(transformer)))
    ]
    patch = int(config.in_channels) * int(config.patch_size) ** 2
    macs = tokens * patch * width
    return (*found, Product(name="pos_embed.proj", macs=macs, block=None, part=None))


def sampling_work(
    transformer: nn.Module,
    schedule: CacheSchedule,
    layers: Mapping[str, QuantizedLayer],
    *,
    guided: bool,
) -> SamplingWork:
    """Return what it takes to make one sample.

    Args:
        transformer: The float model.
        schedule: What is computed when.
        layers: What is quantized of each linear layer; empty for the float model.
        guided: Each step runs the model twice.
    """
    macs = operations = 0
    for product in products(transformer):
        steps = schedule.steps
        if product.block is not None and product.part is not None:
            steps = sum(row[product.block] for row in schedule.table(product.part))
        done = product.macs * steps * (2 if guided else 1)
        macs += done
        operations += done * _bits(layers.get(product.name))
    return SamplingWork(macs=macs, bit_operations=operations)


def _bits(layer: QuantizedLayer | None) -> int:
    """Return the product of the widths of weights and inputs."""
    weights = inputs = _FLOAT_BITS
    if layer is not None and layer.weight is not None:
        weights = layer.weight.format.bits
    if layer is not None and layer.input is not None:
        inputs = layer.input.format.bits
    return weights * inputs
