# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from lutwise.errors import DataError
from lutwise.quant.evaluate import accuracy, compare, sqnr_db


def logits(*classes: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.eye(3)[list(classes)]


def test_wilson_interval_matches_published_numbers() -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263.
    found = accuracy(logits(*[0] * 81, *[1] * 182), np.zeros(263, int))
    assert (found.correct, found.images) == (81, 263)
    assert found.low == pytest.approx(0.2553, abs=5e-5)
    assert found.high == pytest.approx(0.3662, abs=5e-5)


@pytest.mark.parametrize("correct", [0, 10])
def test_interval_stays_inside(correct: int) -> None:
    found = accuracy(logits(*[0] * correct, *[1] * (10 - correct)), np.zeros(10, int))
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0


def test_comparison_is_paired() -> None:
    labels = np.array([0, 0, 0, 0])
    found = compare(logits(0, 0, 1, 1), logits(0, 1, 0, 0), labels)
    assert found.agreement == 0.25
    assert found.difference == 0.25  # two won, one lost, of four
    assert found.difference_low is not None
    assert found.difference_low < 0.25
    same = compare(logits(0, 1, 2), logits(0, 1, 2), np.array([0, 0, 0]))
    assert (same.difference, same.difference_low, same.difference_high) == (0.0, 0.0, 0.0)
    assert compare(logits(0), logits(0), None).difference is None


def test_sqnr() -> None:
    x = np.array([3.0, 4.0])
    assert sqnr_db(x, x + np.array([0.3, 0.4])) == pytest.approx(20.0)
    assert sqnr_db(x, x) == 200.0
    assert sqnr_db(np.zeros(2), x) == -200.0


def test_no_images_is_an_error() -> None:
    with pytest.raises(DataError, match="at least one image"):
        accuracy(np.zeros((0, 3)), np.zeros(0, int))
