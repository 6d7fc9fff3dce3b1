# SPDX-License-Identifier: Apache-2.0
"""From a quantized torch model to the `Network` that everything else reads."""

from fractions import Fraction

import numpy as np
import numpy.typing as npt
from torch import fx, nn

from lutwise.errors import UnsupportedLayerError
from lutwise.quant.accumulator import accumulator_for
from lutwise.quant.formats import Format
from lutwise.quant.graph import Kind, window
from lutwise.quant.lower_operators import OperatorLowering
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
    Requantizer,
    Tensor,
    snap,
)
from lutwise.quant.numerics import encode, quantize
from lutwise.quant.plan import clamp_range
from lutwise.quant.quantized import QuantizedModel

__all__ = ["lower", "try_lower"]


def lower(model: QuantizedModel) -> Network:
    """Return the network of a quantized model.

    The scales of weights move by less than 2**-16 of themselves, so that every requantizer's
    multiplier has the stated width and is exact.

    Raises:
        UnsupportedLayerError: A node that a `Network` cannot hold.
    """
    return _Lowering(model).run()


def try_lower(model: QuantizedModel) -> tuple[Network | None, str]:
    """Return the network; or None and why, where a ``layerwise`` model has none.

    Raises:
        UnsupportedLayerError: A ``dataflow`` model has none.
    """
    try:
        return lower(model), ""
    except UnsupportedLayerError as error:
        if model.layer_inputs:  # layerwise: the accuracy is still worth having
            return None, str(error)
        raise


