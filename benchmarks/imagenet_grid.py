# SPDX-License-Identifier: Apache-2.0
"""Top-1 accuracy of real ImageNet nets over formats, beside Brevitas's own flow; resumable.

    python benchmarks/imagenet_grid.py --nets DIR --images IMAGES --out DIR --json grid.json

``--nets`` is the folder that `imagenet_models.py` writes. Every point's row is kept in ``--out``
as soon as it is done, so that a killed run continues; rows of an earlier ``--json`` are not
measured again. Several processes may share an ``--out``. Both tools quantize inputs and weights of
layers (mode ``layerwise``), calibrate with the same images and are measured on the same others.
"""

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

if not __package__:  # run as a script: the benchmarks are a package of the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.brevitas_flow import BrevitasSettings, RangeKind, build, evaluate
from benchmarks.common import circumstances, quantized, write_record
from benchmarks.grid_rows import compared, packed
from lutwise.files import write_atomic
from lutwise.point import balanced_by
from lutwise.quant.data import Split, load_data
from lutwise.quant.evaluate import accuracy, compare
from lutwise.quant.formats import IntFormat, all_formats, parse_element
from lutwise.quant.keep import Tensors
from lutwise.quant.models import load_model
from lutwise.quant.quantized import predict
from lutwise.quant.recipe import Recipe, build_recipe
from lutwise.quant.search import choose, clips_at_six, divergence, divided
from lutwise.workspace import code_digest, digest, to_json

NETS: Final = ("efficientnet_lite0", "squeezenet1_1")
_AS_IT_IS: Final = {"equalize_iterations": 0, "relu6_to_relu": False}
BREVITAS: Final[Mapping[str, Mapping[str, Any]]] = {
    "brevitas": {"gptq": True},
    "brevitas_plain": {"gptq": True, **_AS_IT_IS},
    "brevitas_qronos": {"qronos": True, **_AS_IT_IS},
    "brevitas_qronos_equalized": {"qronos": True},
}
"""Its flow with and without cross-layer equalization, each a tool of its own."""
OURS: Final = ("fast", "balanced", "best")
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A measurement.

    Args:
        net: Name of the net.
        tool: A preset of lutwise, or one of `BREVITAS`.
        weights: Format of the weights.
        activations: Format of the activations.
    """

    net: str
    tool: str
    weights: str
    activations: str

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.net}-{self.tool}-{self.weights}-{self.activations}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Images:
    """Images of a net as it wants them, and the labels of those that measure."""

    calibration: torch.Tensor
    evaluation: torch.Tensor
    labels: npt.NDArray[np.int64]


def diagonal() -> list[tuple[str, str]]:
    """Return every signed format of 3 to 8 bits, for weights and activations alike."""
    return [(f.name, f.name) for f in all_formats(min_bits=3, max_bits=8) if f.signed]


def quantize_ours(net: nn.Module, images: Images, point: Point) -> Logits:
    """Quantize with lutwise and return the logits of the images that measure."""
    settings = build_recipe(
        {
            "preset": point.tool,
            "weights": point.weights,
            "activations": point.activations,
            "mode": "layerwise",
            "calibration": {"images": len(images.calibration), "batch": 25},
        },
        changes={},
        where=point.name,
    )
    model = None
    if settings.search:
        settings, model = searched(net, images.calibration, settings)
    model = model or quantized(net, images.calibration, settings)
    return predict(model, images.evaluation, batch=25).numpy()


def searched(
    net: nn.Module, images: torch.Tensor, settings: Recipe
) -> tuple[Recipe, nn.Module | None]:
    """Return the recipe that the calibration images speak for, and its model where it is known."""
    calibrating, held_back = divided(len(images), images.shape[1:])
    comparing = images[len(images) - held_back :]
    reference = predict(net, comparing, batch=25)

    balanced: dict[str, Tensors] = {}
    models: dict[str, nn.Module] = {}

    def score(change: str, candidate: Recipe, count: int = calibrating) -> float:
        del change
        key = f"{count} {digest(balanced_by(candidate))}"

        def keep(name: str, work: Callable[[], Tensors]) -> Tensors:
            if f"{name} {key}" not in balanced:
                balanced[f"{name} {key}"] = work()
            return balanced[f"{name} {key}"]

        model = quantized(net, images[:count], candidate, keep=keep)
        if count == len(images):
            models[digest(candidate.model_dump(mode="json"))] = model
        return divergence(reference, predict(model, comparing, batch=25))

    def settle(change: str, winner: Recipe) -> float:
        return score(change, winner, len(images))

    chosen = choose(settings, score, settle, clips_at_six=clips_at_six(net))[0]
    return chosen, models.get(digest(chosen.model_dump(mode="json")))


def quantize_theirs(net: nn.Module, images: Images, point: Point) -> Logits:
    """Quantize with Brevitas's flow and return the logits of the images that measure."""
    integers = isinstance(parse_element(point.activations), IntFormat)
    model, _ = build(
        net,
        images.calibration,
        BrevitasSettings(
            weights=point.weights,
            activations=f"u{point.activations}" if integers else point.activations,
            weight_range=RangeKind.MSE,
            activation_range=RangeKind.MSE,
            act_order=True,
            one_pass=True,
            bias_correction=True,
            batch=25,
            **BREVITAS[point.tool],
        ),
    )
    return evaluate(model, images.evaluation, batch=25).numpy()


