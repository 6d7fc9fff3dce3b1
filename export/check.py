# SPDX-License-Identifier: Apache-2.0
"""Run two QONNX files, or one in two runtimes, and say where they differ, tensor by tensor."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from lutwise.errors import ConfigError, DataError, MismatchError, ToolError
from lutwise.export.functions import with_functions
from lutwise.export.graph import DOMAIN
from lutwise.export.reader import load_qonnx
from lutwise.export.run import Executor, onnxruntime_of, with_batch

__all__ = ["Comparison", "Difference", "Runnable", "check", "input_of", "runnable"]

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runnable:
    """A file and what runs it.

    Args:
        executor: What runs it.
        path: Of the file.
        model: Its content.
    """

    executor: Executor
    path: Path
    model: onnx.ModelProto

    def __str__(self) -> str:
        return f"{self.executor.value}:{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How a tensor differs.

    Args:
        tensor: Its name.
        node: That makes it in the first file.
        operator: Of that node.
        differing: Numbers that differ by more than the tolerance.
        numbers: Numbers compared.
        largest: Largest absolute difference.
        first: Index (image, ...) of the first number that differs.
        values: What the first and the second give there.
    """

    tensor: str
    node: str
    operator: str
    differing: int
    numbers: int
    largest: float
    first: tuple[int, ...]
    values: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was compared, and what differs.

    Args:
        images: How many were run.
        tensors: How many tensors of the same name and shape both have.
        outputs: Numbers of the output, over all images.
        output: How the output differs; None where it does not.
        differences: In the order of execution.
    """

    images: int
    tensors: int
    outputs: int
    output: Difference | None
    differences: tuple[Difference, ...]

    def raise_if_differs(self) -> None:
        """Do nothing where the outputs agree.

        Raises:
            MismatchError: They differ; the first tensor that does is named.
        """
        if self.output is None:
            return
        first, end = self.differences[0], self.output
        raise MismatchError(
            f"{end.differing} of {self.outputs} outputs differ, by up to {end.largest:g}; the "
            f"first tensor that differs is {first.tensor!r} of {first.operator} {first.node!r}: "
            f"{first.differing} of {first.numbers} numbers, by up to {first.largest:g}, the first "
            f"at {first.first}: {first.values[0]!r} and {first.values[1]!r}"
        )


_BY_NAME: Final = {executor.value: executor for executor in Executor}


def runnable(spec: str, default: Executor) -> Runnable:
    """Read ``file`` or ``executor:file``.

    Args:
        spec: As given.
        default: What runs a file alone.

    Raises:
        ConfigError: No such executor.
        ModelError: The file is missing or damaged.
    """
    name, colon, file = spec.partition(":")
    if not colon or Path(spec).exists():
        name, file = default.value, spec
    if name not in _BY_NAME:
        raise ConfigError(f"{spec!r}: executors are {', '.join(_BY_NAME)}, not {name!r}")
    path = Path(file)
    return Runnable(executor=_BY_NAME[name], path=path, model=load_qonnx(path))


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


def check(
    first: Runnable,
    second: Runnable,
    images: npt.NDArray[np.float32],
    *,
    batch: int = 16,
    tolerance: float = 0.0,
) -> Comparison:
    """Compare all tensors that both have, and their outputs, over all images.

    Args:
        first: One.
        second: The other.
        images: Shape (n, *input shape).
        batch: Images at a time.
        tolerance: Absolute difference that counts as none.

    Raises:
        DataError: The images do not fit an input, or the outputs have different shapes.
        ToolError: A runtime fails.
    """
    for one in (first, second):
        wanted = input_of(one.model)
        if not len(images) or images.shape[1:] != wanted:
            raise DataError(
                f"{one.path} takes images of shape {wanted}, got {len(images)} of shape "
                f"{images.shape[1:]}"
            )
    makers = {name: node for node in first.model.graph.node for name in node.output}
    ends = [one.model.graph.output[0].name for one in (first, second)]
    totals: dict[str, _Total] = {}
    runs = [_run(one, images, batch) for one in (first, second)]
    start = 0
    for left, right in zip(*runs, strict=True):
        for name in makers:
            other = ends[1] if name == ends[0] else name
            if name not in left or other not in right:
                continue
            if left[name].shape != right[other].shape:
                if name == ends[0]:
                    raise DataError(
                        f"outputs of shape {left[name].shape} and {right[other].shape} cannot be "
                        "compared"
                    )
                continue
            total = totals.setdefault(name, _Total())
            total.add(left[name], right[other], start, tolerance)
        start += batch
    found = {
        name: total.difference(name, makers[name])
        for name, total in totals.items()
        if total.differing
    }
    output = found.get(ends[0])
    return Comparison(
        images=len(images),
        tensors=len(totals),
        outputs=totals[ends[0]].numbers,
        output=output,
        differences=tuple(found.values()),
    )


@dataclass(slots=True)
class _Total:
    """What was found of a tensor so far."""

    numbers: int = 0
    differing: int = 0
    largest: float = 0.0
    first: tuple[int, ...] = ()
    values: tuple[float, float] = (0.0, 0.0)

    def add(
        self, left: npt.NDArray[Any], right: npt.NDArray[Any], start: int, tolerance: float
    ) -> None:
        self.numbers += left.size
        if np.array_equal(left, right):
            return
        one, two = left.astype(np.float64), right.astype(np.float64)
        with np.errstate(invalid="ignore"):
            apart = np.abs(one - two)
        # Infinities of one sign agree; a number and a NaN differ by any tolerance.
        apart = np.where((one == two) | (np.isnan(one) & np.isnan(two)), 0.0, apart)
        apart = np.where(np.isnan(apart), np.inf, apart)
        wrong = np.argwhere(apart > tolerance)
        if len(wrong) and not self.differing:
            at = tuple(int(i) for i in wrong[0])
            self.first = (at[0] + start, *at[1:]) if at else at
            self.values = (float(one[at]), float(two[at]))
        self.differing += len(wrong)
        self.largest = max(self.largest, float(apart.max(initial=0.0)))

    def difference(self, tensor: str, node: onnx.NodeProto) -> Difference:
        return Difference(
            tensor=tensor,
            node=node.name or node.output[0],
            operator=node.op_type,
            differing=self.differing,
            numbers=self.numbers,
            largest=self.largest,
            first=self.first,
            values=self.values,
        )


Run = Callable[[npt.NDArray[np.float32]], Tensors]


def _run(one: Runnable, images: npt.NDArray[np.float32], batch: int) -> Iterator[Tensors]:
    """Yield all tensors by name, batch by batch."""
    fixed = one.model.graph.input[0].type.tensor_type.shape.dim[0]
    size = fixed.dim_value or batch
    run = _qonnx(one, size) if one.executor is Executor.QONNX else _onnxruntime(one)
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


def _filled(part: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """Repeat images so that a batch is full; the surplus is cut off again."""
    return np.resize(part, (size, *part.shape[1:])) if len(part) < size else part


def _qonnx(one: Runnable, size: int) -> Run:
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx

    wrapper = ModelWrapper(with_batch(one.model, size))
    made = [name for node in one.model.graph.node for name in node.output]
    name = one.model.graph.input[0].name

    def run(part: npt.NDArray[np.float32]) -> Tensors:
        try:
            with np.errstate(over="ignore"):
                found = execute_onnx(wrapper, {name: part}, return_full_exec_context=True)
        except Exception as error:  # qonnx raises plain Exception, AssertionError and others
            raise ToolError("qonnx", version("qonnx"), str(error)) from error
        return {name: found[name] for name in made if found.get(name) is not None}

    return run


def _onnxruntime(one: Runnable) -> Run:
    model = copy.deepcopy(one.model)
    if any(node.domain == DOMAIN for node in model.graph.node):
        model = with_functions(model)
    known = {output.name for output in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name not in known]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    outputs = [output.name for output in model.graph.output]
    run = onnxruntime_of(model)
    return lambda part: dict(zip(outputs, run(part), strict=True))
