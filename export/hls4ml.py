# SPDX-License-Identifier: Apache-2.0
"""A network as QONNX for hls4ml, and hls4ml's C++ run on images.

hls4ml computes in fixed point and finds the widths of sums and products by itself, exactly, where
it knows those of all constants. So weights, biases and factors stand under quantizers whose scale
is one or a power of two, and every scale is a multiplication behind its layer. The C++ that comes
out then gives the very codes of the exact executor.
"""

import contextlib
import io
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import onnx

from lutwise.errors import ConfigError, ToolError
from lutwise.export.graph import Value
from lutwise.export.integer_graph import IntegerGraph, is_channels_last
from lutwise.export.integers import Integers, Rescale, Rescaled, integers_of
from lutwise.quant.formats import FloatFormat, Format, IntFormat
from lutwise.quant.network import Conv, Linear, Network, Node, Quantize

__all__ = ["DEFAULT_PRECISION", "MAX_BITS", "Emulation", "to_hls4ml"]

DEFAULT_PRECISION: Final = "fixed<48,16>"
"""Of what hls4ml does not infer: the input image and what comes out of a ReLU."""

PRECISION_KEY: Final = "hls4ml.default_precision"
"""Key in ``metadata_props`` of the precision that a file needs there."""

MAX_BITS: Final = 10
"""Of a minifloat activation in units: each binade takes a rounding of its own."""

_FACTOR_BITS: Final = 24
"""Significant bits of the factors that are no requantizer's: what float32 has."""


def to_hls4ml(network: Network) -> onnx.ModelProto:
    """Write a network as QONNX that hls4ml converts.

    The batch is one, and images are (height, width, channels). hls4ml's C++ gives the
    exact executor's codes, except where an image's number, divided by the input's scale, is nearer
    to a tie than float32 resolves; qonnx runs the file in float32, where the same holds of all
    layers. A float32 output is scaled by factors of 24 bits.

    Args:
        network: A ``dataflow`` network.

    Raises:
        ExportError: A node, or a format, that hls4ml has no form for; it is named, with the reason.
    """
    return _Hls4mlGraph(network).build()


