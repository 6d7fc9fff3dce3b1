# SPDX-License-Identifier: Apache-2.0
"""From results to what plots and pages read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lutwise.errors import DataError
from lutwise.export.plots import plot_sweep
from lutwise.export.points import Check, Estimate, LayerRow, RunSummary, SweepResult, write_csv
from lutwise.export.report import write_sweep_report
from lutwise.pipeline import Result

__all__ = ["draw_sweep", "estimate_of", "run_summary"]


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
        checks=tuple(
            Check(**{k: v for k, v in check.items() if k != "first"})
            for check in exported.get("checks", [])
        ),
        export_note=exported.get("reason", ""),
        layers=tuple(LayerRow(**row) for row in result.layers),
        cost=cost,
        files=manifest["outputs"],
        versions=manifest["versions"],
        seed=manifest["seed"],
        **_measured(metrics["evaluation"]),
    )


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


def draw_sweep(directory: Path) -> Path:
    """Write ``pareto.csv``, the plots and the page of a sweep from its ``sweep.json``.

    Raises:
        DataError: There is no such file, or it holds no sweep.
        ConfigError: Its content does not fit.
    """
    path = directory / "sweep.json"
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; wanted the directory of a finished sweep"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    result = SweepResult.from_dict(data)
    write_csv(result, directory / "pareto.csv")
    plot_sweep(result, directory)
    return write_sweep_report(result, directory)
