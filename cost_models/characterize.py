# SPDX-License-Identifier: Apache-2.0
"""Rebuild the tables of units: ``quantize atlas``.

Of every unit the architectures with the fewest counted sites are synthesized, every netlist is
compared with its exact model, and the smallest one goes into the table. Finished units are kept
by content, so that a run that was stopped continues where it was.
"""

import csv
import io
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lutwise.cost_models.requantizer_units import RequantizerKey, requantizer_units
from lutwise.cost_models.units import LENGTH, UnitKey, atlas_units, diagonal_units
from lutwise.errors import MismatchError
from lutwise.files import write_atomic
from lutwise.hw.dot_product import DotProduct, smallest_units
from lutwise.hw.requantizer import Requantizer, typical_shift, verify_requantizer
from lutwise.hw.store import content_key
from lutwise.hw.synthesis import Synthesizer, measure, tool_name
from lutwise.hw.verify import verify_dot_product

__all__ = [
    "DOT_PRODUCT_COLUMNS",
    "PROOF_COLUMNS",
    "candidates",
    "characterize_dot_product",
    "characterize_requantizer",
    "rebuild",
]

DOT_PRODUCT_COLUMNS: Final = (
    "weights",
    "activations",
    "lanes",
    "luts",
    "carry8",
    "ffs",
    "depth",
    "style",
    "tool",
    "delay_ns",
)

PROOF_COLUMNS: Final = (
    "weights",
    "activations",
    "lanes",
    "luts_raw",
    "accumulator_bits",
    "vectors",
    "exhaustive",
    "verilog",
)
"""How each row came about: LUT functions before packing, what its netlist was compared on, and the
hash of the Verilog."""

VECTORS: Final = 100_000
"""Random vectors that a netlist is compared on when its operands cannot all be tried."""

_MANY_LANES: Final = 8

REQUANTIZER_COLUMNS: Final = (
    "accumulator_bits",
    "output",
    "multiplier_bits",
    "shift",
    "luts",
    "carry8",
    "ffs",
    "depth",
    "tool",
    "luts_raw",
    "vectors",
)

Row = dict[str, Any]


@cache
def _synthesizer() -> Synthesizer:
    return Synthesizer()


def candidates(unit: UnitKey) -> tuple[DotProduct, ...]:
    """Return the units worth building: the architectures with the fewest counted sites.

    Of many lanes it is one, since synthesis takes long and the counts are good.
    """
    formats = unit.weight_format, unit.activation_format
    if unit.lanes > _MANY_LANES:
        return smallest_units(*formats, unit.lanes, length=LENGTH, most=1)
    return smallest_units(*formats, unit.lanes, length=LENGTH)


def characterize_dot_product(unit: UnitKey) -> Row:
    """Build one row of the atlas: the smallest of the candidates.

    Raises:
        ToolError: Synthesis failed.
        MismatchError: A netlist does not do what its model says.
    """
    rows = [_characterize(unit, dot) for dot in candidates(unit)]
    return min(rows, key=lambda row: (row["luts"], row["luts_raw"], row["depth"]))


def _characterize(unit: UnitKey, dot: DotProduct) -> Row:
    synthesizer = _synthesizer()
    verilog = dot.emit()
    key = content_key("dot product row", dot.name, verilog, tool_name(), str(VECTORS))
    if (kept := synthesizer.store.get(key)) and {*DOT_PRODUCT_COLUMNS, *PROOF_COLUMNS} <= set(kept):
        return kept
    flow = dot.architecture.flow
    netlist = synthesizer.map(verilog, "dot_product", flow=flow)
    result = measure(netlist, flow=flow)
    proof = verify_dot_product(dot, netlist, vectors=VECTORS)
    if not proof.passed:
        raise MismatchError(f"{dot.name}: {proof.mismatches} mismatches, {proof.first_mismatch}")
    row = {
        "weights": unit.weights,
        "activations": unit.activations,
        "lanes": unit.lanes,
        "luts": result.luts,
        "carry8": result.carry8,
        "ffs": result.ffs,
        "depth": result.depth,
        "style": str(dot.architecture),
        "tool": result.tool,
        "delay_ns": result.delay_ns,
        "luts_raw": result.luts_raw,
        "accumulator_bits": dot.accumulator_bits,
        "vectors": proof.vectors,
        "exhaustive": int(proof.exhaustive),
        "verilog": content_key(verilog)[:16],
    }
    synthesizer.store.put(key, row)
    return row


