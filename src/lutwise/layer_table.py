# SPDX-License-Identifier: Apache-2.0
"""The table of layers: what each costs, what quantization does to it, what algorithms gained."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import floor, log10
from typing import Any, Final

from lutwise.cost_models.estimate import LayerCost
from lutwise.quant.diagnose import LayerNoise

__all__ = ["GAIN_SUFFIX", "layer_rows", "layers_csv"]

GAIN_SUFFIX: Final = "_gain_db"
"""Ends the name of the column of an algorithm."""

_DIGITS: Final = 6
_NO_CHANGES: Final[Mapping[str, Mapping[str, float]]] = {}


def layer_rows(
    noises: Sequence[LayerNoise],
    costs: Sequence[LayerCost] | None,
    changes: Mapping[str, Mapping[str, float]] = _NO_CHANGES,
) -> list[dict[str, Any]]:
    """Return one row per layer; all have the same keys, the columns of ``layers.csv``.

    Args:
        noises: The layers.
        costs: Their prices in the same order; None where the model has no form for hardware.
        changes: By layer node and algorithm: by how many decibels the algorithm raised the signal
            to noise ratio of the layer's output. Each algorithm gets a column, which is empty for
            layers that it left alone.
    """
    algorithms = list(dict.fromkeys(name for found in changes.values() for name in found))
    prices = [None] * len(noises) if costs is None else costs
    rows = []
    for noise, price in zip(noises, prices, strict=True):
        values = asdict(noise)
        node = values.pop("node")
        names = ("layer", "kind", "weights", "inputs", "outputs", "weight_count", "weight_scales")
        row = {name: values.pop(name) for name in names}
        if price is not None:
            row |= _price(price)
        row |= {name: _rounded(value) for name, value in values.items()}
        gains = changes.get(node, {})
        row |= {f"{name}{GAIN_SUFFIX}": _rounded(gains.get(name)) for name in algorithms}
        rows.append(row)
    return rows


def _price(cost: LayerCost) -> dict[str, Any]:
    shape = cost.shape
    return {
        "macs": shape.macs,
        "dot_length": shape.dot_length,
        "accumulator_bits": shape.accumulator_bits,
        "luts_per_mac": round(cost.lut_per_mac.value, 3),
        "price": cost.lut_per_mac.source.value,
        "pe": cost.folding.pe,
        "simd": cost.folding.simd,
        "dot_product_luts": round(cost.folded.dot_product_luts, 1),
        "requantizer_luts": round(cost.folded.requantizer_luts, 1),
        "memory_luts": round(cost.folded.weight_luts + cost.folded.buffer_luts, 1),
        "control_luts": round(cost.folded.control_luts, 1),
        "block_rams": cost.folded.block_rams,
        "cycles": cost.folded.cycles,
    }


def _rounded(value: Any) -> Any:
    """Return a number with as many digits as mean something; anything else as it is."""
    if not isinstance(value, float) or value == 0:
        return value
    return round(value, _DIGITS - 1 - floor(log10(abs(value))))


def layers_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the table as CSV; what is None is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
