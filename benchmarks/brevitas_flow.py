# SPDX-License-Identifier: Apache-2.0
"""Quantize with Brevitas's own post-training flow, to compare with, and measure it.

    python -m benchmarks.brevitas_flow --model zoo/resnet8 --weights int4 --activations uint4 \
        --steps equalize,gptq,bias_correction --json flow.json

The steps, their order and their defaults are those of the ImageNet flow that Brevitas 0.13.4
ships (``brevitas_examples.imagenet_classification.ptq``), and its functions do the work. The loop
around GPFQ, GPTQ and Qronos is our own, the one that Brevitas documents: its helpers take no class
of solver, and the clock is in a subclass of it.

What works, tried with int4, e2m1, e4m3, e3m0, e5m0, e4m0, e1m2 and e1m6 on a chain, a residual, a
depthwise and a concatenating net: with the ``layerwise`` backend all steps; with ``fx`` integers on
all four nets and minifloats on the chain only.

Where a default differs from the flow's, it does better. zoo/resnet8, int4 weights, uint4
activations, 1000 images, ``--steps equalize,bias_correction``: accuracy 0.912 and 16.6 dB of
signal to noise in the logits; with the flow's way in one thing at a time:

- Signed activations, the only ones of Brevitas's ``layerwise`` backend, leave half the codes
  behind a ReLU unused: 0.866 and 10.2 dB. Brevitas has no unsigned minifloats.
- Percentiles in place of least-squared-error ranges for activations: 0.872 and 9.6 dB. (Minifloats
  ignore the percentile and take the maximum.)
- Maxima as ranges of weights: 0.916 and 15.8 dB.
- Full-range weights: 0.905 and 14.9 dB.
- 500 iterations of learned rounding give 0.920 and 17.1 dB with the kind ``identity`` and plain
  squared error, which is used here, and 0.902 and 16.1 dB with ``hard_sigmoid`` and its
  regulariser, whose schedule is 1000 iterations long whatever one asks for. On minifloats
  ``hard_sigmoid`` starts from fractions of ``weight / scale``, which are not what rounding sees on
  their grid: e2m1 falls from 0.89 to 0.67 in 100 iterations.
"""

import argparse
import contextlib
import copy
import io
import json
import platform
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks.brevitas_quantizers import (
    ActEqualization,
    Backend,
    BrevitasSettings,
    RangeKind,
    insert_quantizers,
    layer_inputs,
)
from benchmarks.brevitas_walk import solve_in_one_pass
from lutwise.errors import ConfigError, DataError
from lutwise.quant.data import Dataset, Split, check_disjoint, load_data
from lutwise.quant.evaluate import accuracy, compare
from lutwise.quant.models import LoadedModel, load_model
from lutwise.workspace import tool_versions

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Brevitas warns on import about its own modules
    from brevitas.export.inference import quant_inference_mode
    from brevitas.graph.gpfq import GPFQ, gpfq_mode
    from brevitas.graph.gptq import GPTQ, gptq_mode
    from brevitas.graph.qronos import Qronos
    from brevitas.graph.quantize import preprocess_for_quantize
    from brevitas.quant_tensor import QuantTensor
    from brevitas_examples.imagenet_classification.ptq.ptq_common import (
        apply_act_equalization,
        apply_bias_correction,
        calibrate,
    )

__all__ = ["ActEqualization", "Backend", "BrevitasSettings", "RangeKind", "build", "evaluate"]

Seconds = dict[str, float]
"""By step; ``gptq.columns`` is the part of ``gptq`` in the column solver, its Cholesky included."""

_Batches = list[tuple[Tensor, Tensor]]
"""What Brevitas's functions iterate over: images, and labels that they do not look at."""

