# SPDX-License-Identifier: Apache-2.0
"""Exported nets through FINN+: hardware layers, estimates, and its RTL against the exact executor.

FINN+ pins versions that contradict ours and lives in an environment of its own:

    python3 -m venv finn
    finn/bin/pip install -r benchmarks/finn/requirements.txt
    finn/bin/pip install --no-deps finn-plus==1.6.1
    python benchmarks/finn_proof.py --finn finn/bin/python --json finn.json

No vendor tool is needed: FINN+ is asked for estimates and for the RTL of its layers, which are
stitched and run in Verilator on images of the evaluation set.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch

if not __package__:  # run as a script: the benchmarks are a package of the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import circumstances, quantized, write_record
from lutwise.cost_models.estimate import estimate
from lutwise.cost_models.folding import Folding
from lutwise.cost_models.from_network import layer_shapes
from lutwise.errors import ToolError
from lutwise.export.finn import to_finn
from lutwise.export.integers import units, weight_integers
from lutwise.quant.data import Split, load_data
from lutwise.quant.executor import trace
from lutwise.quant.lower import lower
from lutwise.quant.models import load_model
from lutwise.quant.network import Linear, Network
from lutwise.quant.recipe import build_recipe

FLOW: Final = Path(__file__).parent / "finn" / "flow.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A net, its formats, and what FINN+ does with it.

    Args:
        net: Of the zoo.
        weights: Format of the weights.
        activations: Format of the activations.
        fps: Images per second that FINN+ folds for.
        images: To simulate; none where the net has layers that FINN+ has as HLS only.
    """

    net: str
    weights: str
    activations: str
    fps: int
    images: int


CASES: Final = (
    Case(net="mlp", weights="int4", activations="uint4", fps=2000, images=100),
    Case(net="mlp", weights="e2m1", activations="ue2m2", fps=2000, images=100),
    Case(net="cnn", weights="int4", activations="uint4", fps=1000, images=50),
    Case(net="cnn", weights="e2m1", activations="ue2m2", fps=1000, images=50),
    Case(net="cnn", weights="e3m0", activations="ue2m1", fps=1000, images=50),
    Case(net="resnet8", weights="int4", activations="uint4", fps=100, images=0),
    Case(net="resnet8", weights="e2m1", activations="ue2m2", fps=100, images=0),
    Case(net="mobilenet", weights="int4", activations="uint4", fps=100, images=0),
)


def network_of(case: Case) -> tuple[Network, npt.NDArray[np.float32]]:
    """Return a quantized net, and images of the evaluation set."""
    model = load_model(f"zoo/{case.net}")
    assert model.data is not None
    parts = [
        load_data(model.data, model.preprocessing, model.input_shape, split=split, limit=limit)
        for split, limit in ((Split.CALIB, 256), (Split.EVAL, max(case.images, 1)))
    ]
    settings = build_recipe(
        {"weights": case.weights, "activations": case.activations, "mode": "dataflow"},
        changes={},
        where=case.net,
    )
    images = torch.from_numpy(parts[0].images)
    return lower(quantized(model.module, images, settings)), parts[1].images


def sums_of(network: Network, images: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the last layer's integer sums without bias: what FINN+ puts out before its tail."""
    head = network.nodes[-1]
    assert isinstance(head, Linear)
    fmt = network.tensors[head.input].format
    assert fmt is not None
    inputs = np.concatenate([t[head.input] for t in trace(network, images, keep=True)])
    weights, _, _ = weight_integers(head)
    return units(fmt, inputs.astype(np.float64)) @ weights.T


def prove(case: Case, finn: Path, folder: Path) -> dict[str, Any]:
    """Return what FINN+ makes of a net, beside what we say of it.

    Raises:
        ToolError: FINN+ refuses it, or its RTL differs from the exact executor.
    """
    network, images = network_of(case)
    onnx.save(to_finn(network), folder / "net.onnx")
    np.save(folder / "images.npy", images)
    command = [str(finn), str(FLOW), str(folder / "net.onnx"), str(folder / "images.npy")]
    command += [str(folder / "out"), "--fps", str(case.fps)]
    if case.images:
        command.append("--simulate")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ToolError("FINN+", "1.6.1", (done.stderr or done.stdout)[-3000:])
    found = json.loads((folder / "out" / "result.json").read_text())
    row: dict[str, Any] = {
        "net": case.net,
        "weights": case.weights,
        "activations": case.activations,
        "target_fps": case.fps,
        "part": found["part"],
        "nodes": found["as_finn_chooses"]["nodes"],
        "finn": summary(found["as_finn_chooses"]),
        "finn_in_luts": summary(found["in_luts"]),
        "folding": found["as_finn_chooses"]["folding"],
        "seconds": found["seconds"],
    }
    cost = estimate(layer_shapes(network), Folding(pe=1, simd=1))
    row["lutwise"] = {
        "folding": "PE 1, SIMD 1",
        "mac_luts": round(cost.folded.dot_product_luts),
        "requantizer_luts": round(cost.folded.requantizer_luts),
        "max_cycles": max(layer.folded.cycles for layer in cost.layers),
    }
    if case.images:
        got, wanted = np.load(folder / "out" / "codes.npy"), sums_of(network, images)
        row["simulation"] = {
            **found["simulation"],
            "images": len(images),
            "numbers": wanted.size,
            "differing": int((got != wanted).sum()),
        }
        if (got != wanted).any():
            raise ToolError("FINN+", "1.6.1", f"its RTL differs: {row['simulation']}")
    return row


def summary(build: dict[str, Any]) -> dict[str, Any]:
    """Return totals of an estimate."""
    total = {"MVAU": 0, "VVAU": 0, "Thresholding": 0}
    for name, layer in build["resources"].items():
        kind = name.partition("_")[0]
        if kind in total and isinstance(layer, dict):
            total[kind] += layer["LUT"]
    resources = build["resources"]["total"]
    return {
        "luts": round(resources["LUT"]),
        "dsps": round(resources["DSP"]),
        "brams": round(resources["BRAM_18K"]),
        "product_luts": round(total["MVAU"] + total["VVAU"]),
        "threshold_luts": round(total["Thresholding"]),
        "max_cycles": build["performance"]["max_cycles"],
        "fps": round(build["performance"]["estimated_throughput_fps"]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--finn", type=Path, required=True, help="Python of FINN+'s environment")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--net", action="append", help="only these")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for case in CASES:
        if args.net and case.net not in args.net:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(prove(case, args.finn, Path(folder)))
        print(json.dumps({k: v for k, v in rows[-1].items() if k != "folding"}), file=sys.stderr)
    write_record({"finn_plus": "1.6.1", "rows": rows, **circumstances(1)}, args.json)


if __name__ == "__main__":
    main()
