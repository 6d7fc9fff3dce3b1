# SPDX-License-Identifier: Apache-2.0
"""Networks, made with a sketch, that the files for several tools have to hold."""

from collections.abc import Callable
from typing import Any

from lutwise.quant.formats import Format, parse_element, parse_weight

Formats = tuple[Format, Format, Format]
"""Of weights, of signed and of unsigned activations."""

Topology = Callable[[Any, Formats], str]


def formats(weights: str, signed: str, unsigned: str) -> Formats:
    return parse_weight(weights), parse_element(signed), parse_element(unsigned)


def pools(s: Any, f: Formats) -> str:
    weights, signed, unsigned = f
    x = s.conv(s.quantize(signed), 4, 3, weights, signed)
    x = s.pool(x, (3, 2), (1, 2), maximum=True, padding=(1, 0, 1, 1))
    x = s.pool(x, (2, 2), (1, 1), padding=(1, 0, 0, 1), out=unsigned)
    x = s.pool(x, s.tensors[x].shape[1:], (1, 1), out=signed)
    return s.linear(s.flatten(x), 5, weights)  # type: ignore[no-any-return]


def concat_and_pad(s: Any, f: Formats) -> str:
    weights, signed, unsigned = f
    x = s.conv(s.pad(s.quantize(signed), (0, 1, 2, 0)), 3, 3, weights, unsigned)
    y = s.conv(x, 2, 3, weights, unsigned)
    x = s.pad(s.concat(x, y, y), (1, 0, 0, 2))
    x = s.conv(x, 3, 3, weights, signed, stride=2, padding=(1, 0, 1, 0))
    return s.linear(s.flatten(x), 4, weights, signed)  # type: ignore[no-any-return]


def flat_image(s: Any, f: Formats) -> str:
    weights, signed, unsigned = f
    x = s.linear(s.quantize(signed, s.flatten("image")), 8, weights, unsigned)
    return s.linear(x, 5, weights, bias=False)  # type: ignore[no-any-return]
