# SPDX-License-Identifier: Apache-2.0
"""Every format, as weights and as activations: exact executor == qonnx == ONNX Runtime."""

from typing import Any

import pytest

from lutwise.export.qonnx import to_qonnx
from lutwise.export.run import compare
from lutwise.quant.formats import Format, all_formats, parse_element, parse_weight

FORMATS = [
    *(fmt for fmt in all_formats(min_bits=2) if str(fmt) != "ue8m0"),
    *(parse_weight(f"int{bits}") for bits in range(2, 9)),
    parse_element("fp8_e4m3"),
    parse_element("fp8_e5m2"),
]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_format_as_weights_and_activations_agrees(sketch: Any, fmt: Format) -> None:
    s = sketch(seed=FORMATS.index(fmt))
    x = s.quantize(fmt.as_signed())
    x = s.conv(x, 6, 3, fmt, fmt.as_unsigned(), stride=2)
    x = s.conv(x, 6, 3, fmt, fmt.as_signed(), groups=6)
    x = s.linear(s.flatten(x), 10, fmt)
    network = s.network(x)

    compare(network, to_qonnx(network), s.images(48)).raise_if_differs()


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_format_as_output_agrees(sketch: Any, fmt: Format) -> None:
    s = sketch(seed=FORMATS.index(fmt))
    x = s.quantize(parse_element("int6"))
    x = s.conv(x, 8, 3, parse_weight("int4"), fmt, padding=(0, 0, 0, 0))
    network = s.network(x)

    compare(network, to_qonnx(network), s.images(64)).raise_if_differs()
