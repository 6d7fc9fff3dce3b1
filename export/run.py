# SPDX-License-Identifier: Apache-2.0
"""Run QONNX files, and compare them with the exact executor."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from lutwise.errors import DataError, MismatchError, ToolError
from lutwise.quant.executor import execute
from lutwise.quant.network import Network

__all__ = [
    "Agreement",
    "AgreementReport",
    "Executor",
    "compare",
    "onnxruntime_of",
    "qonnx_of",
    "run_onnxruntime",
    "run_qonnx",
    "with_batch",
]


class Executor(Enum):
    """What can run a file."""

    QONNX = "qonnx"
    ONNXRUNTIME = "onnxruntime"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How one executor's outputs compare with the exact ones.

    Args:
        executor: Which.
        mismatches: Outputs that differ.
        first: Index (image, ...) of the first that differs.
        expected: What the exact executor gives there.
        got: What this one gives there.
    """

    executor: Executor
    mismatches: int
    first: tuple[int, ...] | None = None
    expected: float | None = None
    got: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementReport:
    """Comparison of a file with the network that it was made of.

    Args:
        network: Name of the network.
        images: Images run.
        outputs: Numbers compared per executor.
        agreements: One for each executor.
    """

    network: str
    images: int
    outputs: int
    agreements: tuple[Agreement, ...]

    @property
    def agrees(self) -> bool:
        """Whether no output differs."""
        return not any(a.mismatches for a in self.agreements)

    def raise_if_differs(self) -> None:
        """Do nothing where all agree.

        Raises:
            MismatchError: An output differs.
        """
        for a in self.agreements:
            if a.mismatches:
                raise MismatchError(
                    f"{self.network}: {a.mismatches} of {self.outputs} outputs of "
                    f"{a.executor.value} differ from the exact executor, the first at {a.first}: "
                    f"wanted {a.expected!r}, got {a.got!r}"
                )


def run_qonnx(
    model: onnx.ModelProto, images: npt.NDArray[np.float32], *, batch: int = 256
) -> npt.NDArray[np.float32]:
    """Run a file in qonnx, node by node.

    qonnx makes a session for each node and call, so large batches pay.

    Args:
        model: The file.
        images: Shape (n, *input shape).
        batch: Images at a time; less where there are fewer.

    Raises:
        DataError: The images do not fit the input.
        ToolError: qonnx fails.
    """
    _check_images(model, images)
    batch = max(1, min(batch, len(images)))
    run, output = qonnx_of(model, batch), model.graph.output[0].name
    parts = []
    for part in _batches(images, batch):
        # qonnx wants the very shape that the file states, so the last batch is filled up.
        full = np.resize(part, (batch, *part.shape[1:])) if len(part) < batch else part
        parts.append(run(full)[output][: len(part)])
    return np.concatenate(parts)


def qonnx_of(
    model: onnx.ModelProto, batch: int
) -> Callable[[npt.NDArray[np.float32]], Mapping[str, npt.NDArray[Any]]]:
    """Return what gives all tensors of a file by name, for a full batch, from qonnx.

    Args:
        model: The file.
        batch: Images at a time, where the file leaves that open.

    Raises:
        ToolError: qonnx fails, when it runs.
    """
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx

    wrapper = ModelWrapper(with_batch(model, batch))
    name = model.graph.input[0].name

    def run(part: npt.NDArray[np.float32]) -> Mapping[str, npt.NDArray[Any]]:
        try:
            # A number next to float32's maximum rounds up to infinity before FloatQuant clips it.
            with np.errstate(over="ignore"), _quiet_onnxruntime():
                found: Mapping[str, npt.NDArray[Any]] = execute_onnx(
                    wrapper, {name: part}, return_full_exec_context=True
                )
        except Exception as error:  # qonnx raises plain Exception, AssertionError and others
            raise ToolError("qonnx", version("qonnx"), str(error)) from error
        return found

    return run


