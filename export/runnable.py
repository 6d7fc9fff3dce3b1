# SPDX-License-Identifier: Apache-2.0
"""What can run images and tell all tensors: files in qonnx, ONNX Runtime and hls4ml, and networks.

Whatever the executor, images come channels first, and tensors are channels first and hold values
of their format, so that two executors can be compared tensor by tensor.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from lutwise.errors import ConfigError, DataError
from lutwise.export.functions import with_functions
from lutwise.export.graph import DOMAIN
from lutwise.export.hls4ml import Emulation
from lutwise.export.integer_graph import FLATTENED_KEY, UNITS_KEY, is_channels_last
from lutwise.export.reader import load_qonnx
from lutwise.export.run import onnxruntime_of, qonnx_of
from lutwise.quant.executor import trace
from lutwise.quant.network import Network
from lutwise.quant.network_file import load_network

__all__ = ["NETWORK_FILE", "Maker", "Runnable", "Runner", "input_of", "of_network", "runnable"]

NETWORK_FILE: Final = "network.safetensors"
"""Of a run directory."""

Tensors = Mapping[str, npt.NDArray[Any]]
Images = npt.NDArray[np.float32]


class Runner(StrEnum):
    """What runs a file, or a run directory."""

    QONNX = "qonnx"
    ONNXRUNTIME = "onnxruntime"
    HLS4ML = "hls4ml"
    """Its C++, compiled; tells the output only."""

    EXACT = "exact"
    """The exact executor, on the network of a run directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """What makes a tensor.

    Args:
        node: Name of the node.
        operator: What the node does.
    """

    node: str
    operator: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runnable:
    """Something that runs images.

    Args:
        name: For people: ``executor:path``.
        image_shape: Without the batch.
        output: Name of the output tensor.
        makers: Of each tensor that it may tell, in the order of execution.
        run: Yields all tensors by name, for images and a batch size.
    """

    name: str
    image_shape: tuple[int, ...]
    output: str
    makers: Mapping[str, Maker]
    run: Callable[[Images, int], Iterator[Tensors]]

    def __str__(self) -> str:
        return self.name


def runnable(spec: str, default: Runner) -> Runnable:
    """Read ``file``, ``executor:file``, or ``exact:run``.

    Args:
        spec: As given.
        default: What runs a file alone; qonnx where ONNX Runtime cannot.

    Raises:
        ConfigError: No such executor.
        ModelError: The file is missing or damaged.
        DataError: It has several inputs or outputs, or open sizes.
    """
    name, colon, file = spec.partition(":")
    if not colon or Path(spec).exists():
        name, file = default.value, spec
    if name not in set(Runner):
        raise ConfigError(f"{spec!r}: executors are {', '.join(Runner)} and torch, not {name!r}")
    runner, path = Runner(name), Path(file)
    if runner is Runner.EXACT:
        found = path / NETWORK_FILE if path.is_dir() else path
        return of_network(load_network(found), f"{name}:{path}")
    if path.is_dir():
        path = path / "model.qonnx"
    model = load_qonnx(path)
    if not colon and runner is Runner.ONNXRUNTIME and not _has_bodies(model):
        runner = Runner.QONNX
    return of_file(runner, model, f"{runner}:{path}")


def _has_bodies(model: onnx.ModelProto) -> bool:
    """Return whether ONNX Runtime can be given bodies of all operators that it lacks."""
    return all(n.domain in ("", DOMAIN) and n.op_type != "MultiThreshold" for n in model.graph.node)


def of_network(network: Network, name: str) -> Runnable:
    """Return the exact executor of a network."""

    def run(images: Images, batch: int) -> Iterator[Tensors]:
        yield from trace(network, images, batch=batch, keep=True)

    return Runnable(
        name=name,
        image_shape=network.tensors[network.input].shape,
        output=network.output,
        makers={n.output: Maker(node=n.name, operator=type(n).__name__) for n in network.nodes},
        run=run,
    )


