# SPDX-License-Identifier: Apache-2.0
"""Layer units of quantized networks, and the vectors that their layers work on."""

from fractions import Fraction
from math import ceil
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from lutwise.errors import ConfigError
from lutwise.hw.bounds import code_integers, is_legal
from lutwise.hw.constant_unit import ConstantUnit, Registers
from lutwise.hw.dot_product import smallest_architecture
from lutwise.hw.layer_unit import LayerUnit
from lutwise.hw.output_stage import OutputStage
from lutwise.hw.weighted_layer import MOST_SUM_BITS
from lutwise.quant.network import Conv, Linear, Network
from lutwise.quant.numerics import encode

__all__ = ["constant_unit", "differing", "layer_results", "layer_unit", "layer_vectors"]

_MOST_FLOAT_BITS: Final = 53
"""Of sums whose float32 results the executor rounds as the exact sum."""


def layer_unit(
    network: Network,
    node: Conv | Linear,
    *,
    name: str,
    pe: int,
    simd: int,
    pipeline: bool = False,
    weights_inside: bool = True,
) -> LayerUnit:
    """Return the unit of a layer, with its weights and its exact requantization.

    Args:
        network: Of the layer.
        node: The layer.
        name: Of the module.
        pe: Outputs side by side; clipped to what a group has.
        simd: Products per output and cycle; clipped to what an output has.
        pipeline: Registers inside the dot products.
        weights_inside: Whether the unit holds its weights in LUTs.

    Raises:
        ConfigError: The sums of the layer are wider than a unit's accumulator.
    """
    activations = network.tensors[node.input].format
    assert activations is not None
    most = MOST_SUM_BITS if node.requantizer else _MOST_FLOAT_BITS
    if node.accumulator.bits > most:
        raise ConfigError(
            f"layer {node.name!r}: its sums of {node.weight_format} times {activations} take "
            f"{node.accumulator.bits} bits, the unit of such a layer has {most} at most; use "
            "formats with fewer exponent bits"
        )
    groups = node.groups if isinstance(node, Conv) else 1
    codes = node.weight_codes.astype(np.int64)
    outputs = codes.shape[0] // groups
    codes = codes.reshape(groups, outputs, -1)
    pe, simd = min(pe, outputs), min(simd, codes.shape[2])
    return LayerUnit(
        name=name,
        weights=node.weight_format,
        activations=activations,
        weight_codes=codes,
        accumulator_bits=max(3, node.accumulator.bits),
        stage=_output_stage(network, node, lane_channels=groups * ceil(outputs / pe)),
        bias=tuple(int(code) for code in node.bias_codes),
        pe=pe,
        simd=simd,
        architecture=smallest_architecture(node.weight_format, activations, simd),
        pipeline=pipeline,
        weights_inside=weights_inside,
    )


