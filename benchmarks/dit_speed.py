# SPDX-License-Identifier: Apache-2.0
"""Time one DiT-XL/2-width block: float without cache against int8 with a cache, in one process.

    python -m benchmarks.dit_speed --json dit_speed.json

A cycle of N steps computes attention and feed-forward once and reuses them N - 1 times, as
`lutwise.consumers.diffusion.caching` does it. Everything is timed in turns, a repetition at a
time, so that other load on the machine meets all of it alike; ratios are of medians. Beside the
time on the clock stands that on the processor, which waiting for other processes does not touch.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.common import circumstances, write_record
from lutwise.consumers.diffusion.caching import cached
from lutwise.consumers.diffusion.forecast import Reuse
from lutwise.consumers.diffusion.int8 import Backend, Int8Linear, largest_scales, to_int8
from lutwise.consumers.diffusion.schedule import CacheSchedule
from lutwise.consumers.diffusion.stock import DiTTransformer2DModel
from lutwise.machine import reuse_memory

INTERVALS = (1, 2, 3, 5)
HEADS, HEAD_WIDTH, TOKENS = 16, 72, 256
BASE = "float N=1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """What a step took.

    Args:
        clock: From start to end.
        processor: Of all threads.
    """

    clock: float
    processor: float


def timed(run: Callable[[], object], steps: int = 1) -> Seconds:
    """Return the mean time of a step of a run."""
    clock, processor = time.perf_counter(), time.process_time()
    run()
    return Seconds(
        clock=(time.perf_counter() - clock) / steps,
        processor=(time.process_time() - processor) / steps,
    )


def build(heads: int, head_width: int, tokens: int) -> nn.Module:
    """Return a DiT of one block with random weights."""
    torch.manual_seed(0)
    side = int(tokens**0.5)
    made: nn.Module = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=head_width, num_layers=1, sample_size=2 * side
    )
    return made.eval().requires_grad_(False)


class Block:
    """One block with its inputs.

    Args:
        transformer: A DiT of one block.
        hidden: Shape (batch, tokens, width).
    """

    def __init__(self, transformer: nn.Module, hidden: Tensor) -> None:
        self.transformer = transformer
        self._hidden = hidden
        self._arguments = {
            "timestep": torch.full((len(hidden),), 500),
            "class_labels": torch.zeros(len(hidden), dtype=torch.int64),
        }

    def __call__(self) -> Tensor:
        """Run the block once."""
        blocks = cast("nn.ModuleList", self.transformer.transformer_blocks)
        result: Tensor = blocks[0](self._hidden, **self._arguments)
        return result

    def cycle(self, interval: int) -> Seconds:
        """Return the mean time of a step over a cycle."""
        schedule = CacheSchedule.every(interval, steps=interval, blocks=1)
        with cached(self.transformer, schedule, Reuse) as cache:

            def steps() -> None:
                for step in range(interval):
                    cache.begin(step)
                    self()

            return timed(steps, interval)

    def reuse(self) -> Seconds:
        """Return the time of a step that reuses both parts."""
        schedule = CacheSchedule.every(2, steps=2, blocks=1)
        with cached(self.transformer, schedule, Reuse) as cache:
            self()
            cache.begin(1)
            return timed(self)


def int8_of(block: Block, backend: Backend | None) -> nn.Module:
    """Return the transformer with all linear layers of its block in int8."""
    largest: dict[str, float] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        largest[name] = float(inputs[0].abs().max())

    layers = {
        name: layer
        for name, layer in block.transformer.named_modules()
        if isinstance(layer, nn.Linear) and name.startswith("transformer_blocks.")
    }
    hooks = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in layers.items()]
    block()
    for hook in hooks:
        hook.remove()
    scales = {name: largest_scales(layer, largest[name]) for name, layer in layers.items()}
    return to_int8(block.transformer, scales, backend=backend)


def in_turns(
    what: dict[str, Callable[[], Seconds]], repeats: int, seconds: float
) -> dict[str, list[Seconds]]:
    """Time everything in turns, until there are enough repetitions or the time is over."""
    times: dict[str, list[Seconds]] = {name: [] for name in what}
    for run in what.values():  # warm up
        run()
    end = time.perf_counter() + seconds
    for done in range(repeats):
        if done >= 3 and time.perf_counter() > end:
            break
        for name, run in what.items():
            times[name].append(run())
    return times


def summary(times: Sequence[Seconds]) -> dict[str, float]:
    """Return medians and spread in milliseconds."""
    clock = [each.clock for each in times]
    low, _, high = statistics.quantiles(clock, n=4)
    numbers = {
        "median_ms": statistics.median(clock),
        "quartile_low_ms": low,
        "quartile_high_ms": high,
        "min_ms": min(clock),
        "processor_median_ms": statistics.median(each.processor for each in times),
    }
    return {name: round(1e3 * number, 2) for name, number in numbers.items()}


@torch.no_grad()
def measure(
    batch: int, sizes: tuple[int, int, int], backend: Backend | None, repeats: int, seconds: float
) -> dict[str, Any]:
    """Time a batch.

    Args:
        batch: Samples; 2 is one image with classifier-free guidance.
        sizes: Heads, width of a head, tokens.
        backend: Of int8; None for the fastest.
        repeats: At most.
        seconds: No repetition begins later, but for the first three.
    """
    heads, head_width, tokens = sizes
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(batch, tokens, heads * head_width, generator=generator)
    plain = Block(build(*sizes), hidden)
    whole = Block(int8_of(plain, backend), hidden)
    wanted, found = plain(), whole()
    what: dict[str, Callable[[], Seconds]] = {}
    for interval in INTERVALS:
        what[f"float N={interval}"] = partial(plain.cycle, interval)
        what[f"int8 N={interval}"] = partial(whole.cycle, interval)
    what["float reuse"], what["int8 reuse"] = plain.reuse, whole.reuse
    times = in_turns(what, repeats, seconds)
    summaries = {name: summary(each) for name, each in times.items()}
    return {
        "batch": batch,
        "repetitions": len(times[BASE]),
        "relative_squared_error": float(((found - wanted) ** 2).mean() / (wanted**2).mean()),
        "backends": sorted({layer.backend.value for layer in int8_layers(whole.transformer)}),
        "times": summaries,
        "speedup": ratios(summaries, "median_ms"),
        "processor_speedup": ratios(summaries, "processor_median_ms"),
    }


def ratios(summaries: dict[str, dict[str, float]], which: str) -> dict[str, float]:
    """Return how many times faster everything is than float without a cache."""
    base = summaries[BASE][which]
    return {name: round(base / each[which], 2) for name, each in summaries.items() if name != BASE}


def int8_layers(model: nn.Module) -> list[Int8Linear]:
    """Return the int8 layers of a model."""
    return [layer for layer in model.modules() if isinstance(layer, Int8Linear)]


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=30.0, help="per batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", type=Backend, choices=list(Backend))
    parser.add_argument("--heads", type=int, default=HEADS)
    parser.add_argument("--head-width", type=int, default=HEAD_WIDTH)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--batch", type=int, action="append", help="default: 1 and 2")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    reuse_memory()
    sizes = (args.heads, args.head_width, args.tokens)
    rows = [
        measure(batch, sizes, args.backend, args.repeats, args.seconds)
        for batch in args.batch or (1, 2)
    ]
    record = {
        **circumstances(args.threads),
        "heads": args.heads,
        "width": args.heads * args.head_width,
        "tokens": args.tokens,
        "rows": rows,
    }
    write_record(record, args.json)
    for row in rows if args.json else ():
        speeds = "  ".join(f"{name} {ratio}x" for name, ratio in row["speedup"].items())
        print(f"batch {row['batch']}: {speeds}")


if __name__ == "__main__":
    main()
