# SPDX-License-Identifier: Apache-2.0
"""The layers of any QONNX file, ours or another tool's, as the cost model wants them.

Formats are read where the file states them, in its quantizers. A layer's input and output find
theirs through nodes that keep values, scale them or add constants; its weights have to lie on the
grid that their quantizer declares.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from lutwise.cost_models.estimate import LayerShape
from lutwise.errors import FormatError, ModelError, UnsupportedLayerError
from lutwise.export.qonnx import METADATA_KEY
from lutwise.quant import numerics
from lutwise.quant.accumulator import accumulator_for
from lutwise.quant.formats import FloatFormat, Format, IntFormat, SpecialCodes, parse

__all__ = ["load_qonnx", "read_layers"]

Array = npt.NDArray[np.generic]

_LAYERS: Final = ("Conv", "MatMul", "Gemm")
_INTEGER_QUANTIZERS: Final = ("Quant", "IntQuant")
_KEEPING: Final = (
    "Identity", "Cast", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice",
    "Gather", "Pad", "MaxPool", "Concat", "Relu", "Clip",
)  # fmt: skip
"""Their outputs hold values of their first input, or bounds, or zero."""

_FINISHING: Final = (
    "Add", "Mul", "Div", "Sub", "Cast", "BatchNormalization", "Relu", "Clip", "Max", "Min",
    "Reshape", "Transpose", "Identity", "Squeeze",
)  # fmt: skip
"""What stands between a layer's sums and the quantizer of its output."""


