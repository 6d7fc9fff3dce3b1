# SPDX-License-Identifier: Apache-2.0
"""QONNX rewritten in standard operators: QuantizeLinear, Clip, DequantizeLinear.

Every ONNX tool reads the result, at the price of formats that ONNX does not have: integers of up
to 8 bits, and the OCP 8-bit floats of float32 tensors. The results stay the same bit for bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from lutwise.errors import ExportError
from lutwise.export.graph import DOMAIN, OPSET, constants_of

__all__ = ["to_qcdq"]

Array = npt.NDArray[Any]

_QUANTIZERS: Final = ("Quant", "IntQuant", "FloatQuant")
_FLOAT8: Final[Mapping[tuple[int, int, int, float], npt.DTypeLike]] = {
    (4, 3, 7, 448.0): ml_dtypes.float8_e4m3fn,
    (5, 2, 15, 57344.0): ml_dtypes.float8_e5m2,
}
"""By exponent bits, mantissa bits, exponent bias and largest value."""


def to_qcdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a QONNX model without quantizers of its own.

    A quantizer becomes ``QuantizeLinear``, a ``Clip`` where the integer has fewer than 8 bits or
    is narrow, and ``DequantizeLinear``. Weights become integers under a ``DequantizeLinear``. In
    front of the quantizer of a float64 tensor stands a ``Round``, since ``QuantizeLinear`` takes
    float32, and rounding to that first would move ties.

    Args:
        model: QONNX of opset 19 or later, with types of its tensors.

    Raises:
        ExportError: A quantizer that has no such form; the message names it and says why.
    """
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), OPSET)
    if opset < 19:
        raise ExportError(
            f"QCDQ needs opset 19 or later, the model has {opset}; convert it with "
            "onnx.version_converter"
        )
    return _Rewriter(model).run()


