# SPDX-License-Identifier: Apache-2.0
"""Quantize, cache and compensate a model; sample it beside the float one; say what differs."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from lutwise.consumers.diffusion.calibration import SamplePool, select
from lutwise.consumers.diffusion.compensation import Compensation
from lutwise.consumers.diffusion.cost import DitCost, DitSize, LayerFormats, dit_cost
from lutwise.consumers.diffusion.evaluation import compare, judge_of, variance_by_step
from lutwise.consumers.diffusion.job import DitJob, Use
from lutwise.consumers.diffusion.pictures import as_images, draw_grid, draw_variances
from lutwise.consumers.diffusion.quantized import (
    QuantizedDit,
    from_state,
    linear_layers,
    quantize_dit,
    save_quantized,
    state_of,
)
from lutwise.consumers.diffusion.sampling import Samples, sample
from lutwise.consumers.diffusion.schedule import CacheSchedule, Part
from lutwise.consumers.diffusion.sequential_fit import fit_in_sequence
from lutwise.files import write_atomic
from lutwise.quant.progress import Tell, silent
from lutwise.workspace import Steps, code_digest, to_json, tool_versions

__all__ = ["METRICS_FILE", "DitRun", "Seconds", "job_cost", "run_dit", "versions"]

METRICS_FILE: Final = "metrics.json"

_SHOWN: Final = 16
"""Samples in the picture."""

_DRAWING: Final = frozenset(
    {"pictures.py", "sweep_page.py", "sweep_plots.py", "sweep_report.py", "sweep_result.py"}
)
"""Modules that show results and decide none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """What sampling took.

    Args:
        clock: From start to end.
        processor: Of all threads; waiting for other processes does not count.
    """

    clock: float
    processor: float


