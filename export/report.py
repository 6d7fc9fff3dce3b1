# SPDX-License-Identifier: Apache-2.0
"""Pages that people look at: one file each, readable from disk, the same for the same input."""

from pathlib import Path
from typing import Final
from urllib.parse import quote

from lutwise.export.points import RunSummary, SweepResult
from lutwise.export.run_page import run_page
from lutwise.export.sweep_page import sweep_page
from lutwise.files import write_atomic

__all__ = ["write_run_report", "write_sweep_report"]

_PAGE: Final = "report.html"
_POINTS: Final = "points"


def write_sweep_report(result: SweepResult, out_dir: Path) -> Path:
    """Write the page of a sweep.

    Args:
        result: The sweep.
        out_dir: Gets ``report.html``. Points that have a ``points/NAME/report.html`` there are
            linked to it.

    Returns:
        The page.

    Raises:
        ConfigError: The sweep has no points.
        OutputError: The place cannot be written.
    """
    links = {
        point.name: f"{_POINTS}/{quote(point.name, safe='')}/{_PAGE}"
        for point in result.points
        if _is_file_name(point.name) and (out_dir / _POINTS / point.name / _PAGE).is_file()
    }
    return _write(sweep_page(result, links), out_dir)


def write_run_report(run: RunSummary, out_dir: Path) -> Path:
    """Write the page of a run.

    Args:
        run: The run.
        out_dir: Gets ``report.html``.

    Returns:
        The page.

    Raises:
        OutputError: The place cannot be written.
    """
    return _write(run_page(run), out_dir)


def _is_file_name(name: str) -> bool:
    return name not in (".", "..") and not {"/", "\\", "\0"} & set(name) and len(name) < 200


def _write(text: str, out_dir: Path) -> Path:
    path = out_dir / _PAGE
    write_atomic(path, text.encode())
    return path
