# SPDX-License-Identifier: Apache-2.0
"""The sampling loop: what ``DiTPipeline`` computes, with noise that models share.

The loop differs from the stock pipeline in what surrounds the arithmetic: all noise comes from a
generator per batch, so that two models see the same; the null class is the model's own; a
schedule, a compensation and a recorder can be put in. With none of them the results are the
pipeline's, bit for bit.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from lutwise.consumers.diffusion.caching import Cache, cached
from lutwise.consumers.diffusion.calibration import SamplePool
from lutwise.consumers.diffusion.forecast import Forecaster
from lutwise.consumers.diffusion.model import null_class
from lutwise.consumers.diffusion.schedule import CacheSchedule
from lutwise.consumers.diffusion.stock import (
    DDIMScheduler,
    DDPMScheduler,
    blocks_of,
    config_of,
    known_settings,
)
from lutwise.errors import ConfigError, ModelError
from lutwise.quant.progress import Tell, silent

__all__ = [
    "Caching",
    "Corrector",
    "Sampler",
    "Samples",
    "SamplingSettings",
    "batch_generator",
    "build_scheduler",
    "sample",
    "timesteps",
]


class Sampler(StrEnum):
    """How a step goes from noise to less noise."""

    DDPM = "ddpm"
    DDIM = "ddim"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How to sample.

    Args:
        steps: Forward passes per sample.
        sampler: Of the scheduler.
        guidance: Scale of classifier-free guidance; 1 for none, then a pass takes half the work.
        eta: Noise of DDIM, 0 for none; DDPM has its own.
        batch: Samples at a time. It decides which noise a sample gets.
        seed: Of the noise.

    Raises:
        ConfigError: Out of range.
    """

    steps: int
    sampler: Sampler = Sampler.DDPM
    guidance: float = 1.0
    eta: float = 0.0
    batch: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.seed < 0:
            raise ConfigError(
                "sampling takes at least one step, batches of at least one and a seed of at least "
                f"0, got steps={self.steps}, batch={self.batch}, seed={self.seed}"
            )
        if not 1 <= self.guidance < float("inf"):
            raise ConfigError(f"guidance is a finite scale of at least 1, got {self.guidance}")
        if not 0 <= self.eta <= 1 or (self.eta and self.sampler is not Sampler.DDIM):
            raise ConfigError(
                f"eta is the noise of DDIM, 0 .. 1, got {self.eta} for {self.sampler.value}"
            )


