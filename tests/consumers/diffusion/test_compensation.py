# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor

from lutwise.consumers.diffusion.compensation import (
    METHODS,
    Compensation,
    FitParameters,
    fit,
    fit_step,
)
from lutwise.errors import CalibrationError, ConfigError, DataError, ModelError


def pair(seed: int, *, gain: float = 1.1, noise: float = 0.2, shift: float = 0.3) -> Any:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(6, 2, 3, 3, generator=generator, dtype=torch.float64) + shift
    error = torch.randn(reference.shape, generator=generator, dtype=torch.float64)
    return gain * reference + noise * error + 0.1, reference


def numpy_channel(x: Tensor, channel: int) -> np.ndarray:
    return x[:, channel].double().reshape(-1).numpy()


def objective(k: float, x: np.ndarray, r: np.ndarray, threshold: float) -> float:
    """rQNSR^2 + MSE as sums, straight from the definition."""
    corrected = x.mean() + k * (x - x.mean())
    relative = np.abs(r) >= max(threshold, 1e-300)
    return float(
        (((corrected - r)[relative] / r[relative]) ** 2).sum() + ((corrected - r) ** 2).sum()
    )


def brute_force(function: Any) -> float:
    found = minimize_scalar(function, bracket=(-1, 3), tol=1e-12)
    return float(found.x)


SEEDS = st.integers(0, 2**31)


@pytest.mark.property
@settings(deadline=None, max_examples=30)
@given(
    seed=SEEDS,
    gain=st.floats(0.3, 2),
    noise=st.floats(0, 1),
    shift=st.floats(-1, 1),
    threshold=st.sampled_from([0.0, 0.05, 0.5, 100.0]),
)
def test_minimiser_is_the_brute_force_minimum_of_the_objective(
    seed: int, gain: float, noise: float, shift: float, threshold: float
) -> None:
    x, r = pair(seed, gain=gain, noise=noise, shift=shift)
    found = fit_step("minimiser", x, r, parameters=FitParameters(mask_threshold=threshold))
    for channel in range(2):
        cx, cr = numpy_channel(x, channel), numpy_channel(r, channel)
        wanted = brute_force(lambda k, cx=cx, cr=cr: objective(k, cx, cr, threshold))
        assert float(found.gain[channel]) == pytest.approx(wanted, rel=1e-5, abs=1e-5)


@pytest.mark.property
@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, gain=st.floats(0.3, 2), noise=st.floats(0, 1))
def test_least_squares_and_std_are_brute_force_minima(seed: int, gain: float, noise: float) -> None:
    x, r = pair(seed, gain=gain, noise=noise)
    least, spread = fit_step("least_squares", x, r), fit_step("std", x, r)
    for channel in range(2):
        cx, cr = numpy_channel(x, channel), numpy_channel(r, channel)
        d = cx - cx.mean()
        squares = brute_force(lambda k, d=d, cx=cx, cr=cr: ((cx.mean() + k * d - cr) ** 2).sum())
        assert float(least.gain[channel]) == pytest.approx(squares, rel=1e-5, abs=1e-5)
        grid = np.linspace(0.2, 5, 48001)
        variances = np.abs(grid**2 * d.var() - cr.var())
        assert float(spread.gain[channel]) == pytest.approx(grid[variances.argmin()], abs=2e-4)


@pytest.mark.property
@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, gain=st.floats(0.3, 2), noise=st.floats(0, 1))
def test_qdrift_matches_the_variance_over_all_channels(
    seed: int, gain: float, noise: float
) -> None:
    x, r = pair(seed, gain=gain, noise=noise)
    r = r * torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)
    found = fit_step("qdrift", x, r)
    assert found.gain[0] == found.gain[1]
    assert found.mean[0] == found.mean[1]
    corrected = found.apply(x)
    assert float(corrected.var()) == pytest.approx(float(r.var()), rel=1e-5)
    assert float(corrected.mean()) == pytest.approx(float(x.mean()), rel=1e-5, abs=1e-6)


@pytest.mark.property
@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, gain=st.floats(0.3, 2), noise=st.floats(0, 1))
def test_printed_is_its_formula_and_no_better_than_the_minimum(
    seed: int, gain: float, noise: float
) -> None:
    x, r = pair(seed, gain=gain, noise=noise)
    printed = fit_step("printed", x, r)
    best = fit_step("minimiser", x, r, parameters=FitParameters(mask_threshold=0.0))
    for channel in range(2):
        cx, cr = numpy_channel(x, channel), numpy_channel(r, channel)
        d, over, under = cx - cx.mean(), 0.0, 0.0
        for d_i, r_i in zip(d, cr, strict=True):
            over += (r_i - cx.mean()) * d_i + d_i / r_i
            under += d_i**2 + d_i**2 / r_i**2
        k = float(printed.gain[channel])
        assert k == pytest.approx(over / under, rel=1e-5, abs=1e-6)
        lowest = objective(float(best.gain[channel]), cx, cr, 0.0)
        assert objective(k, cx, cr, 0.0) >= lowest * (1 - 1e-9)


