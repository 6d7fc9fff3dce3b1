# SPDX-License-Identifier: Apache-2.0
"""Constant matrices as sums of shifted signals, with what several outputs need made once.

A constant in signed digits (canonical: no two neighbours, so as few as possible) times a signal
is a few rows: the signal's bits at some power of two, added or subtracted. Rows cost what their
bits cost in a heap (`lutwise.hw.constant_heap`). A sum of two signals that many outputs want has
fewer bits than the two, so it is made once where that saves more than its adder takes: multiples
such as ``3 x``, and sums of two inputs, come about in the same way.

Reference: extraction of common pairs goes back to R. Pasko et al., "A new algorithm for
elimination of common subexpressions", IEEE TCAD 18(1), 1999; what differs is the price of a pair,
which follows from the heap.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lutwise.hw.bounds import width_of_range
from lutwise.hw.circuit import LUT_INPUTS, lut_sites

__all__ = ["Pair", "Row", "Signal", "Terms", "signed_digits", "terms_of"]

SITES_PER_BIT: Final = 0.6
"""LUT sites that one more bit of a heap takes."""

_ROWS: Final = 96
"""Rows of an output that pairs are looked for in at a time."""

_LEAST_GAIN: Final = 1e-9
_PATIENCE: Final = 0.7
"""A pair is made if it is still worth this part of what it was at the start of the round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A shifted sum or difference of two signals.

    Args:
        one: Index of a signal.
        other: Index of another one, or the same.
        shift: The other one is shifted up by so many bits.
        negative: The other one is subtracted.
        flipped: The whole is negated: without it, no number would be positive.
    """

    one: int
    other: int
    shift: int
    negative: bool
    flipped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """An input, or a sum made once.

    Args:
        low: Least number.
        high: Greatest number.
        weights: What it is a sum of: inputs and their factors.
        pair: What it is made of; ``None`` for an input.
    """

    low: int
    high: int
    weights: tuple[tuple[int, int], ...]
    pair: Pair | None = None

    @property
    def bits(self) -> int:
        """Width; two's complement if some number is negative."""
        return width_of_range(self.low, self.high)

    @property
    def signed(self) -> bool:
        """Whether some number is negative."""
        return self.low < 0

    @property
    def inputs(self) -> tuple[int, ...]:
        """Inputs that it depends on."""
        return tuple(at for at, _ in self.weights)


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """A signal, shifted up, that an output adds or subtracts."""

    signal: int
    shift: int
    negative: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """A constant matrix as sums.

    Args:
        signals: Inputs, then sums in an order in which each needs earlier ones only.
        rows: Per output.
    """

    signals: tuple[Signal, ...]
    rows: tuple[tuple[Row, ...], ...]


def signed_digits(number: int) -> Iterator[tuple[int, bool]]:
    """Yield power of two and sign of the digits of a number, lowest first, no two neighbours."""
    negative, rest, shift = number < 0, abs(number), 0
    while rest:
        if rest & 1:
            minus = rest & 3 == 3
            yield shift, minus != negative
            rest += 1 if minus else -1
        rest >>= 1
        shift += 1


def terms_of(
    matrix: npt.NDArray[Any], ranges: Sequence[tuple[int, int]], *, share: bool = True
) -> Terms:
    """Write a matrix as sums.

    Args:
        matrix: Integers, shape (outputs, inputs).
        ranges: Least and greatest number per input.
        share: Whether to look for sums that several outputs need.
    """
    signals = [
        Signal(low=low, high=high, weights=((at, 1),)) for at, (low, high) in enumerate(ranges)
    ]
    rows = [
        {
            Row(signal, shift, negative)
            for signal, weight in enumerate(weights)
            for shift, negative in signed_digits(int(weight))
        }
        for weights in matrix
    ]
    if share and len(rows):
        densest = max(map(len, rows)) / max(1, len(signals))
        block = max(2, int(_ROWS / max(densest, 0.1)))
        for start in range(0, len(ranges), block):
            _share(signals, rows, range(start, min(start + block, len(ranges))))
    return Terms(signals=tuple(signals), rows=tuple(tuple(sorted(found)) for found in rows))


def _share(signals: list[Signal], rows: list[set[Row]], inputs: range) -> None:
    """Make pairs among the rows of some inputs, round by round, until none is worth it."""
    at_work = set(inputs)
    table = _Table()
    for output, found in enumerate(rows):
        taken = sorted(row for row in found if row.signal in at_work)
        table.extend((output, row) for row in taken)
        found.difference_update(taken)
    while True:
        places = _Places(table)
        made = []
        for gain, pair, key in _worthwhile(signals, places):
            one, other = places.occurrences(table, key)
            signal = _signal_of(signals, pair)
            now = len(one) * _saved_sites(signals, pair, signal) - _cost(signals, signal)
            if now < max(_PATIENCE * gain, _LEAST_GAIN):
                continue
            assert signal.pair is not None
            flipped = signal.pair.flipped
            made += [
                (output, Row(len(signals), row.shift, row.negative != flipped))
                for output, row in table.take(one, other)
            ]
            signals.append(signal)
        if not made:
            break
        table.extend(made)
    for output, row in table.rows():
        rows[output].add(row)


_Numbers = npt.NDArray[np.int64]


