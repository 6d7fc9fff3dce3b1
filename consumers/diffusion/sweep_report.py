# SPDX-License-Identifier: Apache-2.0
"""The pictures and the page of a sweep, written, and drawn again from what was written."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lutwise.consumers.diffusion.pictures import as_images, draw_grid, draw_variances
from lutwise.consumers.diffusion.sweep_page import sweep_page
from lutwise.consumers.diffusion.sweep_plots import trade_off_files, variance_curves
from lutwise.consumers.diffusion.sweep_result import SweepSummary
from lutwise.errors import DataError
from lutwise.files import write_atomic

__all__ = ["ShownSamples", "draw_sweep", "redraw_sweep"]

_SAMPLES_FILE: Final = "samples.npz"
_PAGE_FILE: Final = "report.html"
_AGAIN: Final = "the same `quantize dit sweep` command makes it again and keeps finished cells"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShownSamples:
    """The first samples of each cell.

    Args:
        latents: By name of the cell, shape (n, c, h, w).
        labels: Classes, shape (n,).
    """

    latents: Mapping[str, npt.NDArray[np.float32]]
    labels: npt.NDArray[np.int64]

    @property
    def are_pixels(self) -> bool:
        """Whether latents are grey or colour pixels, which need no autoencoder."""
        return all(found.shape[1] in (1, 3) for found in self.latents.values())

    def save(self, folder: Path) -> None:
        """Write ``samples.npz``: names of cells, their latents, and classes."""
        kept = io.BytesIO()
        found = np.stack(list(self.latents.values()))
        np.savez(kept, cells=np.array(list(self.latents)), latents=found, labels=self.labels)
        write_atomic(folder / _SAMPLES_FILE, kept.getvalue())

    @classmethod
    def load(cls, folder: Path) -> "ShownSamples":
        """Read what `save` wrote.

        Raises:
            DataError: It is missing or damaged.
        """
        path = folder / _SAMPLES_FILE
        try:
            # From memory: numpy leaves the file open when its content is damaged.
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
                latents = dict(zip(kept["cells"].tolist(), kept["latents"], strict=True))
                return cls(latents=latents, labels=kept["labels"])
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"cannot read {path}: {error}; {_AGAIN}") from error


def draw_sweep(
    result: Mapping[str, Any], samples: ShownSamples, vae: nn.Module | None, out: Path
) -> Path:
    """Write the pictures, ``samples.npz`` and ``report.html``.

    Args:
        result: What is in ``sweep.json``.
        samples: Of each cell.
        vae: The autoencoder of the model's latents, if there is one.
        out: The sweep's directory.

    Returns:
        The page.
    """
    summary = SweepSummary.from_json(result)
    samples.save(out)
    _draw_samples(summary, samples, vae, out)
    return _draw_page(summary, out)


def redraw_sweep(summary: SweepSummary, out: Path) -> Path:
    """Write the pictures and ``report.html`` of a finished sweep again, without its model.

    Pictures of samples that may need the model's autoencoder stay as they are.

    Args:
        summary: What ``sweep.json`` has.
        out: The sweep's directory.

    Returns:
        The page.

    Raises:
        DataError: Samples are missing or damaged.
    """
    samples = ShownSamples.load(out)
    missing = [cell.name for cell in summary.cells if cell.name not in samples.latents]
    if missing:
        raise DataError(f"{out / _SAMPLES_FILE} has no samples of {missing[0]}; {_AGAIN}")
    if samples.are_pixels:
        _draw_samples(summary, samples, None, out)
    return _draw_page(summary, out)


def _draw_samples(
    summary: SweepSummary, samples: ShownSamples, vae: nn.Module | None, out: Path
) -> None:
    labels = [str(label) for label in samples.labels.tolist()]
    for steps in summary.floats():
        rows = {
            # The steps are the same for the whole picture.
            cell.name.split(" ", 1)[1]: as_images(torch.from_numpy(samples.latents[cell.name]), vae)
            for cell in summary.cells
            if cell.setting.steps == steps
        }
        draw_grid(rows, labels, _picture(out, steps))


def _draw_page(summary: SweepSummary, out: Path) -> Path:
    """Write what shows numbers, and the page, which has the pictures of samples, too."""
    pictures = {}
    for steps in summary.floats():
        curves = {n: np.array(c) for n, c in variance_curves(summary, steps).items()}
        variance = draw_variances(curves, summary.timesteps[steps], out / f"variance_T{steps}.png")
        samples = _picture(out, steps)
        try:
            pictures[steps] = samples.read_bytes(), variance.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {samples}: {error.strerror}; {_AGAIN}") from error
    for name, content in trade_off_files(summary).items():
        write_atomic(out / name, content)
    report = out / _PAGE_FILE
    write_atomic(report, sweep_page(summary, pictures).encode())
    return report


def _picture(out: Path, steps: int) -> Path:
    return out / f"samples_T{steps}.png"
