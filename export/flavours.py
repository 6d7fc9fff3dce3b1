# SPDX-License-Identifier: Apache-2.0
"""Files for particular tools, each proven against the exact executor before it is handed out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from lutwise.errors import MismatchError
from lutwise.export.check import Comparison, check
from lutwise.export.finn import to_finn
from lutwise.export.hls4ml import to_hls4ml
from lutwise.export.runnable import Runner, of_file, of_network
from lutwise.quant.network import Network

__all__ = ["Flavour", "FlavourCheck", "prove", "to_flavour"]


class Flavour(StrEnum):
    """A tool that wants a file of its own."""

    FINN = "finn"
    HLS4ML = "hls4ml"


_WRITERS: Final[Mapping[Flavour, Callable[[Network], onnx.ModelProto]]] = {
    Flavour.FINN: to_finn,
    Flavour.HLS4ML: to_hls4ml,
}

_FLOAT32: Final = 2.0**-22
"""Relative difference of a float32 output that two roundings may make."""

_RARE: Final = 1e-3
"""Share of hls4ml's codes that qonnx, which computes them in float32, may round another way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlavourCheck:
    """How a file compares with its network.

    Args:
        executor: What ran the file.
        images: How many.
        numbers: Output numbers and codes between layers compared.
        differing: Of these.
        largest_output_difference: Largest difference of an output number.
    """

    executor: str
    images: int
    numbers: int
    differing: int
    largest_output_difference: float


def to_flavour(network: Network, flavour: Flavour) -> onnx.ModelProto:
    """Write a network for a tool.

    Raises:
        ExportError: The tool has no form for a node or a format; it is named, with the reason.
    """
    return _WRITERS[flavour](network)


def prove(
    network: Network, model: onnx.ModelProto, flavour: Flavour, images: npt.NDArray[np.float32]
) -> FlavourCheck:
    """Compare a file, run in qonnx, with its network in the exact executor, tensor by tensor.

    Codes have to be equal. A float32 output may differ by float32's rounding; and of hls4ml's
    file, whose factors qonnx multiplies in float32, one code in a thousand by one unit.

    Args:
        network: What the file was made of.
        model: The file.
        flavour: The tool that it is for.
        images: Shape (n, *input shape), channels first.

    Raises:
        MismatchError: They differ by more; the first tensor that does is named.
    """
    found = check(
        of_network(network, "exact"),
        of_file(Runner.QONNX, model, f"qonnx:{flavour}"),
        images,
    )
    ends = network.tensors[network.output]
    differences = [d for d in found.differences if d.tensor != network.output or ends.format]
    differing = sum(d.differing for d in differences)
    numbers = found.outputs + sum(
        len(images) * int(np.prod(network.tensors[n.output].shape))
        for n in network.nodes
        if network.tensors[n.output].format is not None
    )
    allowed = _RARE * numbers if flavour is Flavour.HLS4ML else 0
    output = found.output.largest if found.output else 0.0
    rounds = ends.format is None and found.output is not None and not differing
    if differing > allowed or (rounds and not _within_rounding(found)):
        found.raise_if_differs()
        first = found.differences[0]
        raise MismatchError(
            f"the file for {flavour}: {differing} of {numbers} codes differ, the first in "
            f"{first.tensor!r} of {first.operator} {first.node!r} at {first.first}: "
            f"{first.values[0]!r} and {first.values[1]!r}"
        )
    return FlavourCheck(
        executor="qonnx",
        images=len(images),
        numbers=numbers,
        differing=differing,
        largest_output_difference=output,
    )


def _within_rounding(found: Comparison) -> bool:
    assert found.output is not None
    return found.output.largest <= _FLOAT32 * found.output.magnitude
