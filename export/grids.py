# SPDX-License-Identifier: Apache-2.0
"""What a quantizer of a file says about numbers, and what it makes of weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from lutwise.errors import FormatError, ModelError, UnsupportedLayerError
from lutwise.quant import numerics
from lutwise.quant.formats import FloatFormat, Format, IntFormat, SpecialCodes, parse_element

__all__ = ["Grid", "attributes_of", "grid_of", "widened"]

Array = npt.NDArray[Any]
Numbers = npt.NDArray[np.float64]

_NEAREST: Final = ("ROUND", "HALF_EVEN")
_OF_CODES: Final = {
    "float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2", "float4_e2m1fn": "e2m1",
    **{kind + str(bits): kind + str(bits) for kind in ("int", "uint") for bits in (2, 4, 8)},
}  # fmt: skip
"""Formats of what ``DequantizeLinear`` reads, by the name of numpy's type."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """Real numbers are values of the format times the scale.

    Args:
        format: Of the values.
        scale: Shape that goes with the tensor.
        rounding: How numbers get onto the grid, as QONNX spells it; empty where what comes in are
            the values themselves.
    """

    format: Format
    scale: Numbers
    rounding: str = ""

    def values(self, numbers: Array, where: str, *, strict: bool) -> tuple[Numbers, Numbers]:
        """Return the values that weights become, and the scale of each.

        The quotient by the scale is rounded to float32 first, as runtimes do.

        Args:
            numbers: The weights, as the file has them.
            where: The layer, for messages.
            strict: Refuse weights that the quantizer would still have to round.

        Raises:
            ModelError: Weights that are no numbers, or not on the grid where they have to be.
        """
        try:
            scale = np.broadcast_to(self.scale, numbers.shape)
        except ValueError as error:
            raise ModelError(
                f"{where}: the scales of its weights have the shape {self.scale.shape}, which does "
                f"not go with weights of shape {numbers.shape}; export the file again"
            ) from error
        wide = widened(numbers)
        if not np.isfinite(wide).all():
            at = _first(~np.isfinite(wide))
            raise ModelError(
                f"{where}: {int((~np.isfinite(wide)).sum())} of {wide.size} weights are not "
                f"finite, the first at {at}: {wide[at]}; export it from a checkpoint without such "
                "weights"
            )
        if self.rounding:
            kind = np.float64 if numbers.dtype == np.float64 else np.float32
            with np.errstate(over="ignore"):
                wide = (wide.astype(kind) / scale.astype(kind)).astype(np.float64)
        inside = np.clip(wide, self.format.min_value, self.format.max_value)
        values = numerics.quantize(self.format, inside)
        off = np.abs(values - wide) > 1e-5 * np.abs(values) + 1e-30
        if off.any() and (strict or self.rounding not in _NEAREST):
            at = _first(off)
            raise ModelError(
                f"{where}: {int(off.sum())} of {off.size} weights are not on the grid of "
                f"{self.format} that their quantizer declares"
                + ("" if strict else f", and it rounds by {self.rounding!r}, not to the nearest")
                + f"; the first at {at}: {wide[at]:g} times the scale; write quantized weights "
                "into the file"
            )
        return values, scale


def grid_of(node: onnx.NodeProto, constants: Mapping[str, Array], *, positive: bool) -> Grid | None:
    """Return what a quantizer says, None for other nodes.

    Args:
        node: The node.
        constants: Of the file, by name.
        positive: Whether what it reads is nowhere below zero; ``FloatQuant`` has no sign itself.

    Raises:
        UnsupportedLayerError: A format or zero point that is not priced.
        ModelError: A scale that is none.
    """
    if node.op_type in ("Quant", "IntQuant"):
        return _integers(node, constants)
    if node.op_type == "FloatQuant":
        return _minifloats(node, constants, positive=positive)
    if node.op_type == "DequantizeLinear":
        return _codes(node, constants)
    return None


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def widened(numbers: Array) -> Numbers:
    """Return numbers of any type as float64; some NaNs warn when they are converted."""
    with np.errstate(invalid="ignore"):
        return numbers.astype(np.float64)


def _integers(node: onnx.NodeProto, constants: Mapping[str, Array]) -> Grid:
    attributes = attributes_of(node)
    _refuse_offset(node, _known(node, constants, 2))
    bits = _scalar(node, constants, 3, "bits")
    if bits != int(bits) or not 2 <= bits <= 8:
        raise UnsupportedLayerError(f"{_place(node)} has {bits:g} bits; wanted 2 to 8")
    signed = bool(attributes.get("signed", 1))
    fmt = IntFormat(
        bits=int(bits), signed=signed, narrow=bool(attributes.get("narrow", 0)) and signed
    )
    return Grid(format=fmt, scale=_scale(node, constants), rounding=_rounding(node))


def _minifloats(node: onnx.NodeProto, constants: Mapping[str, Array], *, positive: bool) -> Grid:
    e, m, bias, largest = (
        _scalar(node, constants, place, what)
        for place, what in enumerate(("exponent bits", "mantissa bits", "bias", "maximum"), 2)
    )
    attributes = attributes_of(node)
    special = SpecialCodes.NONE
    if attributes.get("has_inf", 0):
        special = SpecialCodes.IEEE
    elif attributes.get("has_nan", 0):
        special = SpecialCodes.NAN
    if e != int(e) or m != int(m):
        raise UnsupportedLayerError(
            f"{_place(node)} has {e:g} exponent and {m:g} mantissa bits; wanted whole numbers"
        )
    try:
        fmt = FloatFormat(
            exponent_bits=int(e),
            mantissa_bits=int(m),
            signed=not positive or e + m > 7,
            special=special,
        )
    except FormatError as error:
        raise UnsupportedLayerError(f"{_place(node)}: {error}") from error
    if bias != fmt.bias or largest < fmt.max_value:
        raise UnsupportedLayerError(
            f"{_place(node)} has the exponent bias {bias:g} and the maximum {largest:g}; {fmt} has "
            f"{fmt.bias} and {fmt.max_value:g}"
        )
    return Grid(format=fmt, scale=_scale(node, constants), rounding=_rounding(node))


def _codes(node: onnx.NodeProto, constants: Mapping[str, Array]) -> Grid:
    stored = constants.get(node.input[0])
    zero = _known(node, constants, 2) if len(node.input) > 2 and node.input[2] else stored
    # Without a zero point `QuantizeLinear` gives uint8.
    kind = np.dtype(np.uint8) if zero is None else zero.dtype
    if zero is not None and zero is not stored:
        _refuse_offset(node, zero)
    if kind.name not in _OF_CODES:
        raise UnsupportedLayerError(
            f"{_place(node)} reads {kind.name}; wanted integers of up to 8 bits, or 8-bit floats"
        )
    scale = _scale(node, constants)
    if scale.size > 1 and stored is not None:
        axis = attributes_of(node).get("axis", 1)
        if scale.ndim != 1 or not -stored.ndim <= axis < stored.ndim:
            raise UnsupportedLayerError(
                f"{_place(node)} has scales of shape {scale.shape} along axis {axis}; wanted one "
                "for each output channel"
            )
        shape = [1] * stored.ndim
        shape[axis] = -1
        scale = scale.reshape(shape)
    return Grid(format=parse_element(_OF_CODES[kind.name]), scale=scale)


def _rounding(node: onnx.NodeProto) -> str:
    mode: bytes = attributes_of(node).get("rounding_mode", b"ROUND")
    return mode.decode(errors="replace").upper() or "ROUND"


def _known(node: onnx.NodeProto, constants: Mapping[str, Array], place: int) -> Array:
    if place >= len(node.input):
        raise UnsupportedLayerError(
            f"{_place(node)} has {len(node.input)} inputs; wanted {place + 1} or more"
        )
    name = node.input[place]
    if name not in constants:
        raise UnsupportedLayerError(
            f"{_place(node)}: its input {name!r} is computed; wanted a constant"
        )
    return constants[name]


def _scalar(node: onnx.NodeProto, constants: Mapping[str, Array], place: int, what: str) -> float:
    numbers = widened(_known(node, constants, place)).reshape(-1)
    if not numbers.size or not np.isfinite(numbers).all() or (numbers != numbers[0]).any():
        raise UnsupportedLayerError(
            f"{_place(node)}: its {what} are {numbers[:8].tolist()}; wanted one number"
        )
    return float(numbers[0])


def _scale(node: onnx.NodeProto, constants: Mapping[str, Array]) -> Numbers:
    scale = widened(_known(node, constants, 1))
    with np.errstate(over="ignore"):
        held = scale.astype(np.float32)
    wrong = ~(np.isfinite(held) & (held > 0))
    if not scale.size or wrong.any():
        came = scale[wrong][0] if scale.size else "empty"
        raise ModelError(
            f"{_place(node)}: its scale is {came}; wanted positive float32 numbers; export the "
            "file again"
        )
    return scale


def _refuse_offset(node: onnx.NodeProto, zero: Array) -> None:
    numbers = widened(zero).reshape(-1)
    if (numbers != 0).any():
        raise UnsupportedLayerError(
            f"{_place(node)} has a zero point of {numbers[numbers != 0][0]:g}; units without one "
            "are priced"
        )


def _place(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {(node.name or node.output[0])!r}"


def _first(wrong: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(wrong)[0])
