# SPDX-License-Identifier: Apache-2.0
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from lutwise.errors import UnsupportedLayerError
from lutwise.quant import zoo
from lutwise.quant.data import Split, load_data
from lutwise.quant.graph import layer_nodes
from lutwise.quant.models import LoadedModel, load_model
from lutwise.quant.quantize import collect_samples, prepare, quantize
from lutwise.quant.quantized import QuantizedModel, predict
from lutwise.quant.recipe import Recipe, build_recipe
from lutwise.quant.zoo.transformer import TransformerBlock

LAYERWISE = build_recipe({"mode": "layerwise"}, changes={}, where="test")
BLOCK_LAYERS = ("attention.qkv", "attention.proj", "fc1", "fc2")
OUR_NAMES = {
    "self_attn.in_proj_": "attention.qkv.",
    "self_attn.out_proj": "attention.proj",
    "linear": "fc",
}


@pytest.fixture(scope="module")
def vit() -> LoadedModel:
    return load_model("zoo/vit")


def images(model: LoadedModel, split: Split, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (n, 1, 28, 28) and their labels (n,)."""
    assert model.data is not None
    data = load_data(model.data, model.preprocessing, model.input_shape, split=split, limit=limit)
    batches = list(data.batches(limit))
    (x, labels) = batches[0]
    assert len(batches) == 1
    assert labels is not None
    return x, torch.as_tensor(labels)


def quantized(model: LoadedModel, recipe: Recipe) -> QuantizedModel:
    x, _ = images(model, Split.CALIB, 64)
    prepared = prepare(model.module, (1, 28, 28), recipe, name=model.name)
    samples = collect_samples(prepared, x, batch=64, seed=0)
    return quantize(prepared, samples, x, recipe)


def test_block_equals_the_one_of_torch() -> None:
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(
        12, 3, 24, 0.0, "gelu", batch_first=True, norm_first=True
    ).eval()
    state = {}
    for name, parameter in theirs.named_parameters():
        parameter.data.normal_()
        for their_name, our_name in OUR_NAMES.items():
            name = name.replace(their_name, our_name)
        state[name] = parameter.data
    ours = TransformerBlock(5, 12, 3, 2).eval()
    ours.load_state_dict(state)
    x = torch.randn(4, 5, 12)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_weights_reach_the_recorded_accuracy(vit: LoadedModel) -> None:
    record = json.loads((Path(zoo.__file__).parent / "vit.json").read_text())
    assert record["parameters"] == sum(p.numel() for p in vit.module.parameters())
    x, labels = images(vit, Split.EVAL, 2000)
    with torch.inference_mode():
        hits = (vit.module(x).argmax(1) == labels).float()
    # the 2000 images are a sample of those that the record is about
    deviation = math.sqrt(record["test_accuracy"] * (1 - record["test_accuracy"]) / len(hits))
    assert abs(float(hits.mean()) - record["test_accuracy"]) < 3 * deviation


def test_every_layer_is_traced(vit: LoadedModel) -> None:
    prepared = prepare(vit.module, (1, 28, 28), LAYERWISE, name="vit")
    blocks = [f"blocks.{i}.{layer}" for i in range(4) for layer in BLOCK_LAYERS]
    assert [n.target for n in layer_nodes(prepared)] == ["patches", *blocks, "head"]
    x, _ = images(vit, Split.EVAL, 20)
    with torch.inference_mode():
        torch.testing.assert_close(prepared.graph(x), vit.module(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("weights", "activations", "least"),
    [("int8", "int8", 0.97), ("e4m3", "e4m3", 0.95), ("int2", "int8", None)],
)
def test_layerwise_quantization_keeps_the_classes(
    vit: LoadedModel, weights: str, activations: str, least: float | None
) -> None:
    settings = {"mode": "layerwise", "weights": weights, "activations": activations}
    model = quantized(vit, build_recipe(settings, changes={}, where="test"))
    x, _ = images(vit, Split.EVAL, 300)
    with torch.inference_mode():
        same = (predict(model, x).argmax(1) == vit.module(x).argmax(1)).float().mean()
    if least is None:  # two bits are too few, which shows that weights are rounded at all
        assert same < 0.95
    else:
        assert same > least


def test_dataflow_refuses_it(vit: LoadedModel) -> None:
    message = r"zoo/vit: node .* cannot be part of a dataflow graph.* use `mode: layerwise`"
    with pytest.raises(UnsupportedLayerError, match=message):
        quantized(vit, Recipe())
