# SPDX-License-Identifier: Apache-2.0
"""Many points of one model: run each, then compare accuracy with bits and LUTs."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Final, Protocol

from lutwise.cost_models.estimate import NetworkCost
from lutwise.errors import ConfigError, LutwiseError
from lutwise.export.points import Family, Point, SweepResult
from lutwise.export.report import write_run_report
from lutwise.files import write_atomic
from lutwise.job import Job
from lutwise.machine import use_threads
from lutwise.pipeline import Result, run
from lutwise.quant.formats import IntFormat
from lutwise.reporting import SWEEP_FILE, draw_sweep, estimate_of, run_summary
from lutwise.space import SpacePoint
from lutwise.workers import busy, interrupts_held, worker_pool
from lutwise.workspace import Steps, to_json, tool_versions

__all__ = ["DONE", "PointTell", "silent_points", "sweep"]

_POINTS: Final = "points"
_STEPS: Final = ".steps"

DONE: Final = "done"
"""A point's last step."""


class PointTell(Protocol):
    """Somebody who is told where each point stands."""

    def __call__(self, point: str, step: str, share: float | None = None) -> None:
        """Take note of the step that a point is at.

        Args:
            point: Its name.
            step: For people; `DONE` is the last.
            share: As `lutwise.quant.progress.Tell` has it.
        """
        ...


def silent_points(point: str, step: str, share: float | None = None) -> None:
    """Tell nobody."""


_JOB: Job | None = None


def sweep(
    load: Callable[[], Job],
    points: Sequence[SpacePoint],
    out: Path,
    *,
    jobs: int = 1,
    progress: PointTell = silent_points,
) -> SweepResult:
    """Run every point, then write ``sweep.json``, ``pareto.csv``, plots and ``report.html``.

    Points that a killed sweep finished are not run again, and all share what they can: the float
    model's outputs and the samples of its tensors.

    Args:
        load: Loads the job; picklable where ``jobs > 1``.
        points: The points.
        out: The sweep's directory.
        jobs: Points at a time, each in a process of its own.
        progress: Told about every step (with ``jobs > 1`` about finished points).

    Raises:
        ConfigError: A model without labelled images, or without a form for hardware.
        LutwiseError: Whatever a point refuses.
    """
    job = load()
    if job.evaluation is None:
        raise ConfigError("a sweep compares accuracies: give --eval with labelled images")
    if jobs == 1:
        results = [_run_point(job, point, out, progress) for point in points]
    else:
        results = _run_parallel(load, points, out, jobs, job.threads, progress)
    result = _collect(job, points, results)
    write_atomic(out / SWEEP_FILE, to_json(result.to_dict()))
    draw_sweep(result, out)
    return result


def _run_point(job: Job, point: SpacePoint, out: Path, progress: PointTell) -> Result:
    folder = out / _POINTS / point.name

    def tell(step: str, share: float | None = None) -> None:
        progress(point.name, step, share)

    result = run(
        job,
        point.recipe,
        folder,
        Steps(out / _STEPS, out / "events.jsonl"),
        name=point.name,
        progress=tell,
    )
    write_run_report(run_summary(result), folder)
    progress(point.name, DONE)
    return result


def _run_parallel(
    load: Callable[[], Job],
    points: Sequence[SpacePoint],
    out: Path,
    jobs: int,
    threads: int,
    progress: PointTell,
) -> list[Result]:
    try:
        with worker_pool(jobs) as pool:
            with interrupts_held():
                futures = {pool.submit(_work, load, out, point): point for point in points}
            for future, point in futures.items():
                future.add_done_callback(functools.partial(_tell_done, progress, point.name))
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise LutwiseError(
            f"a process that worked on {str(out)!r} was killed, perhaps for want of memory; the "
            f"same command with --threads {threads} continues where it stopped, with fewer --jobs "
            "in less memory"
        ) from error


def _tell_done(progress: PointTell, name: str, future: Future[Result]) -> None:
    if not future.cancelled() and future.exception() is None:
        progress(name, DONE)


def _work(load: Callable[[], Job], out: Path, point: SpacePoint) -> Result:
    """Run a point in a worker process, which loads the job once."""
    global _JOB
    with busy():
        if _JOB is None:
            _JOB = load()
            use_threads(_JOB.threads)
        return _run_point(_JOB, point, out, silent_points)


def _collect(job: Job, points: Sequence[SpacePoint], results: Sequence[Result]) -> SweepResult:
    assert job.evaluation is not None
    measured = results[0].metrics["evaluation"]
    return SweepResult(
        model=job.model.name,
        data=job.evaluation.name,
        images=len(job.evaluation),
        float_accuracy=estimate_of(measured["float"]),
        mode=results[0].metrics["mode"],
        folding=f"PE {job.folding.pe}, SIMD {job.folding.simd}",
        points=tuple(_point(p, r) for p, r in zip(points, results, strict=True)),
        versions=tool_versions(),
        seed=points[0].recipe.seed,
        interval=measured["interval"],
        calibration=f"{job.calibration.name}, {len(job.calibration)} images",
        assumptions=_assumptions(results[0]),
    )


def _assumptions(result: Result) -> dict[str, str]:
    if result.cost is None:
        return {}
    found: dict[str, str] = result.cost.to_json()["assumptions"]
    return found


def _family(cost: NetworkCost) -> Family:
    """Return the family of a point's layers; the image's own format does not count."""
    formats = [layer.shape.weights for layer in cost.layers]
    formats += [layer.shape.activations for layer in cost.layers[1:]]
    integers = [isinstance(fmt, IntFormat) for fmt in formats]
    if all(integers):
        return Family.INTEGER
    return Family.MIXED if any(integers) else Family.MINIFLOAT


def _point(point: SpacePoint, result: Result) -> Point:
    cost = result.cost
    if cost is None:
        raise ConfigError(
            f"point {point.name}: {result.metrics['export']['reason']}; so it has no LUTs to plot"
        )
    measured = result.metrics["evaluation"]
    weights = sum(layer.shape.weight_count for layer in cost.layers)
    activations = sum(layer.shape.activations.bits * layer.shape.macs for layer in cost.layers)
    folded, unrolled = cost.folded, cost.unrolled
    return Point(
        name=point.name,
        family=_family(cost),
        weights=point.recipe.weights.format,
        activations=point.recipe.activations.format,
        accuracy=estimate_of(measured[measured["reported"]]),
        agreement=measured["against_float"]["agreement"],
        sqnr_db=measured["against_float"]["sqnr_db"],
        weight_bits=cost.weight_bits / weights,
        activation_bits=activations / cost.macs,
        bits_per_mac=cost.bops / cost.macs,
        bops=float(cost.bops),
        luts_per_mac=cost.lut_per_mac,
        luts_full=unrolled.luts,
        luts_folded=folded.luts,
        requantizer_luts=folded.requantizer_luts,
        model_bytes=cost.weight_bits / 8,
        cost_error=folded.uncertainty_luts / folded.luts,
    )
