# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lutwise.consumers.diffusion.pictures import as_images, draw_grid, draw_variances
from lutwise.consumers.diffusion.stock import AutoencoderKL
from lutwise.errors import ConfigError


def test_one_channel_becomes_grey() -> None:
    found = as_images(torch.tensor([-1.0, 0.0, 1.0, 9.0]).reshape(1, 1, 2, 2), None)
    assert found.tolist() == [[[0.0, 0.5], [1.0, 1.0]]]


@pytest.mark.parametrize(
    ("channels", "shape"), [(2, (5, 4, 4)), (3, (5, 4, 4, 3)), (4, (5, 4, 4, 3))]
)
def test_channels_become_colours(channels: int, shape: tuple[int, ...]) -> None:
    assert as_images(torch.zeros(5, channels, 4, 4), None).shape == shape


def test_autoencoder_decodes_latents() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=2, scaling_factor=0.5
    ).eval()
    latents = torch.randn(5, 2, 4, 4)
    with torch.no_grad():
        wanted = (vae.decode(latents / 0.5).sample / 2 + 0.5).clamp(0, 1)
    found = torch.from_numpy(as_images(latents, vae)).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, wanted)


def test_grid_shows_each_picture(tmp_path: Path) -> None:
    """A white picture among black ones is where it should be."""
    rows = {name: np.zeros((4, 8, 8), np.float32) for name in ("float", "quantized")}
    rows["quantized"][2] = 1
    path = draw_grid(rows, ["0", "1", "2", "3"], tmp_path / "grid.png")
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    black = pixels < 5
    columns = np.flatnonzero(black.sum(axis=0) > 60)
    starts = columns[np.flatnonzero(np.diff(columns, prepend=-99) > 1)]
    assert len(starts) == 4
    # In the third column only the first row is black.
    height = [black[:, start + 40].sum() for start in starts]
    assert height[2] * 2 == pytest.approx(height[0], abs=4)
    assert height[0] == height[1] == height[3]


def test_grid_needs_a_picture_per_column(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"got 3 columns and \{'float': 2\}"):
        draw_grid({"float": np.zeros((2, 8, 8), np.float32)}, list("abc"), tmp_path / "grid.png")


def test_variances_are_drawn(tmp_path: Path) -> None:
    curves = {"float": np.ones(5), "quantized": np.linspace(1, 2, 5)}
    path = draw_variances(curves, [800, 600, 400, 200, 0], tmp_path / "variance.png")
    with Image.open(path) as picture:
        assert picture.size == (1200, 640)


def test_variances_are_of_all_steps(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"of 2 steps, got {'float': 5}"):
        draw_variances({"float": np.ones(5)}, [500, 0], tmp_path / "variance.png")
