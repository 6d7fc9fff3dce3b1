# SPDX-License-Identifier: Apache-2.0
import json
import math
import time
from dataclasses import replace

import pytest

from lutwise.cost_models.constant_cost import constant_luts, constant_output_luts
from lutwise.cost_models.estimate import estimate, fold_to_budget
from lutwise.cost_models.folding import Folding, divisor_foldings
from lutwise.cost_models.layer_cost import LUTS_PER_BLOCK_RAM, LayerSize, Memory, layer_price
from lutwise.cost_models.layer_shape import LayerShape
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


def test_folded_layer_is_a_layer_unit(layer: LayerShape) -> None:
    cost = estimate([layer], memory=Memory.LUT).layers[0]
    size = LayerSize(
        weights=layer.weights,
        activations=layer.activations,
        output=layer.output,
        accumulator_bits=18,
        groups=1,
        outputs=16,
        products=72,
        pe=4,
        simd=8,
    )
    price = layer_price(size)
    assert cost.folding == Folding(pe=4, simd=8)
    assert cost.folded.luts == pytest.approx(price.luts)
    assert cost.folded.dot_product_luts == pytest.approx(
        32 * lut_per_mac(layer.weights, layer.activations, 8, accumulator_bits=18).value
    )
    assert cost.folded.weight_luts > 0
    assert cost.folded.lut_rams == 24
    assert cost.folded.cycles == 9 * 4 * 100
    assert cost.folded.uncertainty_luts == pytest.approx(price.relative_error * price.luts)


@pytest.mark.parametrize(
    ("pe", "units", "folded_pe"), [(1, 1, 1), (2, 1, 2), (4, 2, 4), (7, 3, 6), (64, 8, 16)]
)
def test_groups_side_by_side_are_units_of_their_own(
    pe: int, units: int, folded_pe: int, layer: LayerShape
) -> None:
    """Eight groups of two outputs."""
    grouped = replace(layer, groups=8, dot_length=9, macs=9 * 16 * 100, weight_count=9 * 16)
    cost = estimate([grouped], Folding(pe=pe, simd=9)).layers[0]
    assert cost.folding == Folding(pe=folded_pe, simd=9)
    assert cost.folded.cycles == -(-8 // units) * -(-2 // min(pe, 2)) * 100
    per_mac = lut_per_mac(layer.weights, layer.activations, 9, accumulator_bits=18).value
    assert cost.folded.dot_product_luts == pytest.approx(folded_pe * 9 * per_mac)


def test_weights_move_to_block_ram_where_that_is_scarcer_used(layer: LayerShape) -> None:
    small = estimate([layer]).layers[0]
    assert small.memory is Memory.LUT
    assert small.folded.block_rams == 0
    wide = replace(layer, outputs=512, macs=72 * 512 * 100, weight_count=72 * 512)
    large = estimate([wide]).layers[0]
    assert large.memory is Memory.BLOCK
    assert large.folded.weight_luts == 0
    forced = estimate([wide], memory=Memory.LUT).layers[0]
    assert forced.folded.weight_luts > LUTS_PER_BLOCK_RAM * large.folded.block_rams


def test_throughput_and_bottleneck(layer: LayerShape) -> None:
    quick = replace(layer, name="quick", output_pixels=1, macs=72 * 16)
    cost = estimate([quick, layer], clock_mhz=250.0)
    assert cost.bottleneck is cost.layers[1]
    assert cost.inputs_per_second == pytest.approx(250e6 / 3600)
    assert estimate([]).bottleneck is None
    assert estimate([]).inputs_per_second == 0
    for clock in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match=f"a positive number of MHz, got {clock}"):
            estimate([layer], clock_mhz=clock)


def test_a_budget_is_met_and_nothing_is_faster_than_needed(layer: LayerShape) -> None:
    layers = [layer, replace(layer, name="quick", output_pixels=1, macs=72 * 16)]
    foldings = fold_to_budget(layers, 1500.0)
    cost = estimate(layers, foldings)
    assert cost.folded.luts <= 1500
    assert cost.folded.cycles < estimate(layers, Folding(pe=1, simd=1)).folded.cycles
    smallest = min(estimate([layers[1]], way).folded.luts for way in divisor_foldings(layers[1]))
    assert cost.layers[1].folded.luts == pytest.approx(smallest), "it need not be fast"
    with pytest.raises(ConfigError, match="a budget of 10 LUTs is not enough"):
        fold_to_budget(layers, 10.0)


def test_a_folding_for_each_layer(layer: LayerShape) -> None:
    two = [layer, replace(layer, name="second")]
    cost = estimate(two, (Folding(pe=1, simd=1), Folding(pe=16, simd=72)))
    assert [one.folded.cycles for one in cost.layers] == [115200, 100]
    with pytest.raises(ConfigError, match="a folding for each of 2 layers, got 1"):
        estimate(two, (Folding(),))


def test_unrolled_layer_has_its_weights_built_in(layer: LayerShape) -> None:
    cost = estimate([layer]).layers[0]
    sums = constant_luts(layer.weights, layer.activations, 72, 16)
    assert cost.unrolled.dot_product_luts == pytest.approx(100 * sums.value)
    assert cost.unrolled.requantizer_luts == pytest.approx(
        1600 * constant_output_luts(18, parse_element("uint4"))
    )
    assert cost.unrolled.cycles == 1
    per_mac = lut_per_mac(layer.weights, layer.activations, 32).value
    assert cost.unrolled.dot_product_luts < 0.5 * per_mac * layer.macs


def test_unrolled_product_of_activations_has_a_lane_for_every_product(layer: LayerShape) -> None:
    cost = estimate([replace(layer, weight_count=0)]).layers[0]
    w, a = layer.weights, layer.activations
    one_output = 64 * lut_per_mac(w, a, 32).value + 8 * lut_per_mac(w, a, 8).value
    assert cost.unrolled.dot_product_luts == pytest.approx(1600 * one_output)
    assert cost.unrolled.requantizer_luts == pytest.approx(
        1600 * requantizer_luts(18, parse_element("uint4")).value
    )


def test_counts_of_bits_and_operations(layer: LayerShape) -> None:
    cost = estimate([layer])
    assert cost.macs == 115200
    assert cost.weight_bits == 72 * 16 * 4
    assert cost.activation_bits == 1600 * 4
    assert cost.bops == 115200 * 16
    without = replace(layer, output=None)
    assert estimate([without]).activation_bits == 1600 * 18
    assert estimate([without]).unrolled.requantizer_luts == 0


def test_folding_is_clipped_to_the_layer(layer: LayerShape) -> None:
    small = replace(layer, macs=3 * 2 * 100, dot_length=3, outputs=2, weight_count=6)
    cost = estimate([small], Folding(pe=16, simd=32)).layers[0]
    assert cost.folding == Folding(pe=2, simd=3)
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
    difference = (
        estimate([wider]).folded.dot_product_luts - estimate([narrow]).folded.dot_product_luts
    )
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
    assert cost.folded.uncertainty_luts >= FORMULA_ERROR * cost.folded.luts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"macs": 5}, r"macs = dot_length \* outputs \* output_pixels is wanted, got 5"),
        ({"outputs": 0}, "sizes are positive"),
        ({"accumulator_bits": 0}, "sizes are positive"),
        ({"groups": 3}, "its 16 outputs are no 3 equal groups"),
    ],
    ids=["macs", "outputs", "accumulator", "groups"],
)
def test_impossible_layers_are_refused(
    changes: dict[str, int], message: str, layer: LayerShape
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(layer, **changes)  # type: ignore[arg-type]
