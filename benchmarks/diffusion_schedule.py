# SPDX-License-Identifier: Apache-2.0
"""Search steps at which a cache is refreshed, as many as a fixed interval has, and measure them.

    python -m benchmarks.diffusion_schedule --state STATE --json dit_schedule.json

Coordinate descent: one refresh moves by up to three steps, and the first move that makes the float
model with this cache, forecast and std compensation better stays. The search has noise of its own;
what is found is then measured with int8 on the seeds of the sweeps.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.common import circumstances, write_record
from benchmarks.diffusion_probes import add_job_options, job_of, quality
from lutwise.consumers.diffusion.evaluation import judge_of
from lutwise.consumers.diffusion.job import DitJob
from lutwise.consumers.diffusion.recipe import FLOAT, DitRecipe
from lutwise.consumers.diffusion.run import DitRun, job_cost
from lutwise.consumers.diffusion.schedule import CacheSchedule
from lutwise.workspace import Steps

Refreshes = tuple[int, ...]

MOVES = (-1, 1, -2, 2, -3, 3)
SEARCH_SEED = 1000
"""Far from those that measure."""


def refreshing(refreshes: Refreshes, *, steps: int, blocks: int) -> CacheSchedule:
    """Return the schedule that computes all at some steps and nothing of blocks at others."""
    table = tuple((step in refreshes,) * blocks for step in range(steps))
    return CacheSchedule(attention=table, feed_forward=table)


def descend(
    start: Refreshes, steps: int, judged: Callable[[Refreshes], float]
) -> tuple[Refreshes, list[dict[str, Any]]]:
    """Return the best refreshes found, and all that was tried.

    Args:
        start: Ascending; the first is step 0, which stays.
        steps: Of sampling.
        judged: Less is better.
    """
    seen = {start: judged(start)}
    best, improved = start, True
    while improved:
        improved = False
        for place in range(1, len(start)):
            for move in MOVES:
                moved = (*best[:place], best[place] + move, *best[place + 1 :])
                if moved in seen or list(moved) != sorted(set(moved)) or moved[-1] >= steps:
                    continue
                seen[moved] = judged(moved)
                if seen[moved] < seen[best]:
                    best, improved = moved, True
    return best, [{"refreshes": list(tried), "value": value} for tried, value in seen.items()]


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interval", type=int, default=5, help="that has as many refreshes")
    parser.add_argument("--orders", type=int, nargs="+", default=[1, 0])
    parser.add_argument("--search-samples", type=int, default=250)
    add_job_options(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    base = job_of(args)
    kept = Steps(args.state, args.state / "events.jsonl")
    record = {
        **circumstances(args.threads),
        "model": {"name": base.dit.name, "sha256": base.dit.sha256},
        "steps": args.steps,
        "interval": args.interval,
        "samples": args.samples,
        "search_samples": args.search_samples,
        "rows": [_searched(base, kept, args, order) for order in args.orders],
    }
    write_record(record, args.json)


def _searched(base: DitJob, kept: Steps, args: argparse.Namespace, order: int) -> dict[str, Any]:
    judge = judge_of(base.dit)
    measure = "paired_mse" if judge is None else "frechet"
    blocks = base.schedule.blocks

    def run(refreshes: Refreshes, recipe: DitRecipe, seed: int, samples: int) -> DitRun:
        job = replace(
            base,
            recipe=replace(recipe, seed=seed),
            sampling=replace(base.sampling, seed=seed),
            schedule=refreshing(refreshes, steps=args.steps, blocks=blocks),
            order=order,
            samples=samples,
            compensation="std",
        )
        return DitRun(job, kept)

    def judged(refreshes: Refreshes) -> float:
        found = run(
            refreshes, DitRecipe(weights=FLOAT, activations=FLOAT), SEARCH_SEED,
            args.search_samples,
        )  # fmt: skip
        return quality(found.made(found.compensation)[0], found, judge)[measure]

    even = tuple(range(0, args.steps, args.interval))
    best, tried = descend(even, args.steps, judged)
    rows = []
    for name, refreshes in (("even", even), ("searched", best)):
        runs = [run(refreshes, base.recipe, seed, args.samples) for seed in range(args.seeds)]
        rows.append(
            {
                "schedule": name,
                "refreshes": list(refreshes),
                "none": [quality(r.made(None)[0], r, judge) for r in runs],
                "std": [quality(r.made(r.compensation)[0], r, judge) for r in runs],
                "float": [quality(r.reference[0], r, judge) for r in runs],
                "macs": job_cost(runs[0].job).macs,
                "float_macs": job_cost(runs[0].job, exact=True).macs,
            }
        )
    return {"order": order, "measure": measure, "measured": rows, "tried": tried}


if __name__ == "__main__":
    main()
