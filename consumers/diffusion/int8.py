# SPDX-License-Identifier: Apache-2.0
"""Linear layers that really compute with 8-bit integers, on the CPU.

Fake quantization says how good a model will be and is slower than float. Here weights are stored
as int8, inputs are rounded to int8 with one fixed scale, products are summed in int32, and the
sums are scaled to float32.

What differs from fake quantization in float32: codes are the same bit for bit, since both round
``x / scale`` alike. The sum of products is exact here, where float32 rounds each addition. What
is left is the conversion of the sum, the product with the scale and the sum with the bias, each
rounded once to float32: the result is within two units in the last place of the larger of product
and bias.

Three libraries can do the sum, all with the same instructions where the processor has them, and
none is always the fastest: `Backend`. Each must first prove on extreme values that its sums are
exact, since instructions without VNNI (``vpmaddubsw``) saturate at 16 bits. The quantized tensors
of `torch.ao` are not used: torch 2.13 warns that it will remove them.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache
from typing import Final, TypeAlias

import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from lutwise.consumers.diffusion.fake_quant import QuantizedLayer
from lutwise.errors import CalibrationError, ConfigError, UnsupportedLayerError
from lutwise.quant import kernels
from lutwise.quant.formats import IntFormat

__all__ = [
    "Backend",
    "Int8Linear",
    "Int8Scales",
    "available_backends",
    "fastest_backend",
    "largest_scales",
    "scales_of",
    "to_int8",
]

INPUT: Final = IntFormat(bits=8)
WEIGHT: Final = IntFormat(bits=8, narrow=True)

_OFFSET: Final = 128
"""Of inputs as unsigned codes, which two of the libraries want."""

_OPSET, _IR_VERSION = 17, 9

MatMul: TypeAlias = Callable[[Tensor], Tensor]
"""From rounded inputs, whole numbers as float32 of shape (rows, in), which it may overwrite, to
float32 (rows, out)."""


class Backend(StrEnum):
    """What sums the products."""

    INT_MM = "int_mm"
    """``torch._int_mm``."""

    ONEDNN = "onednn"
    """``torch.ops.onednn.qlinear_pointwise``, which scales and adds the bias in the same loop."""

    ONNXRUNTIME = "onnxruntime"
    """``MatMulInteger`` of ONNX Runtime."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Int8Scales:
    """Scales of a linear layer.

    Args:
        input: Of the input.
        weight: Per output channel, shape (out,), or (1,) for all.

    Raises:
        CalibrationError: A scale is not positive and finite.
    """

    input: float
    weight: Tensor

    def __post_init__(self) -> None:
        both = torch.cat([self.weight.reshape(-1).double(), torch.tensor([self.input]).double()])
        if not bool((torch.isfinite(both) & (both > 0)).all()):
            raise CalibrationError(
                "scales of int8 are positive numbers, got "
                f"{self.input} for the input and {float(self.weight.min())} .. "
                f"{float(self.weight.max())} for the weights"
            )


def largest_scales(layer: nn.Linear, largest_input: float) -> Int8Scales:
    """Return the scales that put the largest weight of each channel, and input, at code 127.

    Args:
        layer: The layer; a channel of zeros gets the scale 1.
        largest_input: Largest magnitude of the input.
    """
    largest = layer.weight.detach().abs().amax(dim=1)
    return Int8Scales(
        input=largest_input / INPUT.max_value,
        weight=torch.where(largest > 0, largest / WEIGHT.max_value, 1.0),
    )


