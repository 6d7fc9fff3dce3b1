# SPDX-License-Identifier: Apache-2.0
"""Blocks of a graph: stretches with one tensor going in and one coming out."""

from dataclasses import dataclass

from torch import fx

from lutwise.quant.graph import Kind, PreparedModel

__all__ = ["Block", "find_blocks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A stretch of a graph.

    Args:
        entry: The node whose output goes in; not part of the block.
        nodes: In execution order; the output of the last one comes out.
    """

    entry: fx.Node
    nodes: tuple[fx.Node, ...]


def find_blocks(model: PreparedModel) -> tuple[Block, ...]:
    """Cut a graph wherever a single tensor carries all that follows.

    A residual block, with its shortcut, is one block; so is a chain's layer with its ReLU.
    Stretches without layers belong to the block before them, at the start to the one after.
    """
    nodes = [n for n in model.graph.graph.nodes if n.op != "output"]
    place = {node: i for i, node in enumerate(nodes)}
    last = {n: max(place.get(user, len(nodes)) for user in n.users) for n in nodes if n.users}
    found: list[Block] = []
    entry, held, reach = nodes[0], [], 0
    for i, node in enumerate(nodes):
        if i:
            held.append(node)
        # Everything before this node has been read by the time it has run.
        alone = reach <= i
        reach = max(reach, last.get(node, i))
        if i and alone:
            if any(model.kinds[n.name] is Kind.LAYER for n in held):
                found.append(Block(entry=entry, nodes=tuple(held)))
            elif found:
                before = found.pop()
                found.append(Block(entry=before.entry, nodes=(*before.nodes, *held)))
            else:
                continue  # the first layer is yet to come
            entry, held = node, []
    return tuple(found)
