# SPDX-License-Identifier: Apache-2.0
"""Which layers dominate the loss of a quantized model, why, and what to try."""

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Final

from lutwise.quant.diagnose import LayerKind, LayerNoise, OwnQuantizer, PointNoise
from lutwise.quant.formats import FloatFormat, IntFormat, parse_element, values

__all__ = ["Advice", "Cause", "advise"]

_SMALL_LOSS_DB: Final = 30.0
"""From here on nothing is worth a word: an error of a thousandth of the logits' power."""

_DOMINANT_SHARE: Final = 0.25
"""Share of the final error from which a layer is named ..."""

_DOMINANT_FACTOR: Final = 3.0
"""... if it is also so many times the median share of the other layers."""

_CLIPPED: Final = 0.02
"""Share of clipped numbers that is high. The range of least squared error clips 1 % of normally
distributed numbers at 4 bits, and less at more."""

_LOW_DB: Final = 15.0
"""Signal to noise that is low: the best grid of 8 values (3 bits) gives normally distributed
numbers 14.6 dB, that of 16 values 20.2 dB (J. Max, Quantizing for minimum distortion, 1960)."""

_DEAD_CODES: Final = 0.25
"""Share of a weight format's values without use that is high ..."""

_WEIGHTS_PER_VALUE: Final = 8
"""... where there are so many weights per value of the format; few weights leave codes free."""


