# SPDX-License-Identifier: Apache-2.0
"""Models by their spec: the zoo, checkpoints, ONNX files, timm and torchvision.

Nothing is downloaded. ``timm/NAME`` and ``torchvision/NAME`` have random weights, which the name
says; trained weights come from a file, with the same words given as ``arch``.
"""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from torch import nn

from lutwise.errors import ModelError
from lutwise.quant.checkpoints import (
    PICKLE_SUFFIXES,
    SAFETENSORS_SUFFIX,
    check_finite,
    file_sha256,
    load_into,
    load_state,
    state_sha256,
)
from lutwise.quant.model_builders import ARCH_FORMS, ZOO, Architecture, find_architecture
from lutwise.quant.onnx_reader import external_files, input_shape, load_onnx, module_of
from lutwise.quant.preprocessing import Preprocessing

__all__ = ["MODEL_FORMS", "LoadedModel", "load_model", "zoo_names"]

MODEL_FORMS: Final = (
    "zoo/NAME",
    "file.safetensors or file.pt with --arch",
    "file.onnx",
    "timm/NAME",
    "torchvision/NAME",
)
"""What a model spec may be."""

_LIBRARIES: Final = ("timm/", "torchvision/")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A float model and what is known about it.

    Args:
        name: For people; says so where the weights are random.
        module: In evaluation mode.
        input_shape: (c, h, w), None where unknown.
        preprocessing: Of its images, None where unknown.
        sha256: Of the weights' bytes as they lay in the file (for ONNX the file and those beside
            it), or of the random weights, hexadecimal.
        data: Spec of the built-in images it was trained on.
        random_weights: Whether no trained weights were loaded.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...] | None
    preprocessing: Preprocessing | None
    sha256: str
    data: str | None = None
    random_weights: bool = False


def zoo_names() -> tuple[str, ...]:
    """Return the models that come with their weights."""
    return tuple(name for name, a in ZOO.items() if a.weights is not None)


def load_model(spec: str, *, arch: str | None = None, trust_code: bool = False) -> LoadedModel:
    """Load a model.

    Args:
        spec: One of `MODEL_FORMS`.
        arch: Which architecture the weights of a checkpoint belong to, one of
            `lutwise.quant.model_builders.ARCH_FORMS`.
        trust_code: Whether code that ``arch`` names may run.

    Raises:
        ModelError: There is no such model, or it cannot be loaded.
        UnsupportedLayerError: An ONNX file has a node that cannot be read.
    """
    suffix = Path(spec).suffix.lower()
    if spec.startswith(("zoo/", *_LIBRARIES)) and not Path(spec).is_file():
        if arch is not None:
            raise ModelError(
                f"{spec!r} says the architecture itself, so --arch {arch!r} is too much; for "
                "trained weights give the file as the model"
            )
        if spec.startswith("zoo/"):
            return _from_zoo(spec)
        return _random(find_architecture(spec, trust_code=False))
    if suffix == ".onnx":
        if arch is not None:
            raise ModelError(f"an ONNX file holds its architecture, --arch {arch!r} is too much")
        return _from_onnx(Path(spec))
    if suffix == SAFETENSORS_SUFFIX or suffix in PICKLE_SUFFIXES:
        return _from_checkpoint(Path(spec), arch, trust_code=trust_code)
    raise ModelError(f"no model {spec!r}; give one of {', '.join(MODEL_FORMS)}")


def _from_zoo(spec: str) -> LoadedModel:
    architecture = ZOO.get(spec)
    if architecture is None:
        raise ModelError(f"no model {spec!r}, the zoo has {', '.join(zoo_names())}")
    if architecture.weights is None:
        raise ModelError(
            f"the weights of {spec} are not in the package; make the file with "
            f"benchmarks/imagenet_models.py and load it with --arch {spec}"
        )
    file = resources.files("lutwise.quant.zoo") / architecture.weights
    with resources.as_file(file) as path:
        return _loaded(architecture, path, name=spec)


def _random(architecture: Architecture) -> LoadedModel:
    module = architecture.module()
    return LoadedModel(
        name=f"{architecture.name} (random weights)",
        module=module,
        input_shape=architecture.input_shape,
        preprocessing=architecture.preprocessing,
        sha256=state_sha256(module.state_dict()),
        random_weights=True,
    )


def _from_checkpoint(path: Path, arch: str | None, *, trust_code: bool) -> LoadedModel:
    if arch is None:
        raise ModelError(
            f"{path} holds weights but no architecture; give --arch, one of {', '.join(ARCH_FORMS)}"
        )
    return _loaded(find_architecture(arch, trust_code=trust_code), path, name=path.name)


def _loaded(architecture: Architecture, path: Path, *, name: str) -> LoadedModel:
    state = load_state(path)
    module = architecture.module()
    load_into(module, state, f"{path.name} for {architecture.name}")
    return LoadedModel(
        name=name,
        module=module.eval(),
        input_shape=architecture.input_shape,
        preprocessing=architecture.preprocessing,
        sha256=file_sha256(path),
        data=architecture.data,
    )


def _from_onnx(path: Path) -> LoadedModel:
    model = load_onnx(path)
    module = module_of(model)
    check_finite(module.state_dict(), str(path))
    return LoadedModel(
        name=path.name,
        module=module,
        input_shape=input_shape(model),
        preprocessing=None,
        sha256=file_sha256(path, *external_files(path)),
    )