@dataclass(slots=True)
class _Rewriter:
    """The nodes and initializers made so far."""

    model: onnx.ModelProto
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    added: dict[str, onnx.TensorProto] = field(default_factory=dict)
    infos: list[onnx.ValueInfoProto] = field(default_factory=list)
    constants: dict[str, Array] = field(init=False)
    known: Mapping[str, onnx.ValueInfoProto] = field(init=False)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.constants = constants_of(self.model)
        self.known = {i.name: i for i in (*graph.input, *graph.output, *graph.value_info)}

    def run(self) -> onnx.ModelProto:
        for node in self.model.graph.node:
            if node.domain != DOMAIN and node.op_type not in _QUANTIZERS:
                self.nodes.append(node)
            elif node.op_type in ("Quant", "IntQuant"):
                self._integer(node)
            elif node.op_type == "FloatQuant":
                self._float(node)
            else:
                raise ExportError(
                    f"{node.op_type} {node.name!r} has no form in standard ONNX operators"
                )
        result = onnx.ModelProto()
        result.CopyFrom(self.model)
        graph = result.graph
        read = {name for node in self.nodes for name in node.input}
        kept = [t for t in graph.initializer if t.name in read]
        del graph.node[:], graph.initializer[:], result.functions[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend([*kept, *self.added.values()])
        graph.value_info.extend(self.infos)
        domains = [o for o in result.opset_import if o.domain != DOMAIN]
        del result.opset_import[:]
        result.opset_import.extend(domains)
        return result

    def _integer(self, node: onnx.NodeProto) -> None:
        x, scale, zero = node.input[0], self._scale(node), self._known(node, 2)
        bits = self._scalar(node, 3, "bits")
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        mode = attributes.get("rounding_mode", b"ROUND").decode(errors="replace").upper()
        signed, narrow = bool(attributes.get("signed", 1)), bool(attributes.get("narrow", 0))
        if mode not in ("ROUND", "HALF_EVEN"):
            raise self._refuse(node, f"it rounds by {mode!r}, QuantizeLinear half to even")
        if bits != int(bits) or not (1 + signed) <= bits <= 8:
            raise self._refuse(node, f"it has {bits:g} bits, ONNX integers up to 8")
        low, high = -(1 << int(bits) - 1) if signed else 0, (1 << int(bits) - signed) - 1
        low, high = low + (narrow and signed), high - (narrow and not signed)
        dtype = np.dtype(np.int8 if signed else np.uint8)
        known = np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1)
        if not zero.size or not np.isin(zero, known).all():
            came = zero[~np.isin(zero, known)][0] if zero.size else "empty"
            raise self._refuse(node, f"its zero point is {came}, {dtype} holds none such")
        zero = zero.astype(dtype)
        if x in self.constants:
            # In the type of the weights, as runtimes divide: what they see as a tie stays one.
            with np.errstate(over="ignore"):
                real = self._finite(node, x) / scale + zero
            codes = np.clip(np.round(real), low, high).astype(dtype)
            self._dequantize(node, self._constant(f"{x}/codes", codes), scale, zero)
            return
        x = self._float32(node, x, scale)
        first, axis = self._linear(node, scale, zero)
        y = f"{node.output[0]}/codes"
        self._add("QuantizeLinear", [x, *first], y, **axis)
        self._note(node, y, dtype)
        if (low, high) != (np.iinfo(dtype).min, np.iinfo(dtype).max):
            ends = [
                self._constant(f"{y}/{end}", np.array(value, dtype))
                for end, value in (("low", low), ("high", high))
            ]
            self._add("Clip", [y, *ends], f"{y}/clipped")
            self._note(node, f"{y}/clipped", dtype)
            y = f"{y}/clipped"
        self._dequantize(node, y, scale, zero)

    def _float(self, node: onnx.NodeProto) -> None:
        scale = self._scale(node)
        e, m, bias, largest = (
            self._scalar(node, place, what)
            for place, what in enumerate(("exponent bits", "mantissa bits", "bias", "maximum"), 2)
        )
        dtype = _FLOAT8.get((int(e), int(m), int(bias), largest))
        if dtype is None:
            raise self._refuse(
                node,
                f"ONNX has no float of {e:g} exponent and {m:g} mantissa bits, bias {bias:g} and "
                f"maximum {largest:g}; it has fp8_e4m3 and fp8_e5m2",
            )
        x = node.input[0]
        zero = np.zeros(scale.shape, dtype)
        if x in self.constants:
            wide = np.clip(self._finite(node, x) / scale, -largest, largest)
            codes = wide.astype(np.float32).astype(dtype)
            self._dequantize(node, self._constant(f"{x}/codes", codes), scale, zero)
            return
        if self._is_wide(x):
            raise self._refuse(
                node, "its input is float64, and QuantizeLinear takes float32: it would round twice"
            )
        first, axis = self._linear(node, scale, zero)
        y = f"{node.output[0]}/codes"
        self._add("QuantizeLinear", [x, *first], y, saturate=1, **axis)
        self._note(node, y, dtype)
        self._dequantize(node, y, scale, zero)

    def _float32(self, node: onnx.NodeProto, x: str, scale: Array) -> str:
        """Return a float32 tensor that QuantizeLinear rounds as the quantizer would."""
        if not self._is_wide(x):
            return x
        name = node.output[0]
        if (scale != 1).any():
            raise self._refuse(node, "its input is float64 and its scale is not 1")
        self._add("Round", [x], f"{name}/rounded")
        self._note(node, f"{name}/rounded", np.float64)
        self._add("Cast", [f"{name}/rounded"], f"{name}/float32", to=TensorProto.FLOAT)
        self._note(node, f"{name}/float32", np.float32)
        return f"{name}/float32"

    def _is_wide(self, name: str) -> bool:
        info = self.known.get(name)
        return info is not None and info.type.tensor_type.elem_type == TensorProto.DOUBLE

    def _note(self, node: onnx.NodeProto, name: str, dtype: npt.DTypeLike) -> None:
        """State type and shape of a tensor that is shaped like a quantizer's output."""
        if (like := self.known.get(node.output[0])) is None:
            return
        info = onnx.ValueInfoProto()
        info.CopyFrom(like)
        info.name = name
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        info.type.tensor_type.elem_type = kind
        self.infos.append(info)

    def _dequantize(self, node: onnx.NodeProto, codes: str, scale: Array, zero: Array) -> None:
        inputs, axis = self._linear(node, scale, zero)
        self._add("DequantizeLinear", [codes, *inputs], node.output[0], **axis)

    def _linear(
        self, node: onnx.NodeProto, scale: Array, zero: Array
    ) -> tuple[list[str], dict[str, int]]:
        """Return the names of scale and zero point, and the axis that they go along."""
        long = [i for i, size in enumerate(scale.shape) if size > 1]
        if len(long) > 1:
            raise self._refuse(node, f"its scale has the shape {scale.shape}; one axis is known")
        flat = scale.reshape(-1) if long else scale.reshape(())
        zeros = np.broadcast_to(zero.reshape(-1)[:1] if zero.size == 1 else zero.reshape(-1),
                                flat.shape if long else (1,))  # fmt: skip
        zeros = zeros.copy() if long else zeros.reshape(())
        name = node.output[0]
        names = [
            self._constant(f"{name}/scale", flat.astype(np.float32)),
            self._constant(f"{name}/zero", zeros),
        ]
        return names, {"axis": long[0]} if long else {}

    def _known(self, node: onnx.NodeProto, place: int) -> Array:
        if place >= len(node.input):
            raise self._refuse(node, f"it has {len(node.input)} inputs; wanted {place + 1} or more")
        if node.input[place] not in self.constants:
            raise self._refuse(node, f"its input {node.input[place]!r} is computed, not constant")
        return self.constants[node.input[place]]

    def _finite(self, node: onnx.NodeProto, name: str) -> Array:
        """Return weights, which have to be numbers: integers hold no others."""
        numbers = self.constants[name]
        wrong = ~np.isfinite(numbers)
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise self._refuse(
                node,
                f"{int(wrong.sum())} of the {numbers.size} weights {name!r} are not finite, the "
                f"first at {at}: {numbers[at]}; export from a checkpoint without such weights",
            )
        return numbers

    def _scale(self, node: onnx.NodeProto) -> Array:
        scale = self._known(node, 1)
        wrong = ~(np.isfinite(scale) & (scale > 0))
        if not scale.size or wrong.any():
            came = scale[wrong][0] if scale.size else "empty"
            raise self._refuse(node, f"its scale is {came}; wanted positive numbers")
        return scale

    def _scalar(self, node: onnx.NodeProto, place: int, what: str) -> float:
        numbers = self._known(node, place).astype(np.float64).reshape(-1)
        if not numbers.size or not np.isfinite(numbers).all() or (numbers != numbers[0]).any():
            raise self._refuse(node, f"its {what} are {numbers[:8].tolist()}; wanted one number")
        return float(numbers[0])

    def _constant(self, name: str, array: Array) -> str:
        self.added[name] = numpy_helper.from_array(np.asarray(array), name)
        return name

    def _add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        made = helper.make_node(op, inputs, [output], name=f"{output}/{op}", **attributes)
        self.nodes.append(made)

    @staticmethod
    def _refuse(node: onnx.NodeProto, reason: str) -> ExportError:
        return ExportError(f"{node.op_type} {node.name!r} has no form in QCDQ: {reason}")