def load_qonnx(path: str | Path) -> onnx.ModelProto:
    """Load a QONNX file, and infer the shapes that it does not state.

    Raises:
        ModelError: The file is missing or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"a QONNX file is needed, {str(path)!r} does not exist")
    try:
        model = onnx.load(path)
        if not model.graph.node:
            raise ValueError("it holds no graph")
        if {v.name for v in model.graph.value_info} >= _made(model):
            return model
        return _with_shapes(model)
    except Exception as error:
        # protobuf, the reader of weights and qonnx each raise errors of their own
        raise ModelError(
            f"{path} is no valid QONNX file, or weights beside it are missing: "
            f"{' '.join(str(error).split())[:300]}; export it again"
        ) from error


def _made(model: onnx.ModelProto) -> set[str]:
    ends = {output.name for output in model.graph.output}
    return {name for node in model.graph.node for name in node.output if name} - ends


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.transformation.infer_shapes import InferShapes

        result: onnx.ModelProto = ModelWrapper(model).transform(InferShapes()).model
    return result


def read_layers(model: onnx.ModelProto) -> tuple[LayerShape, ...]:
    """Return the convolutions, linear layers and products with weights of a QONNX file.

    Products of two activations (attention) are not among them. Accumulators have the width of the
    per-channel L1 bound of the actual weights, biases included.

    Args:
        model: As `load_qonnx` gives it.

    Raises:
        UnsupportedLayerError: A layer without quantizers, or of a format wider than 8 bits.
        ModelError: Weights that are not on the grid that their quantizer declares, no layer at
            all, or sizes that the file leaves open.
    """
    graph = _Graph(model)
    found = [graph.layer(node) for node in model.graph.node if node.op_type in _LAYERS]
    layers = tuple(layer for layer in found if layer is not None)
    if not layers:
        raise ModelError("the file has no Conv, MatMul or Gemm with constant weights")
    return layers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Grid:
    """What a quantizer says: real numbers are values of the format times the scale."""

    format: Format
    scale: npt.NDArray[np.float64]


@dataclass(slots=True)
class _Graph:
    """A file's nodes by what they make and read."""

    model: onnx.ModelProto
    makers: dict[str, onnx.NodeProto] = field(init=False)
    readers: dict[str, list[onnx.NodeProto]] = field(init=False)
    constants: dict[str, Array] = field(init=False)
    shapes: dict[str, tuple[int | None, ...]] = field(init=False)
    stated: dict[str, Format] = field(init=False)
    real: set[str] = field(init=False)
    names: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.shapes = {
            info.name: tuple(
                dim.dim_value if dim.HasField("dim_value") else None
                for dim in info.type.tensor_type.shape.dim
            )
            for info in (*graph.input, *graph.output, *graph.value_info)
        }
        notes = {p.key: p.value for p in self.model.metadata_props}.get(METADATA_KEY)
        described: Mapping[str, Any] = json.loads(notes) if notes else {}
        # `FloatQuant` has no sign of its own, our notes do; and they say where numbers are real.
        tensors = described.get("tensors", {})
        self.stated = {n: _parsed(t["format"]) for n, t in tensors.items() if t["format"]}
        self.real = {name for name, tensor in tensors.items() if not tensor["format"]}
        self.names = {layer["name"]: layer["name"] for layer in described.get("layers", ())}

    def layer(self, node: onnx.NodeProto) -> LayerShape | None:
        """Return a layer, or None for a product of two activations."""
        place = next((i for i in (1, 0) if self._is_constant(node.input[i])), None)
        if place is None:
            return None
        name = self._name(node)
        weights, values = self._weights(node, place, name)
        source = self._input_grid(node.input[1 - place])
        if source is None:
            raise UnsupportedLayerError(
                f"{node.op_type} {name!r}: its input has no quantizer (Quant, FloatQuant or "
                "DequantizeLinear), so its price is unknown; quantize it first"
            )
        outputs, dot = values.shape
        pixels = self._pixels(node, place, outputs, name)
        end, target = self._finish(node.output[0])
        bias = self._bias(node, end, outputs)
        unit = 2.0 ** (weights.format.unit_exponent + source.format.unit_exponent)
        step = weights.scale.reshape(-1) * source.scale.reshape(-1)[0] * unit
        codes = np.array([round(Fraction(b)) for b in np.divide(bias, step)], dtype=object)
        accumulator = accumulator_for(values, weights.format, source.format, codes)
        return LayerShape(
            name=name,
            kind="conv" if node.op_type == "Conv" or place == 0 else "linear",
            macs=dot * outputs * pixels,
            weight_count=values.size,
            dot_length=dot,
            outputs=outputs,
            output_pixels=pixels,
            weights=weights.format,
            activations=source.format,
            accumulator_bits=accumulator.bits,
            output=target,
        )

    def _name(self, node: onnx.NodeProto) -> str:
        ours = node.output[0].rpartition("/")[0]
        return self.names.get(ours) or node.name or node.output[0]

    # ------------------------------------------------------------------ weights

    def _is_constant(self, name: str) -> bool:
        """Return whether no input of the graph changes a tensor."""
        if name in self.constants or not name:
            return True
        maker = self.makers.get(name)
        return maker is not None and all(map(self._is_constant, maker.input))

    def _weights(
        self, node: onnx.NodeProto, place: int, name: str
    ) -> tuple[_Grid, npt.NDArray[np.float64]]:
        """Return the grid of a layer's weights, and their values, shape (out, products)."""
        grid: _Grid | None = None
        moves: list[onnx.NodeProto] = []
        at = node.input[place]
        while at not in self.constants:
            maker = self.makers[at]
            if (found := self._grid(maker)) is not None and grid is None:
                grid = found
                moves = [*moves, maker]
            elif maker.op_type in ("Transpose", "Reshape", "Cast", "Identity"):
                moves = [*moves, maker]
            else:
                raise UnsupportedLayerError(
                    f"{node.op_type} {name!r}: its weights pass through {maker.op_type} "
                    f"{maker.name!r}; wanted a quantizer, and moves only"
                )
            at = maker.input[0]
        if grid is None:
            raise UnsupportedLayerError(
                f"{node.op_type} {name!r}: its weights have no quantizer, so their format is "
                "unknown; export them under a Quant or FloatQuant node"
            )
        numbers = self.constants[at].astype(np.float64)
        scale = np.broadcast_to(grid.scale, numbers.shape)
        values = self._on_grid(numbers / scale, grid.format, f"{node.op_type} {name!r}")
        for move in reversed(moves):
            values, scale = (self._moved(move, a) for a in (values, scale))
        rows = [_rows(node, place, array) for array in (values, scale)]
        per_channel = _Grid(format=grid.format, scale=rows[1][:, 0])
        return per_channel, rows[0]

    @staticmethod
    def _on_grid(
        numbers: npt.NDArray[np.float64], fmt: Format, where: str
    ) -> npt.NDArray[np.float64]:
        values = numerics.quantize(fmt, numbers)
        wrong = np.abs(values - numbers) > 1e-5 * np.abs(values) + 1e-30
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ModelError(
                f"{where}: {int(wrong.sum())} of {wrong.size} weights are not on the grid of "
                f"{fmt} that their quantizer declares, the first at {at}: {numbers[at]:g} times "
                "the scale; write quantized weights into the file"
            )
        return values

    def _moved(
        self, move: onnx.NodeProto, array: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        if move.op_type == "Transpose":
            order = _attributes(move).get("perm")
            return array.transpose(order)
        if move.op_type == "Reshape":
            wanted = [int(d) for d in self.constants[move.input[1]].reshape(-1).tolist()]
            return array.reshape([array.shape[i] if d == 0 else d for i, d in enumerate(wanted)])
        return array

    # ------------------------------------------------------------------ quantizers

    def _grid(self, node: onnx.NodeProto) -> _Grid | None:
        """Return what a quantizer says, None for other nodes."""
        if node.op_type in _INTEGER_QUANTIZERS:
            scale, zero, bits = (self._known(node, i) for i in (1, 2, 3))
            self._refuse_offset(node, zero)
            attributes = _attributes(node)
            width = float(bits.reshape(-1)[0])
            if width != int(width) or not 2 <= width <= 8:
                raise UnsupportedLayerError(
                    f"{node.op_type} {node.name!r} has {width:g} bits; wanted 2 to 8"
                )
            fmt: Format = IntFormat(
                bits=int(width),
                signed=bool(attributes.get("signed", 1)),
                narrow=bool(attributes.get("narrow", 0)) and bool(attributes.get("signed", 1)),
            )
            return _Grid(format=fmt, scale=scale.astype(np.float64))
        if node.op_type == "FloatQuant":
            return self._float_grid(node)
        if node.op_type == "DequantizeLinear":
            zero = self._known(node, 2) if len(node.input) > 2 else np.zeros((), np.int8)
            self._refuse_offset(node, zero)
            fmt = IntFormat(bits=8 * zero.dtype.itemsize, signed=zero.dtype.kind == "i")
            step = self._known(node, 1).astype(np.float64)
            return _Grid(format=fmt, scale=step)
        return None

    def _float_grid(self, node: onnx.NodeProto) -> _Grid:
        scale, e, m, bias, largest = (self._known(node, i) for i in range(1, 6))
        attributes = _attributes(node)
        special = SpecialCodes.NONE
        if attributes.get("has_inf", 0):
            special = SpecialCodes.IEEE
        elif attributes.get("has_nan", 0):
            special = SpecialCodes.NAN
        try:
            fmt = FloatFormat(
                exponent_bits=int(e.reshape(-1)[0]),
                mantissa_bits=int(m.reshape(-1)[0]),
                signed=not self._is_positive(node.input[0]) or int(e) + int(m) > 7,
                special=special,
            )
        except FormatError as error:
            raise UnsupportedLayerError(f"FloatQuant {node.name!r}: {error}") from error
        wanted, limit = fmt.bias, min(fmt.max_value, float(largest.reshape(-1)[0]))
        if float(bias.reshape(-1)[0]) != wanted or limit != fmt.max_value:
            raise UnsupportedLayerError(
                f"FloatQuant {node.name!r} has the exponent bias {float(bias.reshape(-1)[0]):g} "
                f"and the maximum {float(largest.reshape(-1)[0]):g}; {fmt} has {wanted} and "
                f"{fmt.max_value:g}"
            )
        return _Grid(format=fmt, scale=scale.astype(np.float64))

    def _known(self, node: onnx.NodeProto, place: int) -> Array:
        name = node.input[place]
        if name not in self.constants:
            raise UnsupportedLayerError(
                f"{node.op_type} {node.name!r}: its input {name!r} is computed; wanted a constant"
            )
        return self.constants[name]

    @staticmethod
    def _refuse_offset(node: onnx.NodeProto, zero: Array) -> None:
        if np.any(zero != 0):
            raise UnsupportedLayerError(
                f"{node.op_type} {node.name!r} has a zero point of {zero.reshape(-1)[0]}; units "
                "without one are priced"
            )

    def _is_positive(self, name: str) -> bool:
        """Return whether a tensor comes out of a clamp at zero or above."""
        maker = self.makers.get(name)
        if maker is None:
            return False
        if maker.op_type in ("Relu", "Sigmoid", "Softmax"):
            return True
        if maker.op_type in ("Clip", "Max") and len(maker.input) > 1:
            low = self.constants.get(maker.input[1])
            return low is not None and float(low.min()) >= 0
        return False

    # ------------------------------------------------------------------ what surrounds a layer

    def _input_grid(self, name: str) -> _Grid | None:
        """Return the grid of a tensor, found through nodes that keep or scale its values."""
        factor = 1.0
        while (maker := self.makers.get(name)) is not None:
            grid = self._grid(maker)
            if grid is not None:
                fmt = self.stated.get(name, grid.format)
                return _Grid(format=fmt, scale=grid.scale * factor)
            if maker.op_type in ("Mul", "Div"):
                constant = next(
                    (self.constants[i] for i in maker.input if i in self.constants), None
                )
                if constant is None or constant.size != 1:
                    return None
                number = float(constant.reshape(-1)[0])
                factor *= number if maker.op_type == "Mul" else 1 / number
                name = next(i for i in maker.input if i not in self.constants)
                continue
            if maker.op_type not in _KEEPING:
                return None
            name = maker.input[0]
        return None

    def _finish(self, name: str) -> tuple[list[onnx.NodeProto], Format | None]:
        """Return the nodes behind a layer's sums, and the format that they end in."""
        passed: list[onnx.NodeProto] = []
        while name not in self.real and len(readers := self.readers.get(name, [])) == 1:
            node = readers[0]
            grid = self._grid(node)
            if grid is not None:
                return passed, self.stated.get(node.output[0], grid.format)
            if node.op_type not in _FINISHING:
                break
            others = [i for i in node.input if i != name]
            if not all(map(self._is_constant, others)):
                break
            passed.append(node)
            name = node.output[0]
        return passed, None

    def _bias(
        self, node: onnx.NodeProto, passed: list[onnx.NodeProto], outputs: int
    ) -> npt.NDArray[np.float64]:
        """Return the real numbers that are added to a layer's sums."""
        name = node.input[2] if len(node.input) > 2 else ""
        for after in passed:
            if name or after.op_type not in ("Add", "Cast", "Reshape"):
                break
            if after.op_type == "Add":
                name = next(i for i in after.input if self._is_constant(i))
        while name and name not in self.constants:
            name = self.makers[name].input[0]
        if not name:
            return np.zeros(outputs)
        return np.resize(self.constants[name].astype(np.float64).reshape(-1), outputs)

    def _pixels(self, node: onnx.NodeProto, place: int, outputs: int, name: str) -> int:
        shape = self.shapes.get(node.output[0])
        if shape is None or any(d is None for d in shape[1:]):
            raise ModelError(
                f"{node.op_type} {name!r}: its output has the shape {shape}, in which sizes are "
                "open; export with fixed sizes for all but the batch"
            )
        sizes = [int(d) for d in shape[1:] if d is not None]
        return int(np.prod(sizes)) // outputs if sizes else 1


def _rows(
    node: onnx.NodeProto, place: int, array: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return a layer's weights as (out, products)."""
    if node.op_type == "Conv":
        return array.reshape(len(array), -1)
    if node.op_type == "Gemm" and _attributes(node).get("transB", 0):
        return array
    if place == 0:  # weights times columns: a convolution as slices
        return array.reshape(-1, array.shape[-1])
    return np.moveaxis(array, -2, -1).reshape(-1, array.shape[-2])


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _parsed(text: str) -> Format:
    fmt = parse(text)
    assert isinstance(fmt, IntFormat | FloatFormat)
    return fmt
