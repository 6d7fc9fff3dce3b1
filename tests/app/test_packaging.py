# SPDX-License-Identifier: Apache-2.0
"""The layout: top-level folders are the packages, and nothing is imported too early."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("quant", "hw", "cost_models", "export", "consumers")


@pytest.mark.parametrize("name", FOLDERS)
def test_each_link_leads_to_its_folder(name: str) -> None:
    link = ROOT / "src" / "lutwise" / name
    assert link.is_symlink()
    assert link.resolve() == ROOT / name


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    return done.stdout


def test_bare_folder_names_are_not_imported() -> None:
    code = f"import sys, lutwise.commands; print([m for m in {FOLDERS} if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_cost_models_and_hardware_do_not_need_torch() -> None:
    code = (
        "import sys, lutwise.cost_models.estimate, lutwise.cost_models.from_network, "
        "lutwise.hw.dot_product, lutwise.hw.synthesis, lutwise.quant.network; "
        "print(sorted({'torch', 'brevitas', 'onnx'} & set(sys.modules)))"
    )
    assert run(code).strip() == "[]"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from lutwise.cli import cli; cli(['--help'], standalone_mode=False); "
        "print(sorted({'torch', 'numpy', 'rich', 'yaml', 'onnx'} & set(sys.modules)))"
    )
    assert run(code).splitlines()[-1] == "[]"


def test_help_is_fast() -> None:
    command = [sys.executable, "-m", "lutwise", "--help"]
    best = 1e9
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        best = min(best, time.perf_counter() - start)
    assert best < 0.3
