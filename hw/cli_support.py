# SPDX-License-Identifier: Apache-2.0
"""What ``quantize synth`` does, as plain values ready to print."""

from typing import Any

from lutwise.errors import ConfigError, MismatchError
from lutwise.hw.dot_product import DotProduct, ProductStyle, applicable_styles
from lutwise.hw.synthesis import Flow, Synthesizer, measure
from lutwise.hw.verify import verify_dot_product
from lutwise.quant.formats import Format

__all__ = ["synthesize_dot_product"]

_AUTO = "auto"


def synthesize_dot_product(
    weights: Format,
    activations: Format,
    lanes: int,
    style: str = _AUTO,
    *,
    length: int = 1024,
    synthesizer: Synthesizer | None = None,
) -> dict[str, Any]:
    """Synthesize a dot-product unit, compare the netlist with its model and report.

    Args:
        weights: Format of the weights.
        activations: Format of the activations.
        lanes: Products per cycle.
        style: A product style, ``plain``, or ``auto`` for the smallest structured one.
            ``plain`` is mapped with abc9, which treats behavioural circuits best.
        length: Products of the longest dot product.
        synthesizer: The worker to use; by default one is started and ended.

    Returns:
        Formats, sizes (``luts``, ``luts_per_mac``, ``luts_raw``, ``carry8``, ``ffs``,
        ``depth``), ``style``, ``tool``, ``flow``, ``accumulator_bits``, ``verification`` and,
        for every style that was tried, its LUTs (``tried``).

    Raises:
        ConfigError: Unknown style, one that the formats do not allow, or bad sizes.
        ToolError: Synthesis failed.
        MismatchError: The netlist does not do what the model says.
    """
    styles = _styles(weights, activations, style)
    if synthesizer is None:
        with Synthesizer() as own:
            reports = [_report(_unit(weights, activations, lanes, length, s), own) for s in styles]
    else:
        reports = [
            _report(_unit(weights, activations, lanes, length, s), synthesizer) for s in styles
        ]
    best = min(reports, key=lambda report: (report["luts"], report["luts_raw"], report["depth"]))
    return {**best, "tried": {report["style"]: report["luts"] for report in reports}}


def _styles(weights: Format, activations: Format, style: str) -> tuple[ProductStyle, ...]:
    if style == _AUTO:
        return applicable_styles(weights, activations)
    try:
        return (ProductStyle(style),)
    except ValueError as error:
        known = ", ".join([_AUTO, *(known.value for known in ProductStyle)])
        raise ConfigError(f"no style {style!r}; wanted one of {known}") from error


def _unit(
    weights: Format, activations: Format, lanes: int, length: int, style: ProductStyle
) -> DotProduct:
    return DotProduct(
        weights=weights, activations=activations, lanes=lanes, length=length, style=style
    )


def _report(unit: DotProduct, synthesizer: Synthesizer) -> dict[str, Any]:
    flow = Flow.ABC9 if unit.style is ProductStyle.PLAIN else Flow.LEAN
    netlist = synthesizer.map(unit.emit(), "dot_product", flow=flow)
    result = measure(netlist, flow=flow)
    proof = verify_dot_product(unit, netlist)
    if not proof.passed:
        raise MismatchError(f"{unit.name}: {proof.mismatches} mismatches, {proof.first_mismatch}")
    return {
        "weights": str(unit.weights),
        "activations": str(unit.activations),
        "lanes": unit.lanes,
        "length": unit.length,
        "style": unit.style.value,
        "luts": result.luts,
        "luts_per_mac": result.luts / unit.lanes,
        "luts_raw": result.luts_raw,
        "carry8": result.carry8,
        "ffs": result.ffs,
        "depth": result.depth,
        "accumulator_bits": unit.accumulator_bits,
        "product_bits": unit.product_bits,
        "unit_exponent": unit.unit_exponent,
        "tool": result.tool,
        "flow": result.flow,
        "verification": proof.to_dict(),
    }
