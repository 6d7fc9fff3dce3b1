# SPDX-License-Identifier: Apache-2.0
"""The steps from a float model to a quantized one, each computed once and kept."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lutwise.job import Job
from lutwise.quant.algorithms import Stage, selected
from lutwise.quant.graph import PreparedModel
from lutwise.quant.keep import Keep, Tensors
from lutwise.quant.progress import Tell
from lutwise.quant.quantize import Samples, collect_samples, prepare, quantize
from lutwise.quant.quantized import QuantizedModel
from lutwise.quant.recipe import Recipe
from lutwise.quant.state import from_state, to_state
from lutwise.workspace import Steps, code_digest, tool_versions

__all__ = ["Logits", "Point", "balanced_by"]

Logits = npt.NDArray[np.float32]


class _Keys:
    """Hashes of what each step depends on."""

    def __init__(self, job: Job, recipe: Recipe, calibrating: int) -> None:
        self.base = {
            "model": job.model.sha256,
            "threads": job.threads,
            "versions": tool_versions(),
            "code": code_digest(),
        }
        self.calibration = {
            **self.base,
            "images": job.calibration.fingerprint,
            "calibrating": calibrating,
            "prepare": [(a.name, asdict(c)) for a, c in selected(recipe.algorithms, Stage.PREPARE)],
            "balance": balanced_by(recipe),
            "relu6_to_relu": recipe.relu6_to_relu,
            "batch": recipe.calibration.batch,
            "seed": recipe.seed,
        }
        self.quantized = {**self.calibration, "recipe": recipe.model_dump(mode="json")}
        images = job.evaluation.fingerprint if job.evaluation else None
        self.float = {**self.base, "images": images}
        self.evaluated = {**self.quantized, "evaluation": images}


def balanced_by(recipe: Recipe) -> dict[str, Any] | None:
    """Return the part of a recipe that balancing may look at: all but what follows it."""
    balancing = selected(recipe.algorithms, Stage.BALANCE)
    if not balancing:
        return None
    content = recipe.model_dump(mode="json", exclude={"algorithms", "search"})
    content["activations"].pop("factor")
    return {**content, "algorithms": [(a.name, asdict(config)) for a, config in balancing]}


class Point:
    """The steps of one run, each computed once.

    Args:
        job: Model and images.
        recipe: What to do.
        steps: Finished steps.
        progress: Told about each step.
        calibrating: The first so many calibration images calibrate; None for all.
    """

    def __init__(
        self,
        job: Job,
        recipe: Recipe,
        steps: Steps,
        progress: Tell,
        calibrating: int | None = None,
    ) -> None:
        self.job, self.recipe, self.steps, self.progress = job, recipe, steps, progress
        self._calibrating = len(job.calibration) if calibrating is None else calibrating
        self.keys = _Keys(job, recipe, self._calibrating)
        self._calibration: torch.Tensor | None = None

    def calibration_images(self) -> torch.Tensor:
        """Return the calibration images, normalised."""
        if self._calibration is None:
            self._calibration = torch.from_numpy(self.job.calibration.slice(0, self._calibrating))
        return self._calibration

    def evaluate(self, name: str, key: Mapping[str, Any], compute: Callable[[], Logits]) -> Logits:
        """Return logits of the evaluation images, kept under a key."""
        return self.steps.arrays(name, key, lambda: {"logits": compute()})["logits"]

    def prepared(self) -> PreparedModel:
        """Return the prepared float model."""
        job, recipe = self.job, self.recipe
        balancing = selected(recipe.algorithms, Stage.BALANCE)
        images = self.calibration_images() if balancing else None  # else they need not be loaded
        return prepare(
            job.model.module,
            job.input_shape,
            recipe,
            name=job.model.name,
            images=images,
            progress=self.progress,
            keep=self._keep(self.keys.calibration),
        )

    def _keep(self, key: Mapping[str, Any], names: list[str] | None = None) -> Keep:
        """Return what remembers tensors under a key; names of what it was asked for are noted."""

        def keep(name: str, work: Callable[[], Tensors]) -> Tensors:
            if names is not None:
                names.append(name)
            found = self.steps.arrays(name, key, lambda: {k: t.numpy() for k, t in work().items()})
            return {k: torch.from_numpy(array) for k, array in found.items()}

        return keep

    def samples(self, prepared: PreparedModel) -> Samples:
        """Return what calibration sees."""

        def compute() -> dict[str, npt.NDArray[Any]]:
            self.progress("calibrate")
            found = collect_samples(
                prepared,
                self.calibration_images(),
                batch=self.recipe.calibration.batch,
                seed=self.recipe.seed,
            )
            kept: dict[str, npt.NDArray[Any]] = {n: t.numpy() for n, t in found.numbers.items()}
            return {
                **{f"numbers.{name}": array for name, array in kept.items()},
                "nonnegative": np.array(found.input_nonnegative),
            }

        kept = self.steps.arrays("calibrate", self.keys.calibration, compute)
        return Samples(
            numbers={
                name.removeprefix("numbers."): torch.from_numpy(array)
                for name, array in kept.items()
                if name.startswith("numbers.")
            },
            input_nonnegative=bool(kept["nonnegative"]),
            images=self._calibrating,
        )

    def quantized(self, prepared: PreparedModel) -> QuantizedModel:
        """Return the quantized model.

        Finished layers are kept until the whole model is.
        """
        parts: list[str] = []

        def compute() -> dict[str, npt.NDArray[Any]]:
            model = quantize(
                prepared,
                self.samples(prepared),
                self.calibration_images(),
                self.recipe,
                progress=self.progress,
                keep=self._keep(self.keys.quantized, parts),
            )
            tensors, meanings = to_state(model)
            text = np.frombuffer(json.dumps(meanings).encode(), dtype=np.uint8)
            return {**{name: t.numpy() for name, t in tensors.items()}, "meanings": text}

        kept = self.steps.arrays("quantize", self.keys.quantized, compute)
        for name in parts:
            self.steps.forget(name, self.keys.quantized)
        meanings = json.loads(kept.pop("meanings").tobytes())
        tensors = {name: torch.from_numpy(array) for name, array in kept.items()}
        return from_state(prepared, tensors, meanings)
