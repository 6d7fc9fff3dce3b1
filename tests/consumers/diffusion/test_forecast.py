# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lutwise.consumers.diffusion.forecast import Forecaster, Reuse, Taylor
from lutwise.errors import ConfigError


def polynomial(coefficients: list[float], step: int) -> Tensor:
    powers = torch.tensor([float(step) ** i for i in range(len(coefficients))], dtype=torch.float64)
    value = (torch.tensor(coefficients, dtype=torch.float64) * powers).sum()
    return torch.stack([value, -2 * value])


@pytest.mark.property
@settings(deadline=None)
@given(
    coefficients=st.lists(st.floats(-2, 2), min_size=1, max_size=5),
    gaps=st.lists(st.integers(1, 4), min_size=6, max_size=9),
    ahead=st.integers(1, 6),
)
def test_taylor_is_exact_on_polynomials_of_its_order_at_unequal_distances(
    coefficients: list[float], gaps: list[int], ahead: int
) -> None:
    forecaster = Taylor(len(coefficients) - 1)
    step = 0
    for gap in gaps:
        step += gap
        forecaster.refresh(step, polynomial(coefficients, step))
    wanted = polynomial(coefficients, step + ahead)
    torch.testing.assert_close(forecaster.predict(step + ahead), wanted, rtol=1e-8, atol=1e-6)


def test_order_two_needs_more_than_backward_differences_over_powers() -> None:
    """At equal distances Taylor's series with Delta^2 / N^2 misses on a parabola; Newton hits."""
    forecaster = Taylor(2)
    for step in (0, 2, 4):
        forecaster.refresh(step, torch.tensor(float(step**2)))
    first, second = (16 - 4) / 2, (16 - 2 * 4 + 0) / 4
    assert 16 + first * 2 + second * 2**2 / 2 != 36
    assert forecaster.predict(6).item() == 36


@pytest.mark.parametrize("make", [Reuse, lambda: Taylor(0)], ids=["reuse", "taylor0"])
def test_order_zero_reuses_the_last_value(make: type[Reuse]) -> None:
    forecaster: Forecaster = make()
    first, second = torch.randn(2, 3), torch.randn(2, 3)
    forecaster.refresh(0, first)
    assert torch.equal(forecaster.predict(1), first)
    forecaster.refresh(5, second)
    assert torch.equal(forecaster.predict(6), second)
    assert torch.equal(forecaster.predict(9), second)


def test_order_grows_with_what_is_known() -> None:
    forecaster = Taylor(2)
    forecaster.refresh(0, torch.tensor(1.0))
    assert forecaster.predict(3).item() == 1
    forecaster.refresh(2, torch.tensor(5.0))
    assert forecaster.predict(3).item() == 7
    forecaster.refresh(4, torch.tensor(17.0))
    assert forecaster.predict(6).item() == 37


def test_predictions_do_not_change_what_is_kept() -> None:
    forecaster = Taylor(1)
    value = torch.tensor([1.0, 2.0])
    forecaster.refresh(0, value)
    forecaster.refresh(1, value * 3)
    first = forecaster.predict(2)
    assert torch.equal(forecaster.predict(2), first)
    assert torch.equal(value, torch.tensor([1.0, 2.0]))


def test_bad_use_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 or more, got -1"):
        Taylor(-1)
    for forecaster in (Reuse(), Taylor(1)):
        with pytest.raises(ConfigError, match="step 3 shall reuse a value that no step has"):
            forecaster.predict(3)
    forecaster = Taylor(1)
    forecaster.refresh(4, torch.zeros(2))
    with pytest.raises(ConfigError, match="got step 4 after step 4"):
        forecaster.refresh(4, torch.zeros(2))
