# SPDX-License-Identifier: Apache-2.0
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor, nn

from lutwise.errors import ModelError
from lutwise.quant.checkpoints import (
    check_finite,
    file_sha256,
    load_into,
    load_state,
    state_sha256,
)

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


class Marker:
    """Leaves a mark where unpickling it runs code."""

    hits: list[str] = []  # noqa: RUF012 -- shared on purpose

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return self.hits.append, ("ran",)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".PT"])
def test_load_state_returns_what_was_saved(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    if suffix == ".safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path)
    assert equal(load_state(path), STATE)
    assert equal(load_state(str(path)), STATE)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {"lr": 0.1}},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {"model_state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    ],
    ids=["state_dict", "model", "nested", "wrapper_and_prefix", "prefixes"],
)
def test_load_state_takes_wrappers_off(
    wrap: Callable[[dict[str, Tensor]], object], tmp_path: Path
) -> None:
    torch.save(wrap(STATE), tmp_path / "net.pt")
    assert equal(load_state(tmp_path / "net.pt"), STATE)


def test_load_state_keeps_a_prefix_that_not_all_share(tmp_path: Path) -> None:
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(state, tmp_path / "net.pt")
    assert equal(load_state(tmp_path / "net.pt"), state)


def _saved(content: object) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def _written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _half(path: Path) -> None:
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _script(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.ReLU()), path)


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("a.pt", lambda path: None, "does not exist"),
    "directory": ("a.pt", lambda path: path.mkdir(), "is a directory"),
    "empty_file": ("a.pt", _written(b""), "is empty (0 bytes)"),
    "other_suffix": ("a.h5", _written(b"x"), "a checkpoint ends in .safetensors, .pt"),
    "text": ("a.pt", _written(b"hello"), "is no checkpoint of tensors, or is damaged"),
    "text_safetensors": ("a.safetensors", _written(b"hello"), "is no whole safetensors file"),
    "truncated_safetensors": (
        "a.safetensors",
        _written(save(STATE)[:-4]),
        "is no whole safetensors file",
    ),
    "header_too_long": (
        "a.safetensors",
        _written((1 << 60).to_bytes(8, "little") + b"{}"),
        "is no whole safetensors file",
    ),
    "empty_safetensors": ("a.safetensors", _written(save({})), "it holds nothing"),
    "truncated_pickle": ("a.pt", _half, "or is damaged"),
    "code": ("a.pt", _saved({"a": Marker()}), "holds code or objects, not just tensors"),
    "bare_code": (
        "a.pt",
        _written(pickle.dumps(Marker(), protocol=2)),
        "holds code or objects, not just tensors",
    ),
    "whole_module": ("a.pt", _saved(nn.Linear(2, 2)), "and is not run; save the weights with"),
    "list": ("a.pt", _saved([1, 2]), "holds a list, not weights by name"),
    "tensor": ("a.pt", _saved(torch.ones(2)), "holds a Tensor, not weights by name"),
    "nothing": ("a.pt", _saved({}), "holds no tensors (it holds nothing)"),
    "no_weights": ("a.pt", _saved({"epoch": 3}), "holds no tensors (it holds 'epoch')"),
    "mixed": ("a.pt", _saved({"a": torch.ones(2), "lr": 0.1}), "'lr' is float, where a dense"),
    "sparse": ("a.pt", _saved({"a": torch.eye(3).to_sparse()}), "where a dense tensor was"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_refused(name: str, tmp_path: Path) -> None:
    file, make, message = BAD[name]
    make(tmp_path / file)
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        load_state(tmp_path / file)
    assert file in str(caught.value)
    assert not Marker.hits


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    _script(tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"model.state_dict\(\)"):
        load_state(tmp_path / "a.pt")


@pytest.mark.property
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    suffix=st.sampled_from([".pt", ".safetensors"]),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
    cut=st.floats(0, 1),
)
def test_any_damage_ends_in_tensors_or_a_model_error(
    suffix: str, changes: list[tuple[float, int]], cut: float, tmp_path: Path
) -> None:
    path = tmp_path / f"net{suffix}"
    if suffix == ".pt":
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    content = bytearray(path.read_bytes())
    for place, byte in changes:
        content[int(place * len(content))] = byte
    path.write_bytes(content if not changes else content[: int(cut * len(content)) + 1])
    try:
        state = load_state(path)
    except ModelError:
        return
    assert all(isinstance(v, Tensor) for v in state.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_check_finite_names_tensor_and_count(value: float) -> None:
    state = {"fine": torch.ones(3), "bad": torch.tensor([1.0, value, value])}
    with pytest.raises(ModelError, match=r"net.pt: 2 of 3 numbers of 'bad' are NaN or infinite"):
        check_finite(state, "net.pt")


def test_check_finite_accepts_integers_and_half_precision() -> None:
    check_finite({"count": torch.tensor(3), "half": torch.ones(2, dtype=torch.bfloat16)})


def test_check_finite_refuses_what_float32_cannot_hold() -> None:
    with pytest.raises(ModelError, match="beyond float32"):
        check_finite({"wide": torch.tensor([1e300], dtype=torch.float64)})


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def test_load_into_copies_and_converts() -> None:
    module, source = net(), net()
    state = {k: v.half() for k, v in source.state_dict().items() if "num_batches" not in k}
    load_into(module, state, "net.pt")
    weight = next(module.parameters())
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["0.weight"].float())


def test_load_into_takes_a_common_prefix_off() -> None:
    module = net()
    state = {f"backbone.{k}": torch.ones_like(v) for k, v in module.state_dict().items()}
    load_into(module, state, "net.pt")
    assert bool((next(module.parameters()) == 1).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("1.weight"), "1 missing (1.weight (2,)); is --arch right?"),
        (lambda s: s.update(extra=torch.ones(4)), "1 unexpected (extra (4,))"),
        (
            lambda s: s.update({"0.bias": torch.ones(3)}),
            "1 of another shape (0.bias (3,) for (2,))",
        ),
        (
            lambda s: s.update({f"x{i}": torch.ones(1) for i in range(6)}),
            "6 unexpected (x0 (1,), x1 (1,), x2 (1,), x3 (1,) and 2 more)",
        ),
        (lambda s: s.update({"0.bias": torch.full((2,), float("nan"))}), "2 of 2 numbers of"),
    ],
    ids=["missing", "unexpected", "shape", "many", "nan"],
)
def test_load_into_says_what_does_not_fit(
    change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    module = net()
    state = dict(module.state_dict())
    change(state)
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        load_into(module, state, "net.pt")
    assert str(caught.value).startswith("net.pt")


def test_hashes_depend_on_every_byte(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"abc")
    two.write_bytes(b"")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(one) == file_sha256(one, two) == known
    changed = {**STATE, "a.bias": torch.tensor([1.0, 1.0000001])}
    assert state_sha256(STATE) == state_sha256(dict(reversed(STATE.items())))
    assert state_sha256(STATE) != state_sha256(changed)
    assert state_sha256({"a": torch.ones(4)}) != state_sha256({"a": torch.ones(2, 2)})
