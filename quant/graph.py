# SPDX-License-Identifier: Apache-2.0
"""A float model as a graph whose nodes are known kinds of operation."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from lutwise.errors import ConfigError, ModelError, UnsupportedLayerError

__all__ = [
    "ChannelScale",
    "Kind",
    "PreparedModel",
    "check_supported",
    "layer_nodes",
    "operation_of",
    "prepare_graph",
    "unsupported_layers",
    "window",
]


class Kind(Enum):
    """What a node does, as far as quantization cares."""

    INPUT = auto()
    LAYER = auto()
    ADD = auto()
    AVERAGE = auto()
    MAXIMUM = auto()
    CLAMP = auto()
    CONCAT = auto()
    FLATTEN = auto()
    PAD = auto()
    SHAPE = auto()
    SCALE = auto()
    OTHER = auto()
    OUTPUT = auto()

    @property
    def keeps_values(self) -> bool:
        """Whether the result holds only values of the operands (or zero)."""
        return self in (Kind.MAXIMUM, Kind.CONCAT, Kind.FLATTEN, Kind.PAD)


class ChannelScale(nn.Module):
    """Multiplies each channel of a tensor by a number of its own.

    Args:
        factors: Positive, in a shape that broadcasts against the tensor.
    """

    factors: torch.Tensor

    def __init__(self, factors: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("factors", factors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scaled tensor."""
        return x * self.factors


@dataclass(frozen=True, slots=True, eq=False)
class PreparedModel:
    """A traced float model, batch norms folded, with shapes and kinds by node name.

    Args:
        name: For people.
        graph: In evaluation mode.
        kinds: By node name.
        shapes: By node name, without the batch.
    """

    name: str
    graph: fx.GraphModule
    kinds: Mapping[str, Kind]
    shapes: Mapping[str, tuple[int, ...]]

    def module(self, node: fx.Node) -> nn.Module:
        """Return the module that a node calls."""
        return self.graph.get_submodule(str(node.target))


_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_LAYERS = (nn.Conv2d, nn.Linear)
_CLAMPS = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
_ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_CONCATS = {torch.cat, torch.concat, torch.concatenate}
_RESHAPES = {
    torch.flatten, torch.reshape, torch.squeeze, "flatten", "reshape", "view", "squeeze",
}  # fmt: skip
_SHAPES = {"size", "dim", getattr, operator.getitem}
_ELEMENTWISE = (nn.LayerNorm, nn.RMSNorm)
"""Modules that may have weights of several dimensions but multiply no matrices."""
_PRODUCTS = {
    F.linear, F.bilinear, F.embedding, F.multi_head_attention_forward,
    F.conv1d, F.conv2d, F.conv3d,
    F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum, operator.matmul,
    "matmul", "mm", "bmm", "__matmul__",
}  # fmt: skip
"""Functions and methods that a model may give weights of its own."""


