# SPDX-License-Identifier: Apache-2.0
"""Memory up to a bound, files beyond, and the same results either way."""

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lutwise.errors import OutputError
from lutwise.quant import quantize as quantize_module
from lutwise.quant.quantize import collect_samples, prepare, quantize
from lutwise.quant.quantized import QuantizedModel
from lutwise.quant.recipe import build_recipe
from lutwise.quant.shelf import SMALL, Shelf
from tests.quant.nets import INPUT_SHAPE, make

SIZE = 1 << 18
"""Bytes of a tensor here."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Files go to a folder, which holds none whenever a test ends."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert not list(tmp_path.iterdir())


def numbers(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = SIZE // torch.empty(0, dtype=dtype).element_size()
    return torch.randn(4, count // 4, generator=generator).to(dtype)


def test_a_tensor_counts_as_long_as_someone_refers_to_it() -> None:
    shelf = Shelf()
    first, second = shelf.place(numbers(0)), shelf.place(numbers(1))
    assert (shelf.held, shelf.largest, shelf.filed) == (2 * SIZE, 2 * SIZE, 0)
    del first
    assert (shelf.held, shelf.largest) == (SIZE, 2 * SIZE)
    del second
    assert (shelf.held, shelf.largest) == (0, 2 * SIZE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_what_exceeds_the_limit_goes_to_files(folder: Path, dtype: torch.dtype) -> None:
    shelf = Shelf(2 * SIZE)
    placed = [shelf.place(numbers(i, dtype)) for i in range(5)]
    assert (shelf.held, shelf.filed) == (2 * SIZE, 3 * SIZE)
    assert not list(folder.iterdir()), "a file has a name that a crash would leave behind"
    for i, tensor in enumerate(placed):
        assert torch.equal(tensor, numbers(i, dtype))
        assert tensor.dtype == dtype
    placed[4].mul_(2)
    assert torch.equal(placed[4], numbers(4, dtype) * 2)
    del placed, tensor
    again = shelf.place(numbers(0))
    assert (shelf.held, shelf.filed) == (SIZE, 3 * SIZE)
    assert torch.equal(again, numbers(0))


def test_small_tensors_and_other_values_stay() -> None:
    shelf = Shelf(0)
    small = torch.zeros(SMALL // 4)
    assert shelf.place(small) is small
    assert (shelf.held, shelf.filed) == (SMALL, 0)
    sizes = (2, 3)
    assert shelf.place(sizes) is sizes


def test_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    wanted = rf"another {SIZE} bytes in {folder}, .*No space left on device; .* set TMPDIR"
    with pytest.raises(OutputError, match=wanted):
        Shelf(0).place(numbers(0))


def quantized(
    algorithms: Mapping[str, Any], gib: float, monkeypatch: pytest.MonkeyPatch
) -> tuple[QuantizedModel, Shelf]:
    shelves: list[Shelf] = []

    class Watched(Shelf):
        def __init__(self, limit: int | None = None) -> None:
            super().__init__(limit)
            shelves.append(self)

    monkeypatch.setattr(quantize_module, "Shelf", Watched)
    net, _ = make("residual")
    images = torch.randn(72, *INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    calibration = {"batch": 36, "memory_gib": gib}
    settings = build_recipe(
        {"weights": "int4", "activations": "uint4", "algorithms": algorithms},
        changes={"calibration": calibration},
        where="a test",
    )
    prepared = prepare(net, INPUT_SHAPE, settings, name="residual")
    samples = collect_samples(prepared, images, batch=36, seed=0)
    model = quantize(prepared, samples, images, settings)
    (shelf,) = shelves
    return model, shelf


@pytest.mark.parametrize(
    "algorithms",
    [
        {"gptq": {"sweeps": 2}, "bias_correction": {}},
        {"qronos": {}, "norm_reestimation": {}, "bias_correction": {}},
        {"block_rounding": {"iterations": 20}, "bias_correction": {}},
    ],
    ids=lambda a: next(iter(a)),
)
def test_files_change_no_bit(
    algorithms: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    free, all_held = quantized(algorithms, 4.0, monkeypatch)
    gib = 0.3 * all_held.largest / 2**30
    bound, shelf = quantized(algorithms, gib, monkeypatch)
    assert all_held.filed == 0
    assert shelf.filed > 0
    for name, tensor in free.state_dict().items():
        assert torch.equal(tensor, bound.state_dict()[name]), name
    for name, weight in free.weights.items():
        assert torch.equal(weight.values, bound.weights[name].values), name
        assert torch.equal(weight.scales, bound.weights[name].scales), name
    largest = 36 * 8 * 11 * 11 * 4  # a batch of the first layer's outputs
    assert largest > SMALL
    assert shelf.largest <= gib * 2**30 + largest
