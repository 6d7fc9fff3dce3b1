# SPDX-License-Identifier: Apache-2.0
"""What each recipe makes of the built-in nets, a transformer with planted outliers among them.

    python benchmarks/recipes.py --json recipes.json

Convolutional nets run in mode ``dataflow``, transformers in ``layerwise``.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

if not __package__:  # run as a script: the benchmarks are a package of the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import circumstances, quantized, write_record
from benchmarks.nets import with_outliers
from lutwise.quant.data import Split, load_data
from lutwise.quant.evaluate import accuracy, compare
from lutwise.quant.models import load_model
from lutwise.quant.quantized import predict
from lutwise.quant.recipe import Recipe, build_recipe
from lutwise.quant.search import divergence

CORRECTED: Final[dict[str, Any]] = {"bias_correction": {}}
QRONOS: Final[dict[str, Any]] = {"qronos": {"centered": True}, **CORRECTED}
RECIPES: Final[dict[str, dict[str, Any]]] = {
    "round to nearest": {},
    "fast": CORRECTED,
    "fast + equalize": {"equalize": {}, **CORRECTED},
    "fast + smooth_quant": {"smooth_quant": {}, **CORRECTED},
    "gptq": {"gptq": {}, **CORRECTED},
    "qronos, not centered": {"qronos": {}, **CORRECTED},
    "balanced": QRONOS,
    "balanced + equalize": {"equalize": {}, **QRONOS},
    "balanced + smooth_quant": {"smooth_quant": {}, **QRONOS},
    "balanced + smooth_quant, search": {"smooth_quant": {"search": True}, **QRONOS},
}
FORMATS: Final = {
    "dataflow": (("int8", "uint8"), ("int4", "uint4"), ("e2m1", "ue2m2"), ("e2m0", "ue2m1")),
    "layerwise": (("int8", "int8"), ("e4m3", "e4m3"), ("int8", "int4"), ("e2m1", "e2m1")),
}
NETS: Final = {
    "zoo/resnet8": "dataflow",
    "zoo/mobilenet": "dataflow",
    "zoo/vit": "layerwise",
    "zoo/vit with outliers": "layerwise",
}
CALIBRATION: Final = 256


def settings_of(weights: str, activations: str, mode: str, algorithms: dict[str, Any]) -> Recipe:
    """Return the recipe of a row."""
    settings = {
        "weights": weights,
        "activations": activations,
        "mode": mode,
        "algorithms": algorithms,
        "calibration": {"images": CALIBRATION},
    }
    return build_recipe(settings, changes={}, where="the benchmark")


def measure(name: str, images: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each pair of formats and recipe of a net."""
    loaded = load_model(name.split(" ")[0])
    net = with_outliers(loaded.module) if name.endswith("outliers") else loaded.module
    assert loaded.data is not None
    assert loaded.input_shape is not None
    calibration, evaluation = (
        load_data(loaded.data, loaded.preprocessing, loaded.input_shape, split=split, limit=limit)
        for split, limit in ((Split.CALIB, CALIBRATION), (Split.EVAL, images))
    )
    assert evaluation.labels is not None
    calib, measured = (torch.from_numpy(d.images) for d in (calibration, evaluation))
    reference = predict(net, measured)
    for weights, activations in FORMATS[NETS[name]]:
        for recipe, algorithms in RECIPES.items():
            settings = settings_of(weights, activations, NETS[name], algorithms)
            start = time.perf_counter()
            model = quantized(net, calib, settings)
            seconds = time.perf_counter() - start
            logits = predict(model, measured)
            noise = compare(reference.numpy(), logits.numpy(), evaluation.labels)
            value = accuracy(logits.numpy(), evaluation.labels)
            yield {
                "net": name,
                "mode": NETS[name],
                "weights": weights,
                "activations": activations,
                "recipe": recipe,
                "images": len(measured),
                "seconds": seconds,
                "accuracy": asdict(value),
                "float_accuracy": asdict(accuracy(reference.numpy(), evaluation.labels)),
                "against_float": asdict(noise),
                "divergence": divergence(reference, logits),
            }
            print(
                f"{name} {weights}/{activations} {recipe}: {100 * value.value:.2f} %, "
                f"{noise.sqnr_db:.1f} dB",
                file=sys.stderr,
                flush=True,
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--net", action="append", choices=NETS, help="default: all")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    record = {
        "rows": [row for name in args.net or NETS for row in measure(name, args.images)],
        "calibration_images": CALIBRATION,
        **circumstances(args.threads),
    }
    write_record(record, args.json)


if __name__ == "__main__":
    main()
