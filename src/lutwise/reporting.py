# SPDX-License-Identifier: Apache-2.0
"""From results to what plots and pages read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lutwise.export.layer_row import LayerAdvice, LayerRow, PointRow
from lutwise.export.plots import plot_sweep
from lutwise.export.points import (
    Check,
    Estimate,
    RunSummary,
    SweepResult,
    TrialRow,
    write_csv,
)
from lutwise.export.report import write_sweep_report
from lutwise.files import read_json
from lutwise.layer_table import GAIN_SUFFIX
from lutwise.pipeline import Result

__all__ = ["SWEEP_FILE", "draw_sweep", "estimate_of", "read_sweep", "run_summary"]

SWEEP_FILE: Final = "sweep.json"


def estimate_of(entry: Mapping[str, Any]) -> Estimate:
    """Return an accuracy of ``metrics.json`` as an estimate."""
    return Estimate(value=entry["value"], low=entry["low"], high=entry["high"])


def run_summary(result: Result) -> RunSummary:
    """Return what a run's page shows."""
    metrics, manifest = result.metrics, result.manifest
    cost: dict[str, Any] = {}
    if result.cost is not None:
        cost = {k: v for k, v in result.cost.to_json().items() if k != "layers"}
    exported = metrics["export"]
    return RunSummary(
        name=metrics["name"],
        model=metrics["model"],
        mode=metrics["mode"],
        recipe_yaml=result.recipe.to_yaml(),
        calibration_data=metrics["calibration"]["data"],
        calibration_images=metrics["calibration"]["images"],
        trials=tuple(TrialRow(**trial) for trial in metrics["search"]),
        checks=tuple(
            Check(**{k: v for k, v in check.items() if k != "first"})
            for check in exported.get("checks", [])
        ),
        export_note=exported.get("reason", ""),
        layers=tuple(map(_layer_row, result.layers)),
        points=tuple(PointRow(**point) for point in metrics["diagnosis"]["points"]),
        advice=tuple(LayerAdvice(**advice) for advice in metrics["advice"]),
        diagnosed_images=metrics["diagnosis"]["images"],
        cost=cost,
        files=manifest["outputs"],
        versions=manifest["versions"],
        seed=manifest["seed"],
        **_measured(metrics["evaluation"]),
    )


def _layer_row(row: Mapping[str, Any]) -> LayerRow:
    """Return a row of ``layers.csv``; the columns of algorithms become one field."""
    gains = {
        key.removesuffix(GAIN_SUFFIX): value
        for key, value in row.items()
        if key.endswith(GAIN_SUFFIX) and value is not None
    }
    rest = {key: value for key, value in row.items() if not key.endswith(GAIN_SUFFIX)}
    return LayerRow(**rest, gains=gains)


def _measured(found: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields of a `RunSummary` that an evaluation fills."""
    if found is None:
        return {}
    against = found["against_float"]
    return {
        "evaluation_data": found["data"],
        "evaluation_images": found["images"],
        "float_accuracy": estimate_of(found["float"]),
        "fake_accuracy": estimate_of(found["fake_quantization"]),
        "exact_accuracy": estimate_of(found["exact"]) if "exact" in found else None,
        "difference": Estimate(
            value=against["difference"],
            low=against["difference_low"],
            high=against["difference_high"],
        ),
        "agreement": against["agreement"],
        "sqnr_db": against["sqnr_db"],
        "fake_agreement": found.get("fake_against_exact", {}).get("agreement"),
        "interval": found["interval"],
    }


def read_sweep(directory: Path) -> SweepResult:
    """Read what a finished sweep found.

    Raises:
        DataError: There is no ``sweep.json``, or it is damaged.
    """
    return read_json(directory / SWEEP_FILE, SweepResult.from_dict, command="sweep")


def draw_sweep(result: SweepResult, directory: Path) -> Path:
    """Write ``pareto.csv``, the plots and the page of a sweep; return the page's path."""
    write_csv(result, directory / "pareto.csv")
    plot_sweep(result, directory)
    return write_sweep_report(result, directory)