def characterize_requantizer(unit: RequantizerKey) -> Row:
    """Build one row of the table of requantizers.

    Raises:
        ToolError: Synthesis failed.
        MismatchError: The netlist does not do what the model says.
    """
    synthesizer = _synthesizer()
    circuit = Requantizer(
        accumulator_bits=unit.accumulator_bits,
        output=unit.output_format,
        shift=typical_shift(unit.accumulator_bits, unit.output_format),
    )
    verilog = circuit.emit()
    key = content_key("requantizer row", circuit.name, verilog, tool_name())
    if (kept := synthesizer.store.get(key)) and set(REQUANTIZER_COLUMNS) <= set(kept):
        return kept
    netlist = synthesizer.map(verilog, "requantizer")
    result = measure(netlist)
    proof = verify_requantizer(circuit, netlist)
    if not proof.passed:
        raise MismatchError(
            f"{circuit.name}: {proof.mismatches} mismatches, {proof.first_mismatch}"
        )
    row = {
        "accumulator_bits": unit.accumulator_bits,
        "output": unit.output,
        "multiplier_bits": circuit.multiplier_bits,
        "shift": circuit.shift,
        "luts": result.luts,
        "carry8": result.carry8,
        "ffs": result.ffs,
        "depth": result.depth,
        "tool": result.tool,
        "luts_raw": result.luts_raw,
        "vectors": proof.vectors,
    }
    synthesizer.store.put(key, row)
    return row


def _rows(units: Sequence[Any], work: Callable[[Any], Row], jobs: int) -> Iterator[tuple[int, Row]]:
    """Yield the place and the row of every unit as they get ready."""
    if jobs == 1:
        for place, unit in enumerate(units):
            yield place, work(unit)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        places = {pool.submit(work, unit): place for place, unit in enumerate(units)}
        try:
            for future in as_completed(places):
                yield places[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _run(
    title: str, units: Sequence[Any], work: Callable[[Any], Row], *, jobs: int, console: Console
) -> list[Row]:
    found: dict[int, Row] = {}
    with Progress(
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[last]}"),
        console=console,
    ) as progress:
        task = progress.add_task(title, total=len(units), last="")
        for place, row in _rows(units, work, jobs):
            found[place] = row
            progress.update(task, advance=1, last=str(units[place]))
    return [found[place] for place in range(len(units))]


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write a CSV file beside its place and move it there in one step."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())


def _tables(
    only: str | None,
) -> Iterator[tuple[str, Sequence[str], Sequence[Any], Callable[[Any], Row]]]:
    """Yield name, columns, units and builder of the tables that were asked for."""
    if only == "diagonal":
        units = list(diagonal_units())
        yield "dot_products", DOT_PRODUCT_COLUMNS, units, characterize_dot_product
    if only in {None, "dot_products"}:
        units = list(atlas_units())
        yield "dot_products", DOT_PRODUCT_COLUMNS, units, characterize_dot_product
    if only in {None, "requantizers"}:
        keys = list(requantizer_units())
        yield "requantizers", REQUANTIZER_COLUMNS, keys, characterize_requantizer


def rebuild(
    out: Path, *, jobs: int = 1, only: str | None = None, quiet: bool = False
) -> list[Path]:
    """Build the tables of the atlas, and write each when it is whole.

    Args:
        out: Folder of the tables.
        jobs: Units built at a time.
        only: ``dot_products``, ``requantizers``, or ``diagonal`` for dot products of one format,
            written in place of all; all units if ``None``.
        quiet: No progress on stderr.

    Returns:
        The files.

    Raises:
        ToolError: Synthesis failed.
        MismatchError: A netlist does not do what its model says.
        OutputError: The folder cannot be written.
    """
    console = Console(stderr=True, quiet=quiet)
    written = []
    for name, columns, units, work in _tables(only):
        rows = _run(name, units, work, jobs=jobs, console=console)
        tables = [(name, columns)]
        if columns is DOT_PRODUCT_COLUMNS:
            tables.append((f"{name}_proofs", PROOF_COLUMNS))
        for table, heads in tables:
            write_table(out / f"{table}.csv", heads, rows)
            written.append(out / f"{table}.csv")
    return written
