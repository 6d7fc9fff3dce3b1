# SPDX-License-Identifier: Apache-2.0
"""Time the exported file in ONNX Runtime and in qonnx, one after the other.

    python benchmarks/runtimes.py --json runtimes.json

qonnx runs node by node and makes a session of ONNX Runtime for each of them, whatever the batch;
ONNX Runtime makes one for the file, before the clock starts.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch

if not __package__:  # run as a script: the benchmarks are a package of the checkout
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import circumstances, quantized, write_record
from lutwise.export.qonnx import to_qonnx
from lutwise.export.run import onnxruntime_of, run_qonnx
from lutwise.quant.data import Split, load_data
from lutwise.quant.lower import lower
from lutwise.quant.models import load_model
from lutwise.quant.recipe import build_recipe

CASES: Final = (
    ("zoo/resnet8", "dataflow", "e2m1", "ue2m2"),
    ("zoo/resnet8", "dataflow", "int4", "uint4"),
    ("zoo/mobilenet", "dataflow", "e2m1", "ue2m2"),
    ("zoo/vit", "layerwise", "e2m1", "e2m1"),
)
BATCHES: Final = (1, 64)


def file_of(name: str, mode: str, weights: str, activations: str) -> tuple[onnx.ModelProto, Any]:
    """Return an exported model, and images for it."""
    model = load_model(name)
    assert model.data is not None
    data = load_data(
        model.data, model.preprocessing, model.input_shape, split=Split.CALIB, limit=64
    )
    settings = build_recipe(
        {"weights": weights, "activations": activations, "mode": mode, "preset": "fast"},
        changes={},
        where=name,
    )
    images = data.images
    return to_qonnx(lower(quantized(model.module, torch.from_numpy(images), settings))), images


def measure(model: onnx.ModelProto, images: npt.NDArray[np.float32]) -> dict[str, float]:
    """Return milliseconds of a batch: the least of three runs of each, taken in turn."""
    fast = onnxruntime_of(model)
    runs: dict[str, Callable[[], Any]] = {
        "onnxruntime_ms": lambda: fast(images)[0],
        "qonnx_ms": lambda: run_qonnx(model, images, batch=len(images)),
    }
    np.testing.assert_array_equal(*(run() for run in runs.values()))
    found = dict.fromkeys(runs, float("inf"))
    for _ in range(3):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            found[key] = min(found[key], 1e3 * (time.perf_counter() - start))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for case in CASES:
        model, images = file_of(*case)
        for batch in BATCHES:
            found = measure(model, images[:batch])
            rows.append(
                {
                    **dict(zip(("net", "mode", "weights", "activations"), case, strict=True)),
                    "nodes": len(model.graph.node),
                    "batch": batch,
                    **{key: round(value, 3) for key, value in found.items()},
                    "speedup": round(found["qonnx_ms"] / found["onnxruntime_ms"], 1),
                }
            )
    write_record({"rows": rows, **circumstances(1)}, args.json)


if __name__ == "__main__":
    main()