class _Lowering:
    """The tensors and nodes made so far."""

    def __init__(self, model: QuantizedModel) -> None:
        self._model = model
        self._kinds = model.prepared.kinds
        self._nodes: list[Node] = []
        self._tensors: dict[str, Tensor] = {}
        self._holder: dict[str, str] = {}  # tensor that holds a graph node's output
        self._operators = OperatorLowering(model.prepared, self._emit, self._holder)

    def run(self) -> Network:
        input_name = output_name = ""
        for node in self._model.graph.graph.nodes:
            kind = self._kinds[node.name]
            match kind:
                case Kind.INPUT:
                    input_name = self._input(node)
                case Kind.OUTPUT:
                    output_name = self._holder[node.args[0].name]
                case Kind.SHAPE:
                    continue
                case _:
                    self._lower(node, kind)
        return Network(
            name=self._model.prepared.name,
            input=input_name,
            output=output_name,
            nodes=tuple(self._nodes),
            tensors=self._tensors,
        )

    def _lower(self, node: fx.Node, kind: Kind) -> None:
        match kind:
            case Kind.LAYER:
                self._layer(node)
            case Kind.ADD if all(n.name in self._holder for n in node.all_input_nodes):
                self._add(node)
            case Kind.AVERAGE | Kind.MAXIMUM:
                self._pool(node, kind is Kind.MAXIMUM)
            case Kind.CLAMP:
                self._clamp(node)
            case Kind.CONCAT | Kind.FLATTEN | Kind.PAD:
                self._rearrange(node, kind)
            case _:
                self._operators.lower(node)

    def _emit(self, made: Operator, shape: tuple[int, ...]) -> None:
        self._tensors[made.output] = Tensor(name=made.output, shape=shape)
        self._nodes.append(made)

    # ------------------------------------------------------------------ helpers

    def _tensor(self, node: fx.Node, like: Tensor | None = None) -> Tensor:
        """Make the tensor of a node's output: quantized there, or like another one."""
        shape = self._model.prepared.shapes[node.name]
        if quantizer := self._model.outputs.get(node.name):
            return Tensor(
                name=node.name,
                shape=shape,
                format=quantizer.format,
                scale=Fraction(quantizer.scale),
            )
        if like is None:
            return Tensor(name=node.name, shape=shape)
        return Tensor(name=node.name, shape=shape, format=like.format, scale=like.scale)

    def _hold(self, tensor: Tensor, *nodes: fx.Node) -> str:
        self._tensors[tensor.name] = tensor
        for node in nodes:
            self._holder[node.name] = tensor.name
        return tensor.name

    def _source(self, node: fx.Node, index: int = 0) -> Tensor:
        source = node.all_input_nodes[index].name
        if source not in self._holder:
            raise UnsupportedLayerError(
                f"{self._model.prepared.name}: node {node.name!r} reads {source!r}, whose first "
                "axis is not the batch; there is no form of it for export, costs and RTL"
            )
        return self._tensors[self._holder[source]]

    def _completed(self, node: fx.Node) -> tuple[fx.Node, tuple[float, float]]:
        """Return the node whose output is quantized, and the clamp on the way there."""
        users = list(node.users)
        if (
            self._model.outputs.get(node.name) is None
            and len(users) == 1
            and self._kinds[users[0].name] is Kind.CLAMP
            and users[0].name in self._model.outputs
        ):
            return users[0], clamp_range(self._model.prepared.module(users[0]))
        return node, (-np.inf, np.inf)

    # ------------------------------------------------------------------ nodes

    def _input(self, node: fx.Node) -> str:
        name = "input"
        self._tensors[name] = Tensor(name=name, shape=self._model.prepared.shapes[node.name])
        if node.name in self._model.outputs:
            self._nodes.append(Quantize(name=f"quantize_{node.name}", input=name, output=node.name))
            self._hold(self._tensor(node), node)
        else:
            self._holder[node.name] = name
        return name

    def _layer_input(self, node: fx.Node) -> Tensor:
        source = self._source(node)
        quantizer = self._model.layer_inputs.get(node.name)
        if quantizer is None:
            return source
        name = f"{source.name}.quantized"
        if name not in self._tensors:
            self._tensors[name] = Tensor(
                name=name,
                shape=source.shape,
                format=quantizer.format,
                scale=Fraction(quantizer.scale),
            )
            self._nodes.append(Quantize(name=f"quantize_{name}", input=source.name, output=name))
        return self._tensors[name]

    def _layer(self, node: fx.Node) -> None:
        source = self._layer_input(node)
        assert source.format is not None
        end, clamp = self._completed(node)
        target = self._tensor(end)
        weight, module = self._model.weights[node.name], self._model.layer(node)
        scales = tuple(Fraction(s) for s in weight.scales.tolist())
        requantizer = None
        if target.format is not None:
            snapped = [snap(source.scale * s / target.scale) for s in scales]
            scales = tuple(m * Fraction(2) ** -k * target.scale / source.scale for m, k in snapped)
            requantizer = _requantizer(snapped, target.format, target.scale, clamp)
        values = weight.values.numpy()
        bias = _bias_codes(module, source, scales, weight.format)
        common = {
            "name": str(node.target),
            "input": source.name,
            "output": self._hold(target, node, end),
            "weight_format": weight.format,
            "weight_codes": encode(weight.format, values),
            "weight_scales": scales,
            "bias_codes": bias,
            "accumulator": accumulator_for(values, weight.format, source.format, bias),
            "requantizer": requantizer,
        }
        if isinstance(module, nn.Linear):
            self._nodes.append(Linear(**common))  # type: ignore[arg-type]
            return
        up, left = (0, 0) if isinstance(module.padding, str) else window(module.padding)
        self._nodes.append(
            Conv(
                **common,  # type: ignore[arg-type]
                stride=window(module.stride),
                padding=(up, left, up, left),
                dilation=window(module.dilation),
                groups=module.groups,
            )
        )

    def _add(self, node: fx.Node) -> None:
        first, second = self._source(node), self._source(node, len(node.all_input_nodes) - 1)
        end, clamp = self._completed(node)
        target = self._tensor(end)
        shifts, requantizer = (0, 0), None
        if target.format is not None:
            base = min(first.scale, second.scale)
            shifts = (_power(first.scale / base), _power(second.scale / base))
            snapped = [snap(base / target.scale)]
            requantizer = _requantizer(snapped, target.format, target.scale, clamp)
        self._nodes.append(
            Add(
                name=node.name,
                inputs=(first.name, second.name),
                output=self._hold(target, node, end),
                shifts=shifts,
                requantizer=requantizer,
            )
        )

    def _pool(self, node: fx.Node, maximum: bool) -> None:
        source, module = self._source(node), self._model.prepared.module(node)
        shape = self._model.prepared.shapes[node.name]
        kernel, stride, padding = _window_of(module, source.shape, shape, node.name)
        if maximum:
            end, target, requantizer = node, self._tensor(node, source), None
        else:
            end, clamp = self._completed(node)
            target, requantizer = self._tensor(end), None
            if target.format is not None:
                ratio = source.scale / (kernel[0] * kernel[1]) / target.scale
                requantizer = _requantizer([snap(ratio)], target.format, target.scale, clamp)
        self._nodes.append(
            Pool(
                name=node.name,
                input=source.name,
                output=self._hold(target, node, end),
                maximum=maximum,
                kernel=kernel,
                stride=stride,
                padding=padding,
                requantizer=requantizer,
            )
        )

    def _clamp(self, node: fx.Node) -> None:
        if node.name in self._holder:  # completed the node before it
            return
        source = self._source(node)
        low, high = clamp_range(self._model.prepared.module(node))
        if source.format is not None:
            low, high = _clamp_values(source.format, source.scale, (low, high))
        self._nodes.append(
            Clamp(
                name=node.name,
                input=source.name,
                output=self._hold(self._tensor(node, source), node),
                low=low,
                high=high,
            )
        )

    def _rearrange(self, node: fx.Node, kind: Kind) -> None:
        source = self._source(node)
        output = self._hold(self._tensor(node, source), node)
        if kind is Kind.FLATTEN:
            self._nodes.append(Flatten(name=node.name, input=source.name, output=output))
        elif kind is Kind.PAD:
            module = self._model.prepared.module(node)
            assert isinstance(module, nn.ConstantPad2d)
            left, right, up, down = module.padding
            self._nodes.append(
                Pad(
                    name=node.name,
                    input=source.name,
                    output=output,
                    padding=(up, left, down, right),
                )
            )
        else:
            operands = node.args[0]
            assert isinstance(operands, list | tuple)
            names = tuple(self._holder[n.name] for n in operands if isinstance(n, fx.Node))
            axis = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
            assert isinstance(axis, int)
            rank = len(source.shape) + 1
            self._nodes.append(
                Concat(name=node.name, inputs=names, output=output, axis=axis % rank)
            )