def window(value: int | tuple[int, ...]) -> tuple[int, int]:
    """Return a height and width from what torch modules hold."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _remove_identities(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and isinstance(graph.get_submodule(node.target), _IDENTITIES):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()


def _batch_norm_to_convolution(graph: fx.GraphModule) -> None:
    """Turn batch norms that no layer could absorb into depthwise 1x1 convolutions."""
    for node in graph.graph.nodes:
        if node.op != "call_module":
            continue
        norm = graph.get_submodule(node.target)
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None:
            continue
        assert norm.running_mean is not None
        channels = norm.num_features
        conv = nn.Conv2d(channels, channels, 1, groups=channels)
        slope = torch.rsqrt(norm.running_var + norm.eps)
        slope = slope * norm.weight if norm.affine else slope
        offset = norm.bias if norm.affine else torch.zeros(channels)
        assert conv.bias is not None
        conv.weight.data = slope.detach().reshape(-1, 1, 1, 1)
        conv.bias.data = (offset - norm.running_mean * slope).detach()
        parent, _, leaf = str(node.target).rpartition(".")
        setattr(graph.get_submodule(parent), leaf, conv.requires_grad_(False).eval())
    graph.recompile()


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("tensor_meta"), fx.passes.shape_prop.TensorMetadata)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape[1:]) if _is_tensor(node) else ()


def _is_flatten(node: fx.Node) -> bool:
    source = node.all_input_nodes[0]
    if not _is_tensor(node) or not _is_tensor(source):
        return False
    before, after = source.meta["tensor_meta"].shape, node.meta["tensor_meta"].shape
    return len(after) == 2 and before[0] == after[0]


def _classify(graph: fx.GraphModule, node: fx.Node) -> Kind:
    if node.op == "placeholder":
        return Kind.INPUT
    if node.op == "output":
        return Kind.OUTPUT
    if node.op == "call_module":
        kind = _classify_module(graph.get_submodule(str(node.target)))
        return Kind.OTHER if kind is Kind.FLATTEN and not _is_flatten(node) else kind
    target: Any = node.target
    if target in _SHAPES and not _is_tensor(node):
        return Kind.SHAPE
    if target in _ADDS:
        tensors = [a for a in node.args if isinstance(a, fx.Node)]
        same = len(tensors) == 2 and _shape(tensors[0]) == _shape(tensors[1])
        return Kind.ADD if same else Kind.OTHER
    if target in _CONCATS:
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        return Kind.CONCAT if axis != 0 else Kind.OTHER
    if target in _RESHAPES and _is_flatten(node):
        return Kind.FLATTEN
    return Kind.OTHER


def _classify_module(module: nn.Module) -> Kind:
    match module:
        case nn.Conv2d() if module.padding_mode == "zeros" and module.padding != "same":
            return Kind.LAYER
        case nn.Linear():
            return Kind.LAYER
        case nn.ReLU() | nn.ReLU6() | nn.Hardtanh():
            return Kind.CLAMP
        case nn.AvgPool2d() | nn.AdaptiveAvgPool2d():
            return Kind.AVERAGE
        case nn.MaxPool2d() if module.dilation in (1, (1, 1)):
            return Kind.MAXIMUM
        case nn.Flatten():
            return Kind.FLATTEN
        case nn.ZeroPad2d():
            return Kind.PAD
        case nn.ConstantPad2d() if module.value == 0:
            return Kind.PAD
        case ChannelScale():
            return Kind.SCALE
        case _:
            return Kind.OTHER


def prepare_graph(
    graph: fx.GraphModule,
    input_shape: tuple[int, ...],
    *,
    name: str,
    float_layers: Sequence[str] = (),
) -> PreparedModel:
    """Clean a traced graph and find out shapes and kinds.

    Args:
        graph: Traced float model of one input; changed in place.
        input_shape: Of one image, (channels, height, width).
        name: For people.
        float_layers: Globs of layers that are not to be quantized.

    Raises:
        ConfigError: A glob matches no layer.
        ModelError: The model does not run on that shape, or its output is no single tensor.
        UnsupportedLayerError: It has no layer to quantize.
    """
    for module in graph.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # activations are kept and compared
    _remove_identities(graph)
    _batch_norm_to_convolution(graph)
    output = next(n for n in graph.graph.nodes if n.op == "output").args[0]
    if not isinstance(output, fx.Node):
        keys = f" of {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        raise ModelError(
            f"{name}: wanted one output tensor, got a {_plain_type(output)}{keys}; wrap the model "
            "in a module that returns the one tensor that counts"
        )
    try:
        with torch.no_grad():
            ShapeProp(graph).propagate(torch.zeros(2, *input_shape))
    except Exception as error:
        raise ModelError(
            f"{name} does not run on images of shape {input_shape} (channels, height, width): "
            f"{error.__cause__ or error}"
        ) from error
    kinds = {n.name: _classify(graph, n) for n in graph.graph.nodes}
    shapes = {n.name: _shape(n) for n in graph.graph.nodes}
    model = _leave_in_float(PreparedModel(name, graph, kinds, shapes), float_layers)
    if not layer_nodes(model):
        left = _listed(unsupported_layers(model))
        raise UnsupportedLayerError(
            f"{name} has no Conv2d or Linear layer to quantize"
            + (f", only {left} that would stay in float" if left else "")
        )
    return model


def _plain_type(value: object) -> str:
    """Return the type that the model's own code gave; torch.fx makes it immutable."""
    for plain in (dict, list, tuple):
        if isinstance(value, plain):
            return plain.__name__
    return type(value).__name__