class _Table:
    """Rows of all outputs, one of them to a line."""

    def __init__(self) -> None:
        self.lines: _Numbers = np.empty((0, 4), dtype=np.int64)
        """Output, shift, signal and sign of each row."""
        self.alive: npt.NDArray[np.bool_] = np.empty(0, dtype=np.bool_)

    def extend(self, rows: Iterable[tuple[int, Row]]) -> None:
        new = [(output, row.shift, row.signal, int(row.negative)) for output, row in rows]
        lines = np.array(new, dtype=np.int64).reshape(-1, 4)
        lines = np.concatenate([self.lines[self.alive], lines])
        self.lines = lines[np.lexsort(lines.T[::-1])]
        self.alive = np.ones(len(lines), dtype=np.bool_)

    def take(self, one: _Numbers, other: _Numbers) -> Iterator[tuple[int, Row]]:
        """Remove pairs of rows, and yield the first ones."""
        self.alive[one] = self.alive[other] = False
        yield from map(_row, self.lines[one].tolist())

    def rows(self) -> Iterator[tuple[int, Row]]:
        yield from map(_row, self.lines[self.alive].tolist())


def _row(line: Sequence[int]) -> tuple[int, Row]:
    output, shift, signal, negative = line
    return output, Row(signal, shift, negative > 0)


class _Places:
    """All pairs of rows of an output, by what pair they are.

    A pair is normalized: the row that is shifted less comes first, or the lesser signal.
    """

    def __init__(self, table: _Table) -> None:
        output, shift, signal, negative = table.lines.T
        ends = np.searchsorted(output, np.arange(output[-1] + 2 if len(output) else 1))
        indices = [np.triu_indices(end - start, 1) for start, end in pairwise(ends.tolist())]
        starts = [np.full(len(one), at) for (one, _), at in zip(indices, ends, strict=False)]
        start = _joined(starts)
        one, other = (_joined([pair[side] for pair in indices]) + start for side in (0, 1))
        keys = (
            signal[one] << 40
            | signal[other] << 16
            | (shift[other] - shift[one]) << 1
            | (negative[one] ^ negative[other])
        )
        order = np.argsort(keys, kind="stable")
        self._one, self._other = one[order], other[order]
        self.keys, self._starts, self.counts = np.unique(
            keys[order], return_index=True, return_counts=True
        )

    def pairs(self) -> tuple[_Numbers, _Numbers, _Numbers, _Numbers]:
        """Return two signals, a shift and whether to subtract, per key."""
        keys = self.keys
        return keys >> 40, keys >> 16 & 0xFFFFFF, keys >> 1 & 0x7FFF, keys & 1

    def occurrences(self, table: _Table, key: int) -> tuple[_Numbers, _Numbers]:
        """Return the rows of a pair that are still there; no row twice."""
        span = slice(self._starts[key], self._starts[key] + self.counts[key])
        one, other = self._one[span], self._other[span]
        there = table.alive[one] & table.alive[other]
        one, other = one[there], other[there]
        if len(one) < 2 or len(np.intersect1d(one, other)) == 0:
            return one, other
        used: set[int] = set()
        kept = []
        for at, pair in enumerate(zip(one.tolist(), other.tolist(), strict=True)):
            if not used.intersection(pair):
                used.update(pair)
                kept.append(at)
        return one[kept], other[kept]


def _joined(parts: Sequence[npt.NDArray[Any]]) -> _Numbers:
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


def _worthwhile(signals: list[Signal], places: _Places) -> list[tuple[float, Pair, int]]:
    """Return the pairs that would save sites, if no other was made, best first."""
    one, other, shift, negative = places.pairs()
    bits = np.array([signal.bits for signal in signals])
    # What is cheap to compute for all of them tells which ones to look at more closely: a pair
    # has as many bits as the wider one at least, and a table half as many sites as bits.
    widest = np.maximum(bits[one], bits[other] + shift)
    most = places.counts * SITES_PER_BIT * (bits[one] + bits[other] - widest)
    likely = (most > (widest - shift) / 2) & (places.counts > 1)
    found = []
    for key in np.flatnonzero(likely).tolist():
        pair = Pair(
            one=int(one[key]),
            other=int(other[key]),
            shift=int(shift[key]),
            negative=bool(negative[key]),
        )
        signal = _signal_of(signals, pair)
        saved = int(places.counts[key]) * _saved_sites(signals, pair, signal)
        gain = saved - _cost(signals, signal)
        if gain > _LEAST_GAIN:
            found.append((gain, pair, key))
    return sorted(found, key=lambda entry: -entry[0])


def _signal_of(signals: list[Signal], pair: Pair) -> Signal:
    """Return the sum of a pair, negated if no number of it were positive else."""
    one, other = signals[pair.one], signals[pair.other]
    factors = dict(one.weights)
    for at, weight in other.weights:
        moved = weight << pair.shift
        factors[at] = factors.get(at, 0) + (-moved if pair.negative else moved)
    low = high = 0
    for at, factor in factors.items():
        ends = factor * signals[at].low, factor * signals[at].high
        low, high = low + min(ends), high + max(ends)
    if high <= 0:
        pair = replace(pair, flipped=True)
        factors = {at: -factor for at, factor in factors.items()}
        low, high = -high, -low
    return Signal(low=low, high=high, weights=tuple(sorted(factors.items())), pair=pair)


def _saved_sites(signals: list[Signal], pair: Pair, signal: Signal) -> float:
    """Return the sites that one use of a pair saves."""
    before = signals[pair.one].bits + signals[pair.other].bits
    return SITES_PER_BIT * (before - signal.bits)


def _cost(signals: list[Signal], signal: Signal) -> float:
    """Return the sites that make a pair."""
    pair = signal.pair
    assert pair is not None
    table = table_sites(signals, signal)
    # What lies below the shifted operand passes an adder by, but not where that is negated.
    added = float(signal.bits - (0 if pair.flipped else pair.shift))
    return added if table is None else min(table, added)


def table_sites(signals: Sequence[Signal], signal: Signal) -> float | None:
    """Count the sites of a sum as a table of its inputs; ``None`` if they are too many."""
    inputs = sum(signals[at].bits for at in signal.inputs)
    return signal.bits * lut_sites(inputs) if inputs <= LUT_INPUTS else None
