# SPDX-License-Identifier: Apache-2.0
"""Weights from files that nobody vouches for.

Nothing in a file is run: safetensors holds no code, and pickles are read with
``torch.load(weights_only=True)``. Whatever is wrong ends in a `ModelError` that says what to do.
"""

import hashlib
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from lutwise.errors import ModelError

__all__ = [
    "PICKLE_SUFFIXES",
    "SAFETENSORS_SUFFIX",
    "State",
    "check_finite",
    "file_sha256",
    "load_into",
    "load_state",
    "state_sha256",
]

State: TypeAlias = dict[str, Tensor]

SAFETENSORS_SUFFIX: Final = ".safetensors"
PICKLE_SUFFIXES: Final = (".pt", ".pth", ".bin", ".ckpt")

_WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "net", "weights", "params")
_PREFIXES: Final = ("module.", "_orig_mod.")
_UNUSED_SUFFIX: Final = "num_batches_tracked"
_MAX_WRAPPERS: Final = 4
_SHOWN: Final = 4
_REFUSED: Final = re.compile("unsupported (global|class)", re.IGNORECASE)


def load_state(path: str | Path) -> State:
    """Read the weights of a checkpoint.

    Wrappers such as ``{"state_dict": ...}`` are taken off, and the prefixes that data-parallel
    training and ``torch.compile`` put before every name.

    Args:
        path: Of a ``.safetensors``, ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file.

    Returns:
        Tensors on the CPU by name.

    Raises:
        ModelError: The file is missing, damaged, holds code, or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise ModelError(f"a checkpoint file is needed, {str(path)!r} {what}")
    if path.stat().st_size == 0:
        raise ModelError(f"{path} is empty (0 bytes); fetch or save the checkpoint again")
    suffix = path.suffix.lower()
    if suffix == SAFETENSORS_SUFFIX:
        content: object = _read_safetensors(path)
    elif suffix in PICKLE_SUFFIXES:
        content = _read_pickle(path)
    else:
        raise ModelError(
            f"a checkpoint ends in {SAFETENSORS_SUFFIX}, {', '.join(PICKLE_SUFFIXES)}, got "
            f"{str(path)!r}"
        )
    return _without_prefixes(_only_tensors(content, path))


def check_finite(state: Mapping[str, Tensor], source: str = "the checkpoint") -> None:
    """Make sure that no weight is NaN or infinite.

    Args:
        state: Tensors by name.
        source: Where they came from, for the message.

    Raises:
        ModelError: Some are; the message has the first tensor's name and how many.
    """
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        bad = int((~torch.isfinite(tensor.to(torch.float32))).sum())
        if bad:
            raise ModelError(
                f"{source}: {bad} of {tensor.numel()} numbers of {name!r} are NaN or infinite (or "
                "beyond float32); such weights cannot be quantized, use a checkpoint from before "
                "training diverged"
            )


def load_into(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a module, every one of them.

    Counters of batch norm (``num_batches_tracked``) do not matter. One prefix that all names
    share is taken off where the names fit then.

    Args:
        module: Of the architecture that the weights belong to.
        state: Tensors by name.
        source: Where they came from, for messages.

    Raises:
        ModelError: Names or shapes differ, or a weight is NaN or infinite.
    """
    check_finite(state, source)
    wanted = {k: v for k, v in module.state_dict().items() if not k.endswith(_UNUSED_SUFFIX)}
    given = {k: v for k, v in state.items() if not k.endswith(_UNUSED_SUFFIX)}
    if given.keys() != wanted.keys():
        given = _without_common_prefix(given, wanted)
    problems = [
        _listing("missing", {k: wanted[k] for k in wanted.keys() - given.keys()}),
        _listing("unexpected", {k: given[k] for k in given.keys() - wanted.keys()}),
        _wrong_shapes(given, wanted),
    ]
    if any(problems):
        raise ModelError(
            f"{source} does not fit {type(module).__name__}: {'; '.join(filter(None, problems))}; "
            "is --arch right?"
        )
    module.load_state_dict(given, strict=False)


