# SPDX-License-Identifier: Apache-2.0
"""Gram matrices of layer inputs, the Hessians of layer-wise least squares, exact and fast.

A layer multiplies its weights with patches of its input. What the solvers need of all patches is
``H = sum p p^T``. For a convolution with stride one most of that is redundant: the product of two
taps depends on their *displacement* only, apart from the patches at the border. A 3x3 kernel has
81 pairs of taps but 25 displacements, 13 up to transposition. So each displacement is one matrix
product over the whole image, and strips at the border are taken off again.

Columns are ordered tap by tap, (row of the kernel, column, channel), see `columns`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from lutwise.quant.graph import window

__all__ = [
    "CHUNK_BYTES",
    "MERGED_BYTES",
    "Layer",
    "columns",
    "gram",
    "gram_flops",
    "is_dense",
    "layer_groups",
    "mean_patch",
    "patches",
    "weight_of",
]

Layer = nn.Conv2d | nn.Linear

_STRIPE: Final = 512
"""Columns multiplied at a time where only one triangle of a product is wanted."""

_CACHED_BYTES: Final = 1 << 22
"""What the taps of a depthwise kernel read, held at a time."""

CHUNK_BYTES: Final = 1 << 26
"""Patches held at a time."""

MERGED_BYTES: Final = 1 << 25
"""Up to this size batches are handled as one."""


def layer_groups(layer: Layer) -> int:
    """Return the number of independent groups of inputs and outputs."""
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def columns(layer: Layer, weight: torch.Tensor) -> torch.Tensor:
    """Return weights of a layer's shape as (groups, out / groups, n), in the order of `gram`."""
    if weight.dim() == 4:
        weight = weight.permute(0, 2, 3, 1)
    groups = layer_groups(layer)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def weight_of(layer: Layer, rows: torch.Tensor) -> torch.Tensor:
    """Return (groups, out / groups, n) in the shape of the layer's weight; undoes `columns`."""
    shape = layer.weight.shape
    if len(shape) == 2:
        return rows.reshape(shape)
    out, channels, height, width = shape
    tensor = rows.reshape(out, height, width, channels).permute(0, 3, 1, 2)
    # Not `contiguous`, which leaves odd strides alone where a dimension is one; convolutions
    # choose their algorithm, and so their rounding, by strides.
    return tensor.clone(memory_format=torch.contiguous_format)


def _padded(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Return the input (n, h, w, c), zeros of the layer's padding around it."""
    top, left = _borders(layer)
    return nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, top, top))


def _borders(layer: nn.Conv2d) -> tuple[int, int]:
    """Return the rows above and the columns to the left that a layer pads with zeros."""
    if layer.padding == "same":
        raise ValueError("padding 'same' has no place here")  # refused when graphs are made
    return window(layer.padding if layer.padding != "valid" else 0)  # type: ignore[arg-type]