_STEPS: Final = ("equalize", "gpfq", "gptq", "qronos", "learned_round", "bias_correction")
_EQUALIZE_ITERATIONS: Final = 20
_LEARNED_ROUND_ITERATIONS: Final = 500


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Brevitas's warnings, prints and progress bars from the terminal."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _timed(seconds: Seconds, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def build(
    model: nn.Module, images: Tensor, settings: BrevitasSettings
) -> tuple[nn.Module, Seconds]:
    """Quantize a classifier.

    Args:
        model: Float model that can be traced; not changed.
        images: To calibrate with, shape (n, c, h, w).
        settings: What to do.

    Returns:
        Brevitas's model in evaluation mode, and the seconds of each step.

    Raises:
        DataError: There are no images.
        LutwiseError: Brevitas cannot quantize this net to these formats.
    """
    if len(images) == 0:
        raise DataError("calibration needs at least one image, got none")
    seconds: Seconds = {}
    batches = [(part, part) for part in images.split(settings.batch)]
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        with _timed(seconds, "preprocess"):
            graph = preprocess_for_quantize(
                copy.deepcopy(model).eval(),
                relu6_to_relu=settings.relu6_to_relu,
                equalize_iters=settings.equalize_iterations,
                equalize_merge_bias=True,
            )
        graph.eval()  # modules that the passes made start in training mode
        inputs = layer_inputs(graph, images)
        if settings.act_equalization is not None:
            by_layer = settings.act_equalization is ActEqualization.LAYERWISE
            with _timed(seconds, "act_equalization"):
                apply_act_equalization(graph, batches, layerwise=by_layer)
        with _timed(seconds, "quantize"), torch.no_grad():
            quantized = insert_quantizers(graph, inputs, batches[0][0], settings)
        with _timed(seconds, "calibrate"):
            calibrate(batches, quantized)
        _improve(quantized, batches, settings, seconds)
    return quantized.eval(), seconds


def _improve(
    model: nn.Module, batches: _Batches, settings: BrevitasSettings, seconds: Seconds
) -> None:
    """Run the algorithms on a calibrated model, in the order of Brevitas's flow."""
    order = settings.act_order
    solve = solve_in_one_pass if settings.one_pass else _solve
    if settings.gpfq:
        clocked = _with_clock(GPFQ, seconds, "gpfq.columns")
        with _timed(seconds, "gpfq"):
            solve(gpfq_mode(model, act_order=order, algorithm_impl=clocked), batches)
    if settings.gptq:
        clocked = _with_clock(GPTQ, seconds, "gptq.columns")
        seen = settings.gptq_quantized_activations
        with _timed(seconds, "gptq"):
            solve(
                gptq_mode(model, act_order=order, use_quant_activations=seen, gptq_class=clocked),
                batches,
            )
    if settings.qronos:
        clocked = _with_clock(Qronos, seconds, "qronos.columns")
        with _timed(seconds, "qronos"):
            solve(gpfq_mode(model, act_order=order, algorithm_impl=clocked), batches)
    if settings.learned_round:
        with _timed(seconds, "learned_round"):
            _learn_rounding(model, batches, settings)
    if settings.bias_correction:
        with _timed(seconds, "bias_correction"):
            apply_bias_correction(batches, model)


def _with_clock(algorithm: Any, seconds: Seconds, name: str) -> Any:
    """Return a subclass of a layer's algorithm that adds up the time of its column solver."""

    class Clocked(algorithm):  # type: ignore[misc]  # Brevitas has no types
        def single_layer_update(self) -> None:
            with _timed(seconds, name):
                super().single_layer_update()

    return Clocked


@torch.no_grad()
def _solve(mode: Any, batches: _Batches) -> None:
    with mode as algorithm:
        for _ in range(algorithm.num_layers):
            for images, _labels in batches:
                algorithm.model(images)
            algorithm.update()


def _learn_rounding(model: nn.Module, batches: _Batches, settings: BrevitasSettings) -> None:
    # here, since it needs the package accelerate, which nothing else does
    from brevitas_examples.imagenet_classification.ptq.learned_round_utils import (
        apply_learned_round,
    )

    arguments = argparse.Namespace(
        learned_round="identity",
        # the flow's default adds a regulariser for roundings between 0 and 1; this one's are
        # between -1/2 and 1/2
        learned_round_loss="mse",
        learned_round_mode="layerwise",
        learned_round_iters=settings.learned_round,
        learned_round_batch_size=settings.learned_round_batch,
        learned_round_lr=settings.learned_round_rate,
        learned_round_lr_scheduler=None,
    )
    apply_learned_round(model, batches, arguments)


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, batch: int = 64) -> Tensor:
    """Return the logits of a float model or of Brevitas's, shape (n, classes).

    Brevitas's inference mode keeps the quantized weights of a first image; the results are the
    same bit for bit in 0.7 of the time.

    Args:
        model: In evaluation mode.
        images: Shape (n, c, h, w).
        batch: Images at a time.
    """
    with _quiet(), quant_inference_mode(model):
        model(images[:1])
        found = [model(part) for part in images.split(batch)]
    return torch.cat([y.value if isinstance(y, QuantTensor) else y for y in found])


