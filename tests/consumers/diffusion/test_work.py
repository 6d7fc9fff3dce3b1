# SPDX-License-Identifier: Apache-2.0
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from lutwise.consumers.diffusion.fake_quant import QuantizedInput, QuantizedLayer
from lutwise.consumers.diffusion.model import Dit
from lutwise.consumers.diffusion.quantized import linear_layers
from lutwise.consumers.diffusion.schedule import CacheSchedule, Part
from lutwise.consumers.diffusion.work import products, sampling_work
from lutwise.quant.formats import parse_element, parse_weight
from lutwise.quant.quantized import QuantizedWeight


def test_layers_are_counted_as_hooks_count_them(dit: Dit) -> None:
    found: Counter[str] = Counter()

    def hook(name: str) -> Callable[..., None]:
        def count(module: nn.Module, args: object, out: torch.Tensor) -> None:
            assert isinstance(module, nn.Linear | nn.Conv2d)
            found[name] += out.numel() * module.weight[0].numel()

        return count

    for name, module in dit.transformer.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(hook(name))
    dit.transformer(
        torch.zeros(1, 2, 4, 4), timestep=torch.zeros(1), class_labels=torch.tensor([0])
    )
    counted = {p.name: p.macs for p in products(dit.transformer)}
    attention = {f"transformer_blocks.{i}.attn1": 2 * 4 * 4 * 16 for i in range(3)}
    assert counted == dict(found) | attention


def test_published_dit_takes_the_published_macs() -> None:
    """DiT-XL/2 at 256x256 takes 118.64 Gflops, multiply-accumulates (arXiv 2212.09748, table 4).

    Embedders per block, which diffusers adds, are left out.
    """
    from lutwise.consumers.diffusion.stock import DiTTransformer2DModel

    with torch.device("meta"):
        net = DiTTransformer2DModel(out_channels=8)
    macs = sum(p.macs for p in products(net) if "timestep_embedder" not in p.name)
    assert abs(macs / 118.64e9 - 1) < 0.001


def test_reuse_and_guidance_count(dit: Dit) -> None:
    net = dit.transformer
    all_steps = CacheSchedule.none(steps=4, blocks=3)
    half = CacheSchedule.every(2, steps=4, blocks=3, parts=[Part.ATTENTION])
    macs = sampling_work(net, all_steps, {}, guided=False).macs
    saved = 2 * sum(p.macs for p in products(net) if p.part is Part.ATTENTION)
    assert macs == 4 * sum(p.macs for p in products(net))
    assert sampling_work(net, half, {}, guided=False).macs == macs - saved
    assert sampling_work(net, half, {}, guided=True).macs == 2 * (macs - saved)


def test_bit_operations_are_products_of_widths(dit: Dit) -> None:
    net = dit.transformer
    once = CacheSchedule.none(steps=1, blocks=3)
    weight = QuantizedWeight(
        format=parse_weight("int4"), values=torch.zeros(1, 1), scales=torch.ones(1)
    )
    source = QuantizedInput(format=parse_element("e4m3"), scales=torch.ones(1))
    layers = {n: QuantizedLayer(weight=weight, input=source) for n in linear_layers(net)}
    layers["proj_out_1"] = QuantizedLayer(weight=weight, input=None)
    found = sampling_work(net, once, layers, guided=False).bit_operations
    wanted = 0
    for product in products(net):
        bits = 32 * 32
        if product.name in layers:
            bits = 4 * 32 if product.name == "proj_out_1" else 4 * 8
        wanted += bits * product.macs
    assert found == wanted
    plain = sampling_work(net, once, {}, guided=False)
    assert plain.bit_operations == 1024 * plain.macs
