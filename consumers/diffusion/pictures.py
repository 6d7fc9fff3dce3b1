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
        size, label = 0.62, 1.75
        figure = new_figure(label + size * len(columns) + 0.1, size * len(rows) + 0.35)
        width, height = figure.get_size_inches()
        for i, (name, images) in enumerate(rows.items()):
            bottom = height - 0.3 - size * (i + 1)
            figure.text(
                (label - 0.08) / width, (bottom + size / 2) / height, name,
                ha="right", va="center", fontsize=8,
            )  # fmt: skip
            for j, image in enumerate(images):
                left = label + size * j
                axes = figure.add_axes((
                    left / width, bottom / height, (size - 0.04) / width, (size - 0.04) / height,
                ))  # fmt: skip
                axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set_axis_off()
                if i == 0:
                    axes.set_title(columns[j], fontsize=8, color=MUTED, pad=2)
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
