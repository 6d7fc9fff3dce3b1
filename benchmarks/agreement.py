# SPDX-License-Identifier: Apache-2.0
"""Formats, graph modes and topologies: the exported file in qonnx and ONNX Runtime, and torch.

    python benchmarks/agreement.py --json agreement.json

The exact executor judges. Files have to give its outputs bit for bit, all of them; the fake
quantization in torch sums in float32, so that its codes may differ next to a tie.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

if not __package__:  # run as a script: the benchmarks are a package of the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import circumstances, quantized, write_record
from lutwise.export.check import check
from lutwise.export.qonnx import to_qonnx
from lutwise.export.run import compare
from lutwise.export.runnable import of_network
from lutwise.quant.data import Split, load_data
from lutwise.quant.lower import lower
from lutwise.quant.models import load_model
from lutwise.quant.recipe import build_recipe
from lutwise.torch_run import of_model

IMAGES: Final = 256
NETS: Final = (
    ("cnn", "chain", ("dataflow", "layerwise")),
    ("resnet8", "residual", ("dataflow", "layerwise")),
    ("mobilenet", "depthwise", ("dataflow", "layerwise")),
    ("vit", "transformer", ("layerwise",)),
)
FORMATS: Final = (
    ("int4", "int4"),
    ("int8", "int8"),
    ("e2m1", "e2m1"),
    ("e3m2", "e3m2"),
    ("e4m3", "e4m3"),
    ("e5m0", "e5m0"),
)


def cell(net: str, mode: str, weights: str, activations: str) -> dict[str, Any]:
    """Return what differs of one cell of the table.

    Raises:
        MismatchError: A file gives another output than the exact executor.
    """
    model = load_model(f"zoo/{net}")
    assert model.data is not None
    parts = [
        load_data(model.data, model.preprocessing, model.input_shape, split=split, limit=IMAGES)
        for split in (Split.CALIB, Split.EVAL)
    ]
    settings = build_recipe(
        {"weights": weights, "activations": activations, "mode": mode, "preset": "fast"},
        changes={},
        where=net,
    )
    fake = quantized(model.module, torch.from_numpy(parts[0].images), settings)
    network, images = lower(fake), parts[1].images
    report = compare(network, to_qonnx(network), images)
    report.raise_if_differs()
    in_torch = of_model(fake, network, "torch")
    told = [
        network.tensors[name]
        for name in next(in_torch.run(images[:1], 1))
        if network.tensors[name].format is not None
    ]
    found = check(of_network(network, "exact"), in_torch, images, batch=64)
    codes = [d for d in found.differences if network.tensors[d.tensor].format is not None]
    return {
        "net": net,
        "mode": mode,
        "weights": weights,
        "activations": activations,
        "images": report.images,
        "outputs": report.outputs,
        "differing": {a.executor.value: a.mismatches for a in report.agreements},
        "torch_codes_differing": sum(d.differing for d in codes),
        "codes": len(images) * sum(torch.Size(tensor.shape).numel() for tensor in told),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for net, topology, modes in NETS:
        for mode in modes:
            for formats in FORMATS:
                rows.append({"topology": topology, **cell(net, mode, *formats)})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    write_record({"rows": rows, **circumstances(1)}, args.json)


if __name__ == "__main__":
    main()
