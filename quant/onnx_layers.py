# SPDX-License-Identifier: Apache-2.0
"""ONNX layers with weights or windows, as torch modules."""

from typing import TypeAlias

import numpy as np
import torch
from torch import fx, nn

from lutwise.quant.onnx_graph import Array, Site, tensor_of

__all__ = [
    "average_pool",
    "batch_norm",
    "conv",
    "gemm",
    "layer_norm",
    "matmul",
    "max_pool",
    "pad",
]

Pair: TypeAlias = tuple[int, int]
Sides: TypeAlias = tuple[int, int, int, int]
"""Left, right, top, bottom."""


def conv(site: Site) -> fx.Node:
    """Build ``Conv``: uneven padding becomes a `nn.ZeroPad2d` before it."""
    weight = site.weight(1)
    if weight.ndim != 4:
        raise site.unsupported(f"two-dimensional only, the weight has shape {weight.shape}")
    kernel, stride, dilation = (int(weight.shape[2]), int(weight.shape[3])), _stride(site), (1, 1)
    if site.integers("dilations"):
        dilation = _pair(site, "dilations")
    sides = _padding(site, kernel, stride, dilation)
    x = site.value(0)
    if not _even(sides):
        x = site.builder.module(f"{site.name}_pad", nn.ZeroPad2d(sides), x)
        sides = (0, 0, 0, 0)
    groups = site.integer("group", 1)
    layer = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        kernel,
        stride,
        (sides[2], sides[0]),
        dilation,
        groups,
        bias=site.has(2),
    )
    _fill(layer, weight, site.weight(2) if site.has(2) else None)
    return site.module(layer, x)


def gemm(site: Site) -> fx.Node:
    """Build ``Gemm`` as a `nn.Linear`."""
    if site.integer("transA", 0):
        raise site.unsupported("a transposed first operand (transA=1)")
    weight = site.weight(1)
    if not site.integer("transB", 0):
        weight = weight.T
    weight = _scaled(weight, site.number("alpha", 1.0))
    bias = None
    if site.has(2):
        added = _scaled(site.weight(2), site.number("beta", 1.0))
        if added.size not in (1, weight.shape[0]) or (added.ndim == 2 and added.shape[0] != 1):
            raise site.unsupported(f"a bias of shape {added.shape} for {weight.shape[0]} outputs")
        bias = np.broadcast_to(added.reshape(-1), (weight.shape[0],))
    return site.module(_linear(weight, bias))


def matmul(site: Site) -> fx.Node:
    """Build ``MatMul``: with a stored matrix on the right a `nn.Linear`, else a product."""
    weight = site.constant(1)
    if weight is not None and weight.ndim == 2 and site.constant(0) is None:
        return site.module(_linear(weight.T, None))
    return site.call(torch.matmul, site.value(0), site.value(1))


def batch_norm(site: Site) -> fx.Node:
    """Build ``BatchNormalization`` of inference."""
    if site.integer("training_mode", 0) or site.integer("spatial", 1) != 1:
        raise site.unsupported("batch norm in training mode or per position; export with eval()")
    weights = [tensor_of(site.weight(i)) for i in range(1, 5)]
    flat = site.rank(0) in (2, 3)
    kind = nn.BatchNorm1d if flat else nn.BatchNorm2d
    layer = kind(len(weights[0]), eps=site.number("epsilon", 1e-5))
    state = dict(zip(("weight", "bias", "running_mean", "running_var"), weights, strict=True))
    layer.load_state_dict(state, strict=False)
    return site.module(layer)


def layer_norm(site: Site) -> fx.Node:
    """Build ``LayerNormalization`` over the last axis."""
    rank, axis = site.rank(0), site.integer("axis", -1)
    if axis != -1 and (rank is None or axis != rank - 1):
        raise site.unsupported(f"only over the last axis, got axis={axis}")
    weight = tensor_of(site.weight(1))
    layer = nn.LayerNorm(len(weight), eps=site.number("epsilon", 1e-5), bias=site.has(2))
    state = {"weight": weight}
    if site.has(2):
        state["bias"] = tensor_of(site.weight(2))
    layer.load_state_dict(state)
    return site.module(layer)


def max_pool(site: Site) -> fx.Node:
    """Build ``MaxPool``: uneven padding becomes a pad with minus infinity, zeros after a ReLU."""
    if len(site.node.output) > 1 and site.node.output[1]:
        raise site.unsupported("the output of indices")
    kernel, stride = _pair(site, "kernel_shape"), _stride(site)
    dilation = _pair(site, "dilations") if site.integers("dilations") else (1, 1)
    sides = _padding(site, kernel, stride, dilation)
    x = site.value(0)
    if not _even(sides) or sides[2] > kernel[0] // 2 or sides[0] > kernel[1] // 2:
        _no_ceil_mode(site, "uneven padding")
        positive = isinstance(site.builder.producer(x), nn.ReLU | nn.ReLU6 | nn.Sigmoid)
        pads = nn.ZeroPad2d(sides) if positive else nn.ConstantPad2d(sides, float("-inf"))
        x = site.builder.module(f"{site.name}_pad", pads, x)
        sides = (0, 0, 0, 0)
    ceil = bool(site.integer("ceil_mode", 0))
    return site.module(
        nn.MaxPool2d(kernel, stride, (sides[2], sides[0]), dilation, ceil_mode=ceil), x
    )


