# SPDX-License-Identifier: Apache-2.0
"""What the files for FINN and hls4ml share: nodes on integers, in float32, with a batch of one."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
import onnx

from lutwise import __version__
from lutwise.errors import ExportError
from lutwise.export.graph import DOMAIN, Attribute, GraphBuilder, Value
from lutwise.export.integers import (
    Counts,
    Integers,
    Rescale,
    Rescaled,
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

__all__ = ["FLATTENED_KEY", "FLAVOUR_KEY", "UNITS_KEY", "IntegerGraph", "is_channels_last"]

FLAVOUR_KEY: Final = "lutwise.flavour"
"""Key in ``metadata_props``: the tool that the file is for."""

UNITS_KEY: Final = "lutwise.units"
"""Key in ``metadata_props`` of the exponents of tensors' units, where they are not zero."""

FLATTENED_KEY: Final = "lutwise.flattened"
"""Key in ``metadata_props`` of the shapes (c, h, w) of images that lie flat, channels last."""

CHANNELS_LAST_DOMAIN: Final = "qonnx.custom_op.channels_last"
"""Of operators on images whose channels come last."""

_NO_PADDING: Final = (0, 0, 0, 0)


class IntegerGraph(ABC):
    """Writes a network, node by node; a tool's subclass says how numbers are rounded.

    Tensors keep their names; those of a format hold integers, its values in units.

    Args:
        network: The network; ``dataflow``, that is, without float operations between layers.
    """

    tool: ClassVar[str]
    channels_last: ClassVar[bool] = False
    """Whether images are (height, width, channels), with qonnx's operators for those."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.graph = GraphBuilder(reserved=network.tensors)
        self.padding: dict[str, tuple[str, tuple[int, int, int, int]]] = {}
        self.flattened: dict[str, tuple[int, ...]] = {}
        """Shapes (c, h, w) of images whose numbers lie flat, channels last."""

    @abstractmethod
    def quantize(self, node: Quantize) -> None:
        """Write the quantizer of the input image."""

    @abstractmethod
    def rescale(self, total: Value, rescale: Rescale, node: Rescaled) -> None:
        """Write what rounds integer sums to a format."""

    def average(self, node: Pool) -> None:
        """Write an average: sums of windows, as a depthwise convolution of ones, then rounded."""
        rescale = rescale_pool(self.network, node)
        check_sums(node, rescale.largest.bit_length(), self.tool)
        x = self.graph.value(node.input)
        channels = self.network.tensors[node.input].shape[0]
        ones = np.ones((channels, 1, *node.kernel), dtype=np.int64)
        held = self._weights(ones, Integers(low=-1, high=1), f"{node.name}/ones", narrow=True)
        total = self._windows(
            "Conv",
            [x, held],
            f"{node.name}/sum",
            self.shape(node.output),
            {
                "kernel_shape": node.kernel,
                "strides": node.stride,
                "pads": node.padding,
                "dilations": (1, 1),
                "group": channels,
            },
        )
        self.rescale(total, rescale, node)

    def quant(
        self,
        x: Value,
        integers: Integers,
        prefix: str,
        output: str = "",
        *,
        narrow: bool = False,
        scale: float = 1.0,
    ) -> Value:
        """Write a ``Quant`` that rounds to integers times a scale, half to even."""

        def scalar(name: str, number: float) -> Value:
            return self.graph.constant(f"{prefix}/{name}", np.array(number, dtype=np.float32))

        return self.graph.node(
            "Quant",
            [x, scalar("scale", scale), scalar("zero_point", 0), scalar("bits", integers.bits)],
            output or f"{prefix}/integers",
            domain=DOMAIN,
            attributes={
                "signed": int(integers.signed),
                "narrow": int(narrow),
                "rounding_mode": "ROUND",
            },
        )

    def metadata(self) -> dict[str, str]:
        """Return what the file notes for its tool."""
        exponents = {
            name: spec.format.unit_exponent
            for name, spec in self.network.tensors.items()
            if spec.format is not None and spec.format.unit_exponent
        }
        return {
            "lutwise.version": __version__,
            FLAVOUR_KEY: self.tool,
            UNITS_KEY: json.dumps(exponents, sort_keys=True),
            FLATTENED_KEY: json.dumps(self.flattened, sort_keys=True),
        }

    def build(self) -> onnx.ModelProto:
        """Return the file.

        Raises:
            ExportError: A node that the tool does not take; it is named, with the reason.
        """
        network = self.network
        self.graph.input(network.input, self.shape(network.input))
        for node in network.nodes:
            self._emit(node)
        model = self.graph.build(
            name=network.name,
            inputs=[network.input],
            outputs=[self._output()],
            metadata=self.metadata(),
        )
        return with_batch(model, 1)

    def refuse(self, node: Node, reason: str) -> ExportError:
        """Return the error for a node that the tool does not take."""
        return ExportError(
            f"{type(node).__name__} {node.name!r} has no form for {self.tool}: {reason}"
        )

    def _emit(self, node: Node) -> None:
        b, network = self.graph, self.network
        shape = self.shape(node.output)
        match node:
            case Quantize():
                if not self._is_image(node.input):
                    raise self.refuse(
                        node,
                        "it quantizes a tensor that was computed in float; quantize the model in "
                        "mode dataflow",
                    )
                self.quantize(node)
                if (image := self.flattened.get(node.input)) is not None:
                    self.flattened[node.output] = image
            case Conv() | Linear():
                self._layer(node)
            case Add():
                if node.requantizer is None:
                    raise self.refuse(node, "it adds float tensors")
                rescale, powers = rescale_add(network, node)
                check_sums(node, rescale.largest.bit_length(), self.tool)
                parts = [
                    self._times(b.value(x), power, f"{node.name}/shifted_{i}")
                    for i, (x, power) in enumerate(zip(node.inputs, powers, strict=True))
                ]
                total = b.node("Add", parts, f"{node.name}/sum")
                self.rescale(total, rescale, node)
            case Pool():
                if node.maximum:
                    self._max_pool(node)
                elif node.requantizer is None:
                    raise self.refuse(node, "it averages float tensors")
                else:
                    self.average(node)
            case Concat():
                parts = [b.value(x) for x in node.inputs]
                axis = node.axis
                if self.channels_last and len(shape) == 3:
                    axis = {1: 3, 2: 1, 3: 2}[axis]
                b.node("Concat", parts, node.output, shape=shape, attributes={"axis": axis})
            case Flatten():
                self._flatten(node)
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
        check_sums(node, node.accumulator.magnitude_bits, self.tool)
        b, shape = self.graph, self.shape(node.output)
        numbers, integers, narrow = weight_integers(node)
        source, padding = self.padding.get(node.input, (node.input, _NO_PADDING))
        x = b.value(source)
        if isinstance(node, Linear):
            if len(shape) != 1:
                raise self.refuse(node, f"its output has the shape {shape}, wanted one axis")
            if (image := self.flattened.get(node.input)) is not None:
                numbers = numbers.reshape(-1, *image).transpose(0, 2, 3, 1)
                numbers = numbers.reshape(len(numbers), -1)
            weights = self._weights(numbers.T, integers, f"{node.name}/weight", narrow=narrow)
            total = b.node("MatMul", [x, weights], f"{node.name}/sum", shape=shape)
        else:
            weights = self._weights(numbers, integers, f"{node.name}/weight", narrow=narrow)
            total = self._windows(
                "Conv",
                [x, weights],
                f"{node.name}/sum",
                shape,
                {
                    "kernel_shape": numbers.shape[2:],
                    "strides": node.stride,
                    "pads": tuple(a + p for a, p in zip(node.padding, padding, strict=True)),
                    "dilations": node.dilation,
                    "group": node.groups,
                },
            )
        if node.requantizer is None:
            self.scale_output(node, total)
        else:
            self.rescale(total, rescale_layer(self.network, node), node)

    def _is_image(self, name: str) -> bool:
        """Return whether a tensor is the input, but for its shape."""
        made = {n.output: n for n in self.network.nodes}
        while isinstance(node := made.get(name), Flatten):
            name = node.input
        return name == self.network.input

    def _flatten(self, node: Flatten) -> None:
        x, shape = self.graph.value(node.input), self.shape(node.output)
        image = self.network.tensors[node.input].shape
        if self.channels_last and len(image) == 3 and prod(image[1:]) > 1:
            if self._only_multiplied(node.output):
                self.flattened[node.output] = image
            else:
                x = self.graph.node(
                    "Transpose",
                    [x],
                    f"{node.name}/channels_first",
                    shape=image,
                    attributes={"perm": (0, 3, 1, 2)},
                )
        self.graph.node("Flatten", [x], node.output, shape=shape, attributes={"axis": 1})

    def _only_multiplied(self, name: str) -> bool:
        """Return whether only linear layers, whose weights can be reordered, read a tensor."""
        readers = [n for n in self.network.nodes if name in n.inputs]
        return name != self.network.output and all(
            isinstance(n, Linear) or (isinstance(n, Quantize) and self._only_multiplied(n.output))
            for n in readers
        )

    def scale_output(self, node: Conv | Linear, total: Value) -> None:
        """Write the bias and the scale of a layer whose output is float32."""
        b, shape = self.graph, self.shape(node.output)
        if node.has_bias:
            numbers = np.array([int(code) for code in node.bias_codes], dtype=np.float32)
            bias = b.constant(f"{node.name}/bias", self.per_channel(numbers, shape))
            total = b.node("Add", [total, bias], f"{node.name}/biased")
        source = self.network.tensors[node.input].scale
        unit = 2.0**node.accumulator.unit_exponent
        factors = np.array([float(source * scale) * unit for scale in node.weight_scales])
        numbers = self.per_channel(factors.astype(np.float32), shape)
        factor = b.constant(f"{node.name}/factor", numbers)
        b.node("Mul", [total, factor], node.output)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor in the file, without the batch."""
        found = self.network.tensors[name].shape
        return (*found[1:], found[0]) if self.channels_last and len(found) == 3 else found

    def per_channel(
        self, numbers: npt.NDArray[np.float32], shape: tuple[int, ...]
    ) -> npt.NDArray[np.float32]:
        """Return numbers of channels in a shape that fits a tensor's."""
        return numbers.reshape((-1,) if self.channels_last or len(shape) == 1 else (1, -1, 1, 1))

    def _weights(self, numbers: Counts, integers: Integers, name: str, *, narrow: bool) -> Value:
        """Put weights under their quantizer: (out, in, height, width) or (in, out)."""
        if self.channels_last and numbers.ndim == 4:
            numbers = numbers.transpose(0, 2, 3, 1)
        held = self.graph.constant(name, numbers.astype(np.float32))
        return self.quant(held, integers, f"{name}_quantizer", narrow=narrow)

    def _windows(
        self,
        op: str,
        inputs: Sequence[Value],
        output: str,
        shape: tuple[int, ...],
        attributes: dict[str, Attribute],
    ) -> Value:
        domain = CHANNELS_LAST_DOMAIN if self.channels_last else ""
        return self.graph.node(
            op, inputs, output, shape=shape, domain=domain, attributes=attributes
        )

    def _max_pool(self, node: Pool) -> None:
        top, left, bottom, right = node.padding
        if max(top, bottom) >= node.kernel[0] or max(left, right) >= node.kernel[1]:
            raise self.refuse(node, f"it pads by {node.padding} around windows of {node.kernel}")
        self._windows(
            "MaxPool",
            [self.graph.value(node.input)],
            node.output,
            self.shape(node.output),
            {"kernel_shape": node.kernel, "strides": node.stride, "pads": node.padding},
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


def is_channels_last(model: onnx.ModelProto) -> bool:
    """Return whether a file's images have their channels last."""
    return any(node.domain == CHANNELS_LAST_DOMAIN for node in model.graph.node)
