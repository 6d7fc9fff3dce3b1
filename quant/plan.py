# SPDX-License-Identifier: Apache-2.0
"""Which tensors of a model are quantized, and which of them must share format or scale.

In ``dataflow`` mode every tensor between layers is quantized once, at the end of the chain that
makes it: a layer, sum or average, together with the clamp (ReLU) behind it. Poolings by maximum,
concatenations and reshapes keep format and scale, so the operands of a concatenation form one
*group*. The groups that meet in a sum form a *family*: their scales differ by powers of two
only, so that hardware aligns them with shifts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import fx, nn

from lutwise.errors import ConfigError, UnsupportedLayerError
from lutwise.quant.graph import Kind, PreparedModel, operation_of

__all__ = [
    "Group",
    "Plan",
    "check_globs",
    "clamp_range",
    "is_image",
    "plan_dataflow",
    "plan_layerwise",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Tensors with one format and one scale.

    Args:
        points: Nodes at whose output the tensors are quantized.
        modules: Names of the modules that make them (``layerwise``: of the layers that read
            them), for overrides.
        nonnegative: No value can be negative.
        is_input: Holds the network's input.
        is_output: Holds the network's output.
        family: Groups of the same family have scales that differ by powers of two.
    """

    points: tuple[str, ...]
    modules: tuple[str, ...]
    nonnegative: bool
    is_input: bool
    is_output: bool
    family: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The quantized tensors of a model.

    Args:
        groups: In execution order of their first point.
        layer_sources: Node whose output a layer reads, by layer node (``layerwise`` only).
        fused: Node whose result a clamp completes, by clamp node.
    """

    groups: tuple[Group, ...]
    layer_sources: Mapping[str, str]
    fused: Mapping[str, str]


class _Union:
    """Disjoint sets of strings."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        parent = self._parent.setdefault(name, name)
        if parent == name:
            return name
        self._parent[name] = self.find(parent)
        return self._parent[name]

    def join(self, first: str, second: str) -> None:
        self._parent[self.find(second)] = self.find(first)


def clamp_range(module: nn.Module) -> tuple[float, float]:
    """Return the smallest and largest result of a ReLU, ReLU6 or Hardtanh."""
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return float(module.min_val), float(module.max_val)
    return 0.0, float("inf")


def _nonnegative(model: PreparedModel, input_nonnegative: bool) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for node in model.graph.graph.nodes:
        match model.kinds[node.name]:
            case Kind.INPUT:
                found[node.name] = input_nonnegative
            case Kind.CLAMP:
                found[node.name] = clamp_range(model.module(node))[0] >= 0
            case Kind.FLATTEN:  # what follows the tensor is a size, not values
                found[node.name] = found[node.all_input_nodes[0].name]
            case Kind.ADD | Kind.AVERAGE | Kind.MAXIMUM | Kind.CONCAT | Kind.PAD | Kind.SCALE:
                found[node.name] = all(found[n.name] for n in node.all_input_nodes)
            case _:
                found[node.name] = False
    return found


def _refuse(model: PreparedModel, node: fx.Node) -> UnsupportedLayerError:
    what = operation_of(model, node)
    reason = ""
    if what.lower() == "flatten":
        reason = (
            f", since it gives {_dimensions(model, node)} of "
            f"{_dimensions(model, node.all_input_nodes[0])}, and flattening has to start at "
            "dimension 1 and merge all of them into (images, features)"
        )
    return UnsupportedLayerError(
        f"{model.name}: node {node.name!r} ({what}) cannot be part of a dataflow graph{reason}, "
        "whose operations are Conv2d, Linear, addition, average and maximum pooling, ReLU, ReLU6, "
        "concatenation, zero padding and flattening; use `mode: layerwise`"
    )


def _dimensions(model: PreparedModel, node: fx.Node) -> str:
    return f"({', '.join(['images', *map(str, model.shapes[node.name])])})"


def plan_dataflow(model: PreparedModel, *, input_nonnegative: bool, quantize_output: bool) -> Plan:
    """Plan the ``dataflow`` mode.

    Args:
        model: The float model.
        input_nonnegative: No image holds a negative number.
        quantize_output: Whether the output gets a format, too. An output that is no layer's gets
            one in any case, since only a layer has exact sums to hand out.

    Raises:
        UnsupportedLayerError: A node that no dataflow graph can hold.
    """
    groups, families = _Union(), _Union()
    positive = _nonnegative(model, input_nonnegative)
    point: dict[str, str | None] = {}  # the point that quantizes a node's output
    owners: dict[str, list[fx.Node]] = {}
    fused: dict[str, str] = {}
    for node in model.graph.graph.nodes:
        kind, sources = model.kinds[node.name], node.all_input_nodes
        match kind:
            case Kind.INPUT | Kind.LAYER | Kind.ADD | Kind.AVERAGE:
                end = _end(model, node)
                if end is not node:
                    fused[end.name] = node.name
                is_output = any(_reaches_output(model, user) for user in end.users)
                if kind is Kind.LAYER and end is node and is_output and not quantize_output:
                    point[node.name] = None
                    continue
                point[node.name] = point[end.name] = end.name
                owners.setdefault(end.name, []).extend({node, end})
                groups.find(end.name)
                if kind is Kind.ADD:
                    left, right = (_operand(point, model, node, n) for n in sources)
                    families.join(left, right)
            case Kind.CLAMP if node.name in fused:
                continue
            case Kind.CLAMP | Kind.MAXIMUM | Kind.FLATTEN | Kind.PAD | Kind.CONCAT:
                first = point[sources[0].name]
                if kind is Kind.CONCAT:
                    for other in sources[1:]:
                        groups.join(
                            _operand(point, model, node, sources[0]),
                            _operand(point, model, node, other),
                        )
                point[node.name] = first
            case Kind.SHAPE | Kind.OUTPUT:
                continue
            case Kind.SCALE | Kind.OTHER:
                raise _refuse(model, node)
    return Plan(
        groups=_collect(model, groups, families, owners, positive),
        layer_sources={},
        fused=fused,
    )


