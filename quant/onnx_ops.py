# SPDX-License-Identifier: Apache-2.0
"""One table: what each ONNX operator becomes in torch."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import numpy as np
import torch
from torch import fx, nn

from lutwise.quant import onnx_layers as layers
from lutwise.quant.onnx_graph import BATCH, Shape, Site

__all__ = ["BUILDERS", "FOLDABLE", "MOVES", "Builder"]

Builder: TypeAlias = Callable[[Site], fx.Node]


def _same(site: Site) -> fx.Node:
    if (
        len(site.node.output) > 1
        and site.node.output[1]
        and site.builder.uses.get(site.node.output[1])
    ):
        raise site.unsupported("a second output is read")
    return site.value(0)


def _module(make: Callable[[Site], nn.Module]) -> Builder:
    return lambda site: site.module(make(site))


def _add(site: Site) -> fx.Node:
    for stored, computed in ((1, 0), (0, 1)):
        added, x = site.constant(stored), site.sole(computed)
        if added is not None and x is not None and layers.fuse_bias(site, x, added):
            return x
    return site.call(operator.add, site.value(0), site.value(1))


def _binary(function: Callable[..., object]) -> Builder:
    return lambda site: site.call(function, site.value(0), site.value(1))


def _clip(site: Site) -> fx.Node:
    low, high = site.number("min", -math.inf), site.number("max", math.inf)
    if site.opset >= 11:
        low = -math.inf if (given := site.scalar(1)) is None else given
        high = math.inf if (given := site.scalar(2)) is None else given
    # exporters write "no limit" as the end of float32
    top = float(np.finfo(np.float32).max)
    if low == 0 and high == 6:
        return site.module(nn.ReLU6())
    if low == 0 and high >= top:
        return site.module(nn.ReLU())
    if not low < high:
        raise site.unsupported(f"an empty range {low} to {high}")
    return site.module(nn.Hardtanh(low, high))


def _softmax(site: Site) -> fx.Node:
    rank = site.rank(0)
    axis = site.integer("axis", -1 if site.opset >= 13 else 1)
    # before opset 13 all axes from this one on are normalised together
    if site.opset < 13 and (rank is None or axis % rank != rank - 1):
        raise site.unsupported(f"axis={axis} before opset 13; export with opset 13 or later")
    return site.module(nn.Softmax(axis))


def _flatten(site: Site) -> fx.Node:
    axis, rank = site.integer("axis", 1), site.rank(0)
    if axis != 1 and (rank is None or axis % rank != 1):
        raise site.unsupported(f"axis={axis}; only the batch may be kept (axis=1)")
    return site.module(nn.Flatten(1))


def _axes(site: Site) -> list[int] | None:
    axes = site.integers("axes")
    if axes is None and site.has(1):
        axes = [int(v) for v in np.asarray(site.weight(1)).reshape(-1).astype(np.int64)]
    return axes


def _reduce_mean(site: Site) -> fx.Node:
    axes, keep = _axes(site), bool(site.integer("keepdims", 1))
    if not axes:
        raise site.unsupported("a mean over all axes, which mixes the images of a batch")
    rank = site.rank(0)
    whole = {2, 3} if rank == 4 else set()
    positive = {a % rank for a in axes} if rank is not None else set(axes)
    if 0 in positive:
        raise site.unsupported("a mean over the batch")
    if positive == whole and rank == 4:
        x = site.module(nn.AdaptiveAvgPool2d(1))
        return x if keep else site.builder.module(f"{site.name}_flatten", nn.Flatten(1), x)
    return site.call(torch.mean, site.value(0), tuple(axes), keep)


def _product(dims: Shape) -> int | None:
    known = [d for d in dims if isinstance(d, int)]
    return math.prod(known) if len(known) == len(dims) else None


def _reshape(site: Site) -> fx.Node:
    before, after = site.shape(0), site.output_shape()
    stored = site.constant(1)
    if stored is None:
        stored = site.builder.sizes.get(site.node.input[1])
    target: Shape | None = after
    if stored is not None:
        if site.integer("allowzero", 0) and 0 in stored:
            raise site.unsupported("a size of zero")
        dims = np.asarray(stored).reshape(-1).astype(np.int64).tolist()
        target = tuple(0 if d == BATCH else d for d in dims)
    if before is None or target is None:
        raise site.unsupported("the shapes are not known; export with a fixed image size")
    batch, rest = before[0], _product(before[1:])
    if not target or not (target[0] in (0, -1, batch) or _product(target[1:]) == rest is not None):
        raise site.unsupported(f"{before} to {target} does not keep the batch apart")
    kept = target[0] in (0, batch) and batch is not None
    if len(target) == 2 and (kept or (rest is not None and target[1] == rest)):
        return site.module(nn.Flatten(1))
    sizes = [before[i] if d == 0 and i < len(before) else d for i, d in enumerate(target[1:], 1)]
    fixed = [d for d in sizes if isinstance(d, int) and d != -1]
    if len(fixed) == len(sizes) - 1 and rest is not None and rest % math.prod(fixed) == 0:
        sizes = [d if isinstance(d, int) and d != -1 else rest // math.prod(fixed) for d in sizes]
    if _product(tuple(sizes)) != rest or rest is None:
        raise site.unsupported(f"{before} to {target}: export with a fixed image size")
    return site.call(torch.reshape, site.value(0), (-1, *sizes))


def _squeeze(site: Site) -> fx.Node:
    shape, axes = site.shape(0), _axes(site)
    if shape is None or axes is None or {a % len(shape) for a in axes} != set(range(2, len(shape))):
        raise site.unsupported(f"only height and width of 1 can go, got {shape}, axes={axes}")
    return site.module(nn.Flatten(1))


def _transpose(site: Site) -> fx.Node:
    order = site.integers("perm")
    if order is None:
        raise site.unsupported("a reversal of all axes")
    if order[0] != 0:
        raise site.unsupported(f"the batch moves: perm={order}")
    return site.call(torch.permute, site.value(0), tuple(order))


def _concat(site: Site) -> fx.Node:
    axis = site.integer("axis", 1)
    inputs = [site.value(i) for i in range(len(site.node.input))]
    return site.call(torch.cat, inputs, axis)


def _hard_sigmoid(site: Site) -> fx.Node:
    alpha, beta = site.number("alpha", 0.2), site.number("beta", 0.5)
    if abs(alpha - 1 / 6) > 1e-6 or beta != 0.5:
        raise site.unsupported(f"alpha={alpha}, beta={beta}; torch has 1/6 and 1/2 only")
    return site.module(nn.Hardsigmoid())


def _global_max_pool(site: Site) -> nn.Module:
    if site.rank(0) not in (4, None):
        raise site.unsupported(f"two-dimensional only, got {site.shape(0)}")
    return nn.AdaptiveMaxPool2d(1)


def _global_average_pool(site: Site) -> nn.Module:
    if site.rank(0) not in (4, None):
        raise site.unsupported(f"two-dimensional only, got {site.shape(0)}")
    return nn.AdaptiveAvgPool2d(1)


BUILDERS: Final[Mapping[str, Builder]] = {
    "Add": _add,
    "AveragePool": layers.average_pool,
    "BatchNormalization": layers.batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": layers.conv,
    "Div": _binary(operator.truediv),
    "Dropout": _same,
    "Flatten": _flatten,
    "Gelu": _module(lambda s: nn.GELU(approximate=s.text("approximate", "none"))),
    "Gemm": layers.gemm,
    "GlobalAveragePool": _module(_global_average_pool),
    "GlobalMaxPool": _module(_global_max_pool),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _module(lambda s: nn.Hardswish()),
    "Identity": _same,
    "LayerNormalization": layers.layer_norm,
    "LeakyRelu": _module(lambda s: nn.LeakyReLU(s.number("alpha", 0.01))),
    "MatMul": layers.matmul,
    "MaxPool": layers.max_pool,
    "Mul": _binary(operator.mul),
    "Pad": layers.pad,
    "ReduceMean": _reduce_mean,
    "Relu": _module(lambda s: nn.ReLU()),
    "Reshape": _reshape,
    "Sigmoid": _module(lambda s: nn.Sigmoid()),
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Sub": _binary(operator.sub),
    "Tanh": _module(lambda s: nn.Tanh()),
    "Transpose": _transpose,
}
"""Operators that are read."""

MOVES: Final = frozenset(("Cast", "Concat", "Gather", "Identity", "Slice", "Squeeze", "Unsqueeze"))
"""Operators that only move numbers about: they may meet `BATCH`."""

FOLDABLE: Final = frozenset(
    (
        "Add",
        "Cast",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Div",
        "Gather",
        "Identity",
        "Mul",
        "Neg",
        "Reshape",
        "Shape",
        "Slice",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
    )
)
"""Operators that are computed while reading where all their inputs are stored."""