class Cause(StrEnum):
    """Why a layer dominates, as far as its numbers tell."""

    DEPTHWISE = "depthwise"
    DEAD_CODES = "dead codes"
    COARSE_WEIGHTS = "coarse weights"
    CLIPPED = "clipped activations"
    COARSE_ACTIVATIONS = "coarse activations"
    SENSITIVE = "sensitive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A layer that dominates the loss, or a quantizer that belongs to none.

    Args:
        layer: Module name; of a quantizer, the node's.
        share: Its share of the final error.
        causes: What its numbers show, at least one.
        text: What was seen and what to try, for people.
        override: Item for ``overrides`` in a recipe (YAML) that gives more bits; empty where the
            formats have 8 already.
    """

    layer: str
    share: float
    causes: tuple[Cause, ...]
    text: str
    override: str


def advise(
    rows: Sequence[LayerNoise], points: Sequence[PointNoise] = (), *, logits_sqnr_db: float
) -> list[Advice]:
    """Name the layers that dominate the loss, worst first.

    A layer is named where its share of the final error is at least 25 % and at least 3 times the
    median share of the other layers, unless the logits' signal to noise is 30 dB or more. Its
    causes, of which several may hold, are looked for where the share was measured: in its weights
    and in the quantizer that belongs to it. (The noise of its whole output tells less: most of it
    comes from the layers before.)

    - depthwise: a depthwise convolution of less than 8 bits, whose few products per output do
      not average out;
    - dead codes: weights below 15 dB, and a quarter of their format's values without use (counted
      where there are 8 weights per value): outliers stretch the scale;
    - coarse weights: weights below 15 dB otherwise;
    - clipped activations: 2 % of the numbers or more are beyond the quantizer's range;
    - coarse activations: the quantizer by itself leaves less than 15 dB without clipping much;
    - sensitive: none of these; the output just depends on it.

    Quantizers that belong to no layer are named by the same rule.

    Args:
        rows: All layers of a model.
        points: Its quantizers that belong to no layer.
        logits_sqnr_db: Of the whole model.
    """
    if logits_sqnr_db >= _SMALL_LOSS_DB:
        return []
    shares = [row.error_share for row in rows]
    found = []
    for i, row in enumerate(rows):
        typical = _typical(shares[:i] + shares[i + 1 :])
        if _dominates(row.error_share, typical):
            causes = tuple(_causes(row)) or (Cause.SENSITIVE,)
            found.append(
                Advice(
                    layer=row.layer,
                    share=row.error_share,
                    causes=causes,
                    text=_text(row, causes, typical),
                    override=_override(row, causes),
                )
            )
    typical = _typical(shares)
    found += [_of_point(p, typical) for p in points if _dominates(p.error_share, typical)]
    return sorted(found, key=lambda advice: -advice.share)


def _typical(shares: Sequence[float]) -> float:
    return max(0.0, median(shares)) if shares else 0.0


def _dominates(share: float, typical: float) -> bool:
    return share >= max(_DOMINANT_SHARE, _DOMINANT_FACTOR * typical)


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _makes(share: float, typical: float) -> str:
    times = f", {share / typical:.0f} times a usual layer's" if typical > 0 else ""
    return f"makes {_percent(share)} of the final error{times}"


def _against_clipping(clipped: float, what: str) -> str:
    return (
        f"{_percent(clipped, 1)} of its {what} are beyond the range: try another "
        "activations.range (percentile, mse, max), or wider activations."
    )


def _of_point(point: PointNoise, typical: float) -> Advice:
    clipped = point.clipped >= _CLIPPED
    remedy = _against_clipping(point.clipped, "numbers") if clipped else "Give it more bits."
    return Advice(
        layer=point.node,
        share=point.error_share,
        causes=(Cause.CLIPPED if clipped else Cause.COARSE_ACTIVATIONS,),
        text=(
            f"{point.node} ({point.format}), a quantizer that belongs to no layer, "
            f"{_makes(point.error_share, typical)}. {remedy} The key of a recipe is `input` for "
            "the image and `activations` for sums and averages."
        ),
        override="",
    )


@dataclass(frozen=True, slots=True)
class _Quantizer:
    """The quantizer that belongs to a layer, and whose format an override can change."""

    what: str
    format: str
    clipped: float
    rounding_db: float


def _quantizer(row: LayerNoise) -> _Quantizer | None:
    if row.quantizer is OwnQuantizer.INPUT:
        return _Quantizer("inputs", row.inputs, row.inputs_clipped, row.input_rounding_db)
    if row.quantizer is OwnQuantizer.NONE:
        return None
    assert row.outputs_clipped is not None
    assert row.output_rounding_db is not None
    return _Quantizer("outputs", row.outputs, row.outputs_clipped, row.output_rounding_db)


def _causes(row: LayerNoise) -> Iterator[Cause]:
    if row.kind is LayerKind.DEPTHWISE and _wider(row.weights):
        yield Cause.DEPTHWISE
    if row.weight_sqnr_db < _LOW_DB:
        many = row.weight_count >= _WEIGHTS_PER_VALUE * len(values(parse_element(row.weights)))
        dead = many and row.weight_codes_dead >= _DEAD_CODES
        yield Cause.DEAD_CODES if dead else Cause.COARSE_WEIGHTS
    own = _quantizer(row)
    if own is None:
        return
    if own.clipped >= _CLIPPED:
        yield Cause.CLIPPED
    elif own.rounding_db < _LOW_DB:
        yield Cause.COARSE_ACTIVATIONS


def _text(row: LayerNoise, causes: Sequence[Cause], typical: float) -> str:
    own = _quantizer(row)
    activations = f", {own.format} {own.what} {own.rounding_db:.1f} dB" if own else ""
    seen = (
        f"{row.layer} ({row.kind}) {_makes(row.error_share, typical)}; its {row.weights} weights "
        f"keep {row.weight_sqnr_db:.1f} dB{activations}."
    )
    return " ".join([seen, *(_remedy(row, own, cause) for cause in causes)])


def _remedy(row: LayerNoise, own: _Quantizer | None, cause: Cause) -> str:
    match cause:
        case Cause.DEPTHWISE:
            return (
                "A depthwise convolution sums few products, so its errors do not average out: give "
                "its weights 8 bits."
            )
        case Cause.DEAD_CODES:
            per_channel = "" if row.weight_scales > 1 else "weights.granularity: channel, "
            dead, lost = _percent(row.weight_codes_dead), _percent(row.weights_at_zero)
            return (
                f"{dead} of the {row.weights} codes are never taken and {lost} of the weights "
                f"became zero, so outliers stretch the scale: try {per_channel}the equalize "
                "algorithm, or more weight bits."
            )
        case Cause.COARSE_WEIGHTS:
            return "Its weights are too coarse: give them more bits."
        case Cause.CLIPPED:
            assert own is not None
            return _against_clipping(own.clipped, own.what)
        case Cause.COARSE_ACTIVATIONS:
            assert own is not None
            return f"Its {own.what} are too coarse: give them more bits."
        case Cause.SENSITIVE:
            return "These are good numbers; the network depends on it: give it more bits."


_ON_WEIGHTS: Final = frozenset(
    {Cause.DEPTHWISE, Cause.DEAD_CODES, Cause.COARSE_WEIGHTS, Cause.SENSITIVE}
)
_ON_ACTIVATIONS: Final = frozenset({Cause.CLIPPED, Cause.COARSE_ACTIVATIONS, Cause.SENSITIVE})


def _override(row: LayerNoise, causes: Sequence[Cause]) -> str:
    """Return the item of a recipe that gives 8 bits where the causes ask for more."""
    changes = []
    if _ON_WEIGHTS.intersection(causes) and (wide := _wider(row.weights)):
        changes.append(f"weights: {wide}")
    own = _quantizer(row)
    if own and _ON_ACTIVATIONS.intersection(causes) and (wide := _wider(own.format)):
        changes.append(f"activations: {wide}")
    if not changes:
        return ""
    name = json.dumps(glob.escape(row.layer), ensure_ascii=False)
    return f"- {{layers: {name}, {', '.join(changes)}}}"


def _wider(name: str) -> str | None:
    """Return the format of 8 bits of the same family; None for what has 8 bits already."""
    fmt = parse_element(name)
    if fmt.bits == 8:
        return None
    if isinstance(fmt, IntFormat):
        return IntFormat(bits=8, signed=fmt.signed).name
    return FloatFormat(
        exponent_bits=fmt.exponent_bits,
        mantissa_bits=8 - fmt.signed - fmt.exponent_bits,
        signed=fmt.signed,
    ).name
