# SPDX-License-Identifier: Apache-2.0
"""What several benchmarks do."""

import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lutwise.files import write_atomic
from lutwise.quant.keep import Keep, compute
from lutwise.quant.quantize import collect_samples, prepare, quantize
from lutwise.quant.quantized import QuantizedModel
from lutwise.quant.recipe import Recipe
from lutwise.workspace import to_json, tool_versions

__all__ = ["circumstances", "quantized", "write_record"]


def quantized(
    net: nn.Module, images: torch.Tensor, settings: Recipe, *, keep: Keep = compute
) -> QuantizedModel:
    """Quantize with lutwise.

    Args:
        net: Float model; not changed.
        images: To calibrate with, shape (n, c, h, w).
        settings: What to do.
        keep: Remembers what balancing found.
    """
    shape = tuple(images.shape[1:])
    prepared = prepare(net, shape, settings, name="net", images=images, keep=keep)
    batch = settings.calibration.batch
    samples = collect_samples(prepared, images, batch=batch, seed=settings.seed)
    return quantize(prepared, samples, images, settings)


def circumstances(threads: int) -> dict[str, Any]:
    """Return what a record says of how it was made."""
    return {
        "machine": platform.machine(),
        "versions": tool_versions(),
        "threads": threads,
        "seed": 0,
    }


def write_record(record: Mapping[str, Any], path: Path | None) -> None:
    """Write a record as JSON to a file, or to stdout."""
    if path:
        write_atomic(path, to_json(record))
    else:
        sys.stdout.buffer.write(to_json(record))