def _load_images(
    model: LoadedModel, calib: str | None, evaluation: str | None, limits: tuple[int, int]
) -> tuple[Dataset, Dataset]:
    calib = calib or model.data
    evaluation = evaluation or model.data
    if calib is None or evaluation is None:
        raise ConfigError(f"{model.name} has no images of its own; give --calib and --eval")
    shape = model.input_shape
    first = load_data(calib, model.preprocessing, shape, split=Split.CALIB, limit=limits[0])
    second = load_data(evaluation, model.preprocessing, shape, split=Split.EVAL, limit=limits[1])
    check_disjoint(first, second)
    return first, second


def _settings(args: argparse.Namespace) -> BrevitasSettings:
    steps = args.steps.split(",") if args.steps else []
    for step in steps:
        if step not in _STEPS:
            raise ConfigError(f"--steps: wanted some of {', '.join(_STEPS)}, got {step!r}")
    return BrevitasSettings(
        weights=args.weights,
        activations=args.activations,
        backend=Backend(args.backend),
        equalize_iterations=_EQUALIZE_ITERATIONS if "equalize" in steps else 0,
        act_equalization=ActEqualization(args.act_equalization) if args.act_equalization else None,
        gpfq="gpfq" in steps,
        gptq="gptq" in steps,
        qronos="qronos" in steps,
        act_order=args.act_order,
        learned_round=args.iterations if "learned_round" in steps else 0,
        bias_correction="bias_correction" in steps,
    )


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    """Quantize and evaluate as the command line says."""
    loaded = load_model(args.model, arch=args.arch)
    limits = (args.calib_images, args.eval_images)
    calibration, evaluation = _load_images(loaded, args.calib, args.eval, limits)
    assert evaluation.labels is not None  # Split.EVAL has them
    settings = _settings(args)
    model, seconds = build(loaded.module, torch.from_numpy(calibration.images), settings)
    images = torch.from_numpy(evaluation.images)
    reference = evaluate(loaded.module, images).numpy()
    logits = evaluate(model, images).numpy()
    return {
        "model": loaded.name,
        "settings": asdict(settings),
        "calibration": {"data": calibration.name, "images": len(calibration)},
        "evaluation": {"data": evaluation.name, "images": len(evaluation)},
        "float": asdict(accuracy(reference, evaluation.labels)),
        "quantized": asdict(accuracy(logits, evaluation.labels)),
        "against_float": asdict(compare(reference, logits, evaluation.labels)),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "threads": args.threads,
        "machine": platform.machine(),
        "versions": tool_versions(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="as `quantize run` takes it")
    parser.add_argument("--arch", help="of a checkpoint")
    parser.add_argument("--weights", default="int8")
    parser.add_argument("--activations", default="uint8", help="uintK: unsigned where possible")
    parser.add_argument("--steps", default="equalize,bias_correction", help=f"of {_STEPS}")
    parser.add_argument("--iterations", type=int, default=_LEARNED_ROUND_ITERATIONS)
    parser.add_argument("--backend", choices=list(Backend), default=Backend.LAYERWISE)
    parser.add_argument("--act-equalization", choices=list(ActEqualization))
    parser.add_argument("--act-order", action="store_true")
    parser.add_argument("--calib", help="images to calibrate with, else the model's own")
    parser.add_argument("--eval", help="images to measure on, else the model's own")
    parser.add_argument("--calib-images", type=int, default=256)
    parser.add_argument("--eval-images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    record = _measure(args)
    found = record["quantized"]
    print(
        f"{record['model']}: float {record['float']['value']:.4f}, quantized {found['value']:.4f} "
        f"({found['low']:.4f} to {found['high']:.4f}), "
        f"{record['against_float']['sqnr_db']:.1f} dB, {record['seconds']}"
    )
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
