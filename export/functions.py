# SPDX-License-Identifier: Apache-2.0
"""Bodies of ``Quant`` and ``FloatQuant`` in standard operators, so that any runtime runs them.

ONNX lets a model carry *model-local functions*: a node whose domain and name match one is
replaced by its body. qonnx looks at the node and never at the body, so one file serves both.

The bodies compute what qonnx 1.0 computes, in the type of the input (float32 or float64), and
give float32. Where qonnx takes ``floor(log2(|x|))`` the body takes ``floor(ln|x| / ln 2)``. Both
may be one too high or too low next to a power of two, and both are right all the same: such an
``x`` lies within 2e-5 of the power relative to it, which is on both grids and nearest on both.
"""

from collections.abc import Iterator
from functools import cache
from typing import Final

import onnx
from onnx import parser

from lutwise.errors import ExportError
from lutwise.export.graph import DOMAIN, OPSET

__all__ = ["with_functions"]

_QUANT: Final = """
<opset_import: ["" : {opset}], domain: "{domain}">
Quant <signed, narrow, rounding_mode: string = "ROUND"> (X, scale, zeropt, bitwidth) => (Y)
{{
  one_i = Constant <value_int = 1> ()
  two_i = Constant <value_int = 2> ()
  signed_i = Constant <value_int: int = @signed> ()
  narrow_i = Constant <value_int: int = @narrow> ()
  one = CastLike (one_i, bitwidth)
  two = CastLike (two_i, bitwidth)
  sign = CastLike (signed_i, bitwidth)
  cut = CastLike (narrow_i, bitwidth)
  magnitude_bits = Sub (bitwidth, sign)
  codes = Pow (two, magnitude_bits)
  largest = Sub (codes, one)
  unsigned = Sub (one, sign)
  cut_above = Mul (unsigned, cut)
  high_b = Sub (largest, cut_above)
  smallest = Sub (cut, codes)
  low_b = Mul (sign, smallest)
  high = CastLike (high_b, X)
  low = CastLike (low_b, X)
  step = CastLike (scale, X)
  zero = CastLike (zeropt, X)
  divided = Div (X, step)
  shifted = Add (divided, zero)
  below = Min (shifted, high)
  inside = Max (below, low)
  rounded = Round (inside)
  centred = Sub (rounded, zero)
  scaled = Mul (centred, step)
  Y = Cast <to = 1> (scaled)
}}
"""

_FLOAT_QUANT: Final = """
<opset_import: ["" : {opset}], domain: "{domain}">
FloatQuant
<has_inf: int = 0, has_nan: int = 0, has_subnormal: int = 1, saturation: int = 1,
 rounding_mode: string = "ROUND">
(X, scale, exponent_bitwidth, mantissa_bitwidth, exponent_bias, max_val) => (Y)
{{
  one_i = Constant <value_int = 1> ()
  two_i = Constant <value_int = 2> ()
  ln2_d = Constant <value: tensor = double {{0.6931471805599453}}> ()
  one = CastLike (one_i, X)
  two = CastLike (two_i, X)
  ln2 = CastLike (ln2_d, X)
  step = CastLike (scale, X)
  e_bits = CastLike (exponent_bitwidth, X)
  m_bits = CastLike (mantissa_bitwidth, X)
  bias = CastLike (exponent_bias, X)
  limit = CastLike (max_val, X)
  x = Div (X, step)
  x_abs = Abs (x)
  x_ln = Log (x_abs)
  x_log2 = Div (x_ln, ln2)
  x_exponent = Floor (x_log2)
  min_exponent = Sub (one, bias)
  exponent = Max (x_exponent, min_exponent)
  ulp_exponent = Sub (exponent, m_bits)
  ulp = Pow (two, ulp_exponent)
  significand = Div (x, ulp)
  rounded = Round (significand)
  nearest = Mul (rounded, ulp)
  exponents = Pow (two, e_bits)
  top = Sub (exponents, one)
  max_exponent = Sub (top, bias)
  max_power = Pow (two, max_exponent)
  minus_m_bits = Neg (m_bits)
  last_bit = Pow (two, minus_m_bits)
  max_significand = Sub (two, last_bit)
  formula_max = Mul (max_significand, max_power)
  high = Min (formula_max, limit)
  low = Neg (high)
  below = Min (nearest, high)
  inside = Max (below, low)
  scaled = Mul (inside, step)
  Y = Cast <to = 1> (scaled)
}}
"""


@cache
def _bodies(opset: int) -> dict[str, onnx.FunctionProto]:
    texts = (text.format(opset=opset, domain=DOMAIN) for text in (_QUANT, _FLOAT_QUANT))
    return {body.name: body for body in map(parser.parse_function, texts)}


def with_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that carries the body of each quantizer it uses.

    Works on any QONNX file whose quantizers round half to even; bodies that are there already
    are replaced.

    Args:
        model: A QONNX model of opset 15 or later (``CastLike``).

    Raises:
        ExportError: A quantizer asks for something that the bodies do not do: another rounding
            mode, overflow that does not saturate, or one signed bit (bipolar).
    """
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), OPSET)
    if opset < 15:
        raise ExportError(
            f"the quantizers' bodies need opset 15 or later, the model has {opset}; convert it "
            "with onnx.version_converter"
        )
    bodies = _bodies(opset)
    constants = {i.name: i for i in model.graph.initializer}
    used = set()
    for node in _quantizers(model, bodies):
        _check(node, constants)
        used.add(node.op_type)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kept = [f for f in model.functions if f.domain != DOMAIN or f.name not in bodies]
    del result.functions[:]
    result.functions.extend([*kept, *(bodies[name] for name in sorted(used))])
    return result


def _quantizers(
    model: onnx.ModelProto, bodies: dict[str, onnx.FunctionProto]
) -> Iterator[onnx.NodeProto]:
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type in bodies:
            yield node


def _check(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
    where = f"{node.op_type} {node.name!r}"
    for attribute in node.attribute:
        if attribute.name == "rounding_mode":
            mode = attribute.s.decode().upper()
            if mode not in ("ROUND", "HALF_EVEN"):
                raise ExportError(f"{where} rounds by {mode!r}; the body rounds half to even only")
        if attribute.name == "saturation" and not attribute.i:
            raise ExportError(f"{where} does not saturate; the body saturates only")
    signed = any(a.name == "signed" and a.i for a in node.attribute)
    if node.op_type == "Quant" and signed:
        width = constants.get(node.input[3])
        if width is not None and onnx.numpy_helper.to_array(width).flat[0] == 1:
            raise ExportError(f"{where} has one signed bit (bipolar), which the body does not do")
