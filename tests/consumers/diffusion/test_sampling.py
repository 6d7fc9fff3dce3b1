# SPDX-License-Identifier: Apache-2.0
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lutwise.consumers.diffusion.forecast import Reuse
from lutwise.consumers.diffusion.model import SCHEDULER_DEFAULTS, Dit
from lutwise.consumers.diffusion.sampling import (
    Caching,
    Sampler,
    Samples,
    SamplingSettings,
    batch_generator,
    build_scheduler,
    sample,
)
from lutwise.consumers.diffusion.schedule import CacheSchedule
from lutwise.consumers.diffusion.stock import AutoencoderKL
from lutwise.errors import ConfigError, ModelError

LABELS = torch.tensor([0, 3, 4, 1, 1])


def pipeline_latents(
    dit: Dit, settings: SamplingSettings, monkeypatch: pytest.MonkeyPatch
) -> torch.Tensor:
    """What the stock pipeline makes, with the noise of the first batch."""
    from diffusers import DiTPipeline

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=2, scaling_factor=1.0
    )
    scheduler = build_scheduler(dit.scheduler, settings.sampler)
    generator = batch_generator(settings.seed, 0)
    # The pipeline takes the noise of its steps from the global generator.
    step = functools.partial(scheduler.step, generator=generator)
    if settings.sampler is Sampler.DDIM:
        step = functools.partial(step, eta=settings.eta)
    monkeypatch.setattr(scheduler, "step", step)
    seen: list[torch.Tensor] = []
    decode = vae.decode

    def see(latents: torch.Tensor) -> Any:
        seen.append(latents)
        return decode(latents)

    monkeypatch.setattr(vae, "decode", see)
    pipeline = DiTPipeline(dit.transformer, vae, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    # It writes 1000 for the null class, which only models of 1000 classes have.
    table = dit.transformer.transformer_blocks[0].norm1.emb.class_embedder.num_classes  # type: ignore
    assert table == 1000 or settings.guidance == 1
    pipeline(
        LABELS.tolist(),
        guidance_scale=settings.guidance,
        generator=generator,
        num_inference_steps=settings.steps,
        output_type="pt",
    )
    return seen[0]


@pytest.mark.parametrize("scheduled", [False, True], ids=["plain", "no-op schedule"])
@pytest.mark.parametrize(
    "settings",
    [
        SamplingSettings(steps=5, sampler=Sampler.DDIM),
        SamplingSettings(steps=5, sampler=Sampler.DDIM, eta=0.5, seed=3),
        SamplingSettings(steps=5, sampler=Sampler.DDIM, guidance=4.0),
        SamplingSettings(steps=7, sampler=Sampler.DDPM, seed=1),
        SamplingSettings(steps=7, sampler=Sampler.DDPM, guidance=1.5),
    ],
    ids=["ddim", "ddim-eta", "ddim-guided", "ddpm", "ddpm-guided"],
)
def test_samples_are_those_of_the_stock_pipeline(
    make_dit: Callable[..., Dit],
    settings: SamplingSettings,
    scheduled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dit = make_dit(num_embeds_ada_norm=1000)
    schedule = CacheSchedule.none(steps=settings.steps, blocks=3)
    caching = Caching(schedule=schedule, forecaster=Reuse) if scheduled else None
    found = sample(dit.transformer, dit.scheduler, LABELS, settings, caching=caching)
    assert torch.equal(found.latents, pipeline_latents(dit, settings, monkeypatch))


def test_model_without_variance_is_the_pipelines_too(
    make_dit: Callable[..., Dit], monkeypatch: pytest.MonkeyPatch
) -> None:
    dit = make_dit(out_channels=2)
    settings = SamplingSettings(steps=4)
    found = sample(dit.transformer, dit.scheduler, LABELS, settings)
    assert torch.equal(found.latents, pipeline_latents(dit, settings, monkeypatch))


def test_guidance_uses_the_null_class_of_the_model(dit: Dit) -> None:
    """With the null class's embedding set to another class's, guiding to that class is no-op."""
    net = dit.transformer
    for block in net.transformer_blocks:  # type: ignore[union-attr]
        table = block.norm1.emb.class_embedder.embedding_table.weight
        table[5] = table[2]
    labels = torch.tensor([2, 2])
    settings = SamplingSettings(steps=3, sampler=Sampler.DDIM)
    guided = SamplingSettings(steps=3, sampler=Sampler.DDIM, guidance=7.0)
    plain = sample(net, dit.scheduler, labels, settings).latents
    torch.testing.assert_close(sample(net, dit.scheduler, labels, guided).latents, plain)


def draw(dit: Dit, settings: SamplingSettings, **more: Any) -> Samples:
    return sample(dit.transformer, dit.scheduler, LABELS, settings, **more)


def test_noise_is_paired_between_models(make_dit: Callable[..., Dit]) -> None:
    settings = SamplingSettings(steps=3, batch=2)
    first = draw(make_dit(0), settings, record=True)
    second = draw(make_dit(1), settings, record=True)
    assert first.trajectory is not None
    assert second.trajectory is not None
    assert torch.equal(first.trajectory[0], second.trajectory[0])
    assert not torch.equal(first.latents, second.latents)
    # Each batch has noise of its own.
    assert not torch.equal(first.trajectory[0, :2], first.trajectory[0, 2:4])


def test_seeds_differ(dit: Dit) -> None:
    one = draw(dit, SamplingSettings(steps=2, seed=1)).latents
    assert torch.equal(one, draw(dit, SamplingSettings(steps=2, seed=1)).latents)
    assert not torch.equal(one, draw(dit, SamplingSettings(steps=2, seed=2)).latents)


def test_cache_is_kept_per_batch(dit: Dit) -> None:
    """A batch after another gives what it gives alone."""
    caching = Caching(schedule=CacheSchedule.every(3, steps=6, blocks=3), forecaster=Reuse)
    settings = SamplingSettings(steps=6, batch=5)
    twice = sample(
        dit.transformer, dit.scheduler, LABELS.repeat(2), settings, caching=caching
    ).latents
    once = draw(dit, settings, caching=caching).latents
    assert torch.equal(twice[:5], once)
    assert not torch.equal(once, draw(dit, settings).latents)


def test_guided_batches_are_cached(dit: Dit) -> None:
    caching = Caching(schedule=CacheSchedule.every(2, steps=4, blocks=3), forecaster=Reuse)
    settings = SamplingSettings(steps=4, guidance=2.0)
    found = draw(dit, settings, caching=caching).latents
    assert found.shape == (5, 2, 4, 4)
    assert not torch.equal(found, draw(dit, settings).latents)


def test_trajectory_is_what_the_model_was_given(dit: Dit) -> None:
    given: list[torch.Tensor] = []

    def see(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        given.append(args[0])

    dit.transformer.register_forward_pre_hook(see)
    found = draw(dit, SamplingSettings(steps=3), record=True)
    assert found.trajectory is not None
    assert torch.equal(found.trajectory, torch.stack(given))
    assert found.timesteps == (666, 333, 0)


def test_pool_names_the_step_of_each_latent(dit: Dit) -> None:
    found = draw(dit, SamplingSettings(steps=3, batch=2), record=True)
    pool = found.pool()
    assert len(pool) == 15
    assert found.trajectory is not None
    for k in range(15):
        step = int(pool.steps[k])
        assert torch.equal(pool.latents[k], found.trajectory[step, k % 5])
        assert pool.timesteps[k] == found.timesteps[step]
        assert pool.labels[k] == LABELS[k % 5]


def test_pool_needs_a_trajectory(dit: Dit) -> None:
    with pytest.raises(ConfigError, match="sample with record=True"):
        draw(dit, SamplingSettings(steps=2)).pool()


def test_corrector_stands_before_model_and_scheduler(dit: Dit) -> None:
    class Halve:
        def apply(self, latents: torch.Tensor, step: int) -> torch.Tensor:
            return latents / 2 if step == 1 else latents

        def finish(self, latents: torch.Tensor) -> torch.Tensor:
            return 3 * latents

    settings = SamplingSettings(steps=3, sampler=Sampler.DDIM)
    plain = draw(dit, settings, record=True).trajectory
    made = draw(dit, settings, corrector=Halve(), record=True)
    found = made.trajectory
    assert plain is not None
    assert found is not None
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[1], plain[1] / 2)
    scheduler = build_scheduler(dit.scheduler, Sampler.DDIM)
    scheduler.set_timesteps(3)
    time = scheduler.timesteps[1]
    output = dit.transformer(found[1], timestep=time.expand(5), class_labels=LABELS).sample[:, :2]
    assert torch.equal(found[2], scheduler.step(output, time, found[1]).prev_sample)
    time = scheduler.timesteps[2]
    output = dit.transformer(found[2], timestep=time.expand(5), class_labels=LABELS).sample[:, :2]
    assert torch.equal(made.latents, 3 * scheduler.step(output, time, found[2]).prev_sample)


def test_progress_is_told(dit: Dit) -> None:
    shares: list[float] = []

    def tell(step: str, share: float | None = None) -> None:
        assert share is not None
        shares.append(share)

    draw(dit, SamplingSettings(steps=4, batch=3), tell=tell)
    assert shares == [k / 8 for k in range(8)]


def test_nan_latents_name_the_step(dit: Dit) -> None:
    class Break:
        def apply(self, latents: torch.Tensor, step: int) -> torch.Tensor:
            return latents * torch.nan if step == 2 else latents

        def finish(self, latents: torch.Tensor) -> torch.Tensor:
            return latents

    with pytest.raises(ModelError, match=r"step 2 of 4 \(timestep 250\) made 160 of 160 numbers"):
        draw(dit, SamplingSettings(steps=4), corrector=Break())


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (CacheSchedule.every(2, steps=20, blocks=3), "for 20 steps and sampling takes 5"),
        (CacheSchedule.every(2, steps=5, blocks=28), "for 28 blocks and the model has 3"),
    ],
)
def test_other_schedule_is_refused(dit: Dit, schedule: CacheSchedule, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        draw(dit, SamplingSettings(steps=5), caching=Caching(schedule=schedule, forecaster=Reuse))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 5]), "classes 0 .. 4, got 0 .. 5"),
        (torch.tensor([-1]), "classes 0 .. 4, got -1 .. -1"),
        (torch.tensor([0.5]), "int64 of shape"),
        (torch.zeros(0, dtype=torch.int64), "at least one sample"),
    ],
)
def test_bad_labels_are_refused(dit: Dit, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sample(dit.transformer, dit.scheduler, labels, SamplingSettings(steps=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "at least one step"),
        ({"batch": 0}, "batches of at least one"),
        ({"seed": -1}, "a seed of at least 0"),
        ({"guidance": 0.5}, "scale of at least 1, got 0.5"),
        ({"guidance": float("nan")}, "scale of at least 1, got nan"),
        ({"eta": 0.5}, "noise of DDIM, 0 .. 1, got 0.5 for ddpm"),
        ({"eta": 2.0, "sampler": Sampler.DDIM}, "noise of DDIM, 0 .. 1, got 2.0"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingSettings(**{"steps": 4, **changes})


def test_more_steps_than_trained_are_refused(dit: Dit) -> None:
    with pytest.raises(ConfigError, match="has 1000 timesteps, got 1001 steps"):
        draw(dit, SamplingSettings(steps=1001))


def test_learned_variance_is_refused_where_it_would_be_used() -> None:
    config = {**SCHEDULER_DEFAULTS, "variance_type": "learned_range"}
    with pytest.raises(ConfigError, match="'learned_range', but sampling uses the predicted noise"):
        build_scheduler(config, Sampler.DDPM)
    build_scheduler(config, Sampler.DDIM)


def test_odd_scheduler_is_refused() -> None:
    with pytest.raises(ConfigError, match="makes no ddim: "):
        build_scheduler({**SCHEDULER_DEFAULTS, "beta_schedule": "round"}, Sampler.DDIM)
