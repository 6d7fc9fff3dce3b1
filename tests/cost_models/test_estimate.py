# SPDX-License-Identifier: Apache-2.0
import json
import time
from dataclasses import replace

import pytest

from lutwise.cost_models.estimate import Folding, LayerShape, estimate
from lutwise.cost_models.library import (
    FORMULA_ERROR,
    PriceSource,
    lut_per_mac,
    requantizer_luts,
)
from lutwise.errors import ConfigError
from lutwise.quant.formats import parse_element, parse_weight


@pytest.fixture
def layer() -> LayerShape:
    return LayerShape(
        name="conv",
        kind="conv",
        macs=72 * 16 * 100,
        weight_count=72 * 16,
        dot_length=72,
        outputs=16,
        output_pixels=100,
        weights=parse_weight("int4"),
        activations=parse_element("uint4"),
        accumulator_bits=18,
        output=parse_element("uint4"),
    )


def test_folded_layer_is_units_plus_requantizers(layer: LayerShape) -> None:
    cost = estimate([layer]).layers[0]
    per_mac = lut_per_mac(layer.weights, layer.activations, 8).value
    requantizer = requantizer_luts(18, parse_element("uint4")).value
    assert (cost.pe, cost.simd) == (4, 8)
    assert cost.folded.mac_luts == pytest.approx(32 * per_mac)
    assert cost.folded.requantizer_luts == pytest.approx(4 * requantizer)
    assert cost.folded.cycles == 9 * 4 * 100
    assert cost.folded.uncertainty_luts > 0, "the requantizer is interpolated"


def test_unrolled_layer_has_a_lane_for_every_product(layer: LayerShape) -> None:
    cost = estimate([layer]).layers[0]
    w, a = layer.weights, layer.activations
    one_output = 64 * lut_per_mac(w, a, 32).value + 8 * lut_per_mac(w, a, 8).value
    assert cost.unrolled.mac_luts == pytest.approx(1600 * one_output)
    assert cost.unrolled.requantizer_luts == pytest.approx(
        1600 * requantizer_luts(18, parse_element("uint4")).value
    )
    assert cost.unrolled.cycles == 1


def test_counts_of_bits_and_operations(layer: LayerShape) -> None:
    cost = estimate([layer])
    assert cost.macs == 115200
    assert cost.weight_bits == 72 * 16 * 4
    assert cost.activation_bits == 1600 * 4
    assert cost.bops == 115200 * 16
    without = replace(layer, output=None)
    assert estimate([without]).activation_bits == 1600 * 18
    assert estimate([without]).folded.requantizer_luts == 0


def test_folding_is_clipped_to_the_layer(layer: LayerShape) -> None:
    small = replace(layer, macs=3 * 2 * 100, dot_length=3, outputs=2, weight_count=6)
    cost = estimate([small], Folding(pe=16, simd=32)).layers[0]
    assert (cost.pe, cost.simd) == (2, 3)
    assert cost.folded.cycles == 100


def test_totals_add_up_and_the_slowest_layer_counts(layer: LayerShape) -> None:
    second = replace(layer, name="fc", output_pixels=1, macs=72 * 16)
    both = estimate([layer, second])
    apart = [estimate([one]) for one in (layer, second)]
    assert both.folded.luts == pytest.approx(sum(one.folded.luts for one in apart))
    assert both.folded.cycles == max(one.folded.cycles for one in apart)
    assert estimate([]).folded.luts == 0


def test_same_grid_costs_the_same_accumulator(layer: LayerShape) -> None:
    minifloat = replace(
        layer, weights=parse_weight("e1m2"), activations=parse_element("e1m2"), accumulator_bits=17
    )
    wider = replace(minifloat, accumulator_bits=19, output=None)
    narrow = replace(minifloat, output=None)
    difference = estimate([wider]).folded.luts - estimate([narrow]).folded.luts
    assert difference == pytest.approx(4 * 2), "two bits in each of four accumulators"


def test_json_states_the_assumptions(layer: LayerShape) -> None:
    document = json.loads(json.dumps(estimate([layer]).to_json()))
    assert "one rule for integers and minifloats" in document["assumptions"]["accumulators"]
    assert document["layers"][0]["lut_per_mac_source"] == "table"
    total = document["total"]["folded"]
    assert total["luts_low"] <= total["luts"] <= total["luts_high"]


def test_network_of_fifty_layers_is_priced_at_once(layer: LayerShape) -> None:
    """Four pairs of formats, half of them without a row of 32 lanes, and fifty sizes."""
    pairs = [("int4", "uint4"), ("e3m2", "ue3m3"), ("e2m1", "uint5"), ("int6", "e2m2")]
    layers = []
    for place in range(50):
        weights, activations = pairs[place % 4]
        length = 9 * (place + 8)
        layers.append(
            replace(
                layer,
                name=f"conv{place}",
                weights=parse_weight(weights),
                activations=parse_element(activations),
                dot_length=length,
                macs=length * layer.outputs * layer.output_pixels,
            )
        )
    estimate([layer])  # loads the tables
    start = time.process_time()
    estimate(layers)
    assert time.process_time() - start < 0.3, "some 50 ms are usual"


def test_sums_beyond_any_unit_still_have_a_price(layer: LayerShape) -> None:
    e5m2 = parse_element("e5m2")
    wide = replace(layer, weights=e5m2, activations=e5m2, accumulator_bits=73, output=e5m2)
    cost = estimate([wide])
    assert cost.layers[0].lut_per_mac.source is PriceSource.FORMULA
    assert cost.layers[0].lut_per_mac.relative_error == FORMULA_ERROR
    assert cost.folded.uncertainty_luts >= FORMULA_ERROR * cost.folded.mac_luts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"macs": 5}, r"macs = dot_length \* outputs \* output_pixels is wanted, got 5"),
        ({"outputs": 0}, "sizes are positive"),
        ({"accumulator_bits": 0}, "sizes are positive"),
    ],
    ids=["macs", "outputs", "accumulator"],
)
def test_impossible_layers_are_refused(
    changes: dict[str, int], message: str, layer: LayerShape
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(layer, **changes)  # type: ignore[arg-type]


def test_impossible_folding_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1, got pe=0"):
        Folding(pe=0)