class DitRun:
    """The steps of a job, each computed once and kept.

    Args:
        job: What to do.
        steps: Where results are kept.
        tell: Told where the work stands.
    """

    def __init__(self, job: DitJob, steps: Steps, *, tell: Tell = silent) -> None:
        self.job = job
        self._steps, self._tell = steps, tell
        self._base = {
            "model": job.dit.sha256,
            "scheduler": dict(job.dit.scheduler),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "code": [code_digest(), code_digest("consumers/diffusion", without=_DRAWING)],
        }
        self._schedule = {"schedule": job.schedule.to_json(), "order": job.order}
        self._calibrated = {
            **self._base,
            **self._schedule,
            "calibration": asdict(job.calibration),
            "recipe": job.recipe.to_json(),
            **self._drawn(Use.CALIBRATION, job.calibration.trajectories),
        }
        self._fitted = {
            **self._calibrated,
            "compensation": job.compensation,
            "fit": self._drawn(Use.FIT, job.fit_samples),
        }

    @cached_property
    def pool(self) -> SamplePool:
        """What calibration samples are chosen from."""
        job = self.job
        key = {
            **self._base,
            **self._schedule,
            **self._drawn(Use.CALIBRATION, job.calibration.trajectories),
        }
        samples, _ = self._sampled(
            "dit-pool", key, job.dit.transformer, Use.CALIBRATION, job.calibration.trajectories,
            caching=job.caching, what="sample for calibration",
        )  # fmt: skip
        return samples.pool()

    @cached_property
    def quantized(self) -> QuantizedDit:
        """The quantized model."""
        job = self.job

        def compute() -> dict[str, Any]:
            choice = job.calibration
            places = select(choice.method, self.pool, choice.samples, job.sampling.seed, choice.tap)
            made = quantize_dit(
                job.dit, self.pool.take(places), job.recipe, guided=job.guided, tell=self._tell
            )
            return {name: value.numpy() for name, value in state_of(made).items()}

        kept = self._steps.arrays("dit-quantize", self._calibrated, compute)
        state = {name: torch.from_numpy(value) for name, value in kept.items()}
        return from_state(job.dit, job.recipe, state)

    @property
    def reference_key(self) -> dict[str, Any]:
        """All that `reference` depends on."""
        return {**self._base, **self._drawn(Use.EVALUATION, self.job.samples)}

    @cached_property
    def reference(self) -> tuple[Samples, Seconds]:
        """What the float model makes for evaluation, and in how many seconds."""
        job = self.job
        return self._sampled(
            "dit-float", self.reference_key, job.dit.transformer, Use.EVALUATION, job.samples,
            what="sample float",
        )  # fmt: skip

    @cached_property
    def compensation(self) -> Compensation | None:
        """The compensation; None where the job wants none."""
        job = self.job
        if job.compensation == "none":
            return None
        settings = job.noise(Use.FIT, batch=job.fit_samples)

        def compute() -> dict[str, Any]:
            key = {**self._base, **self._drawn(Use.FIT, job.fit_samples)}
            reference, _ = self._sampled(
                "dit-reference", key, job.dit.transformer, Use.FIT, job.fit_samples,
                what="sample float to fit", batch=job.fit_samples,
            )  # fmt: skip
            found = fit_in_sequence(
                job.compensation, self.quantized.transformer, job.dit.scheduler, reference,
                settings, caching=job.caching, tell=self._tell,
            )  # fmt: skip
            return {name: value.numpy() for name, value in found.tensors().items()}

        kept = self._steps.arrays("dit-compensation", self._fitted, compute)
        return Compensation(
            method=job.compensation,
            groups=tuple(range(settings.steps)),
            **{name: torch.from_numpy(value) for name, value in kept.items()},
        )

    def made_key(self, *, compensated: bool) -> dict[str, Any]:
        """Return all that `made` depends on.

        Args:
            compensated: With the job's compensation, or without any.
        """
        key = self._fitted if compensated else self._calibrated
        return {**key, "evaluation": self._drawn(Use.EVALUATION, self.job.samples)}

    def made(self, compensation: Compensation | None) -> tuple[Samples, Seconds]:
        """Return what the quantized and cached model makes, and in how many seconds.

        Args:
            compensation: To apply; None for none.
        """
        job = self.job
        return self._sampled(
            "dit-sample", self.made_key(compensated=compensation is not None),
            self.quantized.transformer, Use.EVALUATION, job.samples,
            caching=job.caching, corrector=compensation, what="sample quantized",
        )  # fmt: skip

    def forget_made(self, *, compensated: bool) -> None:
        """Drop the kept samples of `made`."""
        self._steps.forget("dit-sample", self.made_key(compensated=compensated))

    def forget_quantized(self) -> None:
        """Drop the kept quantized model."""
        self._steps.forget("dit-quantize", self._calibrated)

    def _drawn(self, use: Use, count: int) -> dict[str, Any]:
        """Return what decides noise and labels of a use."""
        job = self.job
        return {"sampling": asdict(job.noise(use)), "labels": job.labels(count).tolist()}

    def _sampled(
        self,
        step: str,
        key: Mapping[str, Any],
        transformer: nn.Module,
        use: Use,
        count: int,
        *,
        what: str,
        batch: int | None = None,
        **more: Any,
    ) -> tuple[Samples, Seconds]:
        """Return samples with their trajectory, and the seconds that they took."""
        job = self.job
        settings = job.noise(use, batch=batch or job.sampling.batch)
        labels = job.labels(count)

        def compute() -> dict[str, Any]:
            clock, processor = time.perf_counter(), time.process_time()
            found = sample(
                transformer, job.dit.scheduler, labels, settings, record=True,
                tell=_renamed(self._tell, what), **more,
            )  # fmt: skip
            assert found.trajectory is not None
            return {
                "latents": found.latents.numpy(),
                "trajectory": found.trajectory.numpy(),
                "timesteps": np.array(found.timesteps),
                "seconds": np.array(time.perf_counter() - clock),
                "processor_seconds": np.array(time.process_time() - processor),
            }

        kept = self._steps.arrays(step, key, compute)
        samples = Samples(
            latents=torch.from_numpy(kept["latents"]),
            labels=labels,
            timesteps=tuple(kept["timesteps"].tolist()),
            trajectory=torch.from_numpy(kept["trajectory"]),
        )
        return samples, Seconds(
            clock=float(kept["seconds"]), processor=float(kept["processor_seconds"])
        )


