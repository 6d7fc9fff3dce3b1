# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks.diffusion_claims` samples itself."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from lutwise.consumers.diffusion.caching import cached
from lutwise.consumers.diffusion.compensation import fit
from lutwise.consumers.diffusion.evaluation import Judge, compare, judge_of
from lutwise.consumers.diffusion.forecast import Reuse
from lutwise.consumers.diffusion.grid import Formats, Setting
from lutwise.consumers.diffusion.int8 import scales_of, to_int8
from lutwise.consumers.diffusion.job import DitJob, Use
from lutwise.consumers.diffusion.model import load_dit
from lutwise.consumers.diffusion.recipe import DitRecipe
from lutwise.consumers.diffusion.run import DitRun
from lutwise.consumers.diffusion.sampling import Samples, SamplingSettings, sample
from lutwise.consumers.diffusion.schedule import CacheSchedule
from lutwise.consumers.diffusion.stock import blocks_of
from lutwise.workspace import Steps

SEEN, OPPOSITE, UNDECIDED = "seen", "the opposite", "not told apart from nothing"


def paired(values: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    """Return the mean difference of values of the same seeds, and its 95 % interval.

    Args:
        values: By seed.
        baseline: By seed.

    Returns:
        ``mean``, ``low``, ``high`` and, of at least two seeds, whether 0 lies outside.
    """
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return {"mean": mean, "low": None, "high": None, "verdict": UNDECIDED}
    error = statistics.stdev(differences) / len(differences) ** 0.5
    reach = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    low, high = mean - reach, mean + reach
    verdict = SEEN if low > 0 else OPPOSITE if high < 0 else UNDECIDED
    return {"mean": mean, "low": low, "high": high, "verdict": verdict}


def similarity(rows: torch.Tensor) -> float:
    """Return the mean cosine of all pairs of rows, shape (n, ...)."""
    unit = torch.nn.functional.normalize(rows.double().flatten(1), dim=1)
    count = len(unit)
    return float((unit.sum(0).square().sum() - count) / (count * (count - 1)))


def similarity_of_neighbours(rows: torch.Tensor) -> float:
    """Return the mean cosine of what neighbouring steps have, shape (steps, n, ...)."""
    unit = torch.nn.functional.normalize(rows.double().flatten(2), dim=2)
    return float((unit[1:] * unit[:-1]).sum(2).mean())


@contextmanager
def attention_inputs(transformer: torch.nn.Module) -> Iterator[list[list[torch.Tensor]]]:
    """Keep what the attention of each block is given, by block and step, until the block ends.

    Read from the norms before, which run at steps that reuse attention, too.
    """
    kept: list[list[torch.Tensor]] = [[] for _ in blocks_of(transformer)]

    def hook(place: int) -> Callable[..., None]:
        return lambda module, args, out: kept[place].append(out[0].clone())

    handles = [
        block.norm1.register_forward_hook(hook(i)) for i, block in enumerate(blocks_of(transformer))
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def redundancy(base: DitJob, intervals: Sequence[int], seeds: int) -> dict[str, Any]:
    """Return how alike calibration samples are, with a cache and without.

    Args:
        base: What is sampled; its calibration says how many trajectories.
        intervals: Of the cache; 1 must be the first.
        seeds: How many.
    """
    count = base.calibration.trajectories
    found: dict[int, dict[str, list[float]]] = {}
    for interval in intervals:
        measures: dict[str, list[float]] = {}
        for seed in range(seeds):
            job = setting_of(base, interval).job(base, "none", seed)
            with attention_inputs(job.dit.transformer) as kept:
                samples = sample(
                    job.dit.transformer, job.dit.scheduler, job.labels(count),
                    job.noise(Use.CALIBRATION, batch=count), caching=job.caching, record=True,
                )  # fmt: skip
            assert samples.trajectory is not None
            inputs = [torch.stack(block) for block in kept]
            for name, value in (
                ("latents, all pairs", similarity(samples.trajectory.flatten(0, 1))),
                ("latents, neighbouring steps", similarity_of_neighbours(samples.trajectory)),
                (
                    "attention inputs, all pairs",
                    statistics.fmean(similarity(x.flatten(0, 1)) for x in inputs),
                ),
                (
                    "attention inputs, neighbouring steps",
                    statistics.fmean(map(similarity_of_neighbours, inputs)),
                ),
            ):
                measures.setdefault(name, []).append(value)
        found[interval] = measures
    first = intervals[0]
    return {
        "claim": "calibration samples become redundant under a cache",
        "trajectories": count,
        "rows": [
            {
                "what": name,
                "interval": interval,
                "without": found[first][name],
                "with": found[interval][name],
                "difference": paired(found[interval][name], found[first][name]),
            }
            for name in found[first]
            for interval in intervals[1:]
        ],
    }


def at_once(
    base: DitJob, steps: Steps, interval: int, methods: Sequence[str], seeds: int
) -> dict[str, Any]:
    """Return gains fitted on uncorrected trajectories beside those fitted in sequence.

    Args:
        base: What is sampled.
        steps: Where results are kept.
        interval: Of the cache.
        methods: Of `compensation.METHODS`.
        seeds: How many.
    """
    judge = judge_of(base.dit)
    rows = []
    for method in methods:
        found: dict[str, list[dict[str, Any]]] = {"sequence": [], "at_once": []}
        for seed in range(seeds):
            run = DitRun(setting_of(base, interval, "int8").job(base, method, seed), steps)
            found["sequence"].append(quality(run.made(run.compensation)[0], run, judge))
            found["at_once"].append(quality(corrected_at_once(run, method), run, judge))
        for measure in found["sequence"][0]:
            sequence, once = ([q[measure] for q in found[how]] for how in ("sequence", "at_once"))
            rows.append(
                {
                    "compensation": method,
                    "interval": interval,
                    "measure": measure,
                    "sequence": sequence,
                    "at_once": once,
                    "gain": paired(once, sequence),
                }
            )
    return {"claim": "gains fitted in sequence are better than gains fitted at once", "rows": rows}


def corrected_at_once(run: DitRun, method: str) -> Samples:
    """Return what a job's model makes with gains fitted on whole, uncorrected trajectories."""
    job = run.job
    settings, labels = job.noise(Use.FIT, batch=job.fit_samples), job.labels(job.fit_samples)
    transformer = run.quantized.transformer
    reference = sample(job.dit.transformer, job.dit.scheduler, labels, settings, record=True)
    cached_run = sample(
        transformer, job.dit.scheduler, labels, settings, caching=job.caching, record=True
    )
    assert reference.trajectory is not None
    assert cached_run.trajectory is not None
    found = fit(method, cached_run.trajectory, reference.trajectory)
    return sample(
        transformer, job.dit.scheduler, job.labels(job.samples), job.noise(Use.EVALUATION),
        caching=job.caching, corrector=found, record=True,
    )  # fmt: skip


def quality(samples: Samples, run: DitRun, judge: Judge | None) -> dict[str, float]:
    """Return the measures of samples."""
    found = {"paired_mse": float(compare(samples, run.reference[0])["paired_mse"]["value"])}
    if judge is not None:
        found["frechet"] = float(judge.measure(samples)["frechet"]["value"])
    return found


def int8_times(
    base: DitJob, steps: Steps, intervals: Sequence[int], repetitions: int
) -> dict[str, Any]:
    """Return processor seconds of a sampling run in float and in int8, taken in turns.

    Args:
        base: What is sampled.
        steps: Where results are kept.
        intervals: Of the cache.
        repetitions: Runs of each.
    """
    run = DitRun(setting_of(base, 1, "int8").job(base, "none", 0), steps)
    scales = {name: scales_of(layer) for name, layer in run.quantized.layers.items()}
    models = {
        "float": base.dit.transformer,
        "int8": to_int8(run.quantized.transformer, scales),
    }
    latents = run.pool.latents[: min(len(run.pool), base.sampling.batch)]
    labels = run.pool.labels[: len(latents)]
    times: dict[str, list[float]] = {}
    for _ in range(repetitions):
        for interval in intervals:
            for name, model in models.items():
                start = time.process_time()
                _one_cycle(model, latents, labels, interval)
                seconds = (time.process_time() - start) / interval
                times.setdefault(f"{name} N={interval}", []).append(seconds)
    medians = {name: statistics.median(found) for name, found in times.items()}
    first = medians["float N=1"]
    return {
        "batch": len(latents),
        "repetitions": repetitions,
        "milliseconds_per_step": {name: 1000 * value for name, value in medians.items()},
        "speedup": {name: first / value for name, value in medians.items()},
    }


@torch.no_grad()
def _one_cycle(
    model: torch.nn.Module, latents: torch.Tensor, labels: torch.Tensor, interval: int
) -> None:
    schedule = CacheSchedule.every(interval, steps=interval, blocks=len(blocks_of(model)))
    times = torch.full((len(latents),), 500)
    with cached(model, schedule, Reuse) as cache:
        for step in range(interval):
            cache.begin(step)
            model(latents, timestep=times, class_labels=labels)


def setting_of(base: DitJob, interval: int, formats: str = "float") -> Setting:
    """Return the setting of a job with another interval and formats."""
    return Setting(
        steps=base.sampling.steps,
        interval=interval,
        formats=Formats.parse(formats),
        order=0,
        calibration="" if formats == "float" else base.calibration.method,
    )


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides a job of these benchmarks, and where its steps and its record go."""
    parser.add_argument("--model", default="zoo/dit-digits")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--fit-samples", type=int, default=200)
    parser.add_argument("--calib-samples", type=int, default=256)
    parser.add_argument("--trajectories", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--state", type=Path, required=True, help="folder of finished steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)


def job_of(options: argparse.Namespace) -> DitJob:
    """Return the job that ``add_job_options`` describes."""
    base = base_job(options.model, options.steps, options.samples)
    return replace(
        base,
        fit_samples=options.fit_samples,
        calibration=replace(
            base.calibration, samples=options.calib_samples, trajectories=options.trajectories
        ),
    )


def base_job(model: str, steps: int, samples: int) -> DitJob:
    """Return what all of this module's own samples share."""
    dit = load_dit(model)
    return DitJob(
        dit=dit,
        recipe=DitRecipe(),
        sampling=SamplingSettings(steps=steps),
        schedule=CacheSchedule.none(steps=steps, blocks=len(blocks_of(dit.transformer))),
        samples=samples,
        compensation="none",
    )
