# SPDX-License-Identifier: Apache-2.0
"""Temporal-aware parallel clustering (TAP): groups of alike samples from random subsets.

Reference:
    Q&C: When Quantization Meets Cache in Efficient Image Generation, arXiv 2503.02508. It leaves
    much open; `TapParameters` names each choice.
"""

import warnings
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lutwise.errors import CalibrationError, ConfigError

__all__ = [
    "Affinity",
    "Combination",
    "Cosine",
    "Feature",
    "RowScaling",
    "TapParameters",
    "TimeUnit",
    "affinity",
    "spectral_embedding",
    "tap_clusters",
]

Floats: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]


class TimeUnit(StrEnum):
    """What the temporal similarity ``exp(-|t_k - t_h|)`` measures time in."""

    STEP = "step"
    """Sampling steps: neighbours have 0.37."""

    TIMESTEP = "timestep"
    """Timesteps of the noise schedule: 50 between neighbours of 20 steps, so that all similarity
    between steps vanishes."""

    FRACTION = "fraction"
    """Share of the pool's span of timesteps: the ends of a trajectory have 0.37."""


class Cosine(StrEnum):
    """What becomes of negative cosines; an affinity is never negative."""

    CLIP = "clip"
    """They become 0."""

    SHIFT = "shift"
    """Cosines become ``(1 + cos) / 2``."""

    ABSOLUTE = "absolute"
    """They lose their sign."""


class Affinity(StrEnum):
    """Between which samples the affinity is."""

    RECTANGULAR = "rectangular"
    """All N candidates against the n of a subset."""

    SQUARE = "square"
    """The n of a subset among themselves; only they can be chosen."""


class Combination(StrEnum):
    """How the clusterings of the subsets become one choice."""

    CONCATENATE = "concatenate"
    """Embeddings side by side, clustered once."""

    CONSENSUS = "consensus"
    """Each embedding is clustered; memberships side by side are clustered again."""

    DRAWS = "draws"
    """Each embedding is clustered, and an equal part of the samples is drawn from each."""


class Feature(StrEnum):
    """What the spatial similarity compares."""

    LATENT = "latent"
    """The latents x_t."""

    GIVEN = "given"
    """The features that the pool brings."""


