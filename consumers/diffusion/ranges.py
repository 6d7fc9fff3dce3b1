# SPDX-License-Identifier: Apache-2.0
"""Scales of layer inputs, from what a float model reads on calibration samples."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

from lutwise.consumers.diffusion.calibration import SamplePool
from lutwise.consumers.diffusion.fake_quant import TimeGroups
from lutwise.consumers.diffusion.model import null_class
from lutwise.errors import CalibrationError
from lutwise.quant.progress import Tell
from lutwise.quant.ranges import SAMPLES, sample

__all__ = ["collect_inputs", "run_pool", "watched"]

_LEAST: Final = 1 << 13
"""Numbers kept of an input for each group of timesteps, at least."""

See = Callable[[str, torch.Tensor, torch.Tensor], None]


@torch.no_grad()
def run_pool(
    transformer: nn.Module, pool: SamplePool, *, batch: int, guided: bool
) -> Iterator[torch.Tensor]:
    """Run a model over a pool, batch by batch.

    Args:
        transformer: A DiT.
        pool: What to give it.
        batch: Samples at a time.
        guided: Give it each sample without its class, too, as guidance does.

    Yields:
        The timesteps of a batch, shape (n,), before the model gets it.
    """
    for index in torch.arange(len(pool)).split(batch):
        latents, times, labels = pool.latents[index], pool.timesteps[index], pool.labels[index]
        if guided:
            null = torch.full_like(labels, null_class(transformer))
            latents, times = latents.repeat(2, 1, 1, 1), times.repeat(2)
            labels = torch.cat([labels, null])
        yield times
        transformer(latents, timestep=times, class_labels=labels)


@contextmanager
def watched(
    modules: Mapping[str, nn.Module], see: Callable[[str, torch.Tensor], None], *, output: bool
) -> Iterator[None]:
    """Tell what modules read, or give, until the block ends.

    Args:
        modules: By name.
        see: Told the name and the tensor.
        output: Whether it is about the output.
    """

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], torch.Tensor], None]:
        return lambda module, args, out: see(name, out if output else args[0])

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def collect_inputs(
    transformer: nn.Module,
    layers: Mapping[str, nn.Linear],
    pool: SamplePool,
    groups: TimeGroups,
    *,
    batch: int,
    guided: bool,
    seed: int,
    tell: Tell,
) -> dict[str, list[torch.Tensor]]:
    """Keep numbers of the inputs of layers.

    Args:
        transformer: The float model.
        layers: Its layers by name.
        pool: Calibration samples.
        groups: Of timesteps.
        batch: Samples at a time.
        guided: Look at each sample without its class, too.
        seed: Of the choice of numbers.
        tell: Told how much is done.

    Returns:
        By layer and group, shape (n,).

    Raises:
        CalibrationError: No sample of a group, or an input that is NaN or infinite.
    """
    present = groups.of(pool.timesteps)
    missing = sorted(set(range(groups.groups)) - set(present.tolist()))
    if missing:
        first, last = (m * groups.trained // groups.groups for m in (missing[0], missing[0] + 1))
        raise CalibrationError(
            f"no calibration sample for {len(missing)} of {groups.groups} groups of timesteps, the "
            f"first is {first} .. {last - 1}; take more samples, or fewer groups"
        )
    # In order of time a batch holds few groups, and each of its parts is large.
    pool = pool.take(torch.argsort(present, stable=True).numpy())
    batches = -(-len(pool) // batch)
    share = max(SAMPLES // groups.groups, _LEAST) // max(1, batches // groups.groups) + 1
    generator = torch.Generator().manual_seed(seed)
    kept: dict[str, list[list[torch.Tensor]]] = {
        name: [[] for _ in range(groups.groups)] for name in layers
    }
    now = torch.zeros(0, dtype=torch.int64)

    def see(name: str, x: torch.Tensor) -> None:
        if not torch.isfinite(x).all():
            raise CalibrationError(f"the input of {name} became NaN or infinite in calibration")
        for group in now.unique().tolist():
            kept[name][group].append(sample(x[now == group], share, generator).clone())

    with watched(layers, see, output=False):
        for done, times in enumerate(run_pool(transformer, pool, batch=batch, guided=guided)):
            now = groups.of(times)
            tell("calibrate", done / batches)
    return {name: [torch.cat(part) for part in found] for name, found in kept.items()}
