# SPDX-License-Identifier: Apache-2.0
"""The exact executor: runs a `Network` with no rounding but the requantizers' own.

Sums are computed in float32 where the layer's accumulator fits 24 bits, else in float64 where
it fits 53, and both are then exact in any order. Wider accumulators (minifloats with long
exponents) are computed in float64 with a rigorous error bound; every result whose rounding the
bound leaves open is decided again with fractions, so the answer is exact for every format.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from lutwise.quant import kernels, reference
from lutwise.quant.formats import Format
from lutwise.quant.network import (
    MULTIPLIER_BITS,
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
)
from lutwise.quant.network import Tensor as TensorSpec
from lutwise.quant.operators import apply

__all__ = ["Statistics", "execute", "trace"]

_EXACT_BITS: Final = 53
_ROUNDOFF: Final = 2.0**-53
_PIECE: Final = 1 << 16
"""Numbers rounded at a time: they stay in the cache from the first operation to the last."""

Exact: TypeAlias = Callable[[tuple[int, ...]], Fraction]
"""Gives the exact accumulator at an index of the output."""


@dataclass(slots=True)
class Statistics:
    """What the executor met.

    Args:
        results: Requantized numbers.
        decided_again: How many of them float64 left open.
    """

    results: int = 0
    decided_again: int = 0


@torch.no_grad()
def execute(
    network: Network,
    images: npt.NDArray[np.float32],
    *,
    batch: int = 64,
    statistics: Statistics | None = None,
) -> npt.NDArray[np.float64]:
    """Return the network's output for each image.

    Args:
        network: The network.
        images: Inputs, shape (n, *network input shape).
        batch: Images at a time.
        statistics: Counted into, where given.

    Returns:
        Values of the output format (float64 holds them exactly), or the real numbers of a
        float32 output, shape (n, *network output shape).
    """
    parts = [
        tensors[network.output]
        for tensors in trace(network, images, batch=batch, statistics=statistics)
    ]
    return np.concatenate(parts).astype(np.float64)


@torch.no_grad()
def trace(
    network: Network,
    images: npt.NDArray[np.float32],
    *,
    batch: int = 64,
    keep: bool = False,
    statistics: Statistics | None = None,
) -> Iterator[dict[str, npt.NDArray[np.float32 | np.float64]]]:
    """Yield, batch by batch, the tensors by name: all with ``keep``, else those still needed."""
    last_use = {name: i for i, node in enumerate(network.nodes) for name in node.inputs}
    counts = Statistics() if statistics is None else statistics
    for start in range(0, len(images), batch):
        held = {network.input: torch.from_numpy(images[start : start + batch])}
        for i, node in enumerate(network.nodes):
            held[node.output] = _run(network, node, held, counts)
            if not keep:
                for name in set(node.inputs):
                    if last_use[name] == i and name != network.output:
                        del held[name]
        yield {name: tensor.numpy() for name, tensor in held.items()}


def _run(
    network: Network, node: Node, held: dict[str, torch.Tensor], counts: Statistics
) -> torch.Tensor:
    spec = network.tensors[node.output]
    xs = [held[name] for name in node.inputs]
    x = xs[0]
    match node:
        case Quantize():
            assert spec.format is not None
            # The quotient is float32 by definition, also where the format needs float64.
            step = torch.tensor(float(spec.scale), dtype=torch.float32)
            x = (x / step).to(_storage(spec.format))
            return kernels.quantize(spec.format, x)
        case Conv() | Linear():
            return _layer(network, node, x, spec, counts)
        case Add():
            return _add(network, node, xs, spec, counts)
        case Pool():
            return _pool(network, node, x, spec, counts)
        case Concat():
            return torch.cat(xs, node.axis)
        case Flatten():
            return x.flatten(1)
        case Pad():
            top, left, bottom, right = node.padding
            return F.pad(x, (left, right, top, bottom))
        case Clamp():
            return x.clamp(node.low, node.high)
        case Operator():
            operands = [
                held[o] if isinstance(o, str) else torch.from_numpy(o) for o in node.operands
            ]
            return apply(node.operation, operands, node.attributes)


def _storage(fmt: Format) -> torch.dtype:
    """Return the type that holds every value of a format."""
    fits = fmt.max_value < 2.0**128 and fmt.unit_exponent >= -149
    return torch.float32 if fits else torch.float64


def _sum(node: Conv | Linear, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    if isinstance(node, Linear):
        return F.linear(x, weights)
    top, left, bottom, right = node.padding
    if top == bottom and left == right:
        return F.conv2d(x, weights, None, node.stride, (top, left), node.dilation, node.groups)
    padded = F.pad(x, (left, right, top, bottom))
    return F.conv2d(padded, weights, None, node.stride, 0, node.dilation, node.groups)


def _per_channel(node: Conv | Linear, numbers: npt.NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(numbers).reshape((-1, 1, 1) if isinstance(node, Conv) else (-1,))


def _layer(
    network: Network, node: Conv | Linear, x: torch.Tensor, spec: TensorSpec, counts: Statistics
) -> torch.Tensor:
    bits = node.accumulator.magnitude_bits
    dtype = torch.float32 if bits <= 24 and x.dtype == torch.float32 else torch.float64
    weights = torch.from_numpy(node.weight_values).to(dtype)
    unit = Fraction(2) ** node.accumulator.unit_exponent
    bias = _per_channel(node, np.array([float(int(b) * unit) for b in node.bias_codes]))
    total = _sum(node, x.to(dtype), weights)
    if node.requantizer is None:
        source = network.tensors[node.input].scale
        scales = np.array([float(source * s) for s in node.weight_scales])
        return ((total.double() + bias) * _per_channel(node, scales)).to(torch.float32)
    factors = _per_channel(node, node.requantizer.factors())
    bound = None
    if bits + MULTIPLIER_BITS + 1 > _EXACT_BITS:
        magnitude = _sum(node, x.to(dtype).abs(), weights.abs()) + bias.abs()
        # Each of n products and n sums rounds once at the most, and so does the multiplication.
        bound = magnitude * factors * ((node.dot_length + 4) * _ROUNDOFF)
    scaled = _Scaled(total, bias, factors, bound)
    return _requantize(node.requantizer, spec, scaled, _exact_layer(node, x), counts)


@dataclass(frozen=True, slots=True, eq=False)
class _Scaled:
    """Numbers to round: ``(total + bias) * factors``, off by at most ``bound`` (None: exact)."""

    total: torch.Tensor
    bias: torch.Tensor
    factors: torch.Tensor
    bound: torch.Tensor | None

    def pieces(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the numbers in float64, as many samples at a time as fit the cache."""
        count = max(1, _PIECE // max(1, self.total[0].numel()))
        for start in range(0, len(self.total), count):
            where = slice(start, start + count)
            yield where, (self.total[where].double() + self.bias).mul_(self.factors)


def _requantize(
    requantizer: Requantizer,
    spec: TensorSpec,
    scaled: _Scaled,
    exact: Exact,
    counts: Statistics,
) -> torch.Tensor:
    """Round to the format of ``spec`` and clamp."""
    fmt = spec.format
    assert fmt is not None
    counts.results += scaled.total.numel()
    result = torch.empty(scaled.total.shape, dtype=_storage(fmt))
    low, high = requantizer.low, requantizer.high
    for where, numbers in scaled.pieces():
        result[where] = kernels.quantize(fmt, numbers).clamp_(low, high)
        if scaled.bound is None:
            continue
        bound = scaled.bound[where]
        ends = (
            kernels.quantize(fmt, end).clamp_(low, high)
            for end in (numbers - bound, numbers + bound)
        )
        # Rounding is monotone: where both ends round alike, so does all between them.
        open_results = torch.nonzero(torch.ne(*ends))
        counts.decided_again += len(open_results)
        for first, *rest in open_results.tolist():
            index = (where.start + first, *rest)
            # Channels are the last axis of a linear layer and the third last of a convolution.
            axis = -scaled.factors.dim()
            channel = index[axis] if len(requantizer.multiplier) > 1 else 0
            factor = Fraction(int(requantizer.multiplier[channel])) / Fraction(2) ** int(
                requantizer.shift[channel]
            )
            value = float(reference.quantize(fmt, exact(index) * factor))
            result[index] = min(max(value, low), high)
    return result


def _exact_layer(node: Conv | Linear, x: torch.Tensor) -> Exact:
    unit = Fraction(2) ** node.accumulator.unit_exponent

    def exact(index: tuple[int, ...]) -> Fraction:
        channel = index[-1] if isinstance(node, Linear) else index[1]
        weights = node.weight_values[channel]
        total = int(node.bias_codes[channel]) * unit
        if isinstance(node, Linear):
            window = x[index[:-1]].numpy()
        else:
            top, left, bottom, right = node.padding
            padded = F.pad(x[index[0]], (left, right, top, bottom)).numpy()
            depth, height, width = weights.shape
            first = channel // (node.weight_codes.shape[0] // node.groups) * depth
            row, column = index[2] * node.stride[0], index[3] * node.stride[1]
            window = padded[
                first : first + depth,
                row : row + (height - 1) * node.dilation[0] + 1 : node.dilation[0],
                column : column + (width - 1) * node.dilation[1] + 1 : node.dilation[1],
            ]
        for a, w in zip(window.reshape(-1), weights.reshape(-1), strict=True):
            total += Fraction(float(a)) * Fraction(float(w))
        return total

    return exact


def _add(
    network: Network, node: Add, xs: list[torch.Tensor], spec: TensorSpec, counts: Statistics
) -> torch.Tensor:
    if node.requantizer is None:
        return xs[0] + xs[1]
    parts = [x.double().mul_(2.0**s) for x, s in zip(xs, node.shifts, strict=True)]
    bound = None
    if _sum_bits(network, node.inputs, node.shifts) + MULTIPLIER_BITS + 1 > _EXACT_BITS:
        bound = _sum_bound(parts[0].abs() + parts[1].abs(), 2, node.requantizer)

    def exact(index: tuple[int, ...]) -> Fraction:
        return Fraction(float(parts[0][index])) + Fraction(float(parts[1][index]))

    scaled = _unbiased(parts[0] + parts[1], node.requantizer, bound)
    return _requantize(node.requantizer, spec, scaled, exact, counts)


def _unbiased(total: torch.Tensor, requantizer: Requantizer, bound: torch.Tensor | None) -> _Scaled:
    return _Scaled(total, torch.zeros(1), torch.from_numpy(requantizer.factors()), bound)


def _sum_bound(magnitude: torch.Tensor, terms: int, requantizer: Requantizer) -> torch.Tensor:
    """Bound the error of a scaled sum of exact terms: each sum and the product round once."""
    return magnitude * (float(requantizer.factors()[0]) * (terms + 4) * _ROUNDOFF)


def _sum_bits(
    network: Network, names: tuple[str, ...], shifts: tuple[int, ...], terms: int = 2
) -> int:
    """Return the bits of the largest magnitude that a sum of tensors can reach, in units."""
    lowest, top = [], Fraction(0)
    for name, shift in zip(names, shifts, strict=True):
        fmt = network.tensors[name].format
        assert fmt is not None
        largest = max(Fraction(fmt.max_value), -Fraction(fmt.min_value))
        lowest.append(fmt.unit_exponent + shift)
        top = max(top, largest * Fraction(2) ** shift)
    return int(terms * top / Fraction(2) ** min(lowest)).bit_length()


def _pool(
    network: Network, node: Pool, x: torch.Tensor, spec: TensorSpec, counts: Statistics
) -> torch.Tensor:
    top, left, bottom, right = node.padding
    around = (left, right, top, bottom)
    if node.maximum:
        padded = F.pad(x, around, value=-torch.inf) if any(around) else x
        return F.max_pool2d(padded, node.kernel, node.stride)
    padded = F.pad(x, around) if any(around) else x
    if node.requantizer is None:
        return F.avg_pool2d(padded, node.kernel, node.stride)
    window, wide = node.kernel[0] * node.kernel[1], padded.double()

    def sums(numbers: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(numbers, node.kernel, node.stride, divisor_override=1)

    bound = None
    if _sum_bits(network, node.inputs, (0,), window) + MULTIPLIER_BITS + 1 > _EXACT_BITS:
        bound = _sum_bound(sums(wide.abs()), window, node.requantizer)

    def exact(index: tuple[int, ...]) -> Fraction:
        row, column = index[2] * node.stride[0], index[3] * node.stride[1]
        view = wide[
            index[0], index[1], row : row + node.kernel[0], column : column + node.kernel[1]
        ]
        return sum((Fraction(float(v)) for v in view.reshape(-1)), Fraction(0))

    scaled = _unbiased(sums(wide), node.requantizer, bound)
    return _requantize(node.requantizer, spec, scaled, exact, counts)