def file_sha256(*paths: Path) -> str:
    """Return the SHA-256 of the files' bytes one after the other, hexadecimal."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                total.update(chunk)
    return total.hexdigest()


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over names, types, shapes and bytes of tensors, hexadecimal."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _read_safetensors(path: Path) -> object:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, KeyError) as e:
        raise ModelError(
            f"{path} is no whole safetensors file: {e}; fetch or save the checkpoint again"
        ) from e


def _read_pickle(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            # on odd bytes torch warns before it refuses; the refusal says it all
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        # torch promises no error type for bytes that are no checkpoint: beside UnpicklingError,
        # Index-, Key-, Type-, Unicode-, Runtime- and AssertionErrors were seen
        reason = _reason(e)
        if isinstance(e, pickle.UnpicklingError) and _REFUSED.search(str(e)):
            raise ModelError(
                f"{path} holds code or objects, not just tensors ({reason}), and is not run; save "
                "the weights with torch.save(model.state_dict(), ...) or as safetensors"
            ) from e
        raise ModelError(
            f"{path} is no checkpoint of tensors, or is damaged ({reason}); save the weights with "
            "torch.save(model.state_dict(), ...) or as safetensors"
        ) from e


def _reason(error: Exception) -> str:
    """Return the line of torch's long message that has the reason."""
    text = str(error).replace("WeightsUnpickler error:", "")
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    told = next((line for line in lines if "nsupported " in line), lines[0])
    return f"{type(error).__name__}: {told.split(' Please use ')[0][:160]}"


def _only_tensors(content: object, path: Path) -> State:
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(content, Mapping) or _has_tensors(content):
            break
        inner = next((content[k] for k in _WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise ModelError(
            f"{path} holds a {type(content).__name__}, not weights by name; save model.state_dict()"
        )
    if not _has_tensors(content):
        keys = ", ".join(map(repr, list(content)[:_SHOWN])) or "nothing"
        raise ModelError(
            f"{path} holds no tensors (it holds {keys}); weights are looked for at the top and "
            f"under {', '.join(_WRAPPERS)}"
        )
    state: State = {}
    for name, tensor in content.items():
        usable = isinstance(tensor, Tensor) and tensor.layout is torch.strided
        if not isinstance(name, str) or not usable or tensor.is_quantized or tensor.is_meta:
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ModelError(
                f"{path}: {name!r} is {kind}, where a dense tensor was expected; save "
                "model.state_dict() of the float model"
            )
        state[name] = tensor
    return state


def _has_tensors(content: Mapping[object, object]) -> bool:
    return any(isinstance(v, Tensor) for v in content.values())


def _without_prefixes(state: State) -> State:
    while True:
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None)
        if prefix is None:
            return state
        state = {k.removeprefix(prefix): v for k, v in state.items()}


def _without_common_prefix(given: State, wanted: State) -> State:
    prefix = next(iter(given), "").partition(".")[0] + "."
    if all(k.startswith(prefix) for k in given):
        shorter = {k.removeprefix(prefix): v for k, v in given.items()}
        if shorter.keys() == wanted.keys():
            return shorter
    return given


def _listing(what: str, tensors: State) -> str:
    if not tensors:
        return ""
    shown = [f"{k} {tuple(tensors[k].shape)}" for k in sorted(tensors)[:_SHOWN]]
    more = f" and {len(tensors) - _SHOWN} more" if len(tensors) > _SHOWN else ""
    return f"{len(tensors)} {what} ({', '.join(shown)}{more})"


def _wrong_shapes(given: State, wanted: State) -> str:
    wrong = [k for k in sorted(given.keys() & wanted.keys()) if given[k].shape != wanted[k].shape]
    if not wrong:
        return ""
    shown = [f"{k} {tuple(given[k].shape)} for {tuple(wanted[k].shape)}" for k in wrong[:_SHOWN]]
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return f"{len(wrong)} of another shape ({', '.join(shown)}{more})"