def measure(folder: Path, images: str, points: Sequence[Point], out: Path) -> None:
    """Compute and keep the rows of all points that are missing."""
    for net, group in itertools.groupby(points, key=lambda p: p.net):
        missing = [p for p in group if not row_file(out, p).exists()]
        if not missing:
            continue
        model = load_model(str(folder / f"{net}.safetensors"), arch=f"zoo/{net}")
        shared: dict[str, Any] = {"classes": 1000}
        parts = [
            load_data(images, model.preprocessing, model.input_shape, split=split, **shared)
            for split in (Split.CALIB, Split.EVAL)
        ]
        assert parts[1].labels is not None
        data = Images(
            calibration=torch.from_numpy(parts[0].images),
            evaluation=torch.from_numpy(parts[1].images),
            labels=parts[1].labels,
        )
        reference = predict(model.module, data.evaluation, batch=25).numpy()
        for point in missing:
            if row_file(out, point).exists():  # another process was faster
                continue
            start = time.process_time()
            run = quantize_theirs if point.tool in BREVITAS else quantize_ours
            logits = run(model.module, data, point)
            row = {
                **asdict(point),
                "images": len(data.labels),
                "calibration_images": len(data.calibration),
                "seconds": round(time.process_time() - start, 1),
                "code_sha256": code_digest(),
                "accuracy": asdict(accuracy(logits, data.labels)),
                "float_accuracy": asdict(accuracy(reference, data.labels)),
                "against_float": asdict(compare(reference, logits, data.labels)),
                "right": packed(logits.argmax(1) == data.labels),
            }
            write_atomic(row_file(out, point), to_json(row))
            print(f"{point.name}: {row['seconds']:.0f} s", file=sys.stderr, flush=True)


def row_file(out: Path, point: Point) -> Path:
    """Return where the row of a point is kept."""
    return out / f"{point.name}.json"


def unpack(record: Path, out: Path) -> None:
    """Keep the rows of an earlier record as if they had been measured just now."""
    for row in json.loads(record.read_bytes())["rows"]:
        point = Point(**{field.name: row[field.name] for field in fields(Point)})
        if not row_file(out, point).exists():
            row.pop("against_brevitas", None)
            write_atomic(row_file(out, point), to_json(row))


def collected(out: Path) -> list[dict[str, Any]]:
    """Return all rows that are kept: by net, width and format."""

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        bits = [parse_element(row[key]).bits for key in ("weights", "activations")]
        tool = (*OURS, *BREVITAS).index(row["tool"])
        return row["net"], *bits, row["weights"], row["activations"], tool

    rows = [json.loads(path.read_bytes()) for path in out.glob("*-*-*-*.json")]
    return list(compared(sorted(rows, key=place)))


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nets", type=Path, required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--net", action="append", choices=NETS, help="default: all")
    parser.add_argument("--tool", action="append", choices=(*OURS, *BREVITAS), help="default: all")
    parser.add_argument("--format", action="append", help="W,A; default: the diagonal")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only-report", action="store_true")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    formats = [tuple(f.split(",")) for f in args.format] if args.format else diagonal()
    points = [
        Point(net=net, tool=tool, weights=w, activations=a)
        for net in args.net or NETS
        for w, a in formats
        for tool in args.tool or (*OURS, *BREVITAS)
    ]
    if args.json and args.json.exists():
        unpack(args.json, args.out)
    if not args.only_report:
        measure(args.nets, args.images, points, args.out)
    write_record({"rows": collected(args.out), **circumstances(args.threads)}, args.json)


if __name__ == "__main__":
    main()
