# SPDX-License-Identifier: Apache-2.0
"""The one place that touches Brevitas: tracing and passes on float graphs, typed.

Brevitas brings its own copy of torch.fx, and its passes silently do nothing on graphs of the
original. So a model is traced with Brevitas's tracer, the passes run on that graph, and
`finish` traces the result once more with torch's own, which everything else uses.
"""

import copy
import inspect
import linecache
import traceback
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lutwise.errors import ModelError, UnsupportedLayerError

with warnings.catch_warnings():
    # Brevitas warns on import about its own modules and about an optional package it can do
    # without; neither is for the users of lutwise.
    warnings.simplefilter("ignore")
    from brevitas.backport.fx import GraphModule, Tracer
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


class _ImageTracer(Tracer):  # type: ignore[misc]  # Brevitas has no types
    """Traces ``forward()`` with one tensor; its other inputs keep their defaults."""

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: object = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        name = next(iter(inspect.signature(self.root.forward).parameters))
        return root_fn, [self.root, self.create_proxy("placeholder", name, (), {})]


def trace(model: nn.Module) -> BrevitasGraph:
    """Trace, turn functions into modules and fold batch norms into the layers before them.

    Args:
        model: In evaluation mode; not changed.

    Raises:
        ModelError: Its ``forward()`` needs more than one input.
        UnsupportedLayerError: Its Python code depends on its data, or a batch norm on its batch.
    """
    _check_inputs(model)
    tracer = _ImageTracer()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer's use of older torch names
            model = copy.deepcopy(model).eval()
            graph = cast(nn.Module, GraphModule(model, tracer.trace(model), type(model).__name__))
    except Exception as error:
        raise UnsupportedLayerError(
            f"cannot trace {type(model).__name__}: {_place(model, error)}: "
            f"{type(error).__name__}: {error}. Its Python code runs once for all images, so it "
            "must not branch or loop on the values or shapes of tensors, or make numbers of them; "
            "rewrite that part (sizes as constants, torch.where), or give the model as ONNX"
        ) from error
    _untie(graph)
    _spell_clamps_alike(graph)
    _complete_norms(graph)
    for transform in (
        TorchFunctionalToModule(),
        DuplicateSharedStatelessModule(),
        MeanMethodToAdaptiveAvgPool2d(),
        MergeBatchNorm(),
        RemoveStochasticModules(),
    ):
        graph = _apply(transform, graph)
    return graph


def _check_inputs(model: nn.Module) -> None:
    signature = inspect.signature(model.forward)
    try:
        signature.bind(None)
    except TypeError as error:
        raise ModelError(
            f"wanted a model that runs on one tensor of images, got {type(model).__name__} with "
            f"forward{signature}: {error}; wrap it in a module that fills in the other inputs"
        ) from error


def _spell_clamps_alike(graph: BrevitasGraph) -> None:
    """Write the many spellings of ReLU and of clamping between numbers as Brevitas knows them."""
    for node in cast(Any, graph).graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        name = node.target if isinstance(node.target, str) else node.target.__name__
        if name in ("relu", "relu_"):
            node.op, node.target = "call_function", F.relu
        elif name in ("clamp", "clamp_", "clip", "clip_"):
            low, high = (
                node.args[place] if len(node.args) > place else node.kwargs.get(key)
                for place, key in ((1, "min"), (2, "max"))
            )
            if low == 0 and high is None:
                node.op, node.target, node.args = "call_function", F.relu, node.args[:1]
                node.kwargs = {}
            elif isinstance(low, int | float) and isinstance(high, int | float):
                node.op, node.target = "call_function", F.hardtanh
                node.args, node.kwargs = (node.args[0], float(low), float(high)), {}
    cast(Any, graph).recompile()


def _untie(graph: BrevitasGraph) -> None:
    """Give every call of weights that were called before a copy of its own.

    What each call sees is different, and so are the scale, the rounding and the bias it gets.
    """
    called: set[int] = set()
    for node in cast(Any, graph).graph.nodes:
        if node.op != "call_module":
            continue
        module = graph.get_submodule(node.target)
        if not called.isdisjoint(map(id, module.parameters())):
            parent, _, leaf = node.target.rpartition(".")
            home, count = graph.get_submodule(parent), 2
            while hasattr(home, f"{leaf}_{count}"):
                count += 1
            module = copy.deepcopy(module)
            home.add_module(f"{leaf}_{count}", module)
            node.target = f"{node.target}_{count}"
        called.update(map(id, module.parameters()))
    cast(Any, graph).recompile()


def _complete_norms(model: BrevitasGraph) -> None:
    """Give batch norms without a slope and offset trivial ones, which merging needs."""
    for name, norm in model.named_modules():
        if not isinstance(norm, _BatchNorm):
            continue
        if norm.running_var is None:
            raise UnsupportedLayerError(
                f"the batch norm {name!r} of {model._get_name()} has no running statistics, so "
                "an image's result depends on the others of its batch; train it with "
                "track_running_stats=True"
            )
        if not norm.affine:
            norm.weight = nn.Parameter(torch.ones_like(norm.running_var))
            norm.bias = nn.Parameter(torch.zeros_like(norm.running_var))
            norm.affine = True


def _place(model: nn.Module, error: Exception) -> str:
    """Return the innermost module whose code was running, and the line of it."""
    names = {id(module): name for name, module in model.named_modules()}
    place = "its own code"
    for frame, line in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if id(owner) in names and frame.f_globals["__name__"] != nn.Module.__module__:
            file = frame.f_code.co_filename
            text = linecache.getline(file, line).strip()
            name = names[id(owner)]
            place = f"module {name!r} ({type(owner).__name__})" if name else "its own code"
            place += f", {file}:{line} `{text}`"
    return place


def relu6_to_relu(graph: BrevitasGraph) -> BrevitasGraph:
    """Replace every ReLU6 by ReLU, so that equalization may scale through it."""
    return _apply(ModuleToModuleByClass(nn.ReLU6, nn.ReLU), graph)


@torch.no_grad()
def equalize(
    graph: BrevitasGraph, *, iterations: int, threshold: float, merge_bias: bool
) -> BrevitasGraph:
    """Equalize the weight ranges of connected layers, channel by channel.

    Args:
        graph: Traced model.
        iterations: At most.
        threshold: Stop when the mean change of the scales is smaller.
        merge_bias: Count the bias into the range of a channel.

    Reference:
        arXiv 1906.04721, section 4.1.
    """
    return _apply(
        EqualizeGraph(iterations=iterations, threshold=threshold, merge_bias=merge_bias), graph
    )


def finish(graph: BrevitasGraph) -> fx.GraphModule:
    """Return the graph in torch's own torch.fx, in evaluation mode, without gradients."""
    traced = fx.symbolic_trace(graph)
    traced.eval()
    traced.requires_grad_(False)
    return traced