def test_printed_is_the_minimum_where_the_mean_is_zero_and_else_not() -> None:
    x, r = pair(0)
    centred = x - x.mean((0, 2, 3), keepdim=True)
    unmasked = FitParameters(mask_threshold=0.0)
    for latents, equal in ((centred, True), (x, False)):
        printed = fit_step("printed", latents, r).gain
        best = fit_step("minimiser", latents, r, parameters=unmasked).gain
        assert torch.allclose(printed, best, rtol=1e-5) is equal


@pytest.mark.parametrize("method", [name for name in METHODS if name != "printed"])
def test_nothing_is_changed_where_nothing_is_corrupted(method: str) -> None:
    _, r = pair(3)
    found = fit_step(method, r, r)
    torch.testing.assert_close(found.gain, torch.ones(2))
    torch.testing.assert_close(found.apply(r), r)


def test_printed_changes_latents_that_nothing_corrupted() -> None:
    _, r = pair(3)
    assert not torch.allclose(fit_step("printed", r, r).gain, torch.ones(2), rtol=0.05)


def test_no_compensation_is_bit_identical() -> None:
    x, r = pair(1)
    x, r = x.float(), r.float()
    assert torch.equal(fit_step("none", x, r).apply(x), x)


@pytest.mark.parametrize("method", METHODS)
def test_channels_without_variance_get_a_gain_of_one(method: str) -> None:
    x = torch.full((5, 1, 3, 3), 0.1)
    assert fit_step(method, x, torch.randn(5, 1, 3, 3)).gain.tolist() == [1.0]


@pytest.mark.parametrize("method", METHODS)
def test_exact_zeros_of_the_reference_do_no_harm(method: str) -> None:
    x, r = pair(2)
    r[0] = 0.0
    found = fit_step(method, x, r, parameters=FitParameters(mask_threshold=0.0))
    assert bool(torch.isfinite(found.gain).all())


def test_apply_is_the_formula_per_step_and_channel() -> None:
    gain, mean = torch.tensor([[2.0, 0.5], [1.0, 3.0]]), torch.tensor([[1.0, 0.0], [5.0, -1.0]])
    compensation = Compensation(method="std", gain=gain, mean=mean, target=mean, groups=(0, 1, 1))
    x = torch.randn(3, 2, 2, 2)
    for step, row in ((0, 0), (1, 1), (2, 1)):
        m, k = mean[row].reshape(1, 2, 1, 1), gain[row].reshape(1, 2, 1, 1)
        torch.testing.assert_close(compensation.apply(x, step), m + k * (x - m))
    assert torch.equal(compensation.apply(x, 1)[:, 0], x[:, 0])


