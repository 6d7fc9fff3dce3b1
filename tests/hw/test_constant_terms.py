# SPDX-License-Identifier: Apache-2.0
"""Matrices as sums, put together again."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutwise.hw.constant_terms import Terms, signed_digits, terms_of


def _coefficients(terms: Terms, inputs: int) -> list[npt.NDArray[np.int64]]:
    """Return every signal as coefficients of the inputs."""
    found = list(np.eye(inputs, dtype=np.int64))
    for signal in terms.signals[inputs:]:
        pair = signal.pair
        assert pair is not None
        assert max(pair.one, pair.other) < len(found), "a sum needs earlier signals only"
        sign = -1 if pair.negative else 1
        total = found[pair.one] + (sign * found[pair.other] << pair.shift)
        found.append(-total if pair.flipped else total)
    return found


def _matrix(terms: Terms, inputs: int) -> npt.NDArray[np.int64]:
    signals = _coefficients(terms, inputs)
    rows = []
    for found in terms.rows:
        total = np.zeros(inputs, dtype=np.int64)
        for row in found:
            total += (-1 if row.negative else 1) * (signals[row.signal] << row.shift)
        rows.append(total)
    return np.array(rows)


@given(st.integers(-(1 << 40), 1 << 40))
def test_signed_digits_have_no_neighbours(number: int) -> None:
    digits = list(signed_digits(number))
    assert sum(-(1 << shift) if negative else 1 << shift for shift, negative in digits) == number
    shifts = [shift for shift, _ in digits]
    assert all(b - a > 1 for a, b in pairwise(shifts))


@pytest.mark.property
@given(st.integers(0, 1 << 30), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 7, 127]))
def test_sums_make_the_matrix(seed: int, outputs: int, inputs: int, reach: int) -> None:
    matrix = np.random.default_rng(seed).integers(-reach, reach + 1, (outputs, inputs))
    terms = terms_of(matrix, [(-8, 7)] * inputs)
    assert np.array_equal(_matrix(terms, inputs), matrix)


def test_ranges_of_shared_sums_are_exact() -> None:
    matrix = np.random.default_rng(1).integers(-7, 8, (12, 8))
    ranges = [(-3, 5)] * 8
    terms = terms_of(matrix, ranges)
    assert len(terms.signals) > 8
    for signal, coefficients in zip(terms.signals, _coefficients(terms, 8), strict=True):
        ends = np.array([coefficients * -3, coefficients * 5])
        assert (signal.low, signal.high) == (ends.min(axis=0).sum(), ends.max(axis=0).sum())
        assert dict(signal.weights) == {at: c for at, c in enumerate(coefficients) if c}


def test_outputs_that_are_alike_share_their_sums() -> None:
    matrix = np.tile(np.array([[3, 5, -1, 2, 7, 1]]), (6, 1))
    terms = terms_of(matrix, [(0, 15)] * 6)
    assert sum(map(len, terms.rows)) <= 6 * 2
    apart = terms_of(matrix, [(0, 15)] * 6, share=False)
    assert sum(map(len, apart.rows)) == 6 * 9
    assert np.array_equal(_matrix(apart, 6), matrix)


def test_a_multiple_is_made_once() -> None:
    """Eleven times a number has three digits; many outputs are worth one multiple."""
    terms = terms_of(np.full((12, 1), 11), [(0, 255)])
    assert [len(rows) for rows in terms.rows] == [1] * 12
    assert np.array_equal(_matrix(terms, 1), np.full((12, 1), 11))


def test_zeros_vanish_and_powers_of_two_are_one_row() -> None:
    terms = terms_of(np.array([[0, 8, -64], [0, 0, 0]]), [(0, 15)] * 3)
    assert list(map(len, terms.rows)) == [2, 0]
