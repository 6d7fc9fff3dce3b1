# SPDX-License-Identifier: Apache-2.0
"""Run Brevitas's layer-wise solvers in one pass over the network.

Brevitas's contexts for GPTQ, GPFQ and Qronos stop the forward pass at the layer at work and start
at the image again for the next one: n layers cost n passes over the calibration images. The layers
before have their final weights by then, so their outputs can be kept instead. What each layer's
solver sees, its arithmetic and its order stay the same, and so do the weights, bit for bit
(``tests/benchmarks/test_brevitas_flow.py``). Measurements of accuracy use this; measurements of
Brevitas's speed do not.
"""

import contextlib
import warnings
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Brevitas warns on import about its own modules
    from brevitas.backport import fx
    from brevitas.graph.calibrate import quantization_status_manager
    from brevitas.graph.gpfq import gpfq_mode
    from brevitas.utils.torch_utils import StopFwdException

__all__ = ["solve_in_one_pass"]

_Held = dict[fx.Node, list[Any]]

_FLOAT: Final = {
    "disable_act_quant": True,
    "disable_weight_quant": True,
    "disable_bias_quant": True,
    "is_training": False,
}
"""How Brevitas runs the float model that GPFQ and Qronos compare with."""


@torch.no_grad()
def solve_in_one_pass(mode: Any, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Do what the loop over a mode's layers does.

    Args:
        mode: ``gptq_mode`` or ``gpfq_mode`` of a traced model, not entered yet.
        batches: Images, and labels that are not looked at.
    """
    with mode as algorithm:
        graph: fx.GraphModule = algorithm.model
        run = fx.Interpreter(graph)
        float_too = isinstance(mode, gpfq_mode)
        solved = {solver.layer for solver in algorithm.gpxq_layers.values()}
        held: _Held = {}
        floats: _Held = {}
        nodes = list(graph.graph.nodes)
        last = {source: node for node in nodes for source in node.all_input_nodes}
        for node in nodes:
            if node.op == "output":
                return
            if node.op == "placeholder":
                held[node] = [images for images, _ in batches]
                floats[node] = [images.clone() for images in held[node]]
                continue
            layer = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
            if layer in solved:
                for i in range(len(batches)):
                    _show(node, run, held, i)
                    if float_too:
                        with quantization_status_manager(graph, **_FLOAT):
                            _show(node, run, floats, i)
                algorithm.update()
            held[node] = _run(node, run, held, len(batches))
            if float_too:
                with quantization_status_manager(graph, **_FLOAT):
                    floats[node] = _run(node, run, floats, len(batches))
            for source in node.all_input_nodes:
                if last[source] is node:
                    held.pop(source)
                    floats.pop(source, None)


def _run(node: fx.Node, run: fx.Interpreter, held: _Held, batches: int) -> list[Any]:
    found = []
    for i in range(batches):
        run.env = {source: held[source][i] for source in node.all_input_nodes}
        found.append(run.run_node(node))
    return found


def _show(node: fx.Node, run: fx.Interpreter, held: _Held, batch: int) -> None:
    """Let a layer's solver see a batch of its input; it stops the layer from running."""
    run.env = {source: held[source][batch] for source in node.all_input_nodes}
    with contextlib.suppress(StopFwdException):
        run.run_node(node)