class _Hls4mlGraph(IntegerGraph):
    tool: ClassVar[str] = "hls4ml"
    channels_last: ClassVar[bool] = True

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.whole_bits, self.fraction_bits = 16, 32

    def metadata(self) -> dict[str, str]:
        width = self.whole_bits + self.fraction_bits
        return {**super().metadata(), PRECISION_KEY: f"fixed<{width},{self.whole_bits}>"}

    def quantize(self, node: Quantize) -> None:
        spec = self.network.tensors[node.output]
        assert spec.format is not None
        self._check(node, spec.format)
        x = self.graph.value(node.input)
        factor = 1 / (spec.scale * Fraction(2) ** spec.format.unit_exponent)
        x = self._scaled(x, [factor], node.name)
        self._round(x, spec.format, integers_of(spec.format), node.name, node.output)

    def rescale(self, total: Value, rescale: Rescale, node: Rescaled) -> None:
        fmt, name = rescale.format, node.name
        self._check(node, fmt)
        if any(rescale.bias):
            total = self._biased(total, rescale.bias, name)
        unit = Fraction(2) ** -fmt.unit_exponent
        factors = [factor * unit for factor in rescale.factors]
        # A sign and a bit for what is added to it, so that nothing wraps around behind a ReLU.
        largest = int(max(factors) * rescale.largest) + integers_of(fmt).high
        self.whole_bits = max(self.whole_bits, largest.bit_length() + 2)
        x = self._scaled(total, factors, name)
        integers = integers_of(fmt, rescale.low, rescale.high)
        if rescale.high < fmt.max_value:
            x = self._below(x, integers.high, name)
        if rescale.low not in (0, fmt.min_value):
            x = self._above(x, integers.low, name)
        self._round(x, fmt, integers, name, node.output)

    def _check(self, node: Node, fmt: Format) -> None:
        if isinstance(fmt, IntFormat):
            return
        if not fmt.mantissa_bits:
            raise self.refuse(
                node,
                f"it rounds to {fmt}, whose ties go up between powers of two; hls4ml rounds half "
                "to even: use a format with a mantissa",
            )
        if integers_of(fmt).bits > MAX_BITS:
            raise self.refuse(
                node,
                f"it rounds to {fmt}, which is {integers_of(fmt).bits} bits in integers; hls4ml "
                f"gets at most {MAX_BITS}: use fewer exponent bits",
            )

    def _round(self, x: Value, fmt: Format, integers: Integers, name: str, output: str) -> None:
        """Round numbers in units, and saturate."""
        narrow = isinstance(fmt, IntFormat) and fmt.narrow
        if isinstance(fmt, FloatFormat):
            # The same integers again tell hls4ml how few bits the sum of the pieces has.
            x, narrow = self._pieces(x, fmt, integers, name), integers.signed
        elif fmt.signed and not integers.signed:
            x, integers = self.graph.node("Relu", [x], f"{name}/positive"), integers_of(fmt)
        self.quant(x, integers, f"{name}/quantizer", output, narrow=narrow)

    def _pieces(self, x: Value, fmt: FloatFormat, integers: Integers, name: str) -> Value:
        """Round to a minifloat: a sum of integers' roundings, one for each distance of neighbours.

        What lies between two powers of two is rounded in steps of its own. A piece starts at an
        even significand and has one step for each significand, so that ties are the format's.
        """
        result = self._piece_sum(x, fmt, integers.high, f"{name}/above")
        if not integers.signed:
            return result
        negated = self._with("Mul", x, -1, f"{name}/negated")
        below = self._piece_sum(negated, fmt, -integers.low, f"{name}/below")
        return self.graph.node("Sub", [result, below], f"{name}/both")

    def _piece_sum(self, x: Value, fmt: FloatFormat, high: int, name: str) -> Value:
        """Round what is above zero, in units."""
        over, rest = x, self.graph.node("Relu", [x], f"{name}/positive")
        first = 2 << fmt.mantissa_bits  # subnormals and the first binade have one distance
        start, step, total = 0, 1, None
        while True:
            end = first * step
            if end > high:
                # hls4ml fuses a rounding into the operator before it, whoever else reads that: so
                # this one is read by nobody else.
                piece = self.graph.node("Relu", [over], f"{name}/piece_{start}")
            else:
                over = self._with("Add", rest, start - end, f"{name}/over_{end}")
                beyond = self.graph.node("Relu", [over], f"{name}/rest_{end}")
                piece = self.graph.node("Sub", [rest, beyond], f"{name}/piece_{start}")
                rest = beyond
            ends = Integers(low=0, high=(min(end, high) - start) // step)
            rounded = self.quant(piece, ends, f"{name}/from_{start}", scale=float(step))
            total = (
                rounded
                if total is None
                else self.graph.node("Add", [total, rounded], f"{name}/sum_{start}")
            )
            if end > high:
                return total
            start, step = end, 2 * step

    def scale_output(self, node: Conv | Linear, total: Value) -> None:
        if node.has_bias:
            bias = [int(code) for code in node.bias_codes]
            total = self._biased(total, bias, node.name)
        source = self.network.tensors[node.input].scale
        unit = Fraction(2) ** node.accumulator.unit_exponent
        factors = [source * scale * unit for scale in node.weight_scales]
        self._scaled(total, factors, node.name, output=node.output)

    def _biased(self, x: Value, bias: Sequence[int], name: str) -> Value:
        ends = Integers(low=min(0, *bias), high=max(bias))
        numbers = np.array(bias, dtype=np.float32)
        held = self.graph.constant(f"{name}/bias", numbers)
        values = self.quant(held, ends, f"{name}/bias_quantizer")
        return self.graph.node("Add", [x, values], f"{name}/biased")

    def _scaled(
        self,
        x: Value,
        factors: Sequence[Fraction],
        name: str,
        *,
        output: str | None = None,
    ) -> Value:
        """Multiply by factors, which are integers times one power of two."""
        codes, exponent = _common(factors)
        self.fraction_bits = max(self.fraction_bits, -exponent)
        numbers = np.array([float(code * Fraction(2) ** exponent) for code in codes])
        held = self.graph.constant(f"{name}/factor", numbers.astype(np.float32))
        ends = Integers(low=0, high=max(codes))
        values = self.quant(held, ends, f"{name}/factor_quantizer", scale=2.0**exponent)
        return self.graph.node("Mul", [x, values], output or f"{name}/scaled")

    def _below(self, x: Value, bound: int, name: str) -> Value:
        """Compute the lesser of x and a bound: ``bound - relu(bound - x)``."""
        for step in ("room", "rest"):
            x = self._with("Mul", x, -1, f"{name}/{step}_Mul")
            x = self._with("Add", x, bound, f"{name}/{step}_Add")
            if step == "room":
                x = self.graph.node("Relu", [x], f"{name}/positive_room")
        return x

    def _above(self, x: Value, bound: int, name: str) -> Value:
        """Compute the greater of x and a bound: ``bound + relu(x - bound)``."""
        x = self._with("Add", x, -bound, f"{name}/excess")
        x = self.graph.node("Relu", [x], f"{name}/positive_excess")
        return self._with("Add", x, bound, f"{name}/at_least")

    def _with(self, op: str, x: Value, number: int, name: str) -> Value:
        """Compute with an integer; hls4ml wants constants with one reader each."""
        held = self.graph.constant(name, np.array([number], dtype=np.float32))
        ends = Integers(low=min(number, 0), high=max(number, 1))
        value = self.quant(held, ends, f"{name}_quantizer")
        return self.graph.node(op, [x, value], f"{name}_result")


def _common(factors: Sequence[Fraction]) -> tuple[list[int], int]:
    """Return integers and an exponent: exact where that takes few bits, else to 24 of them."""
    exact = all(f.denominator & (f.denominator - 1) == 0 for f in factors)
    largest = max(factors)
    exponent = -max(f.denominator.bit_length() - 1 for f in factors)
    if not exact:
        # 2**(bits - 1) <= largest * 2**-exponent < 2**(bits + 1)
        size = largest.numerator.bit_length() - largest.denominator.bit_length()
        exponent = size - _FACTOR_BITS + 1
    codes = [round(f * Fraction(2) ** -exponent) for f in factors]
    return codes, exponent


class Emulation:
    """hls4ml's C++ of a file, compiled with the system's compiler and run bit for bit.

    Args:
        model: As `to_hls4ml` makes it, or any QONNX that hls4ml takes.
        folder: Where the project is written; a temporary one where left out.
        backend: Of hls4ml.
        io_type: Of hls4ml.

    Raises:
        ConfigError: hls4ml is not installed.
        ToolError: It refuses the file, or the compiler fails.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        folder: Path | None = None,
        *,
        backend: str = "Vitis",
        io_type: str = "io_parallel",
    ) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import hls4ml
        except ImportError as error:
            raise ConfigError("hls4ml is not installed: pip install 'lutwise[hls4ml]'") from error
        target = folder
        if target is None:
            # A TemporaryDirectory warns where its owner just goes, as a compiled file does.
            target = Path(tempfile.mkdtemp())
            weakref.finalize(self, shutil.rmtree, target, ignore_errors=True)
        self._turns = (
            not is_channels_last(model)
            and len(model.graph.input[0].type.tensor_type.shape.dim) == 4
        )
        noted = {entry.key: entry.value for entry in model.metadata_props}
        said = io.StringIO()
        try:
            with (
                warnings.catch_warnings(),
                contextlib.redirect_stdout(said),
                contextlib.redirect_stderr(said),
            ):
                warnings.simplefilter("ignore")
                prepared = _prepared(model, turns=self._turns)
                config = hls4ml.utils.config.config_from_onnx_model(
                    prepared,
                    granularity="name",
                    backend=backend,
                    default_precision=noted.get(PRECISION_KEY, DEFAULT_PRECISION),
                )
                self._compiled: Any = hls4ml.converters.convert_from_onnx_model(
                    prepared,
                    output_dir=str(target),
                    io_type=io_type,
                    backend=backend,
                    hls_config=config,
                )
                self._compiled.compile()
        except Exception as error:  # hls4ml raises Exception, KeyError, IndexError and others
            raise ToolError(
                "hls4ml", version("hls4ml"), f"{type(error).__name__}: {error}"
            ) from error
        outputs = model.graph.output[0].type.tensor_type.shape.dim
        self._shape = tuple(int(d.dim_value) for d in outputs[1:])

    def __call__(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the outputs.

        Args:
            images: Shape (n, *input shape), as the file wants them.
        """
        x = images.transpose(0, 2, 3, 1) if self._turns else images
        found = self._compiled.predict(np.ascontiguousarray(x, dtype=np.float32))
        outputs: npt.NDArray[np.float32] = np.asarray(found, dtype=np.float32)
        return outputs.reshape(len(images), *self._shape)

    def layers(self) -> list[str]:
        """Return hls4ml's classes of layers, in order."""
        return [layer.class_name for layer in self._compiled.get_layers()]


def _prepared(model: onnx.ModelProto, *, turns: bool) -> Any:
    """Return the file as hls4ml wants it: tidied, channels last."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
    from qonnx.transformation.gemm_to_matmul import GemmToMatMul
    from qonnx.util.cleanup import cleanup_model

    wrapper = cleanup_model(ModelWrapper(model))
    if not turns:
        return wrapper
    wrapper = wrapper.transform(ConvertToChannelsLastAndClean(make_input_channels_last=True))
    wrapper = cleanup_model(wrapper.transform(GemmToMatMul()))
    for node in wrapper.graph.node:
        if node.op_type in ("Mul", "Add"):
            for name in node.input:
                _squeeze(wrapper, name)
    return wrapper


def _squeeze(wrapper: Any, name: str) -> None:
    """Drop the axes of one in front of a constant: hls4ml wants none for the batch."""
    value = wrapper.get_initializer(name)
    maker = wrapper.find_producer(name)
    if value is None and maker is not None and maker.op_type == "Quant":
        _squeeze(wrapper, maker.input[0])
        inner = wrapper.get_initializer(maker.input[0])
        if inner is not None:
            wrapper.set_tensor_shape(name, list(inner.shape))
    elif value is not None and value.ndim > 1 and value.size == value.shape[-1]:
        wrapper.set_initializer(name, value.reshape(-1))
