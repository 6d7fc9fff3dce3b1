# SPDX-License-Identifier: Apache-2.0
"""What the files for FINN and hls4ml share: nodes on integers, in float32, with a batch of one."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

import numpy as np
import onnx

from lutwise import __version__
from lutwise.errors import ExportError
from lutwise.export.graph import DOMAIN, GraphBuilder, Value
from lutwise.export.integers import (
    Integers,
    Rescale,
    check_sums,
    rescale_add,
    rescale_layer,
    rescale_pool,
    weight_integers,
)
from lutwise.export.run import with_batch
from lutwise.quant.network import (
    Add,
    Clamp,
    Concat,
    Conv,
    Flatten,
    Linear,
    Network,
    Node,
    Operator,
    Pad,
    Pool,
    Quantize,
)

__all__ = ["FLAVOUR_KEY", "IntegerGraph"]

FLAVOUR_KEY: Final = "lutwise.flavour"
"""Key in ``metadata_props``: the tool that the file is for."""

_NO_PADDING: Final = (0, 0, 0, 0)


class IntegerGraph(ABC):
    """Writes a network, node by node; a tool's subclass says how numbers are rounded.

    Tensors keep their names; those of a format hold integers, its values in units.

    Args:
        network: The network; ``dataflow``, that is, without float operations between layers.
    """

    tool: ClassVar[str]

    def __init__(self, network: Network) -> None:
        self.network = network
        self.graph = GraphBuilder(reserved=network.tensors)
        self.padding: dict[str, tuple[str, tuple[int, int, int, int]]] = {}

    @abstractmethod
    def quantize(self, node: Quantize) -> None:
        """Write the quantizer of the input image."""

    @abstractmethod
    def rescale(self, total: Value, rescale: Rescale, name: str, output: str) -> None:
        """Write what rounds integer sums to a format."""

    def average(self, node: Pool) -> None:
        """Write an average: sums of windows, as a depthwise convolution of ones, then rounded."""
        rescale = rescale_pool(self.network, node)
        x = self.graph.value(node.input)
        ones = np.ones((x.shape[0], 1, *node.kernel), dtype=np.float32)
        held = self.graph.constant(f"{node.name}/ones", ones)
        weights = self.quant(held, Integers(low=-1, high=1), f"{node.name}/window", narrow=True)
        total = self.graph.node(
            "Conv",
            [x, weights],
            f"{node.name}/sum",
            shape=self.network.tensors[node.output].shape,
            attributes=_windows(node.kernel, node.stride, node.padding, (1, 1), x.shape[0]),
        )
        self.rescale(total, rescale, node.name, node.output)

    def quant(
        self, x: Value, integers: Integers, prefix: str, output: str = "", *, narrow: bool = False
    ) -> Value:
        """Write a ``Quant`` of scale 1 that rounds to integers, half to even."""

        def scalar(name: str, number: float) -> Value:
            return self.graph.constant(f"{prefix}/{name}", np.array(number, dtype=np.float32))

        return self.graph.node(
            "Quant",
            [x, scalar("scale", 1), scalar("zero_point", 0), scalar("bits", integers.bits)],
            output or f"{prefix}/integers",
            domain=DOMAIN,
            attributes={
                "signed": int(integers.signed),
                "narrow": int(narrow),
                "rounding_mode": "ROUND",
            },
        )

    def build(self, metadata: Mapping[str, str]) -> onnx.ModelProto:
        """Return the file.

        Args:
            metadata: Beside the tool's name.

        Raises:
            ExportError: A node that the tool does not take; it is named, with the reason.
        """
        network = self.network
        self.graph.input(network.input, network.tensors[network.input].shape)
        for node in network.nodes:
            self._emit(node)
        model = self.graph.build(
            name=network.name,
            inputs=[network.input],
            outputs=[self._output()],
            metadata={"lutwise.version": __version__, FLAVOUR_KEY: self.tool, **metadata},
        )
        return with_batch(model, 1)

    def refuse(self, node: Node, reason: str) -> ExportError:
        """Return the error for a node that the tool does not take."""
        return ExportError(
            f"{type(node).__name__} {node.name!r} has no form for {self.tool}: {reason}"
        )

    def _emit(self, node: Node) -> None:
        b, network = self.graph, self.network
        shape = network.tensors[node.output].shape
        match node:
            case Quantize():
                if node.input != network.input:
                    raise self.refuse(
                        node,
                        "it quantizes a tensor that was computed in float; quantize the model in "
                        "mode dataflow",
                    )
                self.quantize(node)
            case Conv() | Linear():
                self._layer(node)
            case Add():
                if node.requantizer is None:
                    raise self.refuse(node, "it adds float tensors")
                rescale, powers = rescale_add(network, node)
                parts = [
                    self._times(b.value(x), power, f"{node.name}/shifted_{i}")
                    for i, (x, power) in enumerate(zip(node.inputs, powers, strict=True))
                ]
                total = b.node("Add", parts, f"{node.name}/sum")
                self.rescale(total, rescale, node.name, node.output)
            case Pool():
                if node.maximum:
                    self._max_pool(node)
                elif node.requantizer is None:
                    raise self.refuse(node, "it averages float tensors")
                else:
                    self.average(node)
            case Concat():
                parts = [b.value(x) for x in node.inputs]
                b.node("Concat", parts, node.output, shape=shape, attributes={"axis": node.axis})
            case Flatten():
                x = b.value(node.input)
                b.node("Flatten", [x], node.output, shape=shape, attributes={"axis": 1})
            case Pad():
                readers = [n for n in network.nodes if node.output in n.inputs]
                if node.output == network.output or not all(isinstance(n, Conv) for n in readers):
                    raise self.refuse(node, "zeros are put around the inputs of convolutions only")
                self.padding[node.output] = (node.input, node.padding)
            case Clamp() | Operator():
                raise self.refuse(
                    node, "it works on float tensors; quantize the model in mode dataflow"
                )

    def _layer(self, node: Conv | Linear) -> None:
        check_sums(node, self.tool)
        b, shape = self.graph, self.network.tensors[node.output].shape
        numbers, integers, narrow = weight_integers(node)
        if isinstance(node, Linear):
            if len(shape) != 1:
                raise self.refuse(node, f"its output has the shape {shape}, wanted one axis")
            numbers = numbers.T
        held = b.constant(f"{node.name}/weight", numbers.astype(np.float32))
        weights = self.quant(held, integers, f"{node.name}/weight_quantizer", narrow=narrow)
        source, padding = self.padding.get(node.input, (node.input, _NO_PADDING))
        x = b.value(source)
        if isinstance(node, Linear):
            total = b.node("MatMul", [x, weights], f"{node.name}/sum", shape=shape)
        else:
            pads = tuple(a + p for a, p in zip(node.padding, padding, strict=True))
            kernel = (numbers.shape[2], numbers.shape[3])
            total = b.node(
                "Conv",
                [x, weights],
                f"{node.name}/sum",
                shape=shape,
                attributes=_windows(kernel, node.stride, pads, node.dilation, node.groups),
            )
        if node.requantizer is None:
            self._scale(node, total)
        else:
            self.rescale(total, rescale_layer(self.network, node), node.name, node.output)

    def _scale(self, node: Conv | Linear, total: Value) -> None:
        """Write the bias and the scale of a layer whose output is float32."""
        b = self.graph
        if node.has_bias:
            numbers = np.array([int(code) for code in node.bias_codes], dtype=np.float32)
            bias = b.constant(f"{node.name}/bias", self.per_channel(node, numbers))
            total = b.node("Add", [total, bias], f"{node.name}/biased")
        source = self.network.tensors[node.input].scale
        unit = 2.0**node.accumulator.unit_exponent
        factors = np.array([float(source * scale) * unit for scale in node.weight_scales])
        factor = b.constant(
            f"{node.name}/factor", self.per_channel(node, factors.astype(np.float32))
        )
        b.node("Mul", [total, factor], node.output)

    @staticmethod
    def per_channel(node: Conv | Linear, numbers: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        """Return numbers of channels in a shape that fits the layer's output."""
        return numbers.reshape((1, -1, 1, 1) if isinstance(node, Conv) else (-1,))

    def _max_pool(self, node: Pool) -> None:
        top, left, bottom, right = node.padding
        if max(top, bottom) >= node.kernel[0] or max(left, right) >= node.kernel[1]:
            raise self.refuse(node, f"it pads by {node.padding} around windows of {node.kernel}")
        self.graph.node(
            "MaxPool",
            [self.graph.value(node.input)],
            node.output,
            shape=self.network.tensors[node.output].shape,
            attributes={
                "kernel_shape": node.kernel,
                "strides": node.stride,
                "pads": node.padding,
            },
        )

    def _times(self, x: Value, power: int, output: str) -> Value:
        if power == 1:
            return x
        factor = self.graph.constant(f"{output}/power", np.array(power, dtype=np.float32))
        return self.graph.node("Mul", [x, factor], output)

    def _output(self) -> str:
        """Return the name of the output: values of its format where that is not an integer."""
        spec = self.network.tensors[self.network.output]
        if spec.format is None or spec.format.unit_exponent == 0:
            return spec.name
        unit = np.array(2.0**spec.format.unit_exponent, dtype=np.float32)
        factor = self.graph.constant(f"{spec.name}/unit", unit)
        return self.graph.node(
            "Mul", [self.graph.value(spec.name), factor], f"{spec.name}/values"
        ).name


def _windows(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Sequence[int],
    dilation: tuple[int, int],
    groups: int,
) -> dict[str, int | float | str | Sequence[int]]:
    return {
        "kernel_shape": kernel,
        "strides": stride,
        "pads": padding,
        "dilations": dilation,
        "group": groups,
    }


def described(entries: Mapping[str, object]) -> str:
    """Return facts for ``metadata_props``."""
    return json.dumps(entries, sort_keys=True)