def _operand(
    point: Mapping[str, str | None], model: PreparedModel, node: fx.Node, source: fx.Node
) -> str:
    name = point.get(source.name)
    if name is None:
        raise _refuse(model, node)
    return name


def _end(model: PreparedModel, node: fx.Node) -> fx.Node:
    """Return the clamp that completes a node, else the node itself."""
    users = list(node.users)
    if len(users) == 1 and model.kinds[users[0].name] is Kind.CLAMP:
        return users[0]
    return node


def _reaches_output(model: PreparedModel, node: fx.Node) -> bool:
    kind = model.kinds[node.name]
    if kind is Kind.OUTPUT:
        return True
    return kind.keeps_values and any(_reaches_output(model, user) for user in node.users)


def _collect(
    model: PreparedModel,
    groups: _Union,
    families: _Union,
    owners: Mapping[str, list[fx.Node]],
    positive: Mapping[str, bool],
) -> tuple[Group, ...]:
    members: dict[str, list[str]] = {}
    for name in owners:
        members.setdefault(groups.find(name), []).append(name)
    root_of = {name: groups.find(name) for name in owners}
    joined = _Union()
    for name in owners:
        joined.join(root_of[families.find(name)], root_of[name])
    numbers: dict[str, int] = {}
    by_name = {node.name: node for node in model.graph.graph.nodes}
    found = []
    for root, points in members.items():
        nodes = [node for name in points for node in owners[name]]
        found.append(
            Group(
                points=tuple(points),
                modules=tuple(sorted({str(n.target) for n in nodes if n.op == "call_module"})),
                nonnegative=all(positive[name] for name in points),
                is_input=any(model.kinds[n.name] is Kind.INPUT for n in nodes),
                is_output=any(
                    _reaches_output(model, user) for name in points for user in by_name[name].users
                ),
                family=numbers.setdefault(joined.find(root), len(numbers)),
            )
        )
    return tuple(found)


def plan_layerwise(model: PreparedModel, *, input_nonnegative: bool) -> Plan:
    """Plan the ``layerwise`` mode: one group per tensor that some layer reads."""
    positive = _nonnegative(model, input_nonnegative)
    sources: dict[str, str] = {}
    readers: dict[str, list[str]] = {}
    for node in model.graph.graph.nodes:
        if model.kinds[node.name] is Kind.LAYER:
            source = node.all_input_nodes[0]
            sources[node.name] = source.name
            readers.setdefault(source.name, []).append(str(node.target))
    return Plan(
        groups=tuple(
            Group(
                points=(source,),
                modules=tuple(layers),
                nonnegative=positive[source],
                is_input=is_image(model, source),
                is_output=False,
                family=i,
            )
            for i, (source, layers) in enumerate(readers.items())
        ),
        layer_sources=sources,
        fused={},
    )


def is_image(model: PreparedModel, name: str) -> bool:
    """Whether a tensor holds only values of the network's input, perhaps padded or reshaped."""
    node = next(n for n in model.graph.graph.nodes if n.name == name)
    while model.kinds[node.name].keeps_values and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return model.kinds[node.name] is Kind.INPUT


def check_globs(plan: Plan, globs: Iterable[str], *, name: str, output_is_set: bool) -> None:
    """Make sure that activation formats meant for some layers reach a tensor.

    Args:
        plan: The plan.
        globs: Of layer names.
        name: Of the model.
        output_is_set: Whether the network's output has a format of its own, as its input has.

    Raises:
        ConfigError: A glob matches no module of any tensor whose format it could change.
    """
    names = sorted(
        {
            module
            for group in plan.groups
            if not group.is_input and not (group.is_output and output_is_set)
            for module in group.modules
        }
    )
    owners = "are read by" if plan.layer_sources else "are made by"
    for glob in globs:
        if not any(fnmatchcase(module, glob) for module in names):
            raise ConfigError(
                f"the activations of the override for {glob!r} match no tensor of {name}, whose "
                f"tensors {owners} {', '.join(names)} (the image's format is `input`, that of the "
                "logits `output`)"
            )
