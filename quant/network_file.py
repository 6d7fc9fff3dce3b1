# SPDX-License-Identifier: Apache-2.0
"""A `Network` in a file: what later exports and checks start from, without torch or the model.

The file is safetensors: arrays as they are, and one JSON text that says what they belong to.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lutwise.errors import FormatError, ModelError
from lutwise.quant import network as nodes
from lutwise.quant.formats import FloatFormat, IntFormat, parse_element
from lutwise.quant.network import Network, Requantizer, Tensor
from lutwise.quant.operation import Operation

__all__ = ["load_network", "save_network"]

_KEY: Final = "lutwise.network"
_VERSION: Final = 1
_KINDS: Final = {
    kind.__name__: kind
    for kind in (
        nodes.Accumulator,
        nodes.Add,
        nodes.Clamp,
        nodes.Concat,
        nodes.Conv,
        nodes.Flatten,
        nodes.Linear,
        nodes.Operator,
        nodes.Pad,
        nodes.Pool,
        nodes.Quantize,
        Requantizer,
        Tensor,
    )
}


def save_network(network: Network) -> bytes:
    """Return the content of a network's file; the same network gives the same bytes."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    described = {
        "version": _VERSION,
        "name": network.name,
        "input": network.input,
        "output": network.output,
        "nodes": [_plain(node, arrays) for node in network.nodes],
        "tensors": [_plain(tensor, arrays) for tensor in network.tensors.values()],
    }
    content: bytes = save(arrays, metadata={_KEY: json.dumps(described, sort_keys=True)})
    return content


def load_network(path: str | Path) -> Network:
    """Read a network's file.

    Raises:
        ModelError: It is missing, damaged, of a later version, or no network's.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(
            f"the file of a quantized network is needed, {str(path)!r} does not exist; "
            "`quantize run` writes it as network.safetensors"
        )
    try:
        with safe_open(path, framework="numpy") as held:
            text = (held.metadata() or {}).get(_KEY)
            arrays = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
        if text is None:
            raise ValueError("it holds no description of a network")
        described = json.loads(text)
        if described["version"] != _VERSION:
            raise ValueError(f"it has version {described['version']}, wanted {_VERSION}")
        tensors = [_built(tensor, arrays) for tensor in described["tensors"]]
        network = Network(
            name=described["name"],
            input=described["input"],
            output=described["output"],
            nodes=tuple(_built(node, arrays) for node in described["nodes"]),
            tensors={tensor.name: tensor for tensor in tensors},
        )
        _check(network)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ModelError(
            f"{path} is no file of a quantized network: {' '.join(str(error).split())[:200]}"
        ) from error
    except FormatError as error:
        raise ModelError(f"{path} is no file of a quantized network: {error}") from error
    return network


def _check(network: Network) -> None:
    """Raise ValueError where nodes read what nothing makes."""
    made = {network.input}
    for node in network.nodes:
        if missing := [name for name in node.inputs if name not in made]:
            raise ValueError(f"node {node.name!r} reads {missing[0]!r}, which nothing makes")
        made.add(node.output)
    if unknown := sorted({network.output} - made) + sorted(made - set(network.tensors)):
        raise ValueError(f"nothing is known of the tensor {unknown[0]!r}")


def _plain(value: Any, arrays: dict[str, npt.NDArray[Any]]) -> Any:
    """Return a value as JSON, its arrays put aside."""
    match value:
        case IntFormat() | FloatFormat():
            return {"format": str(value)}
        case Operation():
            return {"operation": value.value}
        case Fraction():
            return {"fraction": str(value)}
        case float():
            return {"float": value.hex()}
        case None | bool() | int() | str():
            return value
        case np.ndarray() if value.dtype == object:
            return {"integers": [str(int(number)) for number in value.reshape(-1)]}
        case np.ndarray():
            name = f"{len(arrays):05d}"
            arrays[name] = np.ascontiguousarray(value)
            return {"array": name}
        case Mapping():
            return {"mapping": {key: _plain(item, arrays) for key, item in value.items()}}
        case tuple() | list():
            return [_plain(item, arrays) for item in value]
    assert is_dataclass(value)
    entries = {f.name: _plain(getattr(value, f.name), arrays) for f in fields(value)}
    return {"kind": type(value).__name__, **entries}


def _built(plain: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> Any:
    """Return the value that `_plain` was given."""
    if isinstance(plain, list):
        return tuple(_built(item, arrays) for item in plain)
    if not isinstance(plain, dict):
        return plain
    if "kind" in plain:
        entries = {k: _built(v, arrays) for k, v in plain.items() if k != "kind"}
        return _KINDS[plain["kind"]](**entries)
    ((word, value),) = plain.items()
    match word:
        case "format":
            return parse_element(value)
        case "operation":
            return Operation(value)
        case "fraction":
            return Fraction(value)
        case "float":
            return float.fromhex(value)
        case "integers":
            return np.array([int(number) for number in value], dtype=object)
        case "array":
            return arrays[value]
        case "mapping":
            return {key: _built(item, arrays) for key, item in value.items()}
    raise ValueError(f"it has a {word!r}, which is unknown")
