# SPDX-License-Identifier: Apache-2.0
"""Which samples of a trajectory a diffusion transformer is calibrated on.

A pool holds what a sampler saw: latents with their steps, timesteps and labels. `select` chooses
from it: at random, uniformly in time, or by temporal-aware parallel clustering (TAP).

Reference:
    Q&C: When Quantization Meets Cache in Efficient Image Generation, arXiv 2503.02508. It leaves
    much open; `lutwise.consumers.diffusion.tap` names each choice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lutwise.consumers.diffusion.tap import Feature, TapParameters, TimeUnit, tap_clusters
from lutwise.errors import CalibrationError, ConfigError, DataError

__all__ = ["METHODS", "SamplePool", "Selector", "TapParameters", "select"]

Floats: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SamplePool:
    """Inputs of the model on its way from noise to images.

    Args:
        latents: What the model saw, shape (n, c, h, w).
        steps: Index of the sampling step, 0 for the noisiest, shape (n,).
        timesteps: Time of the noise schedule (for example 0 .. 999), shape (n,).
        labels: Class of each sample, shape (n,).
        features: Features to compare samples by, shape (n, ...), for `Feature.GIVEN`.

    Raises:
        DataError: Shapes or types contradict each other, or the pool is empty.
        CalibrationError: Latents or features are NaN or infinite.
    """

    latents: Tensor
    steps: Tensor
    timesteps: Tensor
    labels: Tensor
    features: Tensor | None = None

    def __post_init__(self) -> None:
        if self.latents.ndim != 4 or not len(self.latents):
            raise DataError(
                "a pool has latents of shape (n, c, h, w) with n >= 1, got "
                f"{tuple(self.latents.shape)}"
            )
        for name in ("steps", "timesteps", "labels"):
            values: Tensor = getattr(self, name)
            if values.shape != (len(self),) or values.is_floating_point() or values.is_complex():
                raise DataError(
                    f"a pool of {len(self)} latents has as many integer {name}, got "
                    f"{values.dtype} of shape {tuple(values.shape)}"
                )
        if int(self.steps.min()) < 0:
            raise DataError(f"steps are indices from 0, got {int(self.steps.min())}")
        if self.features is not None and len(self.features) != len(self):
            raise DataError(
                f"a pool of {len(self)} latents has as many features, got {len(self.features)}"
            )
        for name, tensor in (("latents", self.latents), ("features", self.features)):
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                finite = torch.isfinite(tensor.reshape(len(self), -1)).all(dim=1)
                bad = int(torch.nonzero(~finite)[0])
                raise CalibrationError(
                    f"{name} of {int((~finite).sum())} of {len(self)} samples are NaN or infinite, "
                    f"the first at step {int(self.steps[bad])}; the sampler diverged before that"
                )

    def __len__(self) -> int:
        return len(self.latents)

    def take(self, indices: Indices) -> "SamplePool":
        """Return the samples at the given places, in that order."""
        at = torch.from_numpy(indices)
        return SamplePool(
            latents=self.latents[at],
            steps=self.steps[at],
            timesteps=self.timesteps[at],
            labels=self.labels[at],
            features=None if self.features is None else self.features[at],
        )


def select(
    method: str,
    pool: SamplePool,
    count: int,
    seed: int,
    parameters: TapParameters | None = None,
) -> Indices:
    """Choose samples of a pool.

    Args:
        method: ``random``, ``uniform`` or ``tap``.
        pool: To choose from.
        count: Samples wanted.
        seed: Of every random choice.
        parameters: Of TAP. The candidate steps hold for all methods.

    Returns:
        Places in the pool, ascending, none twice.

    Raises:
        ConfigError: No such method, or ``count`` is not positive.
        CalibrationError: The pool has fewer candidates, or lacks the features asked for.
    """
    if method not in METHODS:
        raise ConfigError(f"no method {method!r} of choosing samples: {', '.join(METHODS)} exist")
    if count < 1:
        raise ConfigError(f"at least one sample is chosen, got count={count}")
    parameters = parameters or TapParameters()
    candidates = _candidates(pool, parameters)
    if len(candidates) < count:
        raise CalibrationError(
            f"{count} samples are wanted, the pool has {len(candidates)} candidates; record more "
            "trajectories, or ask for fewer"
        )
    few = replace(parameters, candidate_steps=None)
    chosen = METHODS[method](pool.take(candidates), count, np.random.default_rng(seed), few)
    return np.sort(candidates[chosen])


def _candidates(pool: SamplePool, parameters: TapParameters) -> Indices:
    if parameters.candidate_steps is None:
        return np.arange(len(pool))
    return np.flatnonzero(np.isin(pool.steps.numpy(), parameters.candidate_steps))


def _random(
    pool: SamplePool, count: int, rng: np.random.Generator, parameters: TapParameters
) -> Indices:
    return rng.choice(len(pool), count, replace=False)


def _uniform(
    pool: SamplePool, count: int, rng: np.random.Generator, parameters: TapParameters
) -> Indices:
    return _stratified(pool.steps.numpy(), count, rng)


def _tap(
    pool: SamplePool, count: int, rng: np.random.Generator, parameters: TapParameters
) -> Indices:
    parameters = replace(parameters, clusters=min(parameters.clusters, count))
    features, times = _spatial(pool, parameters.feature), _times(pool, parameters.time_unit)
    clusterings = tap_clusters(features, times, rng, parameters)
    chosen: Indices = np.empty(0, dtype=np.int64)
    for done, labels in enumerate(clusterings):
        share = (count - len(chosen)) // (len(clusterings) - done)
        free = np.flatnonzero(labels >= 0)
        free = np.setdiff1d(free, chosen)
        drawn = _stratified(labels[free], min(share, len(free)), rng)
        chosen = np.concatenate([chosen, free[drawn]])
    # Subsets that overlap, or are small, leave fewer than wanted; the rest is drawn from all.
    rest = np.setdiff1d(np.arange(len(pool)), chosen)
    return np.concatenate([chosen, rng.choice(rest, count - len(chosen), replace=False)])


Selector: TypeAlias = Callable[[SamplePool, int, np.random.Generator, TapParameters], Indices]

METHODS: Final[Mapping[str, Selector]] = MappingProxyType(
    {"random": _random, "uniform": _uniform, "tap": _tap}
)
"""Ways to choose samples by name."""


def _stratified(strata: npt.NDArray[np.int64], count: int, rng: np.random.Generator) -> Indices:
    """Draw equally from each stratum, as far as it reaches; the odd ones evenly spaced."""
    order = rng.permutation(len(strata))
    shuffled = strata[order]
    rank = np.empty(len(strata), dtype=np.int64)
    for stratum in np.unique(strata):
        members = np.flatnonzero(shuffled == stratum)
        rank[members] = np.arange(len(members))
    by_round = order[np.lexsort((shuffled, rank))]
    ranks = np.sort(rank)
    last = ranks[count - 1] if count else 0
    whole = by_round[: np.searchsorted(ranks, last)]
    partial = by_round[len(whole) : np.searchsorted(ranks, last, side="right")]
    wanted = count - len(whole)
    spaced = (2 * np.arange(wanted) + 1) * len(partial) // (2 * max(wanted, 1))
    return np.concatenate([whole, partial[spaced]])


def _spatial(pool: SamplePool, feature: Feature) -> Floats:
    if feature is Feature.GIVEN and pool.features is None:
        raise CalibrationError(
            "TAP shall compare given features, the pool has none; give it features, or compare "
            "latents"
        )
    tensor = pool.latents if feature is Feature.LATENT else pool.features
    assert tensor is not None
    flat: Floats = tensor.detach().cpu().double().reshape(len(pool), -1).numpy()
    return flat


def _times(pool: SamplePool, unit: TimeUnit) -> Floats:
    times: Floats = (pool.steps if unit is TimeUnit.STEP else pool.timesteps).double().numpy()
    if unit is TimeUnit.FRACTION:
        return times / max(float(np.ptp(times)), 1.0)
    return times
