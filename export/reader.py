# SPDX-License-Identifier: Apache-2.0
"""The layers of any QONNX file, ours or another tool's, as the cost model wants them.

Formats are read where the file states them, in its quantizers. A layer's input and output find
theirs through nodes that keep values, scale them or add constants; its weights have to lie on the
grid that their quantizer declares, or get there by its rounding.
"""

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from lutwise.cost_models.layer_shape import LayerShape
from lutwise.errors import LutwiseError, ModelError, UnsupportedLayerError
from lutwise.export.graph import constants_of
from lutwise.export.grids import Grid, attributes_of, grid_of, widened
from lutwise.export.qonnx import METADATA_KEY
from lutwise.quant.accumulator import accumulator_for
from lutwise.quant.formats import FloatFormat, Format, IntFormat, parse

__all__ = ["load_qonnx", "read_layers"]

Array = npt.NDArray[np.generic]

_LAYERS: Final = ("Conv", "MatMul", "Gemm")
_UNPRICED: Final = (
    "ConvTranspose", "DeformConv", "Einsum", "ConvInteger", "MatMulInteger", "QLinearConv",
    "QLinearMatMul", "LSTM", "GRU", "RNN", "XnorPopcountMatMul",
)  # fmt: skip
"""With weights, the cost model has no units for them; passing over them would price too little."""

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

    Weights in files beside it are loaded; those outside its folder are refused, as onnx does.

    Raises:
        ModelError: The file is missing or damaged, or weights beside it are.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"a QONNX file is needed, {str(path)!r} does not exist")
    try:
        model = onnx.load(path)
        if not model.graph.node:
            raise ValueError("it holds no graph")
        _check(model)
        if {v.name for v in model.graph.value_info} >= _made(model):
            return model
        return _with_shapes(model)
    except Exception as error:
        # protobuf, the reader of weights, the checker and qonnx each raise errors of their own
        raise ModelError(
            f"{path} is no valid QONNX file, or weights beside it are missing: "
            f"{' '.join(str(error).split())[:300]}; export it again"
        ) from error


