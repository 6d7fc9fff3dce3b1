# SPDX-License-Identifier: Apache-2.0
"""Proof that a mapped netlist computes what its unit's model says."""

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lutwise.hw.bounds import code_integers, legal_codes
from lutwise.hw.dot_product import DotProduct
from lutwise.hw.netlist import Net, Netlist, bits_of, from_bits
from lutwise.quant.formats import Format

__all__ = ["EXHAUSTIVE_LIMIT", "Verification", "compare", "verify_dot_product"]

EXHAUSTIVE_LIMIT: Final = 1 << 16
"""Up to this many pairs of codes a product is checked for all of them."""

_MIN_VECTORS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Outcome of a comparison.

    Args:
        vectors: Input vectors that were compared.
        exhaustive: Whether these held every pair of legal operand codes.
        mismatches: Vectors for which netlist and model differ.
        first_mismatch: The first of them in words, or ``None``.
    """

    vectors: int
    exhaustive: bool
    mismatches: int
    first_mismatch: str | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing differed."""
        return self.mismatches == 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def compare(
    got: npt.NDArray[Any],
    wanted: npt.NDArray[Any],
    operands: dict[str, npt.NDArray[Any]],
    *,
    exhaustive: bool,
) -> Verification:
    """Compare results of shape (vectors,) and put the first difference in words."""
    bad = np.flatnonzero(np.asarray(got != wanted, dtype=np.bool_))
    first = None
    if len(bad):
        index = int(bad[0])
        at = ", ".join(f"{name}={values[index]}" for name, values in operands.items())
        first = f"vector {index} ({at}): netlist {got[index]}, model {wanted[index]}"
    return Verification(
        vectors=len(got), exhaustive=exhaustive, mismatches=len(bad), first_mismatch=first
    )


def verify_dot_product(
    unit: DotProduct, netlist: Netlist, *, vectors: int = 8192, seed: int = 0
) -> Verification:
    """Check a mapped dot-product unit for one clock cycle, with any accumulator before it.

    A unit of one lane with at most ``EXHAUSTIVE_LIMIT`` pairs of legal codes is checked for
    every pair, else with random codes, a quarter of them extremes, and all lanes at the
    corners; both while the accumulator holds anything. Some vectors assert the reset.

    Args:
        unit: The unit.
        netlist: What became of it.
        vectors: Random vectors.
        seed: Of the random numbers.
    """
    rng = np.random.default_rng(seed)
    w_legal, a_legal = legal_codes(unit.weights), legal_codes(unit.activations)
    pairs = len(w_legal) * len(a_legal)
    exhaustive = unit.lanes == 1 and pairs <= EXHAUSTIVE_LIMIT
    if exhaustive:
        repeat = max(1, _MIN_VECTORS // pairs)
        w = np.tile(np.repeat(w_legal, len(a_legal)), repeat)[:, None]
        a = np.tile(np.tile(a_legal, len(w_legal)), repeat)[:, None]
    else:
        w = rng.choice(w_legal, (vectors, unit.lanes))
        a = rng.choice(a_legal, (vectors, unit.lanes))
        w_ends, a_ends = _extreme_codes(unit.weights), _extreme_codes(unit.activations)
        quarter = vectors // 4
        w[:quarter] = rng.choice(w_ends, (quarter, unit.lanes))
        a[:quarter] = rng.choice(a_ends, (quarter, unit.lanes))
        for row, (w_end, a_end) in enumerate((i, j) for i in w_ends for j in a_ends):
            w[row], a[row] = w_end, a_end
    width = unit.accumulator_bits
    count = len(w)
    before = rng.integers(0, 2, (width, count)).astype(np.bool_)
    before[:, : min(16, count)] = False
    reset = np.zeros((1, count), dtype=np.bool_)
    if not exhaustive or count > 2 * pairs:
        reset[0, 37::97] = True
    state: dict[Net, npt.NDArray[np.bool_]] = dict(
        zip(netlist.ports["acc"][1], before, strict=True)
    )
    inputs = {
        "rst": reset,
        "w": _lane_bits(unit.weight_bits(w), unit.weights.bits),
        "a": _lane_bits(a, unit.activations.bits),
    }
    _, following = netlist.simulate(inputs, state)
    after = np.array([following[net] for net in netlist.ports["acc"][1]])
    got = from_bits(after, signed=unit.accumulator_signed)
    start = from_bits(before, signed=unit.accumulator_signed)
    wanted = np.where(reset[0], 0, unit.model(w, a, accumulator=start))
    operands = {"w": w, "a": a, "acc": start, "rst": reset[0].astype(np.int64)}
    return compare(got, wanted, operands, exhaustive=exhaustive)


def _extreme_codes(fmt: Format) -> npt.NDArray[np.int64]:
    codes = legal_codes(fmt)
    numbers = [int(number) for number in code_integers(fmt)[codes]]
    return codes[[numbers.index(min(numbers)), numbers.index(max(numbers))]]


def _lane_bits(codes: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.bool_]:
    """Return port bits, shape (lanes * bits, vectors), lane 0 lowest."""
    return np.concatenate([bits_of(lane, bits) for lane in codes.T])