def scales_of(quantized: QuantizedLayer) -> Int8Scales:
    """Return the scales of a fake-quantized layer.

    Raises:
        UnsupportedLayerError: Its weights or input are not int8, or the input has a scale per
            group of timesteps.
    """
    weight, given = quantized.weight, quantized.input
    if weight is None or given is None or (weight.format, given.format) != (WEIGHT, INPUT):
        formats = [str(part.format) if part else "float" for part in (weight, given)]
        raise UnsupportedLayerError(
            f"int8 computes weights in {WEIGHT} and inputs in {INPUT}, this layer has "
            f"{' and '.join(formats)}"
        )
    if len(given.scales) != 1:
        raise UnsupportedLayerError(
            f"int8 has one scale for a layer's input, this one has {len(given.scales)} for groups "
            "of timesteps; quantize with one group"
        )
    return Int8Scales(input=float(given.scales[0]), weight=weight.scales)


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and inputs.

    Args:
        weight: Real weights, shape (out, in); rounded to the nearest code.
        bias: Shape (out,), or None.
        scales: Of weights and input.
        backend: What sums the products.

    Raises:
        ConfigError: The backend does not work here, or scales and weights do not fit.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor

    @torch.no_grad()
    def __init__(
        self, weight: Tensor, bias: Tensor | None, scales: Int8Scales, *, backend: Backend
    ) -> None:
        super().__init__()
        self.backend = backend
        outputs, self._inputs = weight.shape
        if scales.weight.numel() not in (1, outputs):
            raise ConfigError(
                f"a layer of {outputs} outputs has as many weight scales, or one, got "
                f"{scales.weight.numel()}"
            )
        if backend not in available_backends():
            raise ConfigError(
                f"{backend.value} sums no int8 products exactly on this machine; use one of "
                f"{', '.join(available_backends()) or 'none'}"
            )
        step = scales.weight.detach().float().expand(outputs).reshape(-1, 1)
        codes = kernels.quantize(WEIGHT, weight.detach().float() / step).to(torch.int8)
        self._input_scale = scales.input
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scale", (step.double().reshape(-1) * scales.input).float())
        self.register_buffer(
            "bias", torch.zeros(outputs) if bias is None else bias.detach().float().clone()
        )
        self._multiply = _MULTIPLY[backend](self.codes, self.scale, self.bias)
        self._round = kernels.rounder(INPUT, torch.float32)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Map float32 (..., in) to float32 (..., out)."""
        rows = x.reshape(-1, self._inputs)
        return self._multiply(self._round(rows / self._input_scale)).reshape(*x.shape[:-1], -1)


def to_int8(
    model: nn.Module, scales: Mapping[str, Int8Scales], *, backend: Backend | None = None
) -> nn.Module:
    """Return a copy of a model whose named layers compute with int8.

    Works on float layers, and on fake-quantized ones, whose weights are on the grid already and
    keep their codes.

    Args:
        model: On the CPU; not changed.
        scales: By name of a layer with a two-dimensional ``weight``, as ``named_modules`` gives
            it.
        backend: What sums the products; None for the fastest here at 256 rows, chosen for each
            shape.

    Raises:
        UnsupportedLayerError: A name is no linear layer of the model.
        ConfigError: The backend does not work here.
    """
    made = copy.deepcopy(model)
    modules = dict(made.named_modules())
    for name, layer_scales in scales.items():
        layer = modules.get(name)
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if layer is None or not isinstance(weight, Tensor) or weight.ndim != 2:
            what = "no module" if layer is None else type(layer).__name__
            raise UnsupportedLayerError(
                f"int8 is for layers with a two-dimensional weight, {name!r} is {what}"
            )
        chosen = backend or fastest_backend(weight.shape[1], weight.shape[0])
        parent, _, attribute = name.rpartition(".")
        setattr(
            made.get_submodule(parent),
            attribute,
            Int8Linear(weight, bias, layer_scales, backend=chosen),
        )
    return made


def _with_int_mm(codes: Tensor, scale: Tensor, bias: Tensor) -> MatMul:
    weight = codes.t()

    def multiply(rounded: Tensor) -> Tensor:
        return (
            torch._int_mm(rounded.to(torch.int8), weight).to(torch.float32).mul_(scale).add_(bias)
        )

    return multiply


def _with_onednn(codes: Tensor, scale: Tensor, bias: Tensor) -> MatMul:
    packed = torch.ops.onednn.qlinear_prepack(codes, None)
    zero_points = torch.zeros(len(codes), dtype=torch.int32)

    def multiply(rounded: Tensor) -> Tensor:
        # Signed inputs run on a reference kernel thousands of times slower.
        unsigned = rounded.add_(_OFFSET).to(torch.uint8)
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, _OFFSET, packed, scale, zero_points, bias,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return result

    return multiply


def _with_onnxruntime(codes: Tensor, scale: Tensor, bias: Tensor) -> MatMul:
    outputs, inputs = codes.shape
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weight", "zero"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [None, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [None, outputs])],
        [
            helper.make_tensor(
                "weight", TensorProto.INT8, [inputs, outputs],
                codes.t().contiguous().numpy().tobytes(), raw=True,
            ),
            helper.make_tensor("zero", TensorProto.UINT8, [], [_OFFSET]),
        ],
    )  # fmt: skip
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def multiply(rounded: Tensor) -> Tensor:
        unsigned = rounded.add_(_OFFSET).to(torch.uint8)
        (sums,) = session.run(None, {"x": unsigned.numpy()})
        return torch.from_numpy(sums).to(torch.float32).mul_(scale).add_(bias)

    return multiply


_MULTIPLY: Final[dict[Backend, Callable[[Tensor, Tensor, Tensor], MatMul]]] = {
    Backend.INT_MM: _with_int_mm,
    Backend.ONEDNN: _with_onednn,
    Backend.ONNXRUNTIME: _with_onnxruntime,
}


@cache
def available_backends() -> tuple[Backend, ...]:
    """Return what works on this machine and sums exactly."""
    return tuple(backend for backend in Backend if _is_exact(backend))


@torch.no_grad()
def _is_exact(backend: Backend) -> bool:
    """Try a backend on codes of the largest magnitudes, and on a single row."""
    inputs, outputs = 96, 64
    codes = torch.full((outputs, inputs), 127, dtype=torch.int8)
    codes[1::2] = -127
    codes[::3, 1::2] *= -1
    rows = torch.full((17, inputs), 127.0)
    rows[1::2] = -128.0
    exact = rows.double() @ codes.double().t()
    try:
        multiply = _MULTIPLY[backend](codes, torch.ones(outputs), torch.zeros(outputs))
        results = [multiply(part.clone()) for part in (rows, rows[:1])]
    except (RuntimeError, AttributeError, NotImplementedError):
        # An operator that this build of torch lacks, or that cannot run on this processor.
        return False
    return all(torch.equal(result.double(), exact[: len(result)]) for result in results)


def fastest_backend(inputs: int, outputs: int, *, rows: int = 256) -> Backend:
    """Return what multiplies a shape fastest here, measured once per shape and thread count.

    Args:
        inputs: Of the layer.
        outputs: Of the layer.
        rows: Tokens of all samples.

    Raises:
        ConfigError: No backend works here.
    """
    return _fastest(inputs, outputs, rows, torch.get_num_threads())


@lru_cache(maxsize=256)
@torch.no_grad()
def _fastest(inputs: int, outputs: int, rows: int, threads: int) -> Backend:
    if not available_backends():
        raise ConfigError("nothing on this machine sums int8 products exactly; stay with float")
    codes = torch.ones(outputs, inputs, dtype=torch.int8)
    made = {
        backend: _MULTIPLY[backend](codes, torch.ones(outputs), torch.zeros(outputs))
        for backend in available_backends()
    }
    best = dict.fromkeys(made, float("inf"))
    for _ in range(4):  # The first round warms up; the best of all decides.
        for backend, multiply in made.items():
            rounded = torch.ones(rows, inputs)
            start = time.perf_counter()
            multiply(rounded)
            best[backend] = min(best[backend], time.perf_counter() - start)
    return min(best, key=lambda backend: best[backend])
