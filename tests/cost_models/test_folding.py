# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutwise.cost_models.folding import (
    FoldedLayer,
    Folding,
    LayerChoices,
    balanced_folding,
    divisor_foldings,
    folding_from_json,
    folding_json,
    layer_choices,
)
from lutwise.cost_models.layer_shape import LayerShape
from lutwise.errors import ConfigError
from lutwise.quant.formats import parse_element, parse_weight


def _shape(name: str, outputs: int, products: int, vectors: int, groups: int = 1) -> LayerShape:
    return LayerShape(
        name=name,
        kind="conv",
        macs=outputs * products * vectors,
        weight_count=outputs * products,
        dot_length=products,
        outputs=outputs,
        output_pixels=vectors,
        weights=parse_weight("int4"),
        activations=parse_element("uint4"),
        accumulator_bits=16,
        groups=groups,
    )


def _layer(name: str, outputs: int, products: int, vectors: int) -> LayerChoices:
    ways = divisor_foldings(_shape(name, outputs, products, vectors))
    return layer_choices(
        name,
        [
            FoldedLayer(
                cycles=vectors * (outputs // way.pe) * (products // way.simd),
                luts=30.0 + way.pe * (40.0 + 17.0 * way.simd),
                folding=way,
            )
            for way in ways
        ],
    )


def test_choices_are_a_front_over_all_divisors() -> None:
    layer = _layer("conv", 6, 9, 100)
    cycles = [choice.cycles for choice in layer.choices]
    luts = [choice.luts for choice in layer.choices]
    assert cycles == sorted(set(cycles))
    assert luts == sorted(luts, reverse=True)
    assert cycles[0] == 100
    assert layer.choices[-1] == FoldedLayer(cycles=5400, luts=87.0, folding=Folding(pe=1, simd=1))
    assert layer.cheapest(99) is None
    for limit in (100, 150, 333, 6000):
        found = layer.cheapest(limit)
        assert found is not None
        every = [
            30.0 + pe * (40.0 + 17.0 * simd)
            for pe, simd in itertools.product((1, 2, 3, 6), (1, 3, 9))
            if 100 * (6 // pe) * (9 // simd) <= limit
        ]
        assert found.luts == min(every)


@given(
    st.lists(
        st.tuples(st.integers(1, 8), st.integers(1, 9), st.integers(1, 50)), min_size=1, max_size=3
    ),
    st.floats(1.0, 6.0),
)
def test_no_other_folding_is_faster_within_the_budget(
    sizes: list[tuple[int, int, int]], generosity: float
) -> None:
    layers = [_layer(str(place), *size) for place, size in enumerate(sizes)]
    budget = generosity * sum(layer.choices[-1].luts for layer in layers)
    found = balanced_folding(layers, budget)
    assert sum(choice.luts for choice in found) <= budget
    pace = max(choice.cycles for choice in found)
    fastest = min(
        max(choice.cycles for choice in every)
        for every in itertools.product(*(layer.choices for layer in layers))
        if sum(choice.luts for choice in every) <= budget
    )
    assert pace == fastest


def test_layers_that_need_not_be_fast_are_small() -> None:
    slow, quick = _layer("slow", 8, 8, 1000), _layer("quick", 8, 8, 1)
    found = balanced_folding([slow, quick], 1500.0)
    assert found[1].folding == Folding(pe=1, simd=1)


def test_a_budget_below_the_smallest_folding_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a budget of 50 LUTs is not enough.*take 87"):
        balanced_folding([_layer("conv", 4, 4, 4)], 50)


def test_groups_are_side_by_side_only_as_a_whole() -> None:
    """Six groups of two outputs: 1 or 2 of a group, or 2, 3 or 6 whole groups."""
    ways = divisor_foldings(_shape("depthwise", 12, 9, 4, groups=6), most_pe=6, most_simd=3)
    assert [(way.pe, way.simd) for way in ways] == [
        (pe, simd) for pe in (1, 2, 4, 6) for simd in (1, 3)
    ]


def test_foldings_survive_json() -> None:
    layers = [_shape("a", 8, 8, 1), _shape("b", 4, 4, 1)]
    foldings = {"a": Folding(pe=2, simd=4), "b": Folding(pe=1, simd=2)}
    data = folding_json(foldings)
    assert data == {"a": {"PE": 2, "SIMD": 4}, "b": {"PE": 1, "SIMD": 2}}
    assert folding_from_json(data, layers) == tuple(foldings.values())
    rest = folding_from_json({"Defaults": {"PE": 1, "SIMD": 1}, "b": data["b"]}, layers)
    assert rest == (Folding(pe=1, simd=1), foldings["b"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "maps layers to PE and SIMD, got list"),
        ({"a": {"PE": 2, "SIMD": 4}, "c": {}}, "names layers that the network lacks: c; it has a"),
        ({}, "layer 'a': wanted a folding such as"),
        ({"a": {"PE": 0, "SIMD": 4}}, "layer 'a': wanted a folding such as"),
        ({"a": {"PE": True, "SIMD": 4}}, "layer 'a': wanted a folding such as"),
        ({"a": {"PE": 2}}, "layer 'a': wanted a folding such as"),
        ({"a": 4}, "layer 'a': wanted a folding such as"),
    ],
)
def test_impossible_foldings_are_named(data: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        folding_from_json(data, [_shape("a", 8, 8, 1)])


def test_impossible_folding_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1, got pe=0"):
        Folding(pe=0)
