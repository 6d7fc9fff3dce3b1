# SPDX-License-Identifier: Apache-2.0
"""Pictures: samples side by side, and variance over time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.ticker import MaxNLocator
from torch import nn

from lutwise.errors import ConfigError
from lutwise.export.plot_style import (
    GRID,
    INK,
    MUTED,
    new_figure,
    plot_context,
    png_bytes,
    strip_spines,
)
from lutwise.files import write_atomic

__all__ = ["as_images", "draw_grid", "draw_variances"]

_LINES: Final = ("-", "--", "-.", ":")
_LETTER: Final = 0.068
"""Width of a letter of a row's name in inches, and a little more."""

_COLOURS: Final = (INK, "#0072b2", "#d55e00", "#007a5e", "#a0527a", "#8a6d00")


@torch.no_grad()
def as_images(latents: torch.Tensor, vae: nn.Module | None) -> npt.NDArray[np.float32]:
    """Return pictures of latents, 0 .. 1, shape (n, h, w, 3) or (n, h, w) for grey ones.

    Latents of one or three channels without an autoencoder are pixels in [-1, 1]. Of others
    the first three channels are shown as they are, which tells shapes and no colours.

    Args:
        latents: Shape (n, c, h, w).
        vae: Their autoencoder, if there is one.
    """
    if vae is not None:
        scaling: float = vae.config.scaling_factor  # type: ignore[union-attr, assignment]
        latents = torch.cat(
            [vae.decode(part / scaling).sample for part in latents.split(4)]  # type: ignore
        )
    pixels = (latents[:, :3] if latents.shape[1] >= 3 else latents[:, :1]) / 2 + 0.5
    images = pixels.clamp(0, 1).permute(0, 2, 3, 1).float().numpy()
    found: npt.NDArray[np.float32] = images[..., 0] if images.shape[-1] == 1 else images
    return found


def draw_grid(
    rows: Mapping[str, npt.NDArray[np.float32]], columns: Sequence[str], path: Path
) -> Path:
    """Draw pictures of models, one model a row, one sample a column.

    Args:
        rows: Pictures by the model's name, shape (n, h, w) or (n, h, w, 3), 0 .. 1.
        columns: What each sample is.
        path: Of the PNG file.

    Returns:
        The file.

    Raises:
        ConfigError: There are no rows, or not as many pictures as columns.
        OutputError: The place cannot be written.
    """
    if not rows or not columns or any(len(images) != len(columns) for images in rows.values()):
        raise ConfigError(
            f"a grid has a picture per column in each row, got {len(columns)} columns and "
            f"{ {name: len(images) for name, images in rows.items()} }"
        )
    with plot_context():
        size, label = 0.62, max(1.75, 0.15 + _LETTER * max(map(len, rows)))
        figure = new_figure(label + size * len(columns) + 0.1, size * len(rows) + 0.35)
        width, height = figure.get_size_inches()
        # One pair of axes in inches for all: one for each picture takes a second for twenty.
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for i, (name, images) in enumerate(rows.items()):
            bottom = height - 0.3 - size * (i + 1)
            axes.text(label - 0.08, bottom + size / 2, name, ha="right", va="center", fontsize=8)
            for j, image in enumerate(images):
                left = label + size * j
                axes.imshow(
                    image, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto",
                    extent=(left, left + size - 0.04, bottom, bottom + size - 0.04),
                )  # fmt: skip
        for j, column in enumerate(columns):
            axes.text(
                label + size * j + size / 2, height - 0.28, column,
                ha="center", va="bottom", fontsize=8, color=MUTED,
            )  # fmt: skip
        axes.set_xlim(0, width)
        axes.set_ylim(0, height)
        write_atomic(path, png_bytes(figure))
    return path


def draw_variances(
    curves: Mapping[str, npt.NDArray[np.float64]], timesteps: Sequence[int], path: Path
) -> Path:
    """Draw the variance of latents over sampling steps, relative to the first model's.

    Args:
        curves: Variance by model, shape (steps,); the first is the reference.
        timesteps: Of the noise schedule, by step.
        path: Of the PNG file.

    Returns:
        The file.

    Raises:
        ConfigError: There are no curves, or of other lengths.
        OutputError: The place cannot be written.
    """
    if not curves or {len(curve) for curve in curves.values()} != {len(timesteps)}:
        raise ConfigError(
            f"variances are of {len(timesteps)} steps, got "
            f"{ {name: len(curve) for name, curve in curves.items()} }"
        )
    reference = next(iter(curves.values()))
    steps = np.arange(len(timesteps))
    with plot_context():
        figure = new_figure(6.0, 3.2)
        axes = figure.add_axes((0.11, 0.15, 0.86, 0.8))
        strip_spines(axes)
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        for i, (name, curve) in enumerate(curves.items()):
            axes.plot(
                steps, curve / reference, label=name,
                color=_COLOURS[i % len(_COLOURS)], linestyle=_LINES[i % len(_LINES)],
            )  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("sampling step, noise on the left")
        axes.set_ylabel(f"variance of latents / {next(iter(curves))}")
        axes.set_xlim(0, max(1, len(steps) - 1))
        axes.legend(loc="best")
        write_atomic(path, png_bytes(figure))
    return path