@pytest.mark.property
@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, gain=st.floats(0.3, 2), noise=st.floats(0, 1), shift=st.floats(-1, 1))
def test_moments_give_each_channel_the_reference_s_mean_and_deviation(
    seed: int, gain: float, noise: float, shift: float
) -> None:
    x, r = pair(seed, gain=gain, noise=noise, shift=shift)
    found = fit_step("moments", x, r)
    assert torch.equal(found.gain, fit_step("std", x, r).gain)
    corrected = found.apply(x).transpose(0, 1).flatten(1)
    wanted = r.transpose(0, 1).flatten(1)
    torch.testing.assert_close(corrected.mean(1), wanted.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(corrected.std(1), wanted.std(1), rtol=1e-5, atol=1e-5)


def test_finished_sample_is_corrected_where_that_was_fitted() -> None:
    x, r = pair(4)
    rows = [fit_step("moments", x, r), fit_step("moments", r, x)]
    latents = torch.randn(3, 2, 2, 2)
    without = Compensation.of_steps("moments", rows)
    assert torch.equal(without.finish(latents), latents)
    found = Compensation.of_steps("moments", rows[:1], finished=rows[1])
    assert found.steps == 1
    assert torch.equal(found.apply(latents, 0), rows[0].apply(latents))
    assert torch.equal(found.finish(latents), rows[1].apply(latents))


def test_fit_pools_the_steps_of_a_group() -> None:
    x, r = (torch.stack(both) for both in zip(*(pair(seed) for seed in range(3)), strict=True))
    single = fit("std", x, r)
    assert single.steps == 3
    assert single.groups == (0, 1, 2)
    for step in range(3):
        alone = fit_step("std", x[step], r[step])
        assert torch.equal(single.step(step).gain, alone.gain)
    grouped = fit("std", x, r, groups=(0, 1, 1))
    together = fit_step("std", x[1:].flatten(0, 1), r[1:].flatten(0, 1))
    assert torch.equal(grouped.step(1).gain, together.gain)
    assert torch.equal(grouped.step(2).mean, together.mean)
    assert torch.equal(grouped.step(0).gain, single.step(0).gain)


def test_sequential_fit_sees_what_earlier_corrections_did() -> None:
    """A toy sampler that adds variance at each step: only the sequential gains stay moderate."""
    start = torch.randn(500, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    reference = torch.stack([start] * 4)
    corrupted = torch.stack([start * 1.2**step for step in range(4)])
    joint = fit("std", corrupted, reference)
    x, steps = start, []
    for step in range(4):
        found = fit_step("std", x, reference[step])
        steps.append(found)
        x = found.apply(x) * 1.2
    sequential = Compensation.of_steps("std", steps)
    torch.testing.assert_close(joint.gain[:, 0], 1.2 ** -torch.arange(4.0))
    torch.testing.assert_close(sequential.gain[:, 0], torch.tensor([1, 1 / 1.2, 1 / 1.2, 1 / 1.2]))


def test_compensation_comes_back_from_its_file(tmp_path: Path) -> None:
    x, r = (torch.stack(both) for both in zip(*(pair(seed) for seed in range(3)), strict=True))
    found = fit("moments", x, r, groups=(0, 0, 1))
    path = tmp_path / "compensation.safetensors"
    found.save(path)
    again = Compensation.load(path)
    assert (again.method, again.groups, again.steps, again.channels) == (
        "moments",
        (0, 0, 1),
        3,
        2,
    )
    assert torch.equal(again.gain, found.gain)
    assert torch.equal(again.mean, found.mean)
    assert torch.equal(again.target, found.target)
    first = path.read_bytes()
    found.save(path)
    assert path.read_bytes() == first
    again.check(steps=3, channels=2)
    with pytest.raises(ConfigError, match="fitted for 3 steps and 2 channels, sampling has 5"):
        again.check(steps=5, channels=2)


def test_files_that_hold_no_compensation_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    with pytest.raises(ModelError, match="does not exist; fit one, or sample without"):
        Compensation.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="no file of a compensation"):
        Compensation.load(path)
    rows = {"gain": torch.ones(2, 1), "mean": torch.zeros(2, 1), "target": torch.zeros(2, 1)}
    save_file(rows, path)
    with pytest.raises(ModelError, match="no file of a compensation"):
        Compensation.load(path)
    text = '{"version": %d, "method": "std", "steps": %d, "channels": 1, "groups": [0, 1]}'
    save_file(rows, path, metadata={"lutwise.compensation": text % (2, 2)})
    assert Compensation.load(path).steps == 2
    save_file(rows, path, metadata={"lutwise.compensation": text % (1, 2)})
    with pytest.raises(ModelError, match="it has version 1, wanted 2"):
        Compensation.load(path)
    save_file(rows, path, metadata={"lutwise.compensation": text % (2, 7)})
    with pytest.raises(ModelError, match="fitted for 2 steps and 1 channels, sampling has 7"):
        Compensation.load(path)


ONES = torch.ones(4, 1, 2, 2)
NANS = torch.full_like(ONES, torch.nan)
ROWS = torch.ones(2, 1)
MORE = torch.ones(3, 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fit_step("best", ONES, ONES), ConfigError, "no compensation 'best': none, "),
        (lambda: fit_step("std", ONES, ONES[:2]), DataError, r"one shape \(n, c, h, w\)"),
        (lambda: fit_step("std", NANS, ONES), CalibrationError, "16 of 16 numbers of the corr"),
        (lambda: fit_step("std", ONES, NANS), CalibrationError, "of the reference latents"),
        (lambda: fit("std", ONES, ONES), DataError, r"\(steps, n, c, h, w\), got \(4, 1, 2, 2\)"),
        (
            lambda: fit("std", ONES[None], ONES[None], groups=(0, 1)),
            ConfigError,
            r"groups of 1 steps are as many numbers.*got \(0, 1\)",
        ),
        (
            lambda: Compensation(method="std", gain=ROWS, mean=ROWS, target=ROWS, groups=(0, 2)),
            ConfigError,
            "rising by at most 1",
        ),
        (
            lambda: Compensation(method="std", gain=MORE, mean=MORE, target=MORE, groups=(0,)),
            ConfigError,
            "got 3 rows and 1 groups",
        ),
        (
            lambda: Compensation(
                method="std", gain=ROWS, mean=ROWS[:1], target=ROWS, groups=(0, 1)
            ),
            ConfigError,
            r"one shape \(groups, channels\)",
        ),
        (
            lambda: Compensation(method="x", gain=ROWS, mean=ROWS, target=ROWS, groups=(0, 1)),
            ConfigError,
            "no compensation 'x'",
        ),
        (
            lambda: Compensation(
                method="std", gain=ROWS / 0, mean=ROWS, target=ROWS, groups=(0, 1)
            ),
            CalibrationError,
            "NaN or infinite",
        ),
        (
            lambda: Compensation(
                method="std", gain=ROWS, mean=ROWS, target=ROWS, groups=(0, 1)
            ).step(2),
            ConfigError,
            "fitted for 2 steps, there is no step 2",
        ),
        (
            lambda: fit_step("std", ONES, ONES).apply(torch.ones(2, 3, 2, 2)),
            DataError,
            r"\(n, 1, h, w\), got \(2, 3, 2, 2\)",
        ),
        (lambda: Compensation.of_steps("std", []), ConfigError, "steps with the same channels"),
        (lambda: FitParameters(mask_threshold=-1.0), ConfigError, "at least 0, got -1"),
    ],
)
def test_bad_input_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
