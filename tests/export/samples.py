# SPDX-License-Identifier: Apache-2.0
"""Made-up sweeps and runs for the tests of plots and reports."""

from collections.abc import Mapping
from typing import Any

from lutwise.export.layer_row import LayerAdvice, LayerRow, PointRow
from lutwise.export.points import (
    Check,
    Estimate,
    Family,
    Point,
    RunSummary,
    SweepResult,
    TrialRow,
)

ACCURACIES: Mapping[str, float] = {
    "int2": 0.284, "int3": 0.852, "int4": 0.9085, "int5": 0.9165, "int6": 0.9195, "int8": 0.921,
    "e2m0": 0.61, "e3m0": 0.82, "e2m1": 0.91, "e1m2": 0.901, "e2m2": 0.9205, "e3m1": 0.9065,
    "e2m3": 0.922, "e3m2": 0.917, "e4m0": 0.10, "e4m3": 0.905,
}  # fmt: skip


def estimate(value: float, half: float = 0.012) -> Estimate:
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def point(name: str = "int4", accuracy: float = 0.9, /, **changes: Any) -> Point:
    """Return a point whose numbers follow from its name, but for the changes."""
    integer = name.startswith("int")
    bits = int(name[3:]) if integer else 1 + int(name[1]) + int(name[3:])
    luts = 300.0 * bits**1.7 * (1.0 if integer else 0.95)
    values: dict[str, Any] = {
        "name": f"{name}-u{name}",
        "family": Family.INTEGER if integer else Family.MINIFLOAT,
        "weights": name,
        "activations": f"u{name}",
        "accuracy": estimate(accuracy),
        "agreement": accuracy,
        "sqnr_db": 6.0 * bits - 8,
        "weight_bits": bits + 0.03,
        "activation_bits": float(bits),
        "bits_per_mac": float(bits * bits),
        "bops": bits * bits * 2.5e6,
        "luts_per_mac": luts / 280,
        "luts_full": luts * 1e4,
        "luts_folded": luts,
        "requantizer_luts": 0.2 * luts,
        "model_bytes": bits * 8000.0,
        "cost_error": 0.06,
    }
    return Point(**(values | changes))


def sweep(points: tuple[Point, ...] | None = None, **changes: Any) -> SweepResult:
    if points is None:
        points = tuple(point(name, accuracy) for name, accuracy in ACCURACIES.items())
    values: dict[str, Any] = {
        "model": "zoo/net",
        "data": "some images",
        "images": 2000,
        "float_accuracy": estimate(0.921),
        "mode": "dataflow",
        "folding": "PE 4, SIMD 8",
        "points": points,
        "versions": {"torch": "2.0", "lutwise": "0.1.0"},
        "seed": 7,
    }
    return SweepResult(**(values | changes))


def layers() -> tuple[LayerRow, ...]:
    return (
        LayerRow(
            layer="conv1", kind="conv", weights="int8", inputs="int8", outputs="ue2m2", macs=1000,
            weight_count=72, dot_length=9, accumulator_bits=20, luts_per_mac=40.5, price="table",
            dot_product_luts=900.0, requantizer_luts=120.5, cycles=300, weight_sqnr_db=40.0,
            output_sqnr_db=30.5, weights_at_ends=0.01, error_share=0.62, alone_share=0.4,
            inputs_clipped=0.0123, gains={"gptq": 2.5},
        ),
        LayerRow(
            layer="fc", kind="linear", weights="e2m1", inputs="ue2m2", outputs="accumulator",
            macs=640, weight_count=640, dot_length=64, accumulator_bits=16, luts_per_mac=12.25,
            price="formula", dot_product_luts=400.0, requantizer_luts=0.0, cycles=20,
            weight_sqnr_db=200.0, output_sqnr_db=15.0, weights_at_ends=0.02, error_share=-0.08,
            alone_share=0.02,
        ),
    )  # fmt: skip


def run(**changes: Any) -> RunSummary:
    values: dict[str, Any] = {
        "name": "net-e2m1",
        "model": "zoo/net",
        "mode": "dataflow",
        "recipe_yaml": "weights:\n  format: e2m1\nseed: 7\n",
        "calibration_data": "train images",
        "calibration_images": 256,
        "evaluation_data": "test images",
        "evaluation_images": 2000,
        "float_accuracy": estimate(0.921),
        "fake_accuracy": estimate(0.9085),
        "exact_accuracy": estimate(0.908),
        "difference": Estimate(value=-0.013, low=-0.0185, high=-0.0075),
        "agreement": 0.951,
        "sqnr_db": 14.2,
        "fake_agreement": 0.9985,
        "trials": (
            TrialRow(change="start", divergence=0.125, kept=True),
            TrialRow(change="equalize", divergence=0.25, kept=False),
        ),
        "checks": (
            Check(executor="onnxruntime", images=64, outputs=640, mismatches=0),
            Check(executor="qonnx", images=64, outputs=640, mismatches=3),
        ),
        "layers": layers(),
        "points": (
            PointRow(
                node="add", format="int4", clipped=0.004, codes_dead=0.25, error_share=0.11,
                sqnr_alone_db=31.5,
            ),
        ),
        "advice": (
            LayerAdvice(
                layer="conv1", share=0.62, causes=("sensitive",), text="conv1 makes 62 %.",
                override='- {layers: "conv1", weights: int8}',
            ),
        ),
        "diagnosed_images": 48,
        "cost": {
            "assumptions": {"luts": "estimated"},
            "folding": {"pe": 4, "simd": 8},
            "total": {"macs": 1640, "lut_per_mac": 29.5, "folded": {"luts": 1420.5}},
        },
        "files": {"model.qonnx": "ab" * 32},
        "versions": {"torch": "2.0"},
        "seed": 7,
    }  # fmt: skip
    return RunSummary(**(values | changes))
