# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from lutwise.consumers.diffusion.compensation import Compensation, fit
from lutwise.consumers.diffusion.forecast import Reuse
from lutwise.consumers.diffusion.model import Dit
from lutwise.consumers.diffusion.sampling import Caching, Samples, SamplingSettings, sample
from lutwise.consumers.diffusion.schedule import CacheSchedule
from lutwise.consumers.diffusion.sequential_fit import fit_in_sequence
from lutwise.errors import ConfigError

SETTINGS = SamplingSettings(steps=6, batch=40)
CACHING = Caching(schedule=CacheSchedule.every(3, steps=6, blocks=3), forecaster=Reuse)


def reference(dit: Dit) -> Samples:
    labels = torch.arange(40) % 5
    return sample(dit.transformer, dit.scheduler, labels, SETTINGS, record=True)


def variance(samples: Samples) -> torch.Tensor:
    """By step and channel."""
    assert samples.trajectory is not None
    return samples.trajectory.var(dim=(1, 3, 4))


def fitted(method: str, dit: Dit, wanted: Samples) -> tuple[Compensation, Samples]:
    """Return a compensation, and what the cached model makes with it of the same noise."""
    found = fit_in_sequence(
        method, dit.transformer, dit.scheduler, wanted, SETTINGS, caching=CACHING
    )
    again = sample(
        dit.transformer, dit.scheduler, wanted.labels, SETTINGS,
        caching=CACHING, corrector=found, record=True,
    )  # fmt: skip
    return found, again


def test_std_gives_the_trajectory_the_variances_of_the_reference(dit: Dit) -> None:
    """Exactly on the trajectories that it was fitted on, which a fit of all steps at once is not.

    The cached model is not quantized here; what disturbs it makes no difference.
    """
    wanted = reference(dit)
    found, again = fitted("std", dit, wanted)
    torch.testing.assert_close(variance(again), variance(wanted), rtol=1e-4, atol=1e-5)
    plain = sample(
        dit.transformer, dit.scheduler, wanted.labels, SETTINGS, caching=CACHING, record=True
    )
    assert (variance(plain) / variance(wanted) - 1).abs().max() > 1e-3
    assert plain.trajectory is not None
    assert wanted.trajectory is not None
    at_once = fit("std", plain.trajectory, wanted.trajectory)
    assert not torch.allclose(at_once.gain, found.gain, rtol=1e-4)


def test_moments_also_give_the_finished_samples_those_of_the_reference(dit: Dit) -> None:
    wanted = reference(dit)
    _, again = fitted("moments", dit, wanted)
    torch.testing.assert_close(variance(again), variance(wanted), rtol=1e-4, atol=1e-5)
    over = (0, 2, 3)
    torch.testing.assert_close(again.latents.mean(over), wanted.latents.mean(over))
    torch.testing.assert_close(again.latents.std(over), wanted.latents.std(over))
    plain = sample(dit.transformer, dit.scheduler, wanted.labels, SETTINGS, caching=CACHING)
    assert not torch.allclose(plain.latents.std(over), wanted.latents.std(over), rtol=1e-3)


def test_none_corrects_nothing(dit: Dit) -> None:
    found = fit_in_sequence("none", dit.transformer, dit.scheduler, reference(dit), SETTINGS)
    assert torch.equal(found.gain, torch.ones(6, 2))


def test_reference_needs_a_trajectory(dit: Dit) -> None:
    labels = torch.arange(3)
    bare = sample(dit.transformer, dit.scheduler, labels, SETTINGS)
    with pytest.raises(ConfigError, match="sample with record=True"):
        fit_in_sequence("std", dit.transformer, dit.scheduler, bare, SETTINGS)


def test_reference_is_one_batch(dit: Dit) -> None:
    settings = SamplingSettings(steps=6, batch=20)
    with pytest.raises(ConfigError, match="40 samples need a batch of as many, got 20"):
        fit_in_sequence("std", dit.transformer, dit.scheduler, reference(dit), settings)


def test_reference_has_the_same_steps(dit: Dit) -> None:
    settings = SamplingSettings(steps=7, batch=40)
    with pytest.raises(ConfigError, match="has 6 steps, the settings 7"):
        fit_in_sequence("std", dit.transformer, dit.scheduler, reference(dit), settings)