def run_dit(job: DitJob, out: Path, *, tell: Tell = silent) -> dict[str, Any]:
    """Do a job and write what it found.

    Args:
        job: What to do.
        out: Gets ``metrics.json``, ``schedule.json``, ``quantized.*``, ``samples.png``,
            ``variance.png``, and ``compensation.safetensors`` if there is one.
        tell: Told where the work stands.

    Returns:
        What is in ``metrics.json``.

    Raises:
        LutwiseError: A step failed; the message says which.
    """
    job.check_calibration()
    vae = job.dit.load_vae()  # before the long work, as it may be damaged
    run = DitRun(job, Steps(out / ".steps", out / "events.jsonl"), tell=tell)
    short = f"W {job.recipe.weights}, A {job.recipe.activations}"
    if not job.schedule.computes_all:
        short += ", cached"
    made = {"float": run.reference, short: run.made(None)}
    if run.compensation is not None:
        made[f"... and {job.compensation}"] = run.made(run.compensation)
        run.compensation.save(out / "compensation.safetensors")
    save_quantized(run.quantized, out)
    job.schedule.save(out / "schedule.json")
    tell("measure")
    content = to_json(_metrics(run, made))
    write_atomic(out / METRICS_FILE, content)
    tell("draw")
    shown = min(_SHOWN, job.samples)
    draw_grid(
        {name: as_images(found.latents[:shown], vae) for name, (found, _) in made.items()},
        [str(label) for label in job.labels(shown).tolist()],
        out / "samples.png",
    )
    draw_variances(
        {name: variance_by_step(found).mean(axis=1) for name, (found, _) in made.items()},
        run.reference[0].timesteps,
        out / "variance.png",
    )
    metrics: dict[str, Any] = json.loads(content)
    return metrics


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    return {**tool_versions(), "diffusers": version("diffusers")}


def job_cost(job: DitJob, *, exact: bool = False) -> DitCost:
    """Return what one sample costs in theory.

    Args:
        job: With recipe and schedule.
        exact: Of the float model without a cache instead.
    """
    schedule, formats = job.schedule, {}
    if exact:
        schedule = CacheSchedule.none(steps=schedule.steps, blocks=schedule.blocks)
    else:
        formats = {
            name: LayerFormats(
                weights=job.recipe.weight_format(name),
                activations=job.recipe.activation_format(name),
            )
            for name in linear_layers(job.dit.transformer)
        }
    table = np.stack([schedule.table(part) for part in Part], axis=-1)
    return dit_cost(DitSize.of(job.dit.config), table, formats, guided=job.guided)


def _metrics(run: DitRun, made: Mapping[str, tuple[Samples, Seconds]]) -> dict[str, Any]:
    job, (reference, _) = run.job, run.reference
    judge = judge_of(job.dit)
    models = []
    for name, (found, seconds) in made.items():
        is_float = found is reference
        cost = job_cost(job, exact=is_float)
        models.append(
            {
                "model": name,
                "macs_per_sample": cost.macs,
                "bit_operations_per_sample": cost.bops,
                "lut_per_mac": cost.lut_per_mac,
                "cache_bytes": cost.cache_bits // 8,
                "seconds": round(seconds.clock, 3),
                "processor_seconds": round(seconds.processor, 3),
                **({} if is_float else compare(found, reference)),
                **({} if judge is None else judge.measure(found)),
                "variance_by_step_and_channel": variance_by_step(found).tolist(),
            }
        )
    compensation = run.compensation
    return {
        "model": {"name": job.dit.name, "sha256": job.dit.sha256},
        "samples": job.samples,
        "sampling": asdict(job.sampling),
        "timesteps": list(reference.timesteps),
        "recipe": job.recipe.to_json(),
        "cache": {
            "refreshes": list(job.schedule.refreshes()),
            "computed": {part.value: job.schedule.share(part) for part in Part},
            "order": job.order,
        },
        "calibration": asdict(job.calibration),
        "compensation": {
            "method": job.compensation,
            "fit_samples": job.fit_samples,
            "gain": None if compensation is None else compensation.gain.tolist(),
        },
        "models": models,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _renamed(tell: Tell, what: str) -> Tell:
    def told(step: str, share: float | None = None) -> None:
        del step
        tell(what, share)

    return told
