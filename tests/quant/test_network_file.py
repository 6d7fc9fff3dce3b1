# SPDX-License-Identifier: Apache-2.0
"""A network's file gives the network back, and damaged ones say what is wrong."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from lutwise.errors import ModelError
from lutwise.quant.executor import execute
from lutwise.quant.network_file import load_network, save_network
from tests.quant.nets import make, network_of


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if dataclasses.is_dataclass(a):
        for f in dataclasses.fields(a):
            assert_same(getattr(a, f.name), getattr(b, f.name))
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert a == b


@pytest.mark.parametrize("mode", ["dataflow", "layerwise"])
@pytest.mark.parametrize("net", ["chain", "residual", "depthwise", "branches"])
def test_network_comes_back(net: str, mode: str, tmp_path: Path) -> None:
    network = network_of(*make(net), "e2m1", "e3m2", mode)
    path = tmp_path / "network.safetensors"
    path.write_bytes(save_network(network))
    found = load_network(path)
    assert_same(network, found)
    assert save_network(found) == path.read_bytes()
    images = torch.randn(4, *network.tensors[network.input].shape).numpy()
    np.testing.assert_array_equal(execute(network, images), execute(found, images))


def test_transformer_comes_back(tmp_path: Path) -> None:
    from lutwise.quant.models import load_model

    model = load_model("zoo/vit")
    images = torch.randn(8, 1, 28, 28)
    network = network_of(model.module, images, "int4", "int8", "layerwise")
    (tmp_path / "n").write_bytes(save_network(network))
    assert_same(network, load_network(tmp_path / "n"))


def changed(content: bytes, change: Any) -> bytes:
    """Return a file whose description a function changed."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    described = json.loads(header["__metadata__"]["lutwise.network"])
    change(described)
    return bytes(save(load(content), metadata={"lutwise.network": json.dumps(described)}))


def drop_first(described: dict[str, Any]) -> None:
    del described["nodes"][0]


def unknown_kind(described: dict[str, Any]) -> None:
    described["nodes"][0]["kind"] = "System"


def unknown_format(described: dict[str, Any]) -> None:
    described["tensors"][1]["format"] = {"format": "int99"}


def later_version(described: dict[str, Any]) -> None:
    described["version"] = 2


def missing_array(described: dict[str, Any]) -> None:
    layer = next(n for n in described["nodes"] if n["kind"] == "Conv")
    layer["weight_codes"] = {"array": "99999"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_first, "which nothing makes"),
        (unknown_kind, "System"),
        (unknown_format, "int99"),
        (later_version, "version 2"),
        (missing_array, "99999"),
    ],
)
def test_wrong_description_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    path.write_bytes(
        changed(save_network(network_of(*make("chain"), "int4", "uint4", "dataflow")), change)
    )
    with pytest.raises(ModelError, match=message):
        load_network(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\xff" * 64])
def test_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="no file of a quantized network"):
        load_network(path)


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save({"a": np.zeros(3)}))
    with pytest.raises(ModelError, match="no description"):
        load_network(path)
    with pytest.raises(ModelError, match="does not exist"):
        load_network(tmp_path / "missing")