def average_pool(site: Site) -> fx.Node:
    """Build ``AveragePool``."""
    kernel, stride = _pair(site, "kernel_shape"), _stride(site)
    if site.integers("dilations") not in (None, [1, 1]):
        raise site.unsupported("dilated windows")
    sides = _padding(site, kernel, stride, (1, 1))
    counted = bool(site.integer("count_include_pad", 0))
    x = site.value(0)
    if not _even(sides) or sides[2] > kernel[0] // 2 or sides[0] > kernel[1] // 2:
        if not counted:
            raise site.unsupported(f"uneven padding {sides} that the average leaves out")
        _no_ceil_mode(site, "uneven padding")
        x = site.builder.module(f"{site.name}_pad", nn.ZeroPad2d(sides), x)
        sides = (0, 0, 0, 0)
    ceil = bool(site.integer("ceil_mode", 0))
    return site.module(
        nn.AvgPool2d(kernel, stride, (sides[2], sides[0]), ceil, count_include_pad=counted), x
    )


def pad(site: Site) -> fx.Node:
    """Build ``Pad`` of height and width."""
    amounts, value = site.integers("pads"), site.number("value", 0.0)
    if site.opset >= 11:
        amounts = [int(v) for v in np.asarray(site.weight(1)).reshape(-1).astype(np.int64)]
        value = site.scalar(2) or 0.0
    rank = site.rank(0)
    if amounts is None or rank is None:
        raise site.unsupported("the pads or the rank of the input are not known")
    axes = list(range(rank))
    if site.has(3):
        axes = [int(a) % rank for a in np.asarray(site.weight(3)).reshape(-1).astype(np.int64)]
    half = len(axes)
    per_axis = {a: (amounts[i], amounts[half + i]) for i, a in enumerate(axes)}
    outside = [a for a, p in per_axis.items() if p != (0, 0) and (rank != 4 or a < 2)]
    if outside:
        raise site.unsupported(f"only height and width of images can be padded, got axes {outside}")
    (top, bottom), (left, right) = per_axis.get(2, (0, 0)), per_axis.get(3, (0, 0))
    sides = (left, right, top, bottom)
    mode = site.text("mode", "constant")
    if mode == "constant":
        return site.module(nn.ZeroPad2d(sides) if value == 0 else nn.ConstantPad2d(sides, value))
    if mode == "reflect":
        return site.module(nn.ReflectionPad2d(sides))
    if mode == "edge":
        return site.module(nn.ReplicationPad2d(sides))
    raise site.unsupported(f"mode {mode!r}")


def fuse_bias(site: Site, x: fx.Node, added: Array) -> bool:
    """Make a stored addend the bias of the layer before it, where it is one.

    Args:
        site: Of the ``Add``.
        x: Its computed operand, which nothing else may read.
        added: Its stored operand.
    """
    layer = site.builder.producer(x)
    shape = tuple(added.shape)
    if isinstance(layer, nn.Linear):
        fits = shape == (layer.out_features,)
    elif isinstance(layer, nn.Conv2d):
        fits = shape in ((1, layer.out_channels, 1, 1), (layer.out_channels, 1, 1))
    else:
        return False
    if not fits:
        return False
    bias = tensor_of(added).reshape(-1)
    layer.bias = nn.Parameter(bias if layer.bias is None else layer.bias.detach() + bias)
    return True


def _linear(weight: Array, bias: Array | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    _fill(layer, weight, bias)
    return layer


def _fill(layer: nn.Module, weight: Array, bias: Array | None) -> None:
    state = {"weight": tensor_of(weight)}
    if bias is not None:
        state["bias"] = tensor_of(bias)
    layer.load_state_dict(state)


def _scaled(value: Array, factor: float) -> Array:
    return value if factor == 1.0 else value.astype(np.float32) * np.float32(factor)


def _even(sides: Sides) -> bool:
    return sides[0] == sides[1] and sides[2] == sides[3]


def _no_ceil_mode(site: Site, what: str) -> None:
    if site.integer("ceil_mode", 0):
        raise site.unsupported(f"{what} together with ceil_mode")


def _pair(site: Site, name: str) -> Pair:
    values = site.integers(name)
    if values is None or len(values) != 2:
        raise site.unsupported(f"two-dimensional only, got {name}={values}")
    return values[0], values[1]


def _stride(site: Site) -> Pair:
    return _pair(site, "strides") if site.integers("strides") else (1, 1)


def _padding(site: Site, kernel: Pair, stride: Pair, dilation: Pair) -> Sides:
    mode = site.text("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        top, left, bottom, right = site.integers("pads") or (0, 0, 0, 0)
        return left, right, top, bottom
    if mode == "VALID":
        return 0, 0, 0, 0
    shape = site.shape(0)
    sides: list[int] = []
    for axis in (1, 0):
        length = shape[2 + axis] if shape is not None and len(shape) == 4 else None
        if stride[axis] == 1:
            length = length if isinstance(length, int) else 1
        if not isinstance(length, int):
            raise site.unsupported(f"auto_pad={mode} needs a fixed image size, export with one")
        window = (kernel[axis] - 1) * dilation[axis] + 1
        total = max((-(-length // stride[axis]) - 1) * stride[axis] + window - length, 0)
        small, large = total // 2, total - total // 2
        sides += [small, large] if mode == "SAME_UPPER" else [large, small]
    return sides[0], sides[1], sides[2], sides[3]
