# SPDX-License-Identifier: Apache-2.0
"""A small builder of ONNX graphs: the only module that touches ``onnx.helper``.

Every tensor gets a type and a shape when it is made, so that the files need no shape inference.
Names are those asked for, made unique by a counter: the same calls give the same bytes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from lutwise.errors import ExportError, ModelError

__all__ = [
    "BATCH",
    "DOMAIN",
    "IR_VERSION",
    "OPSET",
    "Attribute",
    "GraphBuilder",
    "Value",
    "constants_of",
]

BATCH: Final = "N"
"""Name of the batch dimension."""

DOMAIN: Final = "qonnx.custom_op.general"
"""Domain of the quantizers."""

OPSET: Final = 20
"""Version of the standard operators."""

IR_VERSION: Final = 10
"""Read by every onnx and ONNX Runtime that our dependencies allow."""

_TYPE_KEY: Final = "finn_datatype"
"""Where qonnx keeps the type of a tensor."""

_MOST_BYTES: Final = 2**31 - 2**24
"""Of the constants of a file: protobuf ends at 2 GiB; the rest is for nodes, shapes and notes."""

Attribute: TypeAlias = int | float | str | Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A tensor of the graph.

    Args:
        name: Unique in the graph.
        shape: Without the batch where ``batched``.
        dtype: ``float32`` or ``float64`` for what is computed with.
        batched: Whether a batch axis comes first.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    batched: bool = True


class GraphBuilder:
    """Collects nodes, initializers and shapes.

    Args:
        reserved: Names that only outputs asked for exactly so may have.
    """

    def __init__(self, reserved: Collection[str] = ()) -> None:
        self._reserved = frozenset(reserved)
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._values: dict[str, Value] = {}
        self._types: dict[str, str] = {}

    def input(self, name: str, shape: tuple[int, ...]) -> Value:
        """Declare the float32 input.

        Args:
            name: Of the tensor.
            shape: Without the batch.
        """
        return self._declare(Value(name=name, shape=shape, dtype=np.dtype(np.float32)))

    def value(self, name: str) -> Value:
        """Return a tensor made before."""
        return self._values[name]

    def constant(self, name: str, array: npt.NDArray[np.generic]) -> Value:
        """Add an initializer.

        Args:
            name: Wanted name.
            array: Its content; shape and dtype are kept.
        """
        value = Value(name=self._fresh(name), shape=array.shape, dtype=array.dtype, batched=False)
        # Not ascontiguousarray: it makes scalars one-dimensional.
        content = np.asarray(array, order="C")
        self._initializers.append(numpy_helper.from_array(content, value.name))
        self._values[value.name] = value
        return value

    def node(
        self,
        op: str,
        inputs: Sequence[Value],
        output: str,
        *,
        shape: tuple[int, ...] | None = None,
        dtype: npt.DTypeLike | None = None,
        domain: str = "",
        attributes: Mapping[str, Attribute] | None = None,
        batched: bool | None = None,
    ) -> Value:
        """Add a node with one output.

        Args:
            op: Operator.
            inputs: Tensors read.
            output: Wanted name of the tensor made.
            shape: Of the output without the batch; that of the first input where left out.
            dtype: Of the output; that of the first input where left out.
            domain: Of the operator.
            attributes: Of the operator.
            batched: Whether the output has a batch axis; where any input has one if left out.
        """
        first = inputs[0]
        value = Value(
            name=output if output in self._reserved else self._fresh(output),
            shape=first.shape if shape is None else shape,
            dtype=first.dtype if dtype is None else np.dtype(dtype),
            batched=any(i.batched for i in inputs) if batched is None else batched,
        )
        names = [i.name for i in inputs]
        node = helper.make_node(op, names, [value.name], name=f"{value.name}/{op}", domain=domain)
        for key, content in sorted((attributes or {}).items()):
            node.attribute.append(helper.make_attribute(key, content))
        self._nodes.append(node)
        return self._declare(value)

    def repeated(self, array: npt.NDArray[np.generic], like: Value, output: str) -> Value:
        """Add a constant, whose first axis has length one, once for each image.

        Args:
            array: The constant.
            like: A tensor with a batch axis.
            output: Wanted name of the tensor made.
        """
        images = self.node(
            "Shape", [like], f"{output}/images", shape=(1,), dtype=np.int64,
            attributes={"start": 0, "end": 1}, batched=False,
        )  # fmt: skip
        rest = self.constant(f"{output}/rest", np.array(array.shape[1:]))
        shape = self.node(
            "Concat", [images, rest], f"{output}/shape", shape=(array.ndim,), attributes={"axis": 0}
        )
        value = self.constant(f"{output}/value", array)
        return self.node("Expand", [value, shape], output, shape=array.shape[1:], batched=True)

    def cast(self, x: Value, dtype: npt.DTypeLike, output: str) -> Value:
        """Convert to another type; no node where it is the same."""
        if x.dtype == np.dtype(dtype):
            return x
        to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node("Cast", [x], output, dtype=dtype, attributes={"to": to})

    def annotate(self, value: Value, type_name: str) -> None:
        """State the type of the numbers that a tensor holds.

        Args:
            value: The tensor.
            type_name: As qonnx spells it, ``INT17`` or ``FIXED<17,9>``.
        """
        self._types[value.name] = type_name

    def build(
        self, *, name: str, inputs: Sequence[str], outputs: Sequence[str], metadata: dict[str, str]
    ) -> onnx.ModelProto:
        """Return the model.

        Args:
            name: Of the graph.
            inputs: Names of the graph's inputs.
            outputs: Names of the graph's outputs.
            metadata: Written to ``metadata_props``.

        Raises:
            ExportError: The constants are too large for one file.
        """
        self._check_size(name)
        ends = {*inputs, *outputs, *(i.name for i in self._initializers)}
        graph = helper.make_graph(
            self._nodes,
            name,
            [_info(self._values[n]) for n in inputs],
            [_info(self._values[n]) for n in outputs],
            self._initializers,
            value_info=[_info(v) for n, v in self._values.items() if n not in ends],
        )
        graph.quantization_annotation.extend(
            onnx.TensorAnnotation(
                tensor_name=tensor,
                quant_parameter_tensor_names=[
                    onnx.StringStringEntryProto(key=_TYPE_KEY, value=type_name)
                ],
            )
            for tensor, type_name in self._types.items()
        )
        others = {node.domain for node in self._nodes} - {"", DOMAIN}
        opsets = [("", OPSET), (DOMAIN, 1), *((domain, OPSET) for domain in sorted(others))]
        model = helper.make_model(
            graph,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets],
            producer_name="lutwise",
            producer_version=metadata.get("lutwise.version", ""),
        )
        helper.set_model_props(model, metadata)
        return model

    def _check_size(self, name: str) -> None:
        """Refuse what cannot be serialized before that is tried."""
        sizes = {i.name: len(i.raw_data) for i in self._initializers}
        if (total := sum(sizes.values())) > _MOST_BYTES:
            largest = max(sizes, key=lambda key: sizes[key])
            raise ExportError(
                f"an ONNX file holds up to {_MOST_BYTES} bytes of constants, those of {name!r} are "
                f"{total}, the largest {largest!r} with {sizes[largest]}; export the network in "
                "parts"
            )

    def _fresh(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._values or candidate in self._reserved:
            count += 1
            candidate = f"{name}_{count}"
        return candidate

    def _declare(self, value: Value) -> Value:
        self._values[value.name] = value
        return value


def _info(value: Value) -> onnx.ValueInfoProto:
    shape: list[int | str] = [BATCH, *value.shape] if value.batched else [*value.shape]
    return helper.make_tensor_value_info(
        value.name, helper.np_dtype_to_tensor_dtype(value.dtype), shape
    )


def constants_of(model: onnx.ModelProto) -> dict[str, npt.NDArray[np.generic]]:
    """Return what a file's initializers and ``Constant`` nodes hold, by name.

    Raises:
        ModelError: One has another size than it states.
    """
    found: dict[str, npt.NDArray[np.generic]] = {}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "Constant" or len(node.attribute) != 1:
            continue
        content = node.attribute[0]
        if content.name == "value":
            tensors[node.output[0]] = content.t
        elif content.name in ("value_float", "value_floats", "value_int", "value_ints"):
            kind = np.float32 if "float" in content.name else np.int64
            found[node.output[0]] = np.array(helper.get_attribute_value(content), dtype=kind)
    for name, tensor in tensors.items():
        try:
            found[name] = numpy_helper.to_array(tensor)
        except Exception as error:  # onnx raises ValueError, TypeError, KeyError and others
            raise ModelError(
                f"the constant {name!r} of shape {list(tensor.dims)} is damaged: "
                f"{' '.join(str(error).split())[:200]}; export the file again"
            ) from error
    return found
