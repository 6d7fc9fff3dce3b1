# SPDX-License-Identifier: Apache-2.0
"""Proof that the mapped netlist of a constant unit computes what its model says."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lutwise.hw.bounds import code_integers, legal_codes
from lutwise.hw.constant_unit import ConstantUnit
from lutwise.hw.netlist import Net, Netlist, bits_of, from_bits
from lutwise.hw.verify import EXHAUSTIVE_LIMIT, Verification, compare

__all__ = ["constant_vectors", "verify_constant_unit"]

_VECTORS: Final = 1024


def constant_vectors(
    unit: ConstantUnit, *, vectors: int = _VECTORS, seed: int = 0
) -> tuple[npt.NDArray[np.int64], bool]:
    """Return inputs to try a unit with.

    All of them where there are at most ``EXHAUSTIVE_LIMIT``; else random codes, a quarter of them
    extremes, with those inputs first that make the least and the greatest sum of each channel.

    Args:
        unit: The unit.
        vectors: Random ones.
        seed: Of the random numbers.

    Returns:
        Codes, shape (n, groups, products), and whether these are all.
    """
    legal = legal_codes(unit.activations)
    shape = (unit.groups, unit.products)
    count = len(legal) ** (unit.groups * unit.products)
    if count <= EXHAUSTIVE_LIMIT:
        grid = np.indices((len(legal),) * (unit.groups * unit.products))
        return legal[grid.reshape(-1, count).T].reshape(-1, *shape), True
    rng = np.random.default_rng(seed)
    numbers = [int(number) for number in code_integers(unit.activations)[legal]]
    ends = legal[[numbers.index(min(numbers)), numbers.index(max(numbers))]]
    found = rng.choice(legal, (vectors, *shape))
    found[: vectors // 4] = rng.choice(ends, (vectors // 4, *shape))
    positive = (unit.weight_integers > 0).astype(np.int64)
    corners = np.stack([ends[side] for side in (positive, 1 - positive)])
    corners = corners.transpose(0, 2, 1, 3).reshape(-1, *shape)
    return np.concatenate([corners, found]), False


def verify_constant_unit(
    unit: ConstantUnit, netlist: Netlist, *, vectors: int = _VECTORS, seed: int = 0
) -> Verification:
    """Check a mapped constant unit against its model, with a new vector every cycle.

    Args:
        unit: The unit.
        netlist: What became of it.
        vectors: Random vectors, where not all are tried.
        seed: Of the random numbers.
    """
    tried, exhaustive = constant_vectors(unit, vectors=vectors, seed=seed)
    # Each cycle brings another permutation of the vectors, all of which are simulated side by side.
    cycles = 1 if unit.latency == 0 else unit.latency + 2
    order = [np.roll(np.arange(len(tried)), cycle) for cycle in range(cycles)]
    state: dict[Net, npt.NDArray[np.bool_]] = {}
    got: list[npt.NDArray[Any]] = []
    for cycle in range(cycles):
        outputs, state = netlist.simulate({"a": _bits(unit, tried[order[cycle]])}, state)
        if cycle >= unit.latency:
            got.append(_results(unit, outputs["y"]))
    wanted = unit.model(tried)
    return compare(
        np.concatenate([_words(found) for found in got]),
        np.concatenate([_words(wanted[at]) for at in order[: len(got)]]),
        {
            "a": np.concatenate(
                [_words(tried[at].reshape(len(tried), -1)) for at in order[: len(got)]]
            )
        },
        exhaustive=exhaustive,
    )


def _bits(unit: ConstantUnit, vectors: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    lanes = vectors.reshape(len(vectors), -1).T
    return np.concatenate([bits_of(lane, unit.activations.bits) for lane in lanes])


def _results(unit: ConstantUnit, y: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    bits = unit.output_bits
    channels = [
        from_bits(y[bits * channel : bits * (channel + 1)], signed=unit.stage is None)
        for channel in range(unit.channels)
    ]
    return np.stack(channels, axis=1).astype(np.int64)


def _words(rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return one tuple per row, for comparing and printing."""
    found = np.empty(len(rows), dtype=object)
    found[:] = [tuple(row) for row in rows.tolist()]
    return found
