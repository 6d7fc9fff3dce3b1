# SPDX-License-Identifier: Apache-2.0
"""The one place that touches Brevitas: tracing and passes on float graphs, typed.

Brevitas brings its own copy of torch.fx, and its passes silently do nothing on graphs of the
original. So a model is traced with Brevitas's tracer, the passes run on that graph, and
`finish` traces the result once more with torch's own, which everything else uses.
"""

import copy
import warnings
from typing import Any, cast

import torch
from torch import fx, nn

from lutwise.errors import UnsupportedLayerError

with warnings.catch_warnings():
    # Brevitas warns on import about its own modules and about an optional package it can do
    # without; neither is for the users of lutwise.
    warnings.simplefilter("ignore")
    from brevitas.backport.fx import symbolic_trace
    from brevitas.graph.base import ModuleToModuleByClass
    from brevitas.graph.equalize import EqualizeGraph
    from brevitas.graph.fixed_point import MergeBatchNorm
    from brevitas.graph.standardize import (
        DuplicateSharedStatelessModule,
        MeanMethodToAdaptiveAvgPool2d,
        RemoveStochasticModules,
        TorchFunctionalToModule,
    )

__all__ = ["BrevitasGraph", "equalize", "finish", "relu6_to_relu", "trace"]

BrevitasGraph = nn.Module
"""A traced model in Brevitas's own copy of torch.fx."""


def _apply(transform: Any, graph: BrevitasGraph) -> BrevitasGraph:
    # Modules that a pass creates start in training mode; a dropout would then act.
    return cast(nn.Module, transform.apply(graph)).eval()


def trace(model: nn.Module) -> BrevitasGraph:
    """Trace, turn functions into modules and fold batch norms into the layers before them.

    Args:
        model: In evaluation mode; not changed.

    Raises:
        UnsupportedLayerError: The model's Python code depends on its data.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer's use of older torch names
            graph = cast(nn.Module, symbolic_trace(copy.deepcopy(model).eval()))
    except Exception as error:
        raise UnsupportedLayerError(
            f"cannot trace {type(model).__name__}: {error}. Its forward() must not branch or loop "
            "on the values or shapes of tensors; rewrite that part, or give the model as ONNX"
        ) from error
    for transform in (
        TorchFunctionalToModule(),
        DuplicateSharedStatelessModule(),
        MeanMethodToAdaptiveAvgPool2d(),
        MergeBatchNorm(),
        RemoveStochasticModules(),
    ):
        graph = _apply(transform, graph)
    return graph


def relu6_to_relu(graph: BrevitasGraph) -> BrevitasGraph:
    """Replace every ReLU6 by ReLU, so that equalization may scale through it."""
    return _apply(ModuleToModuleByClass(nn.ReLU6, nn.ReLU), graph)


@torch.no_grad()
def equalize(
    graph: BrevitasGraph, *, iterations: int, threshold: float, absorb_bias: bool
) -> BrevitasGraph:
    """Equalize the weight ranges of connected layers, channel by channel.

    Args:
        graph: Traced model.
        iterations: At most.
        threshold: Stop when the mean change of the scales is smaller.
        absorb_bias: Count the bias into the range of a channel.

    Reference:
        arXiv 1906.04721, section 4.1.
    """
    return _apply(
        EqualizeGraph(iterations=iterations, threshold=threshold, merge_bias=absorb_bias), graph
    )


def finish(graph: BrevitasGraph) -> fx.GraphModule:
    """Return the graph in torch's own torch.fx, in evaluation mode, without gradients."""
    traced = fx.symbolic_trace(graph)
    traced.eval()
    traced.requires_grad_(False)
    return traced