class RowScaling(StrEnum):
    """How rows of singular vectors are scaled before k-means."""

    UNIT = "unit"
    """To length 1 (Ng, Jordan, Weiss 2001)."""

    DEGREE = "degree"
    """By the inverse root of the row's degree (Dhillon 2001)."""

    NONE = "none"
    """Not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TapParameters:
    """What the paper says of TAP (first five), and what it leaves open.

    Args:
        alpha: Weight of the cosine; the temporal term has the rest.
        subsets: Random subsets m, each clustered on its own.
        fraction: Size of a subset as a share of the candidates. A subset has at least as many
            samples as there are clusters, since an embedding has no more vectors than it has
            columns.
        clusters: k. Never more than the samples wanted: further clusters would stay without one.
        restarts: Of k-means; the best is kept. One start often splits a clear cluster.
        vectors: Leading singular vectors of an embedding; ``None`` for as many as clusters, as
            the paper seems to mean by "top-k".
        time_unit: Steps by default. With raw timesteps the temporal term is an identity matrix,
            with fractions nearly constant; only steps let it do what its name says.
        cosine: Clipped by default. A latent opposite to another is no more alike than an
            unrelated one; shifting gives unrelated latents, which are most pairs of noise, an
            affinity of 1/2, and the clusters drown in it.
        affinity: Rectangular by default. The Laplacian with degrees of rows and of columns is
            that of a bipartite graph, and every candidate gets a place.
        combination: Concatenated by default. Cluster numbers of different subsets do not match,
            embeddings need not; and it takes one k-means instead of m.
        feature: Latents by default: no other feature is known without running the model once
            more.
        row_scaling: To unit length by default, as usual before k-means: without it samples of
            high degree dominate.
        candidate_steps: Steps that samples may come from, for example only those that refresh
            the cache; ``None`` for all. All by default: embedders and modulations run at every
            step, whatever the cache does.

    Raises:
        ConfigError: A number is out of range, or square affinities shall be combined otherwise
            than by draws (their clusterings cover different samples).
    """

    alpha: float = 0.5
    subsets: int = 3
    fraction: float = 0.05
    clusters: int = 100
    restarts: int = 4
    vectors: int | None = None
    time_unit: TimeUnit = TimeUnit.STEP
    cosine: Cosine = Cosine.CLIP
    affinity: Affinity = Affinity.RECTANGULAR
    combination: Combination = Combination.CONCATENATE
    feature: Feature = Feature.LATENT
    row_scaling: RowScaling = RowScaling.UNIT
    candidate_steps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1 or not 0 < self.fraction <= 1:
            raise ConfigError(
                "TAP has alpha in 0..1 and a fraction above 0 and up to 1, got "
                f"alpha={self.alpha}, fraction={self.fraction}"
            )
        vectors = 1 if self.vectors is None else self.vectors
        if min(self.subsets, self.clusters, self.restarts, vectors) < 1:
            raise ConfigError(
                "TAP has at least one subset, cluster, restart and vector, got "
                f"subsets={self.subsets}, clusters={self.clusters}, restarts={self.restarts}, "
                f"vectors={self.vectors}"
            )
        if self.affinity is Affinity.SQUARE and self.combination is not Combination.DRAWS:
            raise ConfigError(
                "square affinities cover different samples per subset and combine only by "
                f"'draws', got {self.combination.value!r}"
            )


def tap_clusters(
    features: Floats, times: Floats, rng: np.random.Generator, parameters: TapParameters
) -> list[Indices]:
    """Cluster samples.

    Args:
        features: Compared by their cosines, shape (n, d).
        times: In the unit that counts, shape (n,).
        rng: Draws subsets and starts k-means.
        parameters: What to do; unit of time, feature and candidates are settled already.

    Returns:
        Clusterings to draw from, one unless these are combined by draws: the cluster of each
        sample, shape (n,), -1 for samples outside a square affinity.

    Raises:
        CalibrationError: There are fewer samples than clusters.
    """
    total, clusters = len(features), parameters.clusters
    if total < clusters:
        raise CalibrationError(
            f"{clusters} clusters need as many samples, the pool has {total}; record more "
            "trajectories, or set fewer clusters"
        )
    size = min(total, max(round(parameters.fraction * total), clusters))
    found = []
    for _ in range(parameters.subsets):
        columns = np.sort(rng.choice(total, size, replace=False))
        square = parameters.affinity is Affinity.SQUARE
        rows = columns if square else np.arange(total)
        similar = affinity(
            features[rows], times[rows], features[columns], times[columns], parameters
        )
        vectors = parameters.vectors or clusters
        found.append((rows, spectral_embedding(similar, vectors, parameters.row_scaling)))
    if parameters.combination is Combination.CONCATENATE:
        together = np.concatenate([embedding for _, embedding in found], axis=1)
        return [_k_means(together, parameters, rng)]
    clusterings = []
    for rows, embedding in found:
        labels = np.full(total, -1, dtype=np.int64)
        labels[rows] = _k_means(embedding, parameters, rng)
        clusterings.append(labels)
    if parameters.combination is Combination.DRAWS:
        return clusterings
    members = [np.eye(clusters)[labels] for labels in clusterings]
    return [_k_means(np.concatenate(members, axis=1), parameters, rng)]


def affinity(
    row_features: Floats,
    row_times: Floats,
    column_features: Floats,
    column_times: Floats,
    parameters: TapParameters,
) -> Floats:
    """Return ``alpha cos(x_k, x_h) + (1 - alpha) exp(-|t_k - t_h|)``, shape (rows, columns).

    The cosine with a vector of zeros is 0.

    Args:
        row_features: Shape (rows, d).
        row_times: Shape (rows,), in the unit that counts.
        column_features: Shape (columns, d).
        column_times: Shape (columns,).
        parameters: ``alpha`` and ``cosine`` of them.
    """
    cosine = _unit_rows(row_features) @ _unit_rows(column_features).T
    match parameters.cosine:
        case Cosine.CLIP:
            cosine = np.maximum(cosine, 0.0)
        case Cosine.SHIFT:
            cosine = np.maximum((1 + cosine) / 2, 0.0)
        case Cosine.ABSOLUTE:
            cosine = np.abs(cosine)
    temporal = np.exp(-np.abs(row_times[:, None] - column_times[None, :]))
    similar: Floats = parameters.alpha * cosine + (1 - parameters.alpha) * temporal
    return similar


def spectral_embedding(similar: Floats, vectors: int, row_scaling: RowScaling) -> Floats:
    """Embed the rows of a bipartite graph.

    Left singular vectors of ``D_r^-1/2 A D_c^-1/2``, those of the largest singular values first,
    each with its largest entry positive. Rows and columns without any affinity are left at 0.

    Args:
        similar: Affinities A, not negative, shape (rows, columns).
        vectors: How many; fewer where the matrix has no more.
        row_scaling: Of the result's rows.

    Returns:
        Shape (rows, vectors).

    Reference:
        I. Dhillon, Co-clustering documents and words using bipartite spectral graph
        partitioning, KDD 2001.
    """
    rows, columns = _inverse_root(similar.sum(axis=1)), _inverse_root(similar.sum(axis=0))
    scaled = rows[:, None] * similar * columns[None, :]
    left: Floats = np.linalg.svd(scaled, full_matrices=False)[0][:, :vectors]
    largest = np.abs(left).argmax(axis=0)
    left = left * np.where(left[largest, np.arange(left.shape[1])] < 0, -1.0, 1.0)
    match row_scaling:
        case RowScaling.UNIT:
            return _unit_rows(left)
        case RowScaling.DEGREE:
            left = rows[:, None] * left
        case RowScaling.NONE:
            pass
    return left


def _inverse_root(degrees: Floats) -> Floats:
    connected = degrees > 0
    root: Floats = np.where(connected, 1 / np.sqrt(np.where(connected, degrees, 1.0)), 0.0)
    return root


def _unit_rows(matrix: Floats) -> Floats:
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    scaled: Floats = matrix / np.where(norms > 0, norms, 1.0)
    return scaled


def _k_means(points: Floats, parameters: TapParameters, rng: np.random.Generator) -> Indices:
    try:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise ConfigError(
            "TAP clusters with scikit-learn, which is not installed; "
            "pip install 'lutwise[diffusion]'"
        ) from error
    model = KMeans(
        n_clusters=parameters.clusters,
        n_init=parameters.restarts,
        random_state=int(rng.integers(1 << 31)),
    )
    with warnings.catch_warnings():
        # Fewer distinct points than clusters: some clusters stay empty, and nothing is lost.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(model.fit_predict(points), dtype=np.int64)
