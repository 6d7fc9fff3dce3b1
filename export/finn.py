# SPDX-License-Identifier: Apache-2.0
"""A network as QONNX for FINN: integer weights, and thresholds on integer sums.

FINN computes with streams of integers and turns every activation into thresholds. Written as
thresholds from the start, no scale has to be streamlined away, ties round as in the exact executor,
and minifloats are integers with uneven steps, which FINN does not have to know.
"""

from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
import onnx

from lutwise.errors import ExportError
from lutwise.export.graph import DOMAIN, Value
from lutwise.export.integer_graph import IntegerGraph
from lutwise.export.integers import (
    Integers,
    Rescale,
    Rescaled,
    integers_of,
    steps,
    thresholds,
)
from lutwise.quant.formats import Format
from lutwise.quant.network import Network, Quantize

__all__ = ["MAX_STEPS", "to_finn"]

MAX_STEPS: Final = 1023
"""Thresholds that a channel has at most: those of 10 bits."""


def to_finn(network: Network) -> onnx.ModelProto:
    """Write a network as QONNX that FINN turns into hardware layers.

    The batch is one. Results are those of the exact executor, except for a float32 output, which
    rounds twice, at the bias-corrected sum's scale and product.

    Args:
        network: A ``dataflow`` network.

    Raises:
        ExportError: A node, or a format, that FINN has no form for; it is named, with the reason.
    """
    return _FinnGraph(network).build()


class _FinnGraph(IntegerGraph):
    tool: ClassVar[str] = "FINN"

    def quantize(self, node: Quantize) -> None:
        spec = self.network.tensors[node.output]
        assert spec.format is not None
        fmt = spec.format
        self._check(fmt, integers_of(fmt), node.name)
        step = np.float32(float(spec.scale))
        points = image_thresholds(fmt, step)
        x = self.graph.value(node.input)
        self._thresholds(x, points[None], integers_of(fmt), node.name, node.output)

    def rescale(self, total: Value, rescale: Rescale, node: Rescaled) -> None:
        integers = integers_of(rescale.format, rescale.low, rescale.high)
        self._check(rescale.format, integers, node.name)
        points = thresholds(rescale).astype(np.float32)
        self._thresholds(total, points, integers, node.name, node.output)

    def _check(self, fmt: Format, integers: Integers, name: str) -> None:
        if integers.high - integers.low > MAX_STEPS:
            raise ExportError(
                f"{name!r} rounds to {fmt}, which is {integers.bits} bits in integers and takes "
                f"{integers.high - integers.low} thresholds; FINN gets at most {MAX_STEPS}: use a "
                "format with fewer exponent bits"
            )

    def _thresholds(
        self,
        x: Value,
        points: npt.NDArray[np.float32],
        integers: Integers,
        name: str,
        output: str,
    ) -> None:
        held = self.graph.constant(f"{name}/thresholds", points)
        self.graph.node(
            "MultiThreshold",
            [x, held],
            output,
            domain=DOMAIN,
            attributes={
                "out_dtype": integers.type_name,
                "out_scale": 1.0,
                "out_bias": float(integers.low),
                "data_layout": "NCHW" if len(x.shape) == 3 else "NC",
            },
        )


def image_thresholds(fmt: Format, step: np.float32) -> npt.NDArray[np.float32]:
    """Return the float32 numbers from which on ``round(x / step)`` rises by one unit each.

    The quotient is rounded to float32 first, as the network defines it.

    Args:
        fmt: To round to.
        step: The scale.
    """
    rises = steps(fmt, fmt.min_value, fmt.max_value)
    middles = np.array([float(middle) for _, middle, _ in rises], dtype=np.float32)
    ties_up = np.array([up for _, _, up in rises])

    def reached(x: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        quotient = x / step
        found: npt.NDArray[np.bool_] = np.where(ties_up, quotient >= middles, quotient > middles)
        return found

    # The quotient is monotone, so the first number that reaches a middle is next to the product.
    x = middles * step
    infinity = np.float32(np.inf)
    while (wrong := reached(x)).any():
        x = np.where(wrong, np.nextafter(x, -infinity), x)
    while (wrong := ~reached(x)).any():
        x = np.where(wrong, np.nextafter(x, infinity), x)
    return np.repeat(x, [rise for rise, _, _ in rises])