def _power(ratio: Fraction) -> int:
    exponent = ratio.numerator.bit_length() - ratio.denominator.bit_length()
    assert ratio == Fraction(2) ** exponent, f"addends whose scales differ by {float(ratio)}"
    return exponent


def _clamp_values(fmt: Format, scale: Fraction, real: tuple[float, float]) -> tuple[float, float]:
    """Return the ends of a clamp as values of the format."""
    ends = np.array([end / float(scale) for end in real])
    low, high = quantize(fmt, ends)
    return float(low), float(high)


def _requantizer(
    snapped: list[tuple[int, int]], fmt: Format, scale: Fraction, clamp: tuple[float, float]
) -> Requantizer:
    low, high = _clamp_values(fmt, scale, clamp)
    return Requantizer(
        multiplier=np.array([m for m, _ in snapped], dtype=np.int64),
        shift=np.array([k for _, k in snapped], dtype=np.int64),
        low=low,
        high=high,
    )


def _bias_codes(
    module: nn.Conv2d | nn.Linear, source: Tensor, scales: tuple[Fraction, ...], weight: Format
) -> npt.NDArray[np.object_]:
    """Return the bias in accumulator units, rounded half to even."""
    channels = len(module.weight)
    codes = np.zeros(channels, dtype=object)
    if module.bias is not None:
        assert source.format is not None
        unit = Fraction(2) ** (weight.unit_exponent + source.format.unit_exponent)
        for c, value in enumerate(module.bias.tolist()):
            step = source.scale * scales[c if len(scales) > 1 else 0] * unit
            codes[c] = round(Fraction(value) / step)
    return codes


def _window_of(
    module: nn.Module, before: tuple[int, ...], after: tuple[int, ...], name: str
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]:
    """Return kernel, stride and padding (top, left, bottom, right) of a pooling module."""
    if isinstance(module, nn.AdaptiveAvgPool2d):
        if before[1] % after[1] or before[2] % after[2]:
            raise UnsupportedLayerError(
                f"node {name!r}: adaptive pooling from {before[1:]} to {after[1:]} has windows of "
                "different sizes"
            )
        kernel = (before[1] // after[1], before[2] // after[2])
        return kernel, kernel, (0, 0, 0, 0)
    assert isinstance(module, nn.AvgPool2d | nn.MaxPool2d)
    kernel = window(module.kernel_size)
    stride = window(module.stride if module.stride is not None else module.kernel_size)
    up, left = window(module.padding)
    down, right = (
        max(p, (after[i] - 1) * stride[i - 1] + kernel[i - 1] - before[i] - p)
        for i, p in ((1, up), (2, left))
    )
    average_over_part = isinstance(module, nn.AvgPool2d) and (
        module.divisor_override is not None
        or ((up or left) and not module.count_include_pad)
        or (down, right) != (up, left)
    )
    if average_over_part:
        raise UnsupportedLayerError(
            f"node {name!r}: average pooling whose divisor changes at the border (ceil_mode, "
            "count_include_pad=False, divisor_override) has no exact form"
        )
    return kernel, stride, (up, left, down, right)