class Corrector(Protocol):
    """Something that corrects latents on their way."""

    def apply(self, latents: torch.Tensor, step: int) -> torch.Tensor:
        """Return the latents that the model and the scheduler get in their place.

        Args:
            latents: Shape (n, c, h, w).
            step: Index from 0, in the order of sampling.
        """
        ...

    def finish(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the finished samples that are given back in place of others.

        Args:
            latents: Shape (n, c, h, w).
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Caching:
    """What is reused, and how it is predicted.

    Args:
        schedule: What to compute when.
        forecaster: Makes what predicts one layer's output from earlier ones.
    """

    schedule: CacheSchedule
    forecaster: Callable[[], Forecaster]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """What sampling made.

    Args:
        latents: Without noise, shape (n, c, h, w).
        labels: Their classes, shape (n,).
        timesteps: Of the noise schedule, by step, descending.
        trajectory: What the model was given, shape (steps, n, c, h, w); None if not recorded.
    """

    latents: torch.Tensor
    labels: torch.Tensor
    timesteps: tuple[int, ...]
    trajectory: torch.Tensor | None

    def pool(self) -> SamplePool:
        """Return all that the model was given, for calibration.

        Raises:
            ConfigError: It was not recorded.
        """
        if self.trajectory is None:
            raise ConfigError("no trajectory was recorded; sample with record=True")
        steps, count = self.trajectory.shape[:2]
        index = torch.arange(steps).repeat_interleave(count)
        return SamplePool(
            latents=self.trajectory.flatten(0, 1),
            steps=index,
            timesteps=torch.tensor(self.timesteps)[index],
            labels=self.labels.repeat(steps),
        )


def build_scheduler(config: Mapping[str, Any], sampler: Sampler) -> Any:
    """Return a scheduler of diffusers with the noise schedule of a model.

    Args:
        config: As diffusers writes it, of any of its schedulers.
        sampler: Which scheduler to make.

    Raises:
        ConfigError: The configuration is none, or wants a variance that the model predicts, which
            ``DiTPipeline`` throws away.
    """
    stock = DDPMScheduler if sampler is Sampler.DDPM else DDIMScheduler
    if sampler is Sampler.DDPM and "learned" in str(config.get("variance_type")):
        raise ConfigError(
            f"this scheduler has variance_type {config['variance_type']!r}, but sampling uses the "
            "predicted noise alone, as DiTPipeline does; set fixed_small, or sample with ddim"
        )
    try:
        return stock(**known_settings(stock, config))
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(f"the scheduler's configuration makes no {sampler}: {error}") from error


def timesteps(scheduler: Any, steps: int) -> tuple[int, ...]:
    """Return the timesteps of a sampling run, and set the scheduler to them.

    Raises:
        ConfigError: The model was trained with fewer timesteps than steps are wanted.
    """
    trained = scheduler.config.num_train_timesteps
    if steps > trained:
        raise ConfigError(f"the model has {trained} timesteps, got {steps} steps of sampling")
    scheduler.set_timesteps(steps)
    return tuple(int(t) for t in scheduler.timesteps)


def batch_generator(seed: int, batch: int) -> torch.Generator:
    """Return the generator of all noise of a batch.

    Args:
        seed: Of the whole run.
        batch: Index of the batch.
    """
    (state,) = np.random.SeedSequence([seed, batch]).generate_state(1, np.uint64)
    # torch takes 64 bits, and the sign is one of them.
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


@torch.no_grad()
def sample(
    transformer: nn.Module,
    scheduler: Mapping[str, Any],
    labels: torch.Tensor,
    settings: SamplingSettings,
    *,
    caching: Caching | None = None,
    corrector: Corrector | None = None,
    record: bool = False,
    tell: Tell = silent,
) -> Samples:
    """Make samples of given classes.

    Args:
        transformer: A DiT, quantized or not.
        scheduler: Configuration of its noise schedule.
        labels: Classes, shape (n,).
        settings: How to sample.
        caching: What to reuse; None for nothing.
        corrector: Corrects the latents before each step, and after the last.
        record: Keep what the model is given at each step.
        tell: Told at each step how much is done.

    Raises:
        ConfigError: A class that the model has not, guidance without a null class, a schedule for
            other steps or blocks.
        ModelError: Latents became NaN or infinite; the message names the step.
    """
    _check_labels(transformer, labels)
    stepper = build_scheduler(scheduler, settings.sampler)
    times = timesteps(stepper, settings.steps)
    if caching is not None:
        blocks = len(blocks_of(transformer))
        caching.schedule.check(steps=len(times), blocks=blocks)
    parts = labels.split(settings.batch)
    done, total = 0, len(parts) * len(times)
    made, recorded = [], []
    for index, part in enumerate(parts):
        with ExitStack() as stack:
            cache = None
            if caching is not None:
                cache = stack.enter_context(
                    cached(transformer, caching.schedule, caching.forecaster)
                )
            loop = _Batch(transformer, stepper, part, settings, index, cache, corrector)
            path: list[torch.Tensor] = []
            for step in range(len(times)):
                tell("sample", done / total)
                given = loop.advance(step)
                done += 1
                if record:
                    path.append(given)
        made.append(loop.latents if corrector is None else corrector.finish(loop.latents))
        if record:
            recorded.append(torch.stack(path))
    return Samples(
        latents=torch.cat(made),
        labels=labels,
        timesteps=times,
        trajectory=torch.cat(recorded, dim=1) if record else None,
    )


class _Batch:
    """A batch of samples on its way."""

    def __init__(
        self,
        transformer: nn.Module,
        scheduler: Any,
        labels: torch.Tensor,
        settings: SamplingSettings,
        index: int,
        cache: Cache | None,
        corrector: Corrector | None,
    ) -> None:
        config = config_of(transformer)
        self._transformer, self._scheduler, self._settings = transformer, scheduler, settings
        self._cache, self._corrector = cache, corrector
        self._channels = int(config.in_channels)
        self._learned_sigma = int(config.out_channels or 0) // 2 == self._channels
        self._guided = settings.guidance > 1
        self._labels = labels
        if self._guided:
            null = torch.full_like(labels, null_class(transformer))
            self._labels = torch.cat([labels, null])
        self._generator = batch_generator(settings.seed, index)
        size = int(config.sample_size)
        self.latents = torch.randn(
            len(labels), self._channels, size, size, generator=self._generator
        )

    def advance(self, step: int) -> torch.Tensor:
        """Take one step; return what the model was given."""
        if self._corrector is not None:
            self.latents = self._corrector.apply(self.latents, step)
        given = self.latents
        time = self._scheduler.timesteps[step]
        if self._cache is not None:
            self._cache.begin(step)
        self.latents = self._step(given, time)
        bad = int((~torch.isfinite(self.latents)).sum())
        if bad:
            raise ModelError(
                f"step {step} of {self._settings.steps} (timestep {int(time)}) made {bad} of "
                f"{self.latents.numel()} numbers NaN or infinite; check the model, the scheduler "
                "and the correction, if there is one"
            )
        return given

    def _step(self, given: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        settings = self._settings
        # Both halves take the scheduler's step, each with noise, and the second is dropped: so
        # does the stock pipeline, and the same generator then gives the same noise.
        latents = torch.cat([given, given]) if self._guided else given
        latents = self._scheduler.scale_model_input(latents, time)
        output = self._transformer(
            latents, timestep=time.expand(len(latents)), class_labels=self._labels
        ).sample
        if self._guided:
            noise, rest = output[:, : self._channels], output[:, self._channels :]
            wanted, unwanted = noise.chunk(2)
            guided = unwanted + settings.guidance * (wanted - unwanted)
            output = torch.cat([torch.cat([guided, guided]), rest], dim=1)
        if self._learned_sigma:
            output = output[:, : self._channels]
        more = {"eta": settings.eta} if settings.sampler is Sampler.DDIM else {}
        after: torch.Tensor = self._scheduler.step(
            output, time, latents, generator=self._generator, **more
        ).prev_sample
        return after[: len(given)]


def _check_labels(transformer: nn.Module, labels: torch.Tensor) -> None:
    classes = int(config_of(transformer).num_embeds_ada_norm)
    if labels.dim() != 1 or labels.dtype != torch.int64 or not len(labels):
        raise ConfigError(
            f"labels are classes of at least one sample, int64 of shape (n,), got "
            f"{labels.dtype} of shape {tuple(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ConfigError(
            f"the model has classes 0 .. {classes - 1}, got {int(labels.min())} .. "
            f"{int(labels.max())}"
        )
