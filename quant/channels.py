# SPDX-License-Identifier: Apache-2.0
"""Look at the tensors of a float model while images run through it."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence

import torch
from torch import fx

from lutwise.errors import CalibrationError
from lutwise.quant.graph import Kind, PreparedModel

__all__ = ["Channels", "alone", "channel_extremes", "check_finite", "readers_of", "visit"]

Channels = tuple[str, int]
"""A node and the dimension of its output, batch included, that counts its channels."""


def readers_of(model: PreparedModel, node: fx.Node) -> list[fx.Node]:
    """Return the nodes that read the values of a node's output, not just its size."""
    return [user for user in node.users if model.kinds[user.name] is not Kind.SHAPE]


def alone(model: PreparedModel) -> frozenset[str]:
    """Return the nodes whose module's parameters no other node uses, so that they may change."""
    used: dict[str, set[int]] = {}
    for node in model.graph.graph.nodes:
        if node.op == "call_module":
            used[node.name] = {id(p) for p in model.module(node).parameters()}
        elif node.op == "get_attr":
            owner, _, leaf = str(node.target).rpartition(".")
            used[node.name] = {id(getattr(model.graph.get_submodule(owner), leaf))}
    counts = Counter(parameter for found in used.values() for parameter in found)
    return frozenset(name for name, found in used.items() if all(counts[p] == 1 for p in found))


class _Visitor(fx.Interpreter):
    def __init__(
        self,
        graph: fx.GraphModule,
        wanted: Collection[str] | None,
        call: Callable[[str, torch.Tensor], None],
    ) -> None:
        super().__init__(graph)
        self._wanted, self._call = wanted, call

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        seen = isinstance(result, torch.Tensor) and n.op != "output" and result.is_floating_point()
        if seen and (self._wanted is None or n.name in self._wanted):
            self._call(n.name, result)
        return result


@torch.no_grad()
def visit(
    model: PreparedModel,
    images: torch.Tensor,
    wanted: Collection[str] | None,
    call: Callable[[str, torch.Tensor], None],
) -> None:
    """Run a float model and show some of its tensors while they are held.

    Args:
        model: The float model.
        images: Shape (n, c, h, w).
        wanted: Nodes; None for all whose output is a tensor of floats.
        call: Gets the name and the output of each of these, in execution order.
    """
    _Visitor(model.graph, wanted, call).run(images)


def check_finite(model: PreparedModel, name: str, numbers: torch.Tensor) -> None:
    """Make sure that a node's output, or what is kept of it, holds numbers only.

    Raises:
        CalibrationError: It holds NaN or Inf.
    """
    if not torch.isfinite(numbers).all():
        raise CalibrationError(
            f"{model.name}: the output of node {name!r} is NaN or infinite on calibration "
            "images; are they normalised as in training?"
        )


def channel_extremes(
    model: PreparedModel, batches: Sequence[torch.Tensor], wanted: Collection[Channels]
) -> dict[Channels, tuple[torch.Tensor, torch.Tensor]]:
    """Return the smallest and the largest number of each channel of some tensors.

    Args:
        model: The float model.
        batches: Images, batch by batch.
        wanted: Tensors and the dimensions of their channels.

    Returns:
        Two tensors of shape (channels,).

    Raises:
        CalibrationError: The model makes NaN or Inf of the images.
    """
    axes: dict[str, set[int]] = {}
    for name, axis in wanted:
        axes.setdefault(name, set()).add(axis)
    found: dict[Channels, tuple[torch.Tensor, torch.Tensor]] = {}

    def call(name: str, output: torch.Tensor) -> None:
        for axis in axes[name]:
            low, high = output.movedim(axis, 0).flatten(1).aminmax(dim=1)
            check_finite(model, name, torch.stack([low, high]))
            if before := found.get((name, axis)):
                low, high = torch.minimum(low, before[0]), torch.maximum(high, before[1])
            found[name, axis] = (low, high)

    for images in batches:
        visit(model, images, axes, call)
    return found