def constant_unit(
    network: Network,
    node: Conv | Linear,
    *,
    name: str,
    registers: Registers = Registers.NONE,
    share: bool = True,
) -> ConstantUnit:
    """Return a unit that computes all outputs of a layer at one position in each cycle.

    Args:
        network: Of the layer.
        node: The layer.
        name: Of the module.
        registers: Where there are registers.
        share: Whether sums that several outputs need are made once.

    Raises:
        ConfigError: The sums of the layer are wider than a unit's accumulator.
    """
    activations = network.tensors[node.input].format
    assert activations is not None
    most = MOST_SUM_BITS if node.requantizer else _MOST_FLOAT_BITS
    if node.accumulator.bits > most:
        raise ConfigError(
            f"layer {node.name!r}: its sums of {node.weight_format} times {activations} take "
            f"{node.accumulator.bits} bits, a constant unit of such a layer has {most} at most; "
            "use formats with fewer exponent bits"
        )
    groups = node.groups if isinstance(node, Conv) else 1
    codes = node.weight_codes.astype(np.int64)
    return ConstantUnit(
        name=name,
        weights=node.weight_format,
        activations=activations,
        weight_codes=codes.reshape(groups, codes.shape[0] // groups, -1),
        accumulator_bits=max(3, node.accumulator.bits),
        stage=_output_stage(network, node),
        bias=tuple(int(code) for code in node.bias_codes),
        registers=registers,
        share=share,
    )


def _output_stage(
    network: Network, node: Conv | Linear, *, lane_channels: int | None = None
) -> OutputStage | None:
    """Return the requantizer in integers, with one shift for all channels."""
    if node.requantizer is None:
        return None
    output = network.tensors[node.output].format
    assert output is not None
    channels = node.weight_codes.shape[0]
    move = node.accumulator.unit_exponent - output.unit_exponent
    shifts = np.broadcast_to(node.requantizer.shift, (channels,)) - move
    common = max(0, int(shifts.max()))
    multipliers = np.broadcast_to(node.requantizer.multiplier, (channels,))
    unit = Fraction(2) ** output.unit_exponent
    return OutputStage(
        output=output,
        bias=tuple(int(code) for code in node.bias_codes),
        multipliers=tuple(
            int(multiplier) << (common - int(shift))
            for multiplier, shift in zip(multipliers, shifts, strict=True)
        ),
        shift=common,
        low=int(Fraction(node.requantizer.low) / unit),
        high=int(Fraction(node.requantizer.high) / unit),
        lane_channels=lane_channels,
    )


def layer_vectors(
    network: Network, node: Conv | Linear, inputs: npt.NDArray[np.floating]
) -> npt.NDArray[np.int64]:
    """Return the codes that a layer multiplies with its weights, position by position.

    Args:
        network: Of the layer.
        node: The layer.
        inputs: Values of its input tensor, batch first.

    Returns:
        Shape (positions of all samples, groups, products).
    """
    fmt = network.tensors[node.input].format
    assert fmt is not None
    if isinstance(node, Linear):
        return encode(fmt, inputs.reshape(-1, 1, inputs.shape[-1])).astype(np.int64)
    top, left, bottom, right = node.padding
    x = F.pad(torch.from_numpy(inputs).double(), (left, right, top, bottom))
    kernel = node.weight_codes.shape[2:]
    columns = F.unfold(x, kernel, dilation=node.dilation, stride=node.stride)
    vectors = columns.transpose(1, 2).reshape(-1, node.groups, columns.shape[1] // node.groups)
    return encode(fmt, vectors.numpy()).astype(np.int64)


def layer_results(
    node: Conv | Linear, outputs: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Return the values of a layer's output tensor, shape (positions of all samples, channels)."""
    channels = node.weight_codes.shape[0]
    moved = outputs if isinstance(node, Linear) else np.moveaxis(outputs, 1, -1)
    return moved.reshape(-1, channels).astype(np.float64)


def differing(
    network: Network,
    node: Conv | Linear,
    results: npt.NDArray[np.int64],
    wanted: npt.NDArray[np.float64],
) -> npt.NDArray[np.bool_]:
    """Tell where results of a unit are not the executor's.

    Args:
        network: Of the layer.
        node: The layer.
        results: Codes, or sums of a layer with float32 output, shape (positions, channels).
        wanted: Values of the executor, as ``layer_results`` gives them. The two zeros of a
            minifloat are the same number.
    """
    output = network.tensors[node.output].format
    if output is not None:
        codes = encode(output, wanted)
        same = np.equal(code_integers(output)[results], code_integers(output)[codes])
        found: npt.NDArray[np.bool_] = ~(same.astype(np.bool_) & is_legal(output)[results])
        return found
    unit = 2.0**node.accumulator.unit_exponent
    source = network.tensors[node.input].scale
    scales = np.array([float(source * scale) for scale in node.weight_scales])
    found = (results * unit * scales).astype(np.float32) != wanted
    return found
