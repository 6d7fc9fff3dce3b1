# SPDX-License-Identifier: Apache-2.0
"""Top-1 accuracy of real ImageNet nets over formats, beside Brevitas's own flow; resumable.

    python benchmarks/imagenet_grid.py --nets DIR --images IMAGES --out DIR --json grid.json

``--nets`` is the folder that `imagenet_models.py` writes. Every point's logits are kept in
``--out`` as soon as it is done, so that a killed run continues; ``--only-report`` makes the record
of what there is. Both tools quantize inputs and weights of layers (mode ``layerwise``), calibrate
with the same images and are measured on the same others.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
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
from lutwise.quant.data import Split, load_data
from lutwise.quant.evaluate import accuracy, compare
from lutwise.quant.formats import IntFormat, all_formats, parse_element
from lutwise.quant.models import load_model
from lutwise.quant.quantized import predict
from lutwise.quant.recipe import Recipe, build_recipe
from lutwise.quant.search import calibrating_images, choose, clips_at_six, divergence
from lutwise.workspace import code_digest

NETS: Final = ("efficientnet_lite0", "squeezenet1_1")
TOOLS: Final = ("fast", "balanced", "brevitas")
RESAMPLES: Final = 10_000
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A measurement.

    Args:
        net: Name of the net.
        tool: A preset of lutwise, or ``brevitas``.
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
    if settings.search:
        settings = searched(net, images.calibration, settings)
    model = quantized(net, images.calibration, settings)
    return predict(model, images.evaluation, batch=25).numpy()


def searched(net: nn.Module, images: torch.Tensor, settings: Recipe) -> Recipe:
    """Return the recipe that the calibration images speak for."""
    count = calibrating_images(len(images))
    reference = predict(net, images[count:], batch=25)

    def score(candidate: Recipe) -> float:
        model = quantized(net, images[:count], candidate)
        return divergence(reference, predict(model, images[count:], batch=25))

    return choose(settings, score, clips_at_six=clips_at_six(net))[0]


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
            gptq=True,
            act_order=True,
            bias_correction=True,
            batch=25,
        ),
    )
    return evaluate(model, images.evaluation, batch=25).numpy()


def measure(folder: Path, images: str, points: Sequence[Point], out: Path) -> None:
    """Compute and keep the logits of all points that are missing."""
    for net, group in itertools.groupby(points, key=lambda p: p.net):
        missing = [p for p in group if not (out / f"{p.name}.npz").exists()]
        if not missing and (out / f"{net}-float.npz").exists():
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
        keep(out, f"{net}-float", predict(model.module, data.evaluation, batch=25).numpy(), data, 0)
        for point in missing:
            start = time.perf_counter()
            run = quantize_theirs if point.tool == "brevitas" else quantize_ours
            logits = run(model.module, data, point)
            seconds = time.perf_counter() - start
            keep(out, point.name, logits, data, seconds)
            print(f"{point.name}: {seconds:.0f} s", file=sys.stderr, flush=True)


def keep(out: Path, name: str, logits: Logits, data: Images, seconds: float) -> None:
    """Write the logits of a point, all or nothing."""
    temporary = out / f"{name}.part.npz"
    np.savez_compressed(
        temporary, logits=logits, labels=data.labels, seconds=seconds, code=code_digest()
    )
    temporary.rename(out / f"{name}.npz")


def bootstrap(
    first: Logits, second: Logits, labels: npt.NDArray[np.int64], seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of the accuracy of the first less that of the second.

    Paired: images are drawn with replacement, both models answer the same ones.
    """
    gained = (first.argmax(1) == labels).astype(np.int64) - (second.argmax(1) == labels)
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(labels), (RESAMPLES, len(labels)))
    low, high = np.quantile(gained[draws].mean(1), (0.025, 0.975))
    return float(low), float(high)


def report(points: Sequence[Point], out: Path) -> Iterator[dict[str, Any]]:
    """Yield a row per finished point."""
    held = {path.stem: np.load(path) for path in sorted(out.glob("*.npz"))}
    for point in points:
        if point.name not in held:
            continue
        kept, reference = held[point.name], held[f"{point.net}-float"]
        logits, labels = kept["logits"], kept["labels"]
        row = {
            **asdict(point),
            "images": len(labels),
            "seconds": round(float(kept["seconds"]), 1),
            "code_sha256": str(kept["code"]),
            "accuracy": asdict(accuracy(logits, labels)),
            "float_accuracy": asdict(accuracy(reference["logits"], labels)),
            "against_float": asdict(compare(reference["logits"], logits, labels)),
        }
        rival = Point(
            net=point.net,
            tool="brevitas",
            weights=point.weights,
            activations=point.activations,
        )
        if point.tool != "brevitas" and rival.name in held:
            theirs = held[rival.name]["logits"]
            low, high = bootstrap(logits, theirs, labels)
            row["against_brevitas"] = {
                "difference": accuracy(logits, labels).value - accuracy(theirs, labels).value,
                "low": low,
                "high": high,
            }
        yield row


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nets", type=Path, required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--net", action="append", choices=NETS, help="default: all")
    parser.add_argument("--tool", action="append", choices=(*TOOLS, "best"), help="default: three")
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
        for tool in args.tool or TOOLS
    ]
    if not args.only_report:
        measure(args.nets, args.images, points, args.out)
    record = {
        "rows": list(report(points, args.out)),
        **circumstances(args.threads),
    }
    write_record(record, args.json)


if __name__ == "__main__":
    main()
