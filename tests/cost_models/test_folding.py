# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutwise.cost_models.folding import FoldedLayer, LayerChoices, balanced_folding, layer_choices
from lutwise.errors import ConfigError


def _layer(name: str, outputs: int, products: int, vectors: int) -> LayerChoices:
    return layer_choices(
        name, outputs, products, vectors, lambda pe, simd: 30.0 + pe * (40.0 + 17.0 * simd)
    )


def test_choices_are_a_front_over_all_divisors() -> None:
    layer = _layer("conv", 6, 9, 100)
    cycles = [choice.cycles for choice in layer.choices]
    luts = [choice.luts for choice in layer.choices]
    assert cycles == sorted(set(cycles))
    assert luts == sorted(luts, reverse=True)
    assert cycles[0] == 100
    assert layer.choices[-1] == FoldedLayer(cycles=5400, luts=87.0, pe=1, simd=1)
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
    assert (found[1].pe, found[1].simd) == (1, 1)


def test_a_budget_below_the_smallest_folding_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a budget of 50 LUTs is not enough.*take 87"):
        balanced_folding([_layer("conv", 4, 4, 4)], 50)
