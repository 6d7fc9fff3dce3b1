# SPDX-License-Identifier: Apache-2.0
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from lutwise.consumers.diffusion.caching import cached
from lutwise.consumers.diffusion.forecast import Reuse
from lutwise.consumers.diffusion.model import Dit
from lutwise.consumers.diffusion.schedule import CacheSchedule, Part
from lutwise.errors import ConfigError

T, F = True, False
STEPS, BLOCKS = 4, 3

# Attention of block 0 at each second step, block 1 always, block 2 at the first step alone; of the
# feed-forward layers only that of block 1 is ever left out.
MIXED = CacheSchedule(
    attention=((T, T, T), (F, T, F), (T, T, F), (F, T, F)),
    feed_forward=((T, T, T), (T, F, T), (T, F, T), (T, T, T)),
)


def inputs(seed: int, count: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(count, 2, 4, 4, generator=generator),
        "timestep": torch.full((count,), 900 - 100 * seed),
        "class_labels": torch.arange(count) % 5,
    }


@contextmanager
def counting(transformer: nn.Module) -> Iterator[Counter[str]]:
    """Count multiply-accumulates of linear layers and convolutions, by module name."""
    found: Counter[str] = Counter()

    def hook(name: str) -> Callable[..., None]:
        def count(module: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            if isinstance(module, nn.Linear | nn.Conv2d):
                found[name] += out[0].numel() * len(out) * module.weight[0].numel()

        return count

    handles = [m.register_forward_hook(hook(n)) for n, m in transformer.named_modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def macs_of(part: Part, count: int) -> int:
    """MACs of a part of a block with 16 channels and 4 tokens."""
    # queries, keys, values and the output, 16 x 16 each; 16 x 64 and 64 x 16
    return count * 4 * (4 * 16 * 16 if part is Part.ATTENTION else 2 * 16 * 64)


def part_of(name: str) -> tuple[int, Part] | None:
    words = name.split(".")
    if words[0] != "transformer_blocks" or words[2] not in ("attn1", "ff"):
        return None
    return int(words[1]), Part.ATTENTION if words[2] == "attn1" else Part.FEED_FORWARD


def test_each_step_computes_exactly_what_the_schedule_says(dit: Dit) -> None:
    net = dit.transformer
    with cached(net, MIXED, Reuse) as cache:
        for step in range(STEPS):
            cache.begin(step)
            with counting(net) as macs:
                net(**inputs(step))
            done: Counter[tuple[int, Part]] = Counter()
            always = 0
            for name, count in macs.items():
                # A wrapper has the layer under a name of its own.
                where = part_of(name)
                if where is None:
                    always += count
                else:
                    done[where] += count
            for block in range(BLOCKS):
                for part in Part:
                    wanted = macs_of(part, 2) if MIXED.computes(step, block, part) else 0
                    assert done[block, part] == wanted, (step, block, part)
            # patches 4 tokens x 16 x 8; per block two embedder layers (those of block 0 twice,
            # for the output's modulation) and adaLN; the two last layers
            embedder = 256 * 16 + 16 * 16
            assert always == 2 * (
                4 * 16 * 8 + 4 * embedder + 3 * 16 * 96 + 16 * 32 + 4 * 16 * (4 * 4)
            )


def reference(net: nn.Module, schedule: CacheSchedule, count: int = 2) -> list[torch.Tensor]:
    """The same by hooks that replace outputs: everything is computed, and some of it not used."""
    kept: dict[tuple[int, Part], torch.Tensor] = {}
    results: list[torch.Tensor] = []
    handles, now = [], 0

    def hook(block: int, part: Part) -> Callable[..., torch.Tensor]:
        def replace(module: nn.Module, args: object, out: torch.Tensor) -> torch.Tensor:
            if schedule.computes(now, block, part):
                kept[block, part] = out
            return kept[block, part]

        return replace

    for index, block in enumerate(net.transformer_blocks):  # type: ignore[arg-type]
        handles.append(block.attn1.register_forward_hook(hook(index, Part.ATTENTION)))
        handles.append(block.ff.register_forward_hook(hook(index, Part.FEED_FORWARD)))
    for step in range(schedule.steps):
        now = step
        results += [net(**inputs(step, count)).sample]
    for handle in handles:
        handle.remove()
    return results


def run(net: nn.Module, schedule: CacheSchedule, count: int = 2) -> list[torch.Tensor]:
    results = []
    with cached(net, schedule, Reuse) as cache:
        for step in range(schedule.steps):
            cache.begin(step)
            results.append(net(**inputs(step, count)).sample)
    return results


@pytest.mark.parametrize(
    "schedule", [MIXED, CacheSchedule.every(2, steps=STEPS, blocks=BLOCKS)], ids=["mixed", "fora"]
)
def test_outputs_are_those_of_replaced_layers(dit: Dit, schedule: CacheSchedule) -> None:
    wanted = reference(dit.transformer, schedule)
    plain = [dit.transformer(**inputs(step)).sample for step in range(STEPS)]
    found = run(dit.transformer, schedule)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert torch.equal(found[0], plain[0])
    assert not torch.equal(found[1], plain[1])


def test_schedule_that_keeps_nothing_leaves_the_model_alone(dit: Dit) -> None:
    before = dict(dit.transformer.named_modules())
    with cached(dit.transformer, CacheSchedule.none(steps=STEPS, blocks=BLOCKS), Reuse):
        assert dict(dit.transformer.named_modules()) == before


def test_layers_are_put_back_after_an_error(dit: Dit) -> None:
    before = dict(dit.transformer.named_modules())

    def fail() -> None:
        with cached(dit.transformer, MIXED, Reuse):
            assert dict(dit.transformer.named_modules()) != before
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert dict(dit.transformer.named_modules()) == before


def test_batches_begin_anew(dit: Dit) -> None:
    net = dit.transformer
    with cached(net, MIXED, Reuse) as cache:
        net(**inputs(0, 2))
        cache.restart()
        results = []
        for step in range(STEPS):  # a batch of another size
            cache.begin(step)
            results.append(net(**inputs(step, 3)).sample)
    assert all(torch.equal(a, b) for a, b in zip(results, run(net, MIXED, 3), strict=True))


def test_batch_of_another_size_is_refused(dit: Dit) -> None:
    with cached(dit.transformer, MIXED, Reuse) as cache:
        dit.transformer(**inputs(0, 2))
        cache.begin(1)
        with pytest.raises(ConfigError, match=r"shape \(2, 4, 16\) and is now given \(3, 4, 16\)"):
            dit.transformer(**inputs(1, 3))


def test_nothing_to_reuse_is_refused(dit: Dit) -> None:
    with cached(dit.transformer, MIXED, Reuse) as cache:
        cache.begin(1)
        with pytest.raises(ConfigError, match="attention of block 0 has nothing to reuse in"):
            dit.transformer(**inputs(1))


def test_step_beyond_the_schedule_is_refused(dit: Dit) -> None:
    with (
        cached(dit.transformer, MIXED, Reuse) as cache,
        pytest.raises(ConfigError, match=r"for 4 steps, .* and sampling came to step 4"),
    ):
        cache.begin(4)


def test_schedule_for_other_blocks_is_refused(dit: Dit) -> None:
    schedule = CacheSchedule.every(2, steps=STEPS, blocks=28)
    with (
        pytest.raises(ConfigError, match="for 28 blocks and the model has 3"),
        cached(dit.transformer, schedule, Reuse),
    ):
        pass


def test_second_schedule_is_refused(dit: Dit) -> None:
    with (
        cached(dit.transformer, MIXED, Reuse),
        pytest.raises(ConfigError, match="applied to this model already"),
        cached(dit.transformer, MIXED, Reuse),
    ):
        pass
