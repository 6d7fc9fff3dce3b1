# SPDX-License-Identifier: Apache-2.0
"""Foldings of a whole network: how far to fold each layer so that none waits for another.

All layers work at the same time, so the slowest sets the pace. For any pace the cheapest folding
of each layer is found on its own; the fastest pace that the budget allows is found among all paces
that a layer can have. Nothing is approximated: no other choice of divisors is faster within the
budget.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lutwise.cost_models.layer_shape import LayerShape
from lutwise.errors import ConfigError

__all__ = [
    "FoldedLayer",
    "Folding",
    "LayerChoices",
    "balanced_folding",
    "divisor_foldings",
    "folding_from_json",
    "folding_json",
    "layer_choices",
]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Folding:
    """How much of a layer works in one cycle; clipped to each layer's sizes.

    Args:
        pe: Outputs computed side by side.
        simd: Products per output and cycle.

    Raises:
        ConfigError: A number is not positive.
    """

    pe: int = 4
    simd: int = 8

    def __post_init__(self) -> None:
        if self.pe < 1 or self.simd < 1:
            raise ConfigError(f"pe and simd are at least 1, got pe={self.pe}, simd={self.simd}")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class FoldedLayer:
    """One way to fold a layer.

    Args:
        cycles: For one input of the network.
        luts: Its price.
        folding: The way.
    """

    cycles: int
    luts: float
    folding: Folding


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


def _divisors(number: int, most: int) -> tuple[int, ...]:
    """Return the divisors of a number up to a limit, ascending."""
    return tuple(d for d in range(1, min(number, most) + 1) if number % d == 0)


def divisor_foldings(
    layer: LayerShape, *, most_pe: int = 64, most_simd: int = 64
) -> Iterator[Folding]:
    """Yield the foldings of a layer that leave no lane idle.

    Outputs of a group are side by side first, then whole groups.

    Args:
        layer: The layer.
        most_pe: Outputs side by side, at most.
        most_simd: Products per output and cycle, at most.
    """
    of_group = layer.outputs // layer.groups
    wide = [of_group * groups for groups in _divisors(layer.groups, max(1, most_pe // of_group))]
    outputs = sorted({*_divisors(of_group, most_pe), *(pe for pe in wide if pe <= most_pe)})
    for pe in outputs:
        for simd in _divisors(layer.dot_length, most_simd):
            yield Folding(pe=pe, simd=simd)


def layer_choices(name: str, ways: Iterable[FoldedLayer]) -> LayerChoices:
    """Keep the foldings of a layer that are worth having.

    Args:
        name: Of the layer.
        ways: Foldings with their prices.
    """
    kept: list[FoldedLayer] = []
    for choice in sorted(ways, reverse=True):
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


def folding_json(layers: Mapping[str, Folding]) -> dict[str, dict[str, int]]:
    """Return foldings by layer as plain values, with FINN's names of the two numbers."""
    return {name: {"PE": one.pe, "SIMD": one.simd} for name, one in layers.items()}


def folding_from_json(data: Any, layers: Sequence[LayerShape]) -> tuple[Folding, ...]:
    """Return the folding of each layer, in the layers' order.

    Args:
        data: As ``folding_json`` returns it; ``Defaults`` stands for layers that are not named.
        layers: Of the network.

    Raises:
        ConfigError: A layer has no folding, an entry is none, or names no layer.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"a folding maps layers to PE and SIMD, got {type(data).__name__}")
    names = [layer.name for layer in layers]
    if unknown := sorted(set(data) - {*names, "Defaults"}):
        raise ConfigError(
            f"the folding names layers that the network lacks: {', '.join(map(str, unknown))}; it "
            f"has {', '.join(names)}"
        )
    return tuple(_one_folding(name, data.get(name, data.get("Defaults"))) for name in names)


def _one_folding(name: str, entry: Any) -> Folding:
    found = entry if isinstance(entry, Mapping) else {}
    numbers: list[Any] = [found.get(key) for key in ("PE", "SIMD")]
    if any(type(number) is not int or number < 1 for number in numbers):
        raise ConfigError(
            f'layer {name!r}: wanted a folding such as {{"PE": 4, "SIMD": 8}}, got {entry!r}'
        )
    return Folding(pe=numbers[0], simd=numbers[1])
