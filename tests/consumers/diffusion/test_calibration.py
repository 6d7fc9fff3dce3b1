# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lutwise.consumers.diffusion.calibration import METHODS, SamplePool, select
from lutwise.consumers.diffusion.tap import (
    Affinity,
    Combination,
    Cosine,
    Feature,
    RowScaling,
    TapParameters,
    TimeUnit,
    affinity,
    spectral_embedding,
    tap_clusters,
)
from lutwise.errors import CalibrationError, ConfigError, DataError

SMALL = TapParameters(clusters=4, fraction=0.3, subsets=2, restarts=4)


def pool(trajectories: int = 12, steps: int = 5, seed: int = 0) -> SamplePool:
    generator = torch.Generator().manual_seed(seed)
    count = trajectories * steps
    step = torch.arange(steps).repeat_interleave(trajectories)
    return SamplePool(
        latents=torch.randn(count, 2, 4, 4, generator=generator),
        steps=step,
        timesteps=(steps - 1 - step) * (1000 // steps),
        labels=torch.arange(count) % 3,
    )


PLANTED = replace(SMALL, vectors=3)
"""The sum of two block affinities has rank 3: both means, direction, step."""


def planted() -> tuple[SamplePool, np.ndarray]:
    """Four groups: two directions of the latents at two far apart steps."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.eye(2, 32).reshape(2, 2, 4, 4)
    group = torch.arange(80) % 4
    noise = 0.05 * torch.randn(80, 2, 4, 4, generator=generator)
    step = (group // 2) * 10
    made = SamplePool(
        latents=directions[group % 2] + noise,
        steps=step,
        timesteps=1000 - 50 * step,
        labels=torch.zeros(80, dtype=torch.int64),
    )
    return made, group.numpy()


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(((a[:, None] == a) == (b[:, None] == b)).all())


@pytest.mark.parametrize("method", METHODS)
def test_select_gives_distinct_places_and_repeats_with_the_seed(method: str) -> None:
    samples = pool()
    first = select(method, samples, 13, 3, SMALL)
    assert len(first) == 13
    assert len(np.unique(first)) == 13
    assert (np.sort(first) == first).all()
    assert first.min() >= 0
    assert first.max() < len(samples)
    assert (select(method, samples, 13, 3, SMALL) == first).all()
    assert any((select(method, samples, 13, seed, SMALL) != first).any() for seed in (4, 5))


@pytest.mark.parametrize("method", METHODS)
def test_select_takes_all_of_a_pool_that_is_just_large_enough(method: str) -> None:
    assert (select(method, pool(), 60, 0, SMALL) == np.arange(60)).all()


@pytest.mark.parametrize("method", METHODS)
def test_candidate_steps_hold_for_every_method(method: str) -> None:
    samples = pool()
    chosen = select(method, samples, 8, 0, replace(SMALL, candidate_steps=(0, 3)))
    assert set(samples.take(chosen).steps.tolist()) <= {0, 3}


@pytest.mark.parametrize(
    ("count", "expected"), [(10, [2, 2, 2, 2, 2]), (13, [3, 2, 3, 2, 3]), (3, [1, 0, 1, 0, 1])]
)
def test_uniform_gives_each_step_its_share(count: int, expected: list[int]) -> None:
    samples = pool()
    taken = samples.take(select("uniform", samples, count, 0)).steps
    assert torch.bincount(taken, minlength=5).tolist() == expected


def test_uniform_draws_more_where_a_step_has_too_few() -> None:
    samples = pool().take(np.array([0, 12, 13, 14, 15, 24, 25, 26, 27, 36]))
    taken = samples.take(select("uniform", samples, 8, 0)).steps
    assert torch.bincount(taken).tolist() == [1, 3, 3, 1]


def test_tap_finds_planted_clusters_and_draws_equally_from_them() -> None:
    samples, group = planted()
    for combination in Combination:
        parameters = replace(PLANTED, combination=combination)
        for labels in tap_clusters(
            samples.latents.flatten(1).double().numpy(),
            samples.steps.double().numpy(),
            np.random.default_rng(0),
            parameters,
        ):
            assert same_partition(labels, group), combination
        chosen = select("tap", samples, 24, 0, parameters)
        assert np.bincount(group[chosen]).tolist() == [6, 6, 6, 6], combination


def test_square_affinities_choose_from_their_subsets() -> None:
    samples, group = planted()
    parameters = replace(
        PLANTED, affinity=Affinity.SQUARE, combination=Combination.DRAWS, fraction=0.5
    )
    clusterings = tap_clusters(
        samples.latents.flatten(1).double().numpy(),
        samples.steps.double().numpy(),
        np.random.default_rng(0),
        parameters,
    )
    assert len(clusterings) == 2
    for labels in clusterings:
        inside = labels >= 0
        assert inside.sum() == 40
        assert same_partition(labels[inside], group[inside])
    assert len(select("tap", samples, 16, 0, parameters)) == 16


def test_time_decides_where_latents_are_alike_and_raw_timesteps_hide_nearness() -> None:
    samples = pool()
    flat = torch.ones(len(samples), 2, 4, 4)
    alike = SamplePool(
        latents=flat, steps=samples.steps, timesteps=samples.timesteps, labels=samples.labels
    )
    parameters = replace(SMALL, clusters=5)
    chosen = select("tap", alike, 10, 0, parameters)
    assert torch.bincount(samples.steps[chosen], minlength=5).tolist() == [2, 2, 2, 2, 2]
    features = np.ones((2, 3))
    for unit, expected in ((1.0, np.exp(-1)), (200.0, 0.0)):
        times = np.array([0.0, unit])
        found = affinity(features, times, features, times, TapParameters(alpha=0.0))
        assert found[0, 1] == pytest.approx(expected, abs=1e-80)


@pytest.mark.parametrize("unit", TimeUnit)
@pytest.mark.parametrize("cosine", Cosine)
@pytest.mark.parametrize("scaling", RowScaling)
def test_every_choice_runs(unit: TimeUnit, cosine: Cosine, scaling: RowScaling) -> None:
    parameters = replace(SMALL, time_unit=unit, cosine=cosine, row_scaling=scaling)
    assert len(select("tap", pool(), 12, 0, parameters)) == 12


def test_given_features_are_compared_in_place_of_latents() -> None:
    samples, group = planted()
    shuffled = SamplePool(
        latents=torch.randn(samples.latents.shape, generator=torch.Generator().manual_seed(3)),
        steps=samples.steps,
        timesteps=samples.timesteps,
        labels=samples.labels,
        features=samples.latents.flatten(1),
    )
    chosen = select("tap", shuffled, 20, 0, replace(PLANTED, feature=Feature.GIVEN))
    assert np.bincount(group[chosen]).tolist() == [5, 5, 5, 5]


def test_affinity_is_the_formula() -> None:
    rows, columns = np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[-2.0, 0.0], [0.0, 5.0]])
    times = np.array([0.0, 2.0])
    cosines = {
        Cosine.CLIP: [[0.0, 0.0], [0.0, 0.8]],
        Cosine.SHIFT: [[0.0, 0.5], [0.2, 0.9]],
        Cosine.ABSOLUTE: [[1.0, 0.0], [0.6, 0.8]],
    }
    temporal = np.array([[1.0, np.exp(-2)], [np.exp(-2), 1.0]])
    for choice, expected in cosines.items():
        found = affinity(rows, times, columns, times, TapParameters(alpha=0.3, cosine=choice))
        assert found == pytest.approx(0.3 * np.array(expected) + 0.7 * temporal)


@pytest.mark.property
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(3, 12), columns=st.integers(3, 8))
def test_embedding_is_that_of_a_direct_eigendecomposition(
    seed: int, rows: int, columns: int
) -> None:
    """The normalised bipartite graph has eigenvalues of both signs and vectors (u, v) / sqrt 2."""
    rng = np.random.default_rng(seed)
    similar = rng.random((rows, columns))
    whole = np.block([[np.zeros((rows, rows)), similar], [similar.T, np.zeros((columns, columns))]])
    root = 1 / np.sqrt(whole.sum(axis=1))
    values, vectors = np.linalg.eigh(root[:, None] * whole * root[None, :])
    count = 2
    order = np.argsort(values)[::-1]
    if values[order[count - 1]] - values[order[count]] < 1e-3:
        return  # no gap, no unique subspace
    direct = np.sqrt(2) * vectors[:rows, order[:count]]
    found = spectral_embedding(similar, count, RowScaling.NONE)
    assert found @ found.T == pytest.approx(direct @ direct.T, abs=1e-8)
    assert values[order[0]] == pytest.approx(1)
    degree = spectral_embedding(similar, count, RowScaling.DEGREE)
    assert degree == pytest.approx(found * root[:rows, None])
    unit = spectral_embedding(similar, count, RowScaling.UNIT)
    assert np.linalg.norm(unit, axis=1) == pytest.approx(np.ones(rows))


def test_embedding_follows_permutations_scales_and_shifts() -> None:
    rng = np.random.default_rng(0)
    features, times = rng.standard_normal((20, 6)), rng.integers(0, 6, 20).astype(float)
    columns = np.arange(0, 20, 2)

    def embed(f: np.ndarray, t: np.ndarray, c: np.ndarray) -> np.ndarray:
        return spectral_embedding(affinity(f, t, f[c], t[c], SMALL), 3, RowScaling.UNIT)

    base = embed(features, times, columns)
    assert embed(features, times, rng.permutation(columns)) == pytest.approx(base)
    lengths = rng.uniform(0.1, 10, (20, 1))
    assert embed(features * lengths, times + 7, columns) == pytest.approx(base)
    order = rng.permutation(20)
    places = np.argsort(order)[columns]
    assert embed(features[order], times[order], places) == pytest.approx(base[order])


def test_rows_without_affinity_stay_at_zero() -> None:
    similar = np.array([[1.0, 0.5], [0.0, 0.0], [0.5, 1.0]])
    embedded = spectral_embedding(similar, 2, RowScaling.UNIT)
    assert (embedded[1] == 0).all()
    assert np.isfinite(embedded).all()


def test_identical_samples_do_no_harm() -> None:
    same = SamplePool(
        latents=torch.zeros(30, 1, 2, 2),
        steps=torch.zeros(30, dtype=torch.int64),
        timesteps=torch.zeros(30, dtype=torch.int64),
        labels=torch.zeros(30, dtype=torch.int64),
    )
    assert len(select("tap", same, 9, 0, SMALL)) == 9


def test_take_keeps_what_belongs_together() -> None:
    samples = pool()
    part = samples.take(np.array([7, 50]))
    assert torch.equal(part.latents, samples.latents[[7, 50]])
    assert part.steps.tolist() == [0, 4]
    assert part.timesteps.tolist() == [800, 0]
    assert part.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"latents": torch.zeros(3, 2, 2)}, DataError, r"latents of shape \(n, c, h, w\)"),
        ({"latents": torch.zeros(0, 1, 2, 2)}, DataError, "n >= 1"),
        ({"steps": torch.zeros(4, dtype=torch.int64)}, DataError, "as many integer steps"),
        ({"labels": torch.zeros(3)}, DataError, "integer labels, got torch.float32"),
        ({"steps": torch.tensor([0, -1, 0])}, DataError, "indices from 0, got -1"),
        ({"features": torch.zeros(2, 5)}, DataError, "as many features, got 2"),
        (
            {"latents": torch.tensor([0.0, torch.nan, 1.0]).reshape(3, 1, 1, 1)},
            CalibrationError,
            "latents of 1 of 3 samples are NaN or infinite, the first at step 1",
        ),
    ],
)
def test_pool_refuses(
    change: dict[str, torch.Tensor], error: type[Exception], message: str
) -> None:
    good = {
        "latents": torch.zeros(3, 1, 1, 1),
        "steps": torch.arange(3),
        "timesteps": torch.arange(3),
        "labels": torch.arange(3),
    }
    SamplePool(**good)
    with pytest.raises(error, match=message):
        SamplePool(**(good | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 1.5}, "alpha in 0..1"),
        ({"fraction": 0.0}, "fraction above 0"),
        ({"clusters": 0}, "at least one subset, cluster"),
        ({"vectors": 0}, "vectors=0"),
        ({"affinity": Affinity.SQUARE}, "combine only by 'draws', got 'concatenate'"),
    ],
)
def test_parameters_refuse(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TapParameters(), **change)  # type: ignore[arg-type]


def test_select_refuses() -> None:
    samples = pool()
    with pytest.raises(ConfigError, match=r"no method 'best'.*random, uniform, tap exist"):
        select("best", samples, 4, 0)
    with pytest.raises(ConfigError, match="at least one sample"):
        select("random", samples, 0, 0)
    with pytest.raises(CalibrationError, match="61 samples are wanted, the pool has 60"):
        select("random", samples, 61, 0)
    with pytest.raises(CalibrationError, match="the pool has 12 candidates"):
        select("tap", samples, 13, 0, replace(SMALL, candidate_steps=(2,)))
    with pytest.raises(CalibrationError, match="the pool has none; give it features"):
        select("tap", samples, 8, 0, replace(SMALL, feature=Feature.GIVEN))
    with pytest.raises(CalibrationError, match="8 clusters need as many samples"):
        tap_clusters(
            np.ones((4, 2)), np.zeros(4), np.random.default_rng(0), replace(SMALL, clusters=8)
        )
