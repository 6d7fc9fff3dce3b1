# SPDX-License-Identifier: Apache-2.0
"""How far samples are from others: as sets (Frechet distance) and one by one (MSE, PSNR)."""

from dataclasses import dataclass
from math import inf, log10, sqrt
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lutwise.errors import DataError

__all__ = ["Estimate", "frechet_distance", "frechet_estimate", "paired_mse", "psnr"]

Floats: TypeAlias = npt.NDArray[np.float64]

BLOCKS: Final = 10
"""Parts that the jackknife leaves out one at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number and how far it would move with other samples.

    Args:
        value: The estimate.
        standard_error: Its standard deviation over draws of the samples.
    """

    value: float
    standard_error: float


def frechet_distance(samples: Tensor, reference: Tensor) -> float:
    """Return the squared Frechet distance between two normal distributions fitted to features.

    ``|m_a - m_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^1/2)``. The last trace is the sum of the
    singular values of ``R_a R_b^T``, where ``R^T R = C`` comes from a QR decomposition of the
    centred features. No covariance is formed and no root of a small, perhaps negative, number
    taken, so that singular covariances (fewer samples than features, dead features) do no harm.

    With few samples the distance is too large, by about a constant over their number: two draws of
    the same distribution are not at 0. Compare only distances from equally many samples;
    `frechet_estimate` takes most of this bias off.

    Args:
        samples: Features, shape (n, d), n >= 2.
        reference: Features, shape (m, d), m >= 2.

    Raises:
        DataError: Shapes do not fit, or a feature is NaN or infinite.

    Reference:
        GANs Trained by a Two Time-Scale Update Rule, arXiv 1706.08500, equation 6.
    """
    a, b = _features(samples, "samples"), _features(reference, "reference")
    if a.shape[1] != b.shape[1]:
        raise DataError(f"both sets have the same features, got {a.shape[1]} and {b.shape[1]}")
    return _frechet(a, b)


def frechet_estimate(samples: Tensor, reference: Tensor, *, seed: int = 0) -> Estimate:
    """Return the Frechet distance with its bias of order 1/n taken off, and its spread.

    A jackknife: both sets are split at random into ten blocks, and the distance is computed
    without each. (Resampling with replacement would not do: repeated samples narrow covariances,
    and the distance grows.) The value may fall below 0 where the sets do not differ.

    Args:
        samples: Features, shape (n, d), n >= 20.
        reference: Features, shape (m, d), m >= 20.
        seed: Of the split.

    Raises:
        DataError: As `frechet_distance`, or there are too few samples.

    Reference:
        B. Efron, C. Stein, The Jackknife Estimate of Variance, Annals of Statistics 9 (1981).
    """
    whole = frechet_distance(samples, reference)
    a, b = _features(samples, "samples"), _features(reference, "reference")
    if min(len(a), len(b)) < 2 * BLOCKS:
        raise DataError(
            f"a spread needs at least {2 * BLOCKS} samples and references, got {len(a)} and "
            f"{len(b)}"
        )
    rng = np.random.default_rng(seed)
    block_a, block_b = (rng.permutation(len(x)) % BLOCKS for x in (a, b))
    without = np.array([_frechet(a[block_a != k], b[block_b != k]) for k in range(BLOCKS)])
    spread = (BLOCKS - 1) / BLOCKS * float(((without - without.mean()) ** 2).sum())
    return Estimate(
        value=BLOCKS * whole - (BLOCKS - 1) * float(without.mean()),
        standard_error=sqrt(spread),
    )


def paired_mse(samples: Tensor, reference: Tensor) -> Estimate:
    """Return the mean squared difference of pairs made from the same noise.

    Args:
        samples: Shape (n, ...).
        reference: The same shape.

    Raises:
        DataError: Shapes differ, there are fewer than two pairs, or something is NaN or infinite.
    """
    each = _squared_errors(samples, reference)
    if len(each) < 2:
        raise DataError("a spread needs at least two pairs, got one; `psnr` takes a single pair")
    return Estimate(
        value=float(each.mean()), standard_error=float(each.std(ddof=1)) / sqrt(len(each))
    )


def psnr(samples: Tensor, reference: Tensor, *, peak: float = 2.0) -> float:
    """Return the peak signal-to-noise ratio of all pairs together in dB; infinite if equal.

    Args:
        samples: Shape (n, ...).
        reference: The same shape.
        peak: Width of the range of values, 2 for images in [-1, 1].

    Raises:
        DataError: Shapes differ, there is nothing, something is NaN or infinite, or the peak is
            not positive.
    """
    if not peak > 0:
        raise DataError(f"a peak is positive, got {peak}")
    error = float(_squared_errors(samples, reference).mean())
    return 10 * log10(peak**2 / error) if error else inf


def _squared_errors(samples: Tensor, reference: Tensor) -> Floats:
    """Return the mean squared difference of each pair, shape (n,)."""
    if samples.shape != reference.shape or not samples.numel():
        raise DataError(
            f"pairs have one shape (n, ...), got {tuple(samples.shape)} and "
            f"{tuple(reference.shape)}"
        )
    a, b = _finite(samples, "samples"), _finite(reference, "references")
    each: Floats = ((a - b) ** 2).reshape(len(a), -1).mean(axis=1)
    return each


def _frechet(a: Floats, b: Floats) -> float:
    mean_a, root_a = _mean_and_root(a)
    mean_b, root_b = _mean_and_root(b)
    shared = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    spread = (root_a**2).sum() + (root_b**2).sum() - 2 * shared
    # Never negative but for rounding.
    return max(0.0, float(((mean_a - mean_b) ** 2).sum() + spread))


def _mean_and_root(x: Floats) -> tuple[Floats, Floats]:
    mean: Floats = x.mean(axis=0)
    _, root = np.linalg.qr((x - mean) / sqrt(len(x) - 1))
    return mean, root


def _features(x: Tensor, what: str) -> Floats:
    if x.ndim != 2 or len(x) < 2 or not x.shape[1]:
        raise DataError(f"{what} have features of shape (n, d) with n >= 2, got {tuple(x.shape)}")
    return _finite(x, what)


def _finite(x: Tensor, what: str) -> Floats:
    values: Floats = x.detach().cpu().double().numpy()
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} of {len(values)} {what} are NaN or infinite, the first at "
            f"{int(bad.argmax())}; look at the model that made them"
        )
    return values
