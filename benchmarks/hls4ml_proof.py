# SPDX-License-Identifier: Apache-2.0
"""Exported nets through hls4ml: its C++, compiled, against qonnx and the exact executor.

    python benchmarks/hls4ml_proof.py --json hls4ml.json

Needs hls4ml and g++, no vendor tool. Images are of the evaluation set.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

if not __package__:  # run as a script: the benchmarks are a package of the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import circumstances, quantized, write_record
from lutwise.export.hls4ml import Emulation, to_hls4ml
from lutwise.export.run import run_qonnx
from lutwise.quant.data import Split, load_data
from lutwise.quant.executor import execute
from lutwise.quant.lower import lower
from lutwise.quant.models import load_model
from lutwise.quant.recipe import build_recipe

IMAGES: Final = 256
CASES: Final = (
    ("mlp", "int4", "uint4"),
    ("cnn", "int4", "uint4"),
    ("cnn", "e2m1", "ue2m2"),
    ("resnet8", "int4", "uint4"),
)


def prove(net: str, weights: str, activations: str) -> dict[str, Any]:
    """Return how hls4ml's outputs compare with qonnx's and the exact ones."""
    model = load_model(f"zoo/{net}")
    assert model.data is not None
    parts = [
        load_data(model.data, model.preprocessing, model.input_shape, split=split, limit=IMAGES)
        for split in (Split.CALIB, Split.EVAL)
    ]
    settings = build_recipe(
        {"weights": weights, "activations": activations, "mode": "dataflow"}, changes={}, where=net
    )
    images = torch.from_numpy(parts[0].images)
    network = lower(quantized(model.module, images, settings))
    written = to_hls4ml(network)
    evaluation = parts[1].images
    exact = execute(network, evaluation)
    turned = np.ascontiguousarray(evaluation.transpose(0, 2, 3, 1))
    start = time.perf_counter()
    emulation = Emulation(written)
    compiled = time.perf_counter() - start
    found = emulation(turned)
    in_qonnx = run_qonnx(written, turned, batch=1)
    # What a unit of the last layer's sums is worth: the outputs are integers of it.
    head = list(network.layers())[-1]
    step = 2.0**head.accumulator.unit_exponent * float(
        network.tensors[head.input].scale * max(head.weight_scales)
    )
    return {
        "net": net,
        "weights": weights,
        "activations": activations,
        "images": len(evaluation),
        "outputs": exact.size,
        "layers": len(emulation.layers()),
        "compile_seconds": round(compiled, 1),
        "against_exact": _differences(found, exact, step),
        "against_qonnx": _differences(found, in_qonnx, step),
    }


def _differences(found: Any, wanted: Any, step: float) -> dict[str, Any]:
    apart = np.abs(found.astype(np.float64) - wanted)
    return {
        "classes_differing": int((found.argmax(1) != wanted.argmax(1)).sum()),
        "codes_differing": int((np.round(apart / step) > 0).sum()),
        "largest_in_codes": float(apart.max() / step),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--net", action="append", help="only these")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for case in CASES:
        if not args.net or case[0] in args.net:
            rows.append(prove(*case))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    write_record({"hls4ml": "1.3.0", "rows": rows, **circumstances(1)}, args.json)


if __name__ == "__main__":
    main()
