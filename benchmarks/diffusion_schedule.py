# SPDX-License-Identifier: Apache-2.0
"""Search steps at which a cache is refreshed, as many as a fixed interval has, and measure them.

    python -m benchmarks.diffusion_schedule --state STATE --json dit_schedule.json

Coordinate descent: one refresh moves by up to three steps, and the first move that makes the float
model with this cache, forecast and std compensation better stays. The search has noise of its own;
what is found is then measured with int8 on the seeds of the sweeps, and on other models that
``train_dit.py`` made, which the search has not seen.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.common import circumstances, write_record
from benchmarks.diffusion_probes import add_job_options, job_of, quality
from lutwise.consumers.diffusion.evaluation import Judge, digits_judge, judge_of
from lutwise.consumers.diffusion.job import DitJob
from lutwise.consumers.diffusion.model import load_dit
from lutwise.consumers.diffusion.recipe import FLOAT, DitRecipe
from lutwise.consumers.diffusion.run import DitRun, job_cost
from lutwise.consumers.diffusion.sampling import Samples
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
    parser.add_argument("--compensations", nargs="+", default=["none", "std", "moments"])
    parser.add_argument(
        "--also", action="append", default=[], help="another model of the digits that ship"
    )
    add_job_options(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    base = job_of(args)
    models = [(base, judge_of(base.dit))]
    models += [(replace(base, dit=load_dit(model)), digits_judge()) for model in args.also]
    kept = Steps(args.state, args.state / "events.jsonl")
    even = tuple(range(0, args.steps, args.interval))
    rows: list[dict[str, Any]] = []
    tried = {}
    for order in args.orders:
        best, tried[str(order)] = _search(base, kept, even, order, args.search_samples)
        schedules = {"even": even, "searched": best}
        for job, judge in models:
            rows += _measured(job, judge, kept, schedules, order, args)
    record = {
        **circumstances(args.threads),
        "steps": args.steps,
        "interval": args.interval,
        "samples": args.samples,
        "search_samples": args.search_samples,
        "rows": rows,
        "tried": tried,
    }
    write_record(record, args.json)


def _run(base: DitJob, kept: Steps, refreshes: Refreshes, order: int, **more: Any) -> DitRun:
    """Return the run of a schedule; ``more`` are a recipe, samples, a compensation, a seed."""
    seed = more.pop("seed")
    recipe: DitRecipe = more.pop("recipe", base.recipe)
    job = replace(
        base,
        recipe=replace(recipe, seed=seed),
        sampling=replace(base.sampling, seed=seed),
        schedule=refreshing(refreshes, steps=base.sampling.steps, blocks=base.schedule.blocks),
        order=order,
        **more,
    )
    return DitRun(job, kept)


def _search(
    base: DitJob, kept: Steps, even: Refreshes, order: int, samples: int
) -> tuple[Refreshes, list[dict[str, Any]]]:
    judge = judge_of(base.dit)

    def judged(refreshes: Refreshes) -> float:
        found = _run(
            base, kept, refreshes, order, seed=SEARCH_SEED, samples=samples, compensation="std",
            recipe=DitRecipe(weights=FLOAT, activations=FLOAT),
        )  # fmt: skip
        return quality(found.made(found.compensation)[0], found, judge)[_measure(judge)]

    return descend(even, base.sampling.steps, judged)


def _measured(
    base: DitJob,
    judge: Judge | None,
    kept: Steps,
    schedules: Mapping[str, Refreshes],
    order: int,
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    def value(run: DitRun, samples: Samples) -> float:
        return quality(samples, run, judge)[_measure(judge)]

    rows = []
    for name, refreshes in schedules.items():
        runs = {
            compensation: [
                _run(base, kept, refreshes, order, seed=seed, compensation=compensation)
                for seed in range(args.seeds)
            ]
            for compensation in args.compensations
        }
        first = runs[args.compensations[0]]
        found = {"float": [value(run, run.reference[0]) for run in first]}
        for compensation, seeds in runs.items():
            found[compensation] = [value(run, run.made(run.compensation)[0]) for run in seeds]
        rows.append(
            {
                "model": {"name": base.dit.name, "sha256": base.dit.sha256},
                "order": order,
                "measure": _measure(judge),
                "schedule": name,
                "refreshes": list(refreshes),
                "values": found,
                "macs": job_cost(first[0].job).macs,
                "float_macs": job_cost(first[0].job, exact=True).macs,
            }
        )
    return rows


def _measure(judge: Judge | None) -> str:
    return "paired_mse" if judge is None else "frechet"


if __name__ == "__main__":
    main()
