# SPDX-License-Identifier: Apache-2.0
"""The pictures and the page of a sweep, written."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lutwise.consumers.diffusion.grid import Setting
from lutwise.consumers.diffusion.job import DitJob
from lutwise.consumers.diffusion.pictures import as_images, draw_grid, draw_variances
from lutwise.consumers.diffusion.sweep_page import sweep_page
from lutwise.consumers.diffusion.sweep_plots import trade_off_files, variance_curves
from lutwise.consumers.diffusion.sweep_result import SweepSummary
from lutwise.files import write_atomic

__all__ = ["draw_sweep"]

Latents = Mapping[tuple[Setting, str], npt.NDArray[np.float32]]


def draw_sweep(base: DitJob, result: Mapping[str, Any], latents: Latents, out: Path) -> Path:
    """Write the pictures, ``samples.npz`` and ``report.html``.

    Args:
        base: What all cells share.
        result: What is in ``sweep.json``.
        latents: Samples of each cell, shape (n, c, h, w).
        out: The sweep's directory.

    Returns:
        The page.
    """
    summary = SweepSummary.from_json(result)
    vae = base.dit.load_vae()
    pictures = {}
    for steps in summary.floats():
        rows = {
            # The steps are the same for the whole picture.
            setting.name(compensated).split(" ", 1)[1]: as_images(torch.from_numpy(found), vae)
            for (setting, compensated), found in latents.items()
            if setting.steps == steps
        }
        shown = min(len(images) for images in rows.values())
        labels = [str(label) for label in base.labels(shown).tolist()]
        samples = draw_grid(rows, labels, out / f"samples_T{steps}.png")
        curves = {n: np.array(c) for n, c in variance_curves(summary, steps).items()}
        variance = draw_variances(curves, summary.timesteps[steps], out / f"variance_T{steps}.png")
        pictures[steps] = samples.read_bytes(), variance.read_bytes()
    _keep_samples(base, latents, out)
    for name, content in trade_off_files(summary).items():
        write_atomic(out / name, content)
    report = out / "report.html"
    write_atomic(report, sweep_page(summary, pictures).encode())
    return report


def _keep_samples(base: DitJob, latents: Latents, out: Path) -> None:
    """Write ``samples.npz``: names of cells, their latents, and classes."""
    kept = io.BytesIO()
    found = np.stack(list(latents.values()))
    np.savez(
        kept,
        cells=np.array([setting.name(compensated) for setting, compensated in latents]),
        latents=found,
        labels=base.labels(found.shape[1]).numpy(),
    )
    write_atomic(out / "samples.npz", kept.getvalue())
