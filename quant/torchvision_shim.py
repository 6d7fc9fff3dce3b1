# SPDX-License-Identifier: Apache-2.0
"""Importing torchvision and timm beside a torch that their wheel was not built for.

The torchvision wheel on PyPI is built for CUDA. Beside a CPU build of torch its compiled
operators do not load, and then ``import torchvision`` fails with ``operator torchvision::nms
does not exist``, though its classification models need none of them. Where, and only where, the
import fails with that message, the two operators that it asks for are declared (without an
implementation: calling them is an error) and the import is tried again. Whoever has a torchvision
that works never gets here.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Final

import torch

from lutwise.errors import ModelError

__all__ = ["import_timm", "import_torchvision"]

_MISSING: Final = "operator torchvision::nms does not exist"
_SIGNATURE: Final = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Import ``torchvision.models``.

    Raises:
        ModelError: It is not installed, or cannot be imported.
    """
    return _import("torchvision.models")


def import_timm() -> ModuleType:
    """Import ``timm``, which imports torchvision.

    Raises:
        ModelError: It or torchvision is not installed, or cannot be imported.
    """
    if importlib.util.find_spec("timm") is None:
        raise _not_installed("timm")
    import_torchvision()
    return _import("timm")


def _not_installed(package: str) -> ModelError:
    return ModelError(
        f"{package}/NAME needs the package {package}, which is not installed; "
        f"pip install lutwise[{package}]"
    )


def _import(name: str) -> ModuleType:
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name != package:
            raise ModelError(f"{package} cannot be imported: {e}; install it again") from e
        raise _not_installed(package) from e
    except (ImportError, OSError, RuntimeError) as e:
        if package != "torchvision" or _MISSING not in str(e):
            raise ModelError(f"{package} cannot be imported: {e}; install it again") from e
    _declare_operators()
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as e:
        raise ModelError(
            f"{package} cannot be imported: {e}; install the build that belongs to torch "
            f"{torch.__version__}"
        ) from e


def _declare_operators() -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}{_SIGNATURE}")
    _libraries.append(library)  # operators live as long as their library
