# SPDX-License-Identifier: Apache-2.0
"""The fast solvers against the papers' formulas, and what must hold of every one of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lutwise.errors import CalibrationError
from lutwise.quant import kernels, solvers, solvers_reference
from lutwise.quant.formats import Format, parse_weight
from lutwise.quant.solvers import Order
from tests.strategies import FLOAT32_FORMATS

FORMATS = ["int2", "int4", "e2m1", "e3m0", "e4m3", "int8"]


def problem(
    rows: int, n: int, seed: int, groups: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return weights (g, rows, n), float and quantized inputs (g, patches, n), float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mixing = normal(groups, n, n) / n**0.5 + 0.5 * torch.eye(n)
    floats = normal(groups, 3 * n, n) @ mixing
    quantized = floats + 0.2 * normal(groups, 3 * n, n)
    return 2.5 * normal(groups, rows, n), floats, quantized


def parse(name: str) -> Format:
    return parse_weight(name, narrow=True)


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("n", [1, 5, 70])
def test_solvers_give_what_the_papers_formulas_give(name: str, order: Order, n: int) -> None:
    weights, floats, inputs = problem(4, n, seed=n, groups=2)
    fmt, by_activity = parse(name), order is Order.ACTIVITY
    h, g = inputs.mT @ inputs, inputs.mT @ floats
    found = {
        "gptq": solvers.gptq(fmt, weights, h, order=order, damping=0.01, block=16).values,
        "qronos": solvers.qronos(fmt, weights, h, g, order=order, damping=0.01, block=16).values,
        "gpfq": solvers.gpfq(fmt, weights, h, g, order=order, block=16).values,
        "descend": solvers.descend(
            fmt, weights, kernels.quantize(fmt, weights), h, sweeps=2, block=16
        ),
    }
    for k in range(2):
        w, a, b = weights[k].numpy(), h[k].numpy(), g[k].numpy()
        expected = {
            "gptq": solvers_reference.gptq(fmt, w, a, by_activity=by_activity, damping=0.01),
            "qronos": solvers_reference.qronos(fmt, w, a, b, by_activity=by_activity, damping=0.01),
            "gpfq": solvers_reference.gpfq(
                fmt, w, inputs[k].numpy(), floats[k].numpy(), by_activity=by_activity
            ),
            "descend": solvers_reference.descend(
                fmt, w, kernels.quantize(fmt, weights[k]).numpy(), a, sweeps=2
            ),
        }
        for solver, values in expected.items():
            np.testing.assert_array_equal(found[solver][k].numpy(), values, err_msg=solver)


@pytest.mark.parametrize("name", FORMATS)
def test_single_precision_is_as_good_as_double(name: str) -> None:
    weights, _, inputs = problem(16, 96, seed=3)
    fmt, h = parse(name), inputs.mT @ inputs
    wide = solvers.gptq(fmt, weights, h).values
    narrow = solvers.gptq(fmt, weights.float(), h.float()).values.double()
    assert (wide != narrow).double().mean() < 0.01  # ties and near ties may fall either way
    losses = [solvers.loss(weights, v, h).sum().item() for v in (wide, narrow)]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


@given(
    fmt=st.sampled_from(FLOAT32_FORMATS),
    seed=st.integers(0, 1000),
    n=st.integers(1, 9),
    power=st.floats(1e-3, 1e3),
)
def test_uncorrelated_inputs_give_rounding_to_nearest(
    fmt: Format, seed: int, n: int, power: float
) -> None:
    weights, _, _ = problem(3, n, seed)
    weights = weights / 3 * min(fmt.max_value, 1e6)
    h = power * torch.eye(n, dtype=torch.float64)[None]
    nearest = kernels.quantize(fmt, weights)
    for order in Order:
        assert torch.equal(solvers.gptq(fmt, weights, h, order=order).values, nearest)
        assert torch.equal(solvers.qronos(fmt, weights, h, h, order=order).values, nearest)
        assert torch.equal(solvers.gpfq(fmt, weights, h, h, order=order).values, nearest)
    assert torch.equal(solvers.descend(fmt, weights, nearest, h, sweeps=2), nearest)


@given(fmt=st.sampled_from(FLOAT32_FORMATS), seed=st.integers(0, 1000))
def test_weights_on_the_grid_stay(fmt: Format, seed: int) -> None:
    weights, _, inputs = problem(3, 8, seed)
    weights = kernels.quantize(fmt, weights / 3 * min(fmt.max_value, 1e6))
    h = inputs.mT @ inputs
    assert torch.equal(solvers.gptq(fmt, weights, h).values, weights)
    assert torch.equal(solvers.gpfq(fmt, weights, h, h).values, weights)
    assert torch.equal(solvers.descend(fmt, weights, weights, h, sweeps=1), weights)


@pytest.mark.parametrize("name", FORMATS)
def test_each_method_lowers_the_loss_it_is_made_for(name: str) -> None:
    weights, floats, inputs = problem(32, 48, seed=11)
    fmt, h, g = parse(name), inputs.mT @ inputs, inputs.mT @ floats
    nearest = kernels.quantize(fmt, weights)
    by_gptq = solvers.gptq(fmt, weights, h).values
    swept = solvers.descend(fmt, weights, by_gptq, h, sweeps=3)
    losses = [solvers.loss(weights, v, h) for v in (nearest, by_gptq, swept)]
    assert losses[1].sum() < 0.9 * losses[0].sum()
    assert (losses[2] <= losses[1] * (1 + 1e-12)).all()

    def distance(values: torch.Tensor) -> float:
        return (floats @ weights.mT - inputs @ values.mT).square().sum().item()

    corrected = solvers.qronos(fmt, weights, h, g).values
    assert distance(corrected) < distance(by_gptq)
    assert distance(solvers.gpfq(fmt, weights, h, g).values) < distance(nearest)


def test_silent_inputs_leave_their_weights_at_the_nearest_value() -> None:
    weights, floats, inputs = problem(4, 12, seed=5)
    floats[:, :, 3], inputs[:, :, 3] = 0.0, 0.0
    fmt, h, g = parse("int4"), inputs.mT @ inputs, inputs.mT @ floats
    nearest = kernels.quantize(fmt, weights)[:, :, 3]
    for values in (
        solvers.gptq(fmt, weights, h).values,
        solvers.qronos(fmt, weights, h, g).values,
        solvers.gpfq(fmt, weights, h, g).values,
    ):
        assert torch.equal(values[:, :, 3], nearest)
    zero = torch.zeros_like(h)
    assert torch.equal(solvers.gptq(fmt, weights, zero).values, kernels.quantize(fmt, weights))


def test_singular_moments_take_more_damping_and_hopeless_ones_are_refused() -> None:
    weights, _, _ = problem(2, 6, seed=1)
    one = torch.ones(1, 6, 6, dtype=torch.float64)
    assert solvers.gptq(parse("int4"), weights, one, damping=0.0).damping >= 0.0
    with pytest.raises(CalibrationError, match=r"no Cholesky factor.*largest entry is nan"):
        solvers.gptq(parse("int4"), weights, one * float("nan"))
    with pytest.raises(CalibrationError, match="no Cholesky factor"):
        solvers.gptq(parse("int4"), weights, one - 100 * torch.eye(6, dtype=torch.float64))