def _listed(layers: Mapping[str, str]) -> str:
    return ", ".join(f"{name!r} ({what})" for name, what in layers.items())


def _leave_in_float(model: PreparedModel, globs: Sequence[str]) -> PreparedModel:
    layers = layer_nodes(model)
    names = [*dict.fromkeys(str(node.target) for node in layers), *unsupported_layers(model)]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ConfigError(
                f"float_layers: {glob!r} matches no layer of {model.name}, whose layers are "
                f"{', '.join(names)}"
            )
    left = [n.name for n in layers if any(fnmatchcase(str(n.target), glob) for glob in globs)]
    return replace(model, kinds={**model.kinds, **dict.fromkeys(left, Kind.OTHER)})


def unsupported_layers(model: PreparedModel) -> dict[str, str]:
    """Return what holds weights that are not quantized, in execution order.

    Weights have two or more dimensions and take part in a product of matrices: elementwise ones
    (norms, PReLU, positions that are added) do not count.

    Returns:
        Type by module name (``{"up": "ConvTranspose2d"}``); where a function takes weights, as in
        ``x @ self.table``, its name by that of the parameter.
    """
    found: dict[str, str] = {}
    for node in model.graph.graph.nodes:
        if model.kinds[node.name] is not Kind.OTHER:
            continue
        if node.op == "call_module":
            module = model.module(node)
            matrices = any(weight.ndim > 1 for weight in module.parameters())
            if matrices and not isinstance(module, _ELEMENTWISE):
                found[str(node.target)] = type(module).__name__
        elif node.op in ("call_function", "call_method") and node.target in _PRODUCTS:
            found.update(dict.fromkeys(_own_matrices(node), operation_of(model, node)))
    return found


def _own_matrices(node: fx.Node) -> list[str]:
    """Return the model's own tensors that a node reads, plain or after transposing and such."""
    found = []
    for source in node.all_input_nodes:
        while len(source.all_input_nodes) == 1:
            (source,) = source.all_input_nodes
        if source.op == "get_attr" and len(_shape(source)) > 0:
            found.append(str(source.target))
    return found


def operation_of(model: PreparedModel, node: fx.Node) -> str:
    """Return the type of the module, or the name of the function or method, that a node calls."""
    if node.op == "call_module":
        return type(model.module(node)).__name__
    target: Any = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def check_supported(model: PreparedModel, allowed: Sequence[str] = ()) -> None:
    """Make sure that no layer stays in float unnoticed.

    Args:
        model: The float model.
        allowed: Globs of the layers that may.

    Raises:
        UnsupportedLayerError: Others would.
    """
    left = {
        name: what
        for name, what in unsupported_layers(model).items()
        if not any(fnmatchcase(name, glob) for glob in allowed)
    }
    if left:
        raise UnsupportedLayerError(
            f"{model.name}: the weights of {_listed(left)} would stay in float; Linear and Conv2d "
            "(zero padding, its size as numbers) can be quantized. Rewrite the layers so, or "
            f"allow it with `float_layers: [{', '.join(left)}]` in the recipe"
        )


def layer_nodes(model: PreparedModel) -> list[fx.Node]:
    """Return the nodes with weights, in execution order."""
    return [n for n in model.graph.graph.nodes if model.kinds[n.name] is Kind.LAYER]
