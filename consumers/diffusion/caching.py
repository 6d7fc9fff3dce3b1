# SPDX-License-Identifier: Apache-2.0
"""Reuse of what attention and feed-forward layers gave in an earlier step.

While `cached` is active, wrappers stand in for the layers that a schedule leaves out at some
step. They keep what the layer gave (before the block's gate, which follows the timestep and is
always computed) and give it, or a forecast, where the schedule says so. Leaving the block puts
every layer back.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

from lutwise.consumers.diffusion.forecast import Forecaster
from lutwise.consumers.diffusion.schedule import CacheSchedule, Part
from lutwise.consumers.diffusion.stock import blocks_of
from lutwise.errors import ConfigError

__all__ = ["Cache", "cached"]

_ATTRIBUTE: Final = {Part.ATTENTION: "attn1", Part.FEED_FORWARD: "ff"}


class Cache:
    """Which step a model is in, for the layers that are kept.

    Its state belongs to one batch of samples: all steps of one batch, then `restart`.
    """

    def __init__(self, schedule: CacheSchedule) -> None:
        self.schedule = schedule
        self.step = 0
        self._layers: list[_Kept] = []

    def begin(self, step: int) -> None:
        """Say which step the next forward pass is.

        Args:
            step: Index from 0, in the order of sampling.

        Raises:
            ConfigError: The schedule has no such step.
        """
        if not 0 <= step < self.schedule.steps:
            raise ConfigError(
                f"the schedule is for {self.schedule.steps} steps, 0 .. {self.schedule.steps - 1}, "
                f"and sampling came to step {step}"
            )
        self.step = step

    def restart(self) -> None:
        """Forget everything kept; the next pass is step 0 of another batch."""
        self.step = 0
        for layer in self._layers:
            layer.forget()


class _Kept(nn.Module):
    """Stands for a layer, and runs it only where the schedule says so."""

    def __init__(
        self,
        layer: nn.Module,
        cache: Cache,
        *,
        block: int,
        part: Part,
        forecaster: Callable[[], Forecaster],
    ) -> None:
        super().__init__()
        self.layer = layer
        self._cache = cache
        self._block, self._part = block, part
        self._new = forecaster
        self._forecast: Forecaster | None = None
        self._shape: torch.Size | None = None

    def forget(self) -> None:
        self._forecast = self._shape = None

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        step = self._cache.step
        if self._cache.schedule.computes(step, self._block, self._part):
            value: torch.Tensor = self.layer(hidden, *args, **kwargs)
            if self._forecast is None:
                self._forecast = self._new()
            self._forecast.refresh(step, value)
            self._shape = hidden.shape
            return value
        if self._forecast is None:
            raise ConfigError(
                f"{self._part} of block {self._block} has nothing to reuse in step {step}; each "
                "batch of samples begins with step 0"
            )
        if hidden.shape != self._shape:
            raise ConfigError(
                f"{self._part} of block {self._block} kept what it made of shape "
                f"{tuple(self._shape or ())} and is now given {tuple(hidden.shape)}; call "
                "`restart` between batches"
            )
        return self._forecast.predict(step)


@contextmanager
def cached(
    transformer: nn.Module, schedule: CacheSchedule, forecaster: Callable[[], Forecaster]
) -> Iterator[Cache]:
    """Apply a schedule to a DiT until the block ends.

    A layer that the schedule always computes is left alone, so a schedule that reuses nothing
    leaves the model as it is. Conditional and unconditional halves of a guided batch are kept
    together, as one batch. Not for two threads at once.

    Args:
        transformer: A stock DiT, quantized or not; put back as it was at the end.
        schedule: What to compute when.
        forecaster: Makes what predicts one layer's output from earlier ones.

    Yields:
        What has to be told of each step.

    Raises:
        ConfigError: The schedule has other blocks than the model, or one is applied already.
    """
    blocks = blocks_of(transformer)
    schedule.check(steps=schedule.steps, blocks=len(blocks))
    if any(isinstance(module, _Kept) for module in transformer.modules()):
        raise ConfigError("a schedule is applied to this model already; leave its block first")
    cache = Cache(schedule)
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for index, block in enumerate(blocks):
            for part, name in _ATTRIBUTE.items():
                if all(row[index] for row in schedule.table(part)):
                    continue
                layer = getattr(block, name)
                kept = _Kept(layer, cache, block=index, part=part, forecaster=forecaster)
                cache._layers.append(kept)
                replaced.append((block, name, layer))
                setattr(block, name, kept)
        yield cache
    finally:
        for block, name, layer in replaced:
            setattr(block, name, layer)
