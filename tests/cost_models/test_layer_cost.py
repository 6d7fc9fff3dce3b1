# SPDX-License-Identifier: Apache-2.0
import csv
import io
from importlib.resources import files

import numpy as np
import pytest

from lutwise.cost_models.layer_cost import LAYER_ERROR, LayerSize, Memory, layer_price
from lutwise.errors import ConfigError
from lutwise.quant.formats import parse_element, parse_weight

FITTED = {"r8", "r8e2m1"}
"""Runs behind the coefficients; the others are held out."""


def _rows() -> list[dict[str, str]]:
    text = (files("lutwise.cost_models") / "data" / "layer_units.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text)))


def test_prices_are_close_to_synthesized_layer_units() -> None:
    rows = _rows()
    errors = np.array(
        [
            layer_price(LayerSize.from_row(row), Memory(row["memory"])).luts / int(row["luts"]) - 1
            for row in rows
        ]
    )
    held_out = np.array([row["run"] not in FITTED for row in rows])
    assert np.median(np.abs(errors)) <= 0.05
    assert held_out.sum() >= 30
    assert np.median(np.abs(errors[held_out])) <= 0.10
    assert np.quantile(np.abs(errors[held_out]), 0.9) <= LAYER_ERROR + 0.02
    assert abs(errors.mean()) < 0.05


def _size(**changes: int) -> LayerSize:
    sizes = {"groups": 1, "outputs": 16, "products": 144, "pe": 4, "simd": 8, **changes}
    return LayerSize(
        weights=parse_weight("int4"),
        activations=parse_element("uint4"),
        output=parse_element("uint4"),
        accumulator_bits=14,
        **sizes,
    )


def test_parts_follow_the_folding() -> None:
    small, wide = layer_price(_size()), layer_price(_size(pe=8))
    assert wide.dot_products == pytest.approx(2 * small.dot_products)
    whole = layer_price(_size(pe=16))
    assert whole.buffer == 0.0
    assert small.buffer > 0.0


def test_weights_go_to_luts_or_block_rams() -> None:
    luts, block = layer_price(_size()), layer_price(_size(), Memory.BLOCK)
    assert luts.weights > 0
    assert luts.block_rams == 0
    assert block.weights == 0.0
    # 72 words of 128 bits: four RAMB18 side by side.
    assert block.block_rams == 4
    assert luts.luts - block.luts == pytest.approx(luts.weights)


def test_dsps_are_an_option_for_integers_only() -> None:
    assert layer_price(_size()).dsps == 8
    minifloat = LayerSize(
        weights=parse_weight("e2m1"),
        activations=parse_element("ue2m2"),
        output=None,
        accumulator_bits=20,
        groups=1,
        outputs=4,
        products=16,
        pe=4,
        simd=8,
    )
    assert layer_price(minifloat).dsps == 0


@pytest.mark.parametrize("changes", [{"pe": 17}, {"simd": 145}, {"pe": 0}])
def test_sizes_out_of_range_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"pe is 1\.\.16 and simd 1\.\.144"):
        _size(**changes)