def of_file(runner: Runner, model: onnx.ModelProto, name: str) -> Runnable:
    """Return what runs a file.

    Args:
        runner: Which program.
        model: The file.
        name: For people.

    Raises:
        DataError: It has several inputs or outputs, or open sizes.
    """
    shape = input_of(model)
    makers = {
        tensor: Maker(node=node.name or node.output[0], operator=node.op_type)
        for node in model.graph.node
        for tensor in node.output
    }
    turned = is_channels_last(model) and len(shape) == 3
    noted = {entry.key: entry.value for entry in model.metadata_props}
    exponents: Mapping[str, int] = json.loads(noted.get(UNITS_KEY, "{}"))
    flattened: Mapping[str, list[int]] = json.loads(noted.get(FLATTENED_KEY, "{}"))

    def usual(tensor: str, found: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if tensor in exponents:
            found = np.ldexp(found, exponents[tensor])
        if tensor in flattened:
            c, h, w = flattened[tensor]
            return found.reshape(-1, h, w, c).transpose(0, 3, 1, 2).reshape(len(found), -1)
        return found.transpose(0, 3, 1, 2) if turned and found.ndim == 4 else found

    def run(images: Images, batch: int) -> Iterator[Tensors]:
        if turned:
            images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        for tensors in _RUNS[runner](model, images, batch):
            yield {tensor: usual(tensor, found) for tensor, found in tensors.items()}

    return Runnable(
        name=name,
        image_shape=(shape[2], *shape[:2]) if turned else shape,
        output=model.graph.output[0].name,
        makers=makers,
        run=run,
    )


def input_of(model: onnx.ModelProto) -> tuple[int, ...]:
    """Return the shape of a file's one input, without the batch.

    Raises:
        DataError: It has several, or open sizes.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise DataError(
            f"a file of one input and one output is needed, got {len(inputs)} and "
            f"{len(model.graph.output)}"
        )
    sizes = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim]
    if len(sizes) < 2 or not all(sizes[1:]):
        raise DataError(f"the input {inputs[0].name!r} has open sizes: {sizes}; export them fixed")
    return tuple(sizes[1:])


Run = Callable[[Images], Tensors]


def _whole(
    model: onnx.ModelProto, images: Images, batch: int, make: Callable[[onnx.ModelProto, int], Run]
) -> Iterator[Tensors]:
    """Yield all tensors by name, batch by batch, in pieces of the size that the file states."""
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0]
    size = fixed.dim_value or batch
    run = make(model, size)
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        pieces = [part[i : i + size] for i in range(0, len(part), size)]
        found = [run(_filled(piece, size)) for piece in pieces]
        yield _joined(found, [len(piece) for piece in pieces], size)


def _joined(found: Sequence[Tensors], sizes: Sequence[int], full: int) -> Tensors:
    """Put the pieces of a batch together; what has no batch axis is the same in all."""
    if len(found) == 1 and sizes[0] == full:
        return found[0]
    joined = {}
    for name, tensor in found[0].items():
        joined[name] = tensor
        if tensor.ndim and len(tensor) == full:
            parts = [f[name][:size] for f, size in zip(found, sizes, strict=True)]
            joined[name] = np.concatenate(parts)
    return joined


def _filled(part: Images, size: int) -> Images:
    """Repeat images so that a batch is full; the surplus is cut off again."""
    return np.resize(part, (size, *part.shape[1:])) if len(part) < size else part


def _qonnx(model: onnx.ModelProto, size: int) -> Run:
    run = qonnx_of(model, size)
    made = [name for node in model.graph.node for name in node.output]

    def told(part: Images) -> Tensors:
        found = run(part)
        return {name: found[name] for name in made if found.get(name) is not None}

    return told


def _onnxruntime(model: onnx.ModelProto, size: int) -> Run:
    del size
    model = copy.deepcopy(model)
    if any(node.domain == DOMAIN for node in model.graph.node):
        model = with_functions(model)
    known = {output.name for output in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name not in known]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    outputs = [output.name for output in model.graph.output]
    run = onnxruntime_of(model)
    return lambda part: dict(zip(outputs, run(part), strict=True))


def _hls4ml(model: onnx.ModelProto, images: Images, batch: int) -> Iterator[Tensors]:
    emulation, output = Emulation(model), model.graph.output[0].name
    for start in range(0, len(images), batch):
        yield {output: emulation(images[start : start + batch])}


_RUNS: Final[Mapping[Runner, Callable[[onnx.ModelProto, Images, int], Iterator[Tensors]]]] = {
    Runner.QONNX: lambda model, images, batch: _whole(model, images, batch, _qonnx),
    Runner.ONNXRUNTIME: lambda model, images, batch: _whole(model, images, batch, _onnxruntime),
    Runner.HLS4ML: _hls4ml,
}
