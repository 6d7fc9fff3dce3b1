# SPDX-License-Identifier: Apache-2.0
"""What the ONNX reader knows while it builds a torch graph."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import fx, nn

from lutwise.errors import UnsupportedLayerError

__all__ = ["BATCH", "Array", "Attribute", "Dim", "GraphBuilder", "Shape", "Site"]

Array: TypeAlias = npt.NDArray[np.generic]
Attribute: TypeAlias = int | float | str | list[int] | list[float] | None
Dim: TypeAlias = int | str | None
"""A fixed size, the name of a free one, or nothing known."""
Shape: TypeAlias = tuple[Dim, ...]


BATCH: Final = -1_234_567
"""Stands for the number of images in lists of sizes, where no other number is below -1."""

_RESERVED: Final = frozenset(dir(nn.Module())) | frozenset(dir(fx.GraphModule))


@dataclass(slots=True, kw_only=True)
class GraphBuilder:
    """The torch graph so far.

    Args:
        shapes: Of ONNX values, as far as known.
        uses: How many readers an ONNX value has; the graph's output counts.
        constants: ONNX values known before anything runs.
        sizes: ONNX values known but for `BATCH` among them.
        values: Torch graph nodes of the other ONNX values.
        root: Holds modules and constants.
        graph: The nodes.
        taken: Attribute names of the root that are gone.
    """

    shapes: Mapping[str, Shape]
    uses: Mapping[str, int]
    constants: dict[str, Array]
    sizes: dict[str, Array] = field(default_factory=dict)
    values: dict[str, fx.Node] = field(default_factory=dict)
    root: nn.Module = field(default_factory=nn.Module)
    graph: fx.Graph = field(default_factory=fx.Graph)
    taken: set[str] = field(default_factory=lambda: set(_RESERVED))

    def unique(self, name: str) -> str:
        """Make an attribute name of the root out of an ONNX name."""
        clean = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
        if not clean or clean[0].isdigit():
            clean = f"node_{clean}"
        candidate, count = clean, 1
        while candidate in self.taken:
            count += 1
            candidate = f"{clean}_{count}"
        self.taken.add(candidate)
        return candidate

    def module(self, name: str, module: nn.Module, x: fx.Node) -> fx.Node:
        """Add a module and a call of it."""
        key = self.unique(name)
        self.root.add_module(key, module)
        return self.graph.call_module(key, (x,))

    def constant(self, name: str, value: Array) -> fx.Node:
        """Add a constant and a read of it."""
        key = self.unique(name)
        self.root.register_buffer(key, tensor_of(value))
        return self.graph.get_attr(key)

    def producer(self, x: fx.Node) -> nn.Module | None:
        """Return the module that computes a node, if one does."""
        return self.root.get_submodule(str(x.target)) if x.op == "call_module" else None


def tensor_of(value: Array) -> torch.Tensor:
    """Make a tensor; floating-point types become float32."""
    if not np.issubdtype(value.dtype, np.integer) and value.dtype != np.bool_:
        value = value.astype(np.float32)
    return torch.from_numpy(np.array(value, order="C"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One ONNX node and the place where its torch form goes.

    Args:
        node: The ONNX node.
        name: Of the node, or made up from its operator and number.
        opset: Version of the operators.
        builder: The torch graph so far.
    """

    node: onnx.NodeProto
    name: str
    opset: int
    builder: GraphBuilder

    def unsupported(self, why: str) -> UnsupportedLayerError:
        """Make the error that says what is not supported about this node."""
        return UnsupportedLayerError(f"ONNX node {self.name!r} ({self.node.op_type}): {why}")

    def attribute(self, name: str) -> Attribute:
        """Return an attribute, None where it is absent."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                value: object = onnx.helper.get_attribute_value(attribute)
                if isinstance(value, bytes):
                    return value.decode("utf-8", "replace")
                if isinstance(value, int | float):
                    return value
                if isinstance(value, Sequence):
                    return list(value)
                raise self.unsupported(f"attribute {name} of type {type(value).__name__}")
        return None

    def integer(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        value = self.attribute(name)
        return int(value) if isinstance(value, int | float) else default

    def number(self, name: str, default: float) -> float:
        """Return a number attribute."""
        value = self.attribute(name)
        return float(value) if isinstance(value, int | float) else default

    def text(self, name: str, default: str) -> str:
        """Return a text attribute."""
        value = self.attribute(name)
        return value if isinstance(value, str) else default

    def integers(self, name: str) -> list[int] | None:
        """Return a list attribute, None where it is absent."""
        value = self.attribute(name)
        return [int(v) for v in value] if isinstance(value, list) else None

    def has(self, index: int) -> bool:
        """Say whether an input is given."""
        return index < len(self.node.input) and self.node.input[index] != ""

    def constant(self, index: int) -> Array | None:
        """Return an input that is known before anything runs; None where it is not, or absent."""
        return self.builder.constants.get(self.node.input[index]) if self.has(index) else None

    def weight(self, index: int) -> Array:
        """Return an input that has to be known before anything runs."""
        value = self.constant(index)
        if value is None:
            raise self.unsupported(
                f"input {index} is computed at run time, only stored weights are supported"
            )
        return value

    def scalar(self, index: int) -> float | None:
        """Return an input of one known number; None where it is absent."""
        if not self.has(index):
            return None
        value = self.weight(index)
        if value.size != 1:
            raise self.unsupported(f"input {index} is one number, got shape {value.shape}")
        return float(value.reshape(-1)[0])

    def value(self, index: int) -> fx.Node:
        """Return the torch node of an input; a known input becomes a constant."""
        name = self.node.input[index]
        constant = self.builder.constants.get(name)
        return (
            self.builder.values[name] if constant is None else self.builder.constant(name, constant)
        )

    def sole(self, index: int) -> fx.Node | None:
        """Return the torch node of a computed input that nothing else reads, None if one does."""
        name = self.node.input[index]
        x = self.builder.values.get(name)
        names = sum(v is x for v in self.builder.values.values())
        return x if names == 1 and self.builder.uses.get(name) == 1 else None

    def shape(self, index: int) -> Shape | None:
        """Return the shape of an input as far as known."""
        name = self.node.input[index]
        constant = self.builder.constants.get(name)
        return self.builder.shapes.get(name) if constant is None else constant.shape

    def output_shape(self) -> Shape | None:
        """Return the shape of the output as far as known."""
        return self.builder.shapes.get(self.node.output[0])

    def rank(self, index: int) -> int | None:
        """Return how many axes an input has, batch included."""
        shape = self.shape(index)
        return None if shape is None else len(shape)

    def module(self, module: nn.Module, x: fx.Node | None = None) -> fx.Node:
        """Add a module that reads ``x``, or else the first input."""
        return self.builder.module(self.name, module, self.value(0) if x is None else x)

    def call(self, function: Callable[..., object], *arguments: object) -> fx.Node:
        """Add a call of a function."""
        return self.builder.graph.call_function(function, arguments)  # type: ignore[arg-type]