def patches(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Return all patches of an input as (groups, patches, n), in the order of `gram`.

    Args:
        layer: The layer.
        x: Its input, (n, c, h, w) for convolutions, (..., features) otherwise.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    (kh, kw), (sy, sx), (dy, dx) = layer.kernel_size, layer.stride, layer.dilation
    wide = _padded(layer, x)
    rows = (wide.shape[1] - dy * (kh - 1) - 1) // sy + 1
    cols = (wide.shape[2] - dx * (kw - 1) - 1) // sx + 1
    n, _, _, channels = wide.shape
    sn, sh, sw, sc = wide.stride()
    view = wide.as_strided(
        (layer.groups, n, rows, cols, kh, kw, channels // layer.groups),
        (sc * (channels // layer.groups), sn, sh * sy, sw * sx, sh * dy, sw * dx, sc),
    )
    return view.reshape(layer.groups, n * rows * cols, -1)


@torch.no_grad()
def gram(
    layer: Layer, inputs: Sequence[torch.Tensor], others: Sequence[torch.Tensor] | None = None
) -> torch.Tensor:
    """Return ``sum p q^T`` over all patches p of the inputs and q of the others.

    Args:
        layer: The layer whose patches are meant.
        inputs: Its input, batch by batch, (n, c, h, w) or (..., features).
        others: Another input of the same shapes; None for the same one, the result is then
            symmetric.

    Returns:
        Shape (groups, n, n) with n the length of a dot product, in the inputs' dtype.
    """
    total: torch.Tensor | None = None
    for batches in _merged(inputs):
        x = _joined(inputs, batches)
        y = None if others is None else _joined(others, batches)
        part = _way(layer)(layer, x, y)
        total = part if total is None else total.add_(part)
    if total is None:
        raise ValueError("gram needs at least one batch of inputs")
    return total


@torch.no_grad()
def mean_patch(layer: Layer, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Return the mean of all patches, shape (groups, n), float64, and how many there are.

    Args:
        layer: The layer whose patches are meant.
        inputs: Its input, batch by batch, (n, c, h, w) or (..., features).
    """
    # Patches of a sum of images are the sums of patches.
    summed = torch.stack([x.sum(0, keepdim=True, dtype=torch.float64) for x in inputs]).sum(0)
    rows = patches(layer, summed)
    count = rows.shape[1] * sum(map(len, inputs))
    return rows.sum(1) / count, count


def _merged(batches: Sequence[torch.Tensor]) -> list[list[int]]:
    """Group small batches: a large Gram matrix is worth adding up once, not once a batch."""
    found: list[list[int]] = []
    room = 0
    for i, batch in enumerate(batches):
        size = batch.numel() * batch.element_size()
        if size > room:
            found.append([])
            room = MERGED_BYTES
        found[-1].append(i)
        room -= size
    return found


def _joined(batches: Sequence[torch.Tensor], chosen: list[int]) -> torch.Tensor:
    return batches[chosen[0]] if len(chosen) == 1 else torch.cat([batches[i] for i in chosen])


_Way = Callable[[Layer, torch.Tensor, torch.Tensor | None], torch.Tensor]


def _way(layer: Layer) -> _Way:
    """Return how the Gram matrix of a layer's patches is found fastest."""
    if is_dense(layer):
        return _by_displacement
    return _by_taps if _is_depthwise(layer) else _by_patches


def is_dense(layer: Layer) -> bool:
    """Return whether a layer's patches overlap so that displacements pay."""
    if not isinstance(layer, nn.Conv2d) or (layer.stride, layer.dilation) != ((1, 1), (1, 1)):
        return False
    # A product of single channels is a pass over memory, so that few taps are best multiplied out.
    return math.prod(layer.kernel_size) > (_FEW_TAPS if _is_depthwise(layer) else 1)


_FEW_TAPS: Final = 9


def _is_depthwise(layer: Layer) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels


def _by_patches(layer: Layer, x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
    """Multiply patches, as many images at a time as fit into memory comfortably."""
    one = patches(layer, x[:1])
    step = max(1, CHUNK_BYTES // (one.numel() * one.element_size()))
    total: torch.Tensor | None = None
    for start in range(0, len(x), step):
        left = patches(layer, x[start : start + step])
        right = None if y is None else patches(layer, y[start : start + step])
        part = _symmetric(left) if right is None else left.mT @ right
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _by_taps(layer: Layer, x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
    """Multiply what each tap of a depthwise kernel reads, in pieces that stay in the cache."""
    assert isinstance(layer, nn.Conv2d)
    one = _taps(layer, x[:1])
    step = max(1, _CACHED_BYTES // (one.numel() * one.element_size()))
    total = x.new_zeros(len(one), one.shape[1], one.shape[1])
    for start in range(0, len(x), step):
        left = _taps(layer, x[start : start + step])
        right = left if y is None else _taps(layer, y[start : start + step])
        total += left @ right.mT
    return total


def _taps(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Return what each tap of a depthwise kernel reads, shape (channels, taps, patches)."""
    (kh, kw), (sy, sx), (dy, dx) = layer.kernel_size, layer.stride, layer.dilation
    top, left = _borders(layer)
    wide = nn.functional.pad(x, (left, left, top, top))
    rows = (wide.shape[2] - dy * (kh - 1) - 1) // sy + 1
    cols = (wide.shape[3] - dx * (kw - 1) - 1) // sx + 1
    n, channels = x.shape[:2]
    found = x.new_empty(channels, kh * kw, n, rows, cols)
    for r in range(kh):
        for c in range(kw):
            read = wide[:, :, r * dy :: sy, c * dx :: sx]
            found[:, r * kw + c] = read[:, :, :rows, :cols].transpose(0, 1)
    return found.reshape(channels, kh * kw, -1)


def _symmetric(rows: torch.Tensor) -> torch.Tensor:
    """Return ``rows^T rows`` of (g, p, n), multiplying one triangle only."""
    n = rows.shape[-1]
    if n <= _STRIPE:
        return rows.mT @ rows
    result = rows.new_empty(len(rows), n, n)
    for start in range(0, n, _STRIPE):
        end = min(n, start + _STRIPE)
        block = rows[:, :, start:end].mT @ rows[:, :, start:]
        result[:, start:end, start:] = block
        result[:, end:, start:end] = block[:, :, end - start :].mT
    return result


class _Overlaps:
    """Products of an image with another one displaced against it, over rectangles.

    Args:
        x: Shape (h, n, w, groups, channels), contiguous.
        y: The same.
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self._x, self._y = x, y
        self.height, self.width = x.shape[0], x.shape[2]
        self._kept: dict[tuple[int, ...], torch.Tensor] = {}
        self._sides: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def over(self, dy: int, dx: int, rows: range, cols: range) -> torch.Tensor | None:
        """Return ``sum x[u] y[u + d]^T`` over the rectangle, (groups, c, c); None if empty."""
        if not rows or not cols:
            return None
        key = (dy, dx, rows.start, rows.stop, cols.start, cols.stop)
        if key not in self._kept:
            left, right = self._displaced(dx)
            first = max(0, -dx)  # the column of x that the slices start with
            at = slice(cols.start - first, cols.stop - first)
            self._kept[key] = _product(
                left[rows.start : rows.stop, :, at],
                right[rows.start + dy : rows.stop + dy, :, at],
            )
        return self._kept[key]

    def forget(self) -> None:
        """Drop the products that are kept."""
        self._kept.clear()

    def _displaced(self, dx: int) -> tuple[torch.Tensor, torch.Tensor]:
        if dx not in self._sides:
            width = self.width - abs(dx)
            left, right = max(0, -dx), max(0, dx)
            self._sides = {  # one at a time: they are copies of the whole image
                dx: (
                    self._x[:, :, left : left + width].contiguous(),
                    self._y[:, :, right : right + width].contiguous(),
                )
            }
        return self._sides[dx]


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    groups, channels = left.shape[-2:]
    left, right = left.reshape(-1, groups, channels), right.reshape(-1, groups, channels)
    if channels == 1:
        return torch.einsum("pgi,pgj->gij", left, right) if groups == 1 else _diagonal(left, right)
    if groups == 1:
        return (left[:, 0].mT @ right[:, 0])[None]
    return left.permute(1, 2, 0) @ right.permute(1, 0, 2)


def _diagonal(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left * right).sum(0, keepdim=True).permute(1, 2, 0)


def _by_displacement(layer: Layer, x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
    """Sum over the images of one batch, a displacement at a time."""
    assert isinstance(layer, nn.Conv2d)
    images = [_channels_last(layer, t) for t in (x, x if y is None else y)]
    overlaps = _Overlaps(images[0], images[0] if y is None else images[1])
    groups, channels = images[0].shape[-2:]
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    result = x.new_zeros(groups, taps, channels, taps, channels)
    for dx, pairs in _tap_pairs(layer, overlaps.height, overlaps.width, symmetric=y is None):
        for pair in pairs:
            block = _rectangle(overlaps, dx, pair)
            result[:, pair.first, :, pair.second] = block
            if y is None and pair.first != pair.second:
                result[:, pair.second, :, pair.first] = block.mT
        overlaps.forget()
    return result.reshape(groups, taps * channels, taps * channels)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two taps, and where an image meets its displaced self: everywhere, and as is wanted."""

    first: int
    second: int
    dy: int
    rows: tuple[range, range]
    cols: tuple[range, range]


def _tap_pairs(
    layer: nn.Conv2d, height: int, width: int, *, symmetric: bool
) -> Iterator[tuple[int, list[_Pair]]]:
    """Yield each horizontal displacement with its pairs of taps."""
    kh, kw = layer.kernel_size
    top, left = _borders(layer)
    rows_out, cols_out = height + 2 * top - kh + 1, width + 2 * left - kw + 1
    taps = [(r, c) for r in range(kh) for c in range(kw)]
    by_width: dict[int, list[_Pair]] = {}
    for i, (r, c) in enumerate(taps):
        for j in range(i if symmetric else 0, len(taps)):
            dy, dx = taps[j][0] - r, taps[j][1] - c
            rows = _overlap(height, dy, range(r - top, r - top + rows_out))
            cols = _overlap(width, dx, range(c - left, c - left + cols_out))
            by_width.setdefault(dx, []).append(_Pair(i, j, dy, rows, cols))
    yield from by_width.items()


def _channels_last(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    n, channels, height, width = x.shape
    last = x.permute(2, 0, 3, 1).contiguous()
    return last.reshape(height, n, width, layer.groups, channels // layer.groups)


def _overlap(size: int, shift: int, wanted: range) -> tuple[range, range]:
    """Return where a line meets its displaced self, and which part of that is wanted."""
    whole = range(max(0, -shift), max(0, -shift, min(size, size - shift)))
    start = min(max(whole.start, wanted.start), whole.stop)
    return whole, range(start, max(start, min(whole.stop, wanted.stop)))


def _rectangle(overlaps: _Overlaps, dx: int, pair: _Pair) -> torch.Tensor:
    """Return the product over the wanted rectangle: the whole less the strips around it."""
    total: torch.Tensor | None = None
    for sign, rows, cols in _pieces(pair):
        piece = overlaps.over(pair.dy, dx, rows, cols)
        if piece is not None:
            total = piece if total is None else total.add(piece, alpha=sign)
    shape = overlaps._x.shape
    return total if total is not None else overlaps._x.new_zeros(shape[-2], shape[-1], shape[-1])


def _pieces(pair: _Pair) -> Iterator[tuple[int, range, range]]:
    """Yield what is added (1) and taken off (-1), the whole first; any may be empty."""
    (all_rows, want_rows), (all_cols, want_cols) = pair.rows, pair.cols
    sides = _rest(all_cols, want_cols)
    yield 1, all_rows, all_cols
    for strip in _rest(all_rows, want_rows):
        yield -1, strip, all_cols
        for side in sides:
            yield 1, strip, side
    for side in sides:
        yield -1, all_rows, side


def _rest(whole: range, wanted: range) -> tuple[range, range]:
    return range(whole.start, wanted.start), range(wanted.stop, whole.stop)


def gram_flops(layer: Layer, shape: tuple[int, ...], *, cross: bool) -> int:
    """Return the floating-point operations that `gram` takes for one image.

    Args:
        layer: The layer.
        shape: Of its input without the batch, (c, h, w) or (..., features).
        cross: Against another input.
    """
    groups = layer_groups(layer)
    if isinstance(layer, nn.Conv2d) and is_dense(layer):
        found = {
            (pair.dy, dx, rows, cols): len(rows) * len(cols)
            for dx, pairs in _tap_pairs(layer, *shape[1:], symmetric=not cross)
            for pair in pairs
            for _, rows, cols in _pieces(pair)
        }
        channels = shape[0] // groups
        return 2 * groups * channels**2 * sum(found.values())
    rows, n = patches(layer, torch.empty(1, *shape, device="meta")).shape[1:]
    if cross:
        return 2 * groups * rows * n * n
    starts = range(0, n, _STRIPE)
    return 2 * groups * rows * sum(min(_STRIPE, n - start) * (n - start) for start in starts)
