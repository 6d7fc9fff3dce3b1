# SPDX-License-Identifier: Apache-2.0
"""What ``quantize synth`` does, as plain values ready to print."""

from typing import Any, Final

from lutwise.errors import ConfigError, MismatchError
from lutwise.hw.architecture import Architecture
from lutwise.hw.dot_product import LENGTH, DotProduct, smallest_units
from lutwise.hw.synthesis import Synthesizer, measure
from lutwise.hw.verify import verify_dot_product
from lutwise.quant.formats import Format

__all__ = ["synthesize_dot_product"]

_AUTO: Final = "auto"


def synthesize_dot_product(
    weights: Format,
    activations: Format,
    lanes: int,
    style: str = _AUTO,
    *,
    length: int = LENGTH,
    synthesizer: Synthesizer | None = None,
) -> dict[str, Any]:
    """Synthesize a dot-product unit, compare the netlist with its model and report.

    Args:
        weights: Format of the weights.
        activations: Format of the activations.
        lanes: Products per cycle.
        style: An architecture, ``plain``, or ``auto`` for the smallest of those with the fewest
            counted sites. ``plain`` is mapped with abc9, which treats behavioural circuits best.
        length: Products of the longest dot product.
        synthesizer: The worker to use; by default one is started and ended.

    Returns:
        Formats, sizes (``luts``, ``luts_per_mac``, ``luts_raw``, ``carry8``, ``ffs``,
        ``depth``, ``delay_ns``), the LUTs counted before synthesis (``counted_sites``, ``None``
        for ``plain``), ``style``, ``tool``, ``flow``, ``accumulator_bits``, ``verification``
        and, for every architecture that was built, its LUTs (``tried``).

    Raises:
        ConfigError: Unknown architecture, one that the formats do not allow, or bad sizes.
        ToolError: Synthesis failed.
        MismatchError: The netlist does not do what the model says.
    """
    units = _units(weights, activations, lanes, style, length)
    if synthesizer is None:
        with Synthesizer() as own:
            reports = [_report(unit, own) for unit in units]
    else:
        reports = [_report(unit, synthesizer) for unit in units]
    best = min(reports, key=lambda report: (report["luts"], report["luts_raw"], report["depth"]))
    return {**best, "tried": {report["style"]: report["luts"] for report in reports}}


def _units(
    weights: Format, activations: Format, lanes: int, style: str, length: int
) -> tuple[DotProduct, ...]:
    if style == _AUTO:
        return smallest_units(weights, activations, lanes, length=length)
    try:
        architecture = Architecture.parse(style)
    except ConfigError as error:
        raise ConfigError(f"{error}; or {_AUTO}") from error
    return (
        DotProduct(
            weights=weights,
            activations=activations,
            lanes=lanes,
            length=length,
            architecture=architecture,
        ),
    )


def _report(unit: DotProduct, synthesizer: Synthesizer) -> dict[str, Any]:
    flow = unit.architecture.flow
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
        "style": str(unit.architecture),
        "luts": result.luts,
        "luts_per_mac": result.luts / unit.lanes,
        # The plain unit leaves all structure to the synthesizer.
        "counted_sites": sum(unit.counted_sites().values()) or None,
        "luts_raw": result.luts_raw,
        "carry8": result.carry8,
        "ffs": result.ffs,
        "depth": result.depth,
        "delay_ns": result.delay_ns,
        "accumulator_bits": unit.accumulator_bits,
        "product_bits": unit.product_bits,
        "unit_exponent": unit.unit_exponent,
        "tool": result.tool,
        "flow": result.flow,
        "verification": proof.to_dict(),
    }
