# SPDX-License-Identifier: Apache-2.0
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from lutwise.consumers.diffusion.classifier import FeatureClassifier
from lutwise.consumers.diffusion.metrics import (
    frechet_distance,
    frechet_estimate,
    paired_mse,
    psnr,
)
from lutwise.errors import ConfigError, DataError, ModelError


def features(count: int, width: int, seed: int, *, mix: bool = True) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, width))
    if mix:
        x = x @ rng.standard_normal((width, width)) + rng.standard_normal(width)
    return torch.from_numpy(x)


def textbook(a: torch.Tensor, b: torch.Tensor) -> float:
    x, y = a.numpy(), b.numpy()
    ca, cb = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(ca @ cb)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root.real))


@pytest.mark.property
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), width=st.integers(2, 8), count=st.integers(20, 60))
def test_frechet_distance_is_the_textbook_one(seed: int, width: int, count: int) -> None:
    a, b = features(count, width, seed), features(count + 7, width, seed + 1)
    assert frechet_distance(a, b) == pytest.approx(textbook(a, b), rel=1e-6, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_frechet_distance_of_known_normals() -> None:
    """Axis-aligned: squared differences of means and of standard deviations."""
    signs = torch.tensor([[s, t] for s in (-1.0, 1.0) for t in (-1.0, 1.0)], dtype=torch.float64)
    scale = (3 / 4) ** 0.5  # of 4 samples at +-1 the variance is 4/3
    a = signs * scale
    b = signs * scale * torch.tensor([3.0, 0.5]) + torch.tensor([1.0, -2.0])
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (3 - 1) ** 2 + (1 - 0.5) ** 2)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_of_singular_covariances() -> None:
    a, b = features(5, 30, 0), features(5, 30, 1)
    dead = torch.zeros(5, 3, dtype=torch.float64)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    wide = frechet_distance(torch.cat([a, dead], 1), torch.cat([b, dead], 1))
    assert wide == pytest.approx(frechet_distance(a, b), rel=1e-9)
    turn = torch.linalg.qr(features(30, 30, 2, mix=False))[0]
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(wide, rel=1e-9)


def test_small_samples_are_too_far_apart_and_the_jackknife_mends_most_of_it() -> None:
    plain, mended, errors = [], [], []
    for seed in range(30):
        a = features(200, 8, 2 * seed, mix=False)
        b = features(200, 8, 2 * seed + 1, mix=False)
        plain.append(frechet_distance(a, b))
        found = frechet_estimate(a, b)
        mended.append(found.value)
        errors.append(found.standard_error)
    assert np.mean(plain) > 0.05
    assert abs(np.mean(mended)) < np.mean(plain) / 5
    assert 0.5 < np.mean(errors) / np.std(mended) < 2


def test_estimate_sees_a_true_distance_and_repeats() -> None:
    a, b = features(400, 4, 0, mix=False), features(400, 4, 1, mix=False) + 1
    found = frechet_estimate(a, b, seed=3)
    assert found == frechet_estimate(a, b, seed=3)
    assert abs(found.value - 4) < 4 * found.standard_error


def test_paired_mse_and_psnr() -> None:
    reference = torch.zeros(4, 1, 2, 2)
    samples = torch.tensor([0.1, 0.1, 0.3, 0.3]).reshape(4, 1, 1, 1).expand(4, 1, 2, 2)
    found = paired_mse(samples, reference)
    assert found.value == pytest.approx(0.05)
    assert found.standard_error == pytest.approx(np.std([0.01, 0.01, 0.09, 0.09], ddof=1) / 2)
    assert psnr(samples, reference) == pytest.approx(10 * np.log10(4 / 0.05), rel=1e-6)
    assert psnr(samples, reference, peak=1.0) == pytest.approx(10 * np.log10(1 / 0.05), rel=1e-6)
    assert psnr(samples[:1], reference[:1]) == pytest.approx(10 * np.log10(4 / 0.01), rel=1e-6)
    assert psnr(samples, samples) == inf


def test_metrics_refuse() -> None:
    good = features(30, 4, 0)
    bad = good.clone()
    bad[7, 2] = torch.nan
    with pytest.raises(DataError, match="1 of 30 reference are NaN or infinite, the first at 7"):
        frechet_distance(good, bad)
    with pytest.raises(DataError, match="the same features, got 4 and 3"):
        frechet_distance(good, good[:, :3])
    with pytest.raises(DataError, match=r"shape \(n, d\) with n >= 2, got \(1, 4\)"):
        frechet_distance(good[:1], good)
    with pytest.raises(DataError, match="at least 20 samples and references, got 30 and 19"):
        frechet_estimate(good, good[:19])
    with pytest.raises(DataError, match=r"one shape \(n, ...\)"):
        paired_mse(good, good[:5])
    with pytest.raises(DataError, match="at least two pairs"):
        paired_mse(good[:1], good[:1])
    with pytest.raises(DataError, match="a peak is positive, got 0"):
        psnr(good, good, peak=0.0)


def test_classifier_is_small_and_comes_back_from_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = FeatureClassifier().eval()
    assert sum(p.numel() for p in net.parameters()) < 60_000
    images = torch.randn(7, 1, 8, 8)
    assert net(images).shape == (7, 10)
    assert net.features(images).shape == (7, 64)
    torch.testing.assert_close(net.head(net.features(images)), net(images))
    net.save(tmp_path / "net.safetensors")
    again = FeatureClassifier.load(tmp_path / "net.safetensors")
    assert not again.training
    assert torch.equal(again.features(images), net.features(images))
    other = FeatureClassifier(classes=3, channels=2, size=12, features=5)
    other.save(tmp_path / "other.safetensors")
    assert FeatureClassifier.load(tmp_path / "other.safetensors").width == 5


def test_classifier_refuses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a multiple of 4 pixels"):
        FeatureClassifier(size=10)
    net = FeatureClassifier()
    with pytest.raises(DataError, match=r"\(n, 1, 8, 8\) with n >= 1, got \(2, 3, 8, 8\)"):
        net.features(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ModelError, match="does not exist"):
        FeatureClassifier.load(tmp_path / "none.safetensors")
    from safetensors.torch import save_file

    save_file(net.state_dict(), tmp_path / "plain.safetensors")
    with pytest.raises(ModelError, match="no file of a feature classifier"):
        FeatureClassifier.load(tmp_path / "plain.safetensors")
