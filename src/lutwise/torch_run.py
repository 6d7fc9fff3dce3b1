# SPDX-License-Identifier: Apache-2.0
"""The fake quantization of a finished run, as something that can be compared with its files."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from lutwise.cost_models.folding import Folding
from lutwise.errors import ModelError
from lutwise.export.runnable import NETWORK_FILE, Maker, Runnable
from lutwise.job import load_job
from lutwise.machine import use_threads
from lutwise.point import Point
from lutwise.quant.models import load_model
from lutwise.quant.network import Network
from lutwise.quant.network_file import load_network
from lutwise.quant.numerics import quantize
from lutwise.quant.progress import silent
from lutwise.quant.quantized import Interpreter, QuantizedModel
from lutwise.quant.recipe import load_recipe
from lutwise.run_directory import read_origin
from lutwise.workspace import Steps

__all__ = ["torch_runnable"]


def torch_runnable(folder: Path) -> Runnable:
    """Return the quantized torch model of a run; what the run kept is not computed again.

    Args:
        folder: The run directory.

    Raises:
        ModelError: The model is another than the run's, or its code would have to be trusted.
        LutwiseError: The model or the images of the run cannot be loaded again.
    """
    network = load_network(folder / NETWORK_FILE)
    origin = read_origin(folder)
    options = origin.command
    if "model" not in options:
        raise ModelError(f"{folder} does not say how its model was loaded; run it again")
    recipe = load_recipe(folder / "recipe.yaml")
    use_threads(origin.threads)
    model = load_model(options["model"], arch=options["arch"])
    if model.sha256 != origin.model_sha256:
        raise ModelError(
            f"{options['model']} holds other weights than when {folder} was made; run it again"
        )
    job = load_job(
        replace(model, preprocessing=origin.preprocessing),
        calib=options["calib"],
        evaluation=None,
        calib_images=recipe.calibration.images,
        eval_images=None,
        seed=recipe.seed,
        folding=Folding(),
        check_images=0,
        threads=origin.threads,
    )
    point = Point(job, recipe, Steps(folder / ".steps", folder / "events.jsonl"), silent)
    return of_model(point.quantized(point.prepared()), network, f"torch:{folder}")


def of_model(model: QuantizedModel, network: Network, name: str) -> Runnable:
    """Return what runs a quantized torch model and tells the tensors that its network has.

    Args:
        model: The model.
        network: What it was lowered to.
        name: For people.
    """

    @torch.no_grad()
    def run(images: npt.NDArray[np.float32], batch: int) -> Iterator[dict[str, npt.NDArray[Any]]]:
        for start in range(0, len(images), batch):
            seen = _Watch(model)
            seen.run(torch.from_numpy(images[start : start + batch]))
            yield {
                tensor: _values(network, tensor, real)
                for tensor, real in seen.found.items()
                if tensor in network.tensors
            }

    return Runnable(
        name=name,
        image_shape=network.tensors[network.input].shape,
        output=network.output,
        makers={n.output: Maker(node=n.name, operator=type(n).__name__) for n in network.nodes},
        run=run,
    )


def _values(network: Network, name: str, real: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """Return a tensor's values: real numbers of the fake quantization are values times a scale."""
    spec = network.tensors[name]
    if spec.format is None:
        return real
    return quantize(spec.format, real.astype(np.float64) / float(spec.scale))


class _Watch(Interpreter):
    """Keeps what each node gives."""

    def __init__(self, model: QuantizedModel) -> None:
        super().__init__(model)
        self.found: dict[str, npt.NDArray[np.float32]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and keep its result, and the quantized input of a layer."""
        if before := self._model.layer_inputs.get(n.name):
            source = n.all_input_nodes[0]
            name = "input" if source.op == "placeholder" else source.name
            self.found[f"{name}.quantized"] = before(self.env[source]).numpy()
        result = super().run_node(n)
        if isinstance(result, torch.Tensor) and n.op != "output":
            self.found[n.name] = result.numpy()
        return result