def _check(model: onnx.ModelProto) -> None:
    """Refuse what is no graph: tensors that nothing makes, loops, operators without inputs."""
    for node in model.graph.node:
        texts: Iterable[object] = (node.op_type, node.name, *node.input, *node.output)
        for text in texts:
            if not isinstance(text, str):  # protobuf gives bytes where they are no UTF-8
                raise ValueError(f"the name {text!r} is no text")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        # Operators that onnx does not know are named where they matter, by what meets them.
        if "No Op registered" not in str(error):
            raise


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
        UnsupportedLayerError: A layer without quantizers, of a format wider than 8 bits, or of an
            operator that is not priced.
        ModelError: Weights that are not finite, or not on the grid that their quantizer declares
            where it does not round to the nearest; no layer at all; sizes that the file leaves
            open.
    """
    graph = _Graph(model)
    for node in model.graph.node:
        if node.op_type in _UNPRICED and any(i and i in graph.fixed for i in node.input):
            raise UnsupportedLayerError(
                f"{node.op_type} {(node.name or node.output[0])!r} has weights and is not priced; "
                f"wanted {', '.join(_LAYERS)} for all layers"
            )
    found = [graph.layer(node) for node in model.graph.node if node.op_type in _LAYERS]
    layers = tuple(layer for layer in found if layer is not None)
    if not layers:
        raise ModelError("the file has no Conv, MatMul or Gemm with constant weights")
    return layers


@dataclass(slots=True)
class _Graph:
    """A file's nodes by what they make and read."""

    model: onnx.ModelProto
    makers: dict[str, onnx.NodeProto] = field(init=False)
    readers: dict[str, list[onnx.NodeProto]] = field(init=False)
    constants: dict[str, Array] = field(init=False)
    fixed: set[str] = field(init=False)
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
        self.constants = constants_of(self.model)
        # What no input of the graph changes. An input that is left out has an empty name.
        self.fixed = {*self.constants, ""}
        for node in graph.node:
            if all(name in self.fixed for name in node.input):
                self.fixed.update(node.output)
        self.shapes = {
            info.name: tuple(
                dim.dim_value if dim.HasField("dim_value") else None
                for dim in info.type.tensor_type.shape.dim
            )
            for info in (*graph.input, *graph.output, *graph.value_info)
        }
        described = _notes(self.model)
        try:
            # `FloatQuant` has no sign of its own, our notes do; and they say where numbers are
            # real.
            tensors = described.get("tensors", {})
            self.stated = {n: _parsed(t["format"]) for n, t in tensors.items() if t["format"]}
            self.real = {name for name, tensor in tensors.items() if not tensor["format"]}
            self.names = {layer["name"]: layer["name"] for layer in described.get("layers", ())}
        except (LutwiseError, AttributeError, KeyError, TypeError) as error:
            raise _damaged_notes(error) from error

    def layer(self, node: onnx.NodeProto) -> LayerShape | None:
        """Return a layer, or None for a product of two activations."""
        place = next((i for i in (1, 0) if node.input[i] and node.input[i] in self.fixed), None)
        if place is None:
            return None
        name = self._name(node)
        weights, values, groups = self._weights(node, place, name)
        source = self._input_grid(node.input[1 - place], f"{node.op_type} {name!r}")
        if (source.scale != source.scale.reshape(-1)[0]).any():
            raise UnsupportedLayerError(
                f"{node.op_type} {name!r}: its input has {source.scale.size} scales, so that its "
                "products have no common unit; quantize it with one scale"
            )
        outputs, dot = values.shape
        pixels = self._pixels(node, place, outputs, name)
        end, target = self._finish(node.output[0])
        bias = self._bias(node, end, outputs, name)
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
            groups=groups,
        )

    def _name(self, node: onnx.NodeProto) -> str:
        ours = node.output[0].rpartition("/")[0]
        return self.names.get(ours) or node.name or node.output[0]

    # ------------------------------------------------------------------ weights

    def _weights(
        self, node: onnx.NodeProto, place: int, name: str
    ) -> tuple[Grid, npt.NDArray[np.float64], int]:
        """Return the grid of a layer's weights, their values (out, products), and its groups."""
        where = f"{node.op_type} {name!r}"
        grid: Grid | None = None
        moves: list[tuple[onnx.NodeProto, Grid | None]] = []
        at = node.input[place]
        while at not in self.constants:
            maker = self.makers[at]
            found = self._grid(maker) if grid is None else None
            grid = grid or found
            if found is None and maker.op_type not in ("Transpose", "Reshape", "Cast", "Identity"):
                raise UnsupportedLayerError(
                    f"{where}: its weights pass through {maker.op_type} {maker.name!r}; wanted a "
                    "quantizer, and moves only"
                )
            moves.append((maker, found))
            at = maker.input[0]
        if grid is None:
            raise UnsupportedLayerError(
                f"{where}: its weights have no quantizer, so their format is unknown; export them "
                "under a Quant or FloatQuant node"
            )
        # lutwise writes weights that are quantized already: others mean that the file is damaged.
        strict = name in self.names
        arrays: tuple[Array, ...] = (self.constants[at],)
        for move, found in reversed(moves):
            if found is not None:
                arrays = found.values(arrays[0], where, strict=strict)
            else:
                arrays = tuple(self._moved(move, array, where) for array in arrays)
        values, scale = (_rows(node, place, array.astype(np.float64)) for array in arrays)
        if (scale != scale[:, :1]).any():
            raise UnsupportedLayerError(
                f"{where}: its weights have several scales within one output; units with one for "
                "each output are priced"
            )
        groups = _groups(node, arrays[0].shape)
        return Grid(format=grid.format, scale=scale[:, 0]), values, groups

    def _moved(self, move: onnx.NodeProto, array: Array, where: str) -> Array:
        if move.op_type == "Transpose":
            return array.transpose(attributes_of(move).get("perm"))
        if move.op_type == "Reshape":
            shape = self.constants.get(move.input[1])
            if shape is None:
                raise UnsupportedLayerError(
                    f"{where}: its weights are reshaped by {move.name!r} to a computed shape; "
                    "wanted a constant one"
                )
            wanted = [int(d) for d in shape.reshape(-1).tolist()]
            return array.reshape([array.shape[i] if d == 0 else d for i, d in enumerate(wanted)])
        return array

    # ------------------------------------------------------------------ quantizers

    def _grid(self, node: onnx.NodeProto) -> Grid | None:
        """Return what a quantizer says, None for other nodes."""
        positive = bool(node.input) and self._is_positive(node.input[0])
        return grid_of(node, self.constants, positive=positive)

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

    def _input_grid(self, name: str, where: str) -> Grid:
        """Return the grid of a tensor, found through nodes that keep or scale its values."""
        factor = 1.0
        while (maker := self.makers.get(name)) is not None:
            grid = self._grid(maker)
            if grid is not None:
                fmt = self.stated.get(name, grid.format)
                return Grid(format=fmt, scale=grid.scale * factor)
            if (scaled := self._scaling(maker)) is not None:
                name, factor = scaled[0], factor * scaled[1]
            elif maker.op_type in _KEEPING and maker.input:
                name = maker.input[0]
            else:
                break
        origin = "the input of the file"
        if maker is not None:
            origin = f"{maker.op_type} {(maker.name or maker.output[0])!r}"
        raise UnsupportedLayerError(
            f"{where}: its input has no quantizer (Quant, FloatQuant or DequantizeLinear), so its "
            f"price is unknown; it comes from {origin}, which does not keep the values of a "
            "format: quantize it behind that"
        )

    def _scaling(self, node: onnx.NodeProto) -> tuple[str, float] | None:
        """Return what a node multiplies by one positive number, and that number."""
        if node.op_type not in ("Mul", "Div"):
            return None
        constant = self.constants.get(node.input[1])
        name = node.input[0]
        if constant is None and node.op_type == "Mul":
            constant, name = self.constants.get(node.input[0]), node.input[1]
        if constant is None or constant.size != 1:
            return None
        number = float(constant.reshape(-1)[0])
        if not 0 < number < np.inf:
            return None
        return name, number if node.op_type == "Mul" else 1 / number

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
            if not all(name in self.fixed for name in others):
                break
            passed.append(node)
            name = node.output[0]
        return passed, None

    def _bias(
        self, node: onnx.NodeProto, passed: list[onnx.NodeProto], outputs: int, layer: str
    ) -> npt.NDArray[np.float64]:
        """Return the real numbers that are added to a layer's sums."""
        name = node.input[2] if len(node.input) > 2 else ""
        for after in passed:
            if name or after.op_type not in ("Add", "Cast", "Reshape"):
                break
            if after.op_type == "Add":
                name = next(i for i in after.input if i in self.fixed)
        if not name:
            return np.zeros(outputs)
        at = name
        while at not in self.constants:
            maker = self.makers.get(at)
            if maker is None or not maker.input:
                raise UnsupportedLayerError(
                    f"{node.op_type} {layer!r}: its bias {name!r} is computed; wanted a constant"
                )
            at = maker.input[0]
        bias = np.resize(widened(self.constants[at]).reshape(-1), outputs)
        if not np.isfinite(bias).all():
            raise ModelError(
                f"{node.op_type} {layer!r}: its bias {name!r} is not finite at "
                f"{int(np.argmin(np.isfinite(bias)))}; export it from a checkpoint without such "
                "numbers"
            )
        return bias

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
    if node.op_type == "Gemm" and attributes_of(node).get("transB", 0):
        return array
    if place == 0:  # weights times columns: a convolution as slices
        return array.reshape(-1, array.shape[-1])
    return np.moveaxis(array, -2, -1).reshape(-1, array.shape[-2])


def _groups(node: onnx.NodeProto, shape: tuple[int, ...]) -> int:
    """Return the groups of a layer whose weights have that shape; a product of stacks has some."""
    if node.op_type == "Conv":
        return int(attributes_of(node).get("group", 1))
    return prod(shape[:-2])


def _notes(model: onnx.ModelProto) -> Mapping[str, Any]:
    """Return what lutwise noted in a file, nothing for other tools' files."""
    text = {p.key: p.value for p in model.metadata_props}.get(METADATA_KEY)
    try:
        found: Mapping[str, Any] = json.loads(text) if text else {}
    except ValueError as error:
        raise _damaged_notes(error) from error
    return found


def _damaged_notes(error: Exception) -> ModelError:
    return ModelError(
        f"the file's metadata {METADATA_KEY!r} is not what lutwise writes: "
        f"{type(error).__name__} {' '.join(str(error).split())[:200]}; export it again"
    )


def _parsed(text: str) -> Format:
    fmt = parse(text)
    assert isinstance(fmt, IntFormat | FloatFormat)
    return fmt
