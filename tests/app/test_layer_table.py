# SPDX-License-Identifier: Apache-2.0
import csv
import io
from typing import Any

import pytest
import torch

from lutwise.cost_models.estimate import estimate
from lutwise.cost_models.from_network import layer_shapes
from lutwise.layer_table import layer_rows, layers_csv
from lutwise.quant.diagnose import LayerNoise, diagnose
from lutwise.quant.lower import lower
from lutwise.quant.quantize import collect_samples, prepare, quantize
from lutwise.quant.quantized import QuantizedModel
from lutwise.quant.recipe import build_recipe
from tests.quant.nets import make


def quantized(**settings: Any) -> tuple[QuantizedModel, tuple[LayerNoise, ...]]:
    net, images = make("residual")
    given = {"weights": "int4", "activations": "uint4", "algorithms": [], **settings}
    recipe = build_recipe(given, changes={}, where="test")
    prepared = prepare(net, tuple(images.shape[1:]), recipe, name="residual")
    samples = collect_samples(prepared, images, batch=8, seed=0)
    model = quantize(prepared, samples, images, recipe)
    return model, diagnose(model, images).layers


def read(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(layers_csv(rows).decode())))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_priced_rows_hold_cost_and_noise_of_the_same_layer() -> None:
    model, noises = quantized()
    cost = estimate(layer_shapes(lower(model)))
    table = read(layer_rows(noises, cost.layers))
    assert [row["layer"] for row in table] == ["stem", "conv1", "conv2", "head"]
    for row, noise, priced in zip(table, noises, cost.layers, strict=True):
        shape = priced.shape
        assert row["weights"] == shape.weights.name
        assert row["inputs"] == shape.activations.name
        assert row["outputs"] == (shape.output.name if shape.output else "accumulator")
        assert int(row["weight_count"]) == shape.weight_count
        assert int(row["macs"]) == shape.macs
        assert float(row["error_share"]) == pytest.approx(noise.error_share, rel=1e-5)
        assert float(row["output_sqnr_db"]) == pytest.approx(noise.output_sqnr_db, rel=1e-5)
    assert table[-1]["outputs_clipped"] == ""
    assert "node" not in table[0]


def test_rows_without_prices_have_no_columns_of_prices() -> None:
    _, noises = quantized(mode="layerwise")
    table = read(layer_rows(noises, None))
    assert "macs" not in table[0]
    assert {row["outputs"] for row in table} == {"float32"}


def test_every_algorithm_gets_a_column() -> None:
    _, noises = quantized()
    changes = {"conv1": {"gptq": 2.0, "bias_correction": 0.12345678}, "head": {"gptq": -0.5}}
    table = read(layer_rows(noises, None, changes))
    assert [row["gptq_gain_db"] for row in table] == ["", "2.0", "", "-0.5"]
    assert [row["bias_correction_gain_db"] for row in table] == ["", "0.123457", "", ""]