@contextmanager
def _quiet_onnxruntime() -> Iterator[None]:
    """Keep ONNX Runtime from warning while qonnx uses it.

    qonnx 1.0.0 runs operators on images with channels last as those of opset 1, of which ONNX
    Runtime warns three times for each of them and call.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)


def run_onnxruntime(
    model: onnx.ModelProto,
    images: npt.NDArray[np.float32],
    *,
    batch: int = 64,
    threads: int = 1,
) -> npt.NDArray[np.float32]:
    """Run a file in stock ONNX Runtime, with its graph optimizations off.

    (Fusion reorders roundings; with it on, quantized files were off by up to 1e-2.)

    Args:
        model: The file; its quantizers need bodies (`lutwise.export.functions`).
        images: Shape (n, *input shape).
        batch: Images at a time.
        threads: Of one operator.

    Raises:
        DataError: The images do not fit the input.
        ToolError: ONNX Runtime fails.
    """
    _check_images(model, images)
    run = onnxruntime_of(model, threads=threads)
    return np.concatenate([run(part)[0] for part in _batches(images, batch)])


def onnxruntime_of(
    model: onnx.ModelProto, *, threads: int = 1
) -> Callable[[npt.NDArray[np.float32]], list[npt.NDArray[Any]]]:
    """Return what gives all outputs of a file for a batch, from one session of ONNX Runtime.

    Args:
        model: The file; its quantizers need bodies.
        threads: Of one operator.

    Raises:
        ToolError: ONNX Runtime fails, now or when it runs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; they are raised as well

    def failed(error: Exception) -> ToolError:
        return ToolError("onnxruntime", onnxruntime.__version__, str(error))

    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its exceptions share no other base
        raise failed(error) from error
    name = session.get_inputs()[0].name

    def run(part: npt.NDArray[np.float32]) -> list[npt.NDArray[Any]]:
        try:
            found: list[npt.NDArray[Any]] = session.run(None, {name: part})
        except Exception as error:
            raise failed(error) from error
        return found

    return run


def compare(
    network: Network,
    model: onnx.ModelProto,
    images: npt.NDArray[np.float32],
    *,
    executors: Sequence[Executor] = (Executor.QONNX, Executor.ONNXRUNTIME),
    batch: int = 64,
    threads: int = 1,
    expected: npt.NDArray[np.float64] | None = None,
) -> AgreementReport:
    """Compare a file with its network: every output of every image, bit for bit (-0 equals 0).

    Args:
        network: What the file was made of; `lutwise.quant.executor.execute` judges.
        model: The file.
        images: Shape (n, *input shape).
        executors: What runs the file.
        batch: Images at a time.
        threads: Of ONNX Runtime.
        expected: What the exact executor gave for these images, where that is known already.

    Raises:
        DataError: There are no images, or they do not fit the input.
        ToolError: An executor fails.
    """
    if expected is None:
        expected = execute(network, images, batch=batch)
    found = []
    for executor in executors:
        if executor is Executor.QONNX:
            got = run_qonnx(model, images, batch=batch)
        else:
            got = run_onnxruntime(model, images, batch=batch, threads=threads)
        found.append(_agreement(executor, expected, got))
    return AgreementReport(
        network=network.name,
        images=len(images),
        outputs=expected.size,
        agreements=tuple(found),
    )


def _agreement(
    executor: Executor, expected: npt.NDArray[np.float64], got: npt.NDArray[np.float32]
) -> Agreement:
    if expected.shape != got.shape:
        raise MismatchError(
            f"outputs of {executor.value} have shape {got.shape}, wanted {expected.shape}"
        )
    wrong = np.argwhere(expected != got)
    if not len(wrong):
        return Agreement(executor=executor, mismatches=0)
    first = tuple(int(i) for i in wrong[0])
    return Agreement(
        executor=executor,
        mismatches=len(wrong),
        first=first,
        expected=float(expected[first]),
        got=float(got[first]),
    )


def _batches(images: npt.NDArray[np.float32], batch: int) -> Iterator[npt.NDArray[np.float32]]:
    for start in range(0, len(images), batch):
        yield images[start : start + batch]


def _check_images(model: onnx.ModelProto, images: npt.NDArray[np.float32]) -> None:
    dims = model.graph.input[0].type.tensor_type.shape.dim[1:]
    wanted = tuple(int(d.dim_value) for d in dims)
    if not len(images) or images.shape[1:] != wanted or images.dtype != np.float32:
        raise DataError(
            f"the file takes float32 images of shape (n, {', '.join(map(str, wanted))}), n >= 1; "
            f"got {images.dtype} of shape {images.shape}"
        )


def with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Return a copy whose open first sizes are the batch: qonnx allocates tensors beforehand."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for info in [*graph.input, *graph.output, *graph.value_info]:
        dims = info.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = batch
    return result
