# SPDX-License-Identifier: Apache-2.0
"""Foldings of a whole network: how far to fold each layer so that none waits for another.

All layers work at the same time, so the slowest sets the pace. For any pace the cheapest folding
of each layer is found on its own; the fastest pace that the budget allows is found among all paces
that a layer can have. Nothing is approximated: no other choice of divisors is faster within the
budget.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from lutwise.errors import ConfigError

__all__ = ["FoldedLayer", "LayerChoices", "balanced_folding", "layer_choices"]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class FoldedLayer:
    """One way to fold a layer.

    Args:
        cycles: For one input of the network.
        luts: Its price.
        pe: Outputs side by side.
        simd: Products per output and cycle.
    """

    cycles: int
    luts: float
    pe: int
    simd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChoices:
    """The foldings of a layer that are worth having: fewer cycles only for more LUTs.

    Args:
        name: Of the layer.
        choices: By ascending cycles, and descending price.
    """

    name: str
    choices: tuple[FoldedLayer, ...]

    def cheapest(self, cycles: int) -> FoldedLayer | None:
        """Return the cheapest folding that takes at most so many cycles."""
        place = bisect_left(self.choices, cycles + 1, key=lambda choice: choice.cycles)
        return self.choices[place - 1] if place else None


@cache
def _divisors(number: int, most: int) -> tuple[int, ...]:
    """Return the divisors of a number up to a limit, ascending."""
    return tuple(d for d in range(1, min(number, most) + 1) if number % d == 0)


def layer_choices(
    name: str,
    outputs: int,
    products: int,
    vectors: int,
    price: Callable[[int, int], float],
    *,
    most_simd: int = 64,
    most_pe: int = 64,
) -> LayerChoices:
    """List the foldings of a layer.

    Args:
        name: Of the layer.
        outputs: That can be folded.
        products: Per output.
        vectors: That go through the unit for one input of the network.
        price: LUTs for ``pe`` and ``simd``.
        most_simd: Limit of ``simd``.
        most_pe: Limit of ``pe``.
    """
    every = sorted(
        FoldedLayer(
            cycles=vectors * (outputs // pe) * (products // simd),
            luts=price(pe, simd),
            pe=pe,
            simd=simd,
        )
        for pe in _divisors(outputs, most_pe)
        for simd in _divisors(products, most_simd)
    )
    kept: list[FoldedLayer] = []
    for choice in reversed(every):
        # From many cycles to few: one that is neither faster nor cheaper than the last is not.
        while kept and choice.luts <= kept[-1].luts:
            kept.pop()
        kept.append(choice)
    return LayerChoices(name=name, choices=tuple(reversed(kept)))


def balanced_folding(layers: Sequence[LayerChoices], budget_luts: float) -> list[FoldedLayer]:
    """Return the folding with the fewest cycles of the slowest layer within a budget.

    Args:
        layers: Of the network.
        budget_luts: LUTs of all layers together, at most.

    Raises:
        ConfigError: Even the smallest folding of every layer takes more.
    """
    paces = sorted({choice.cycles for layer in layers for choice in layer.choices})

    def at(pace: int) -> list[FoldedLayer] | None:
        found = [layer.cheapest(pace) for layer in layers]
        chosen = [choice for choice in found if choice is not None]
        whole = len(chosen) == len(layers)
        return chosen if whole and sum(c.luts for c in chosen) <= budget_luts else None

    place = bisect_left(paces, True, key=lambda pace: at(pace) is not None)
    best = at(paces[place]) if place < len(paces) else None
    if best is None:
        least = sum(layer.choices[-1].luts for layer in layers)
        raise ConfigError(
            f"a budget of {budget_luts:g} LUTs is not enough: folded as far as possible the "
            f"layers take {least:.0f}"
        )
    return best
