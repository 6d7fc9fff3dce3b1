# SPDX-License-Identifier: Apache-2.0
"""Formal proof that two architectures of one unit compute the same, with Yosys and its solver.

Simulation tries operands; a proof holds for all of them. Both units are put side by side, fed
from the same operands, and the solver looks for operands and a common accumulator after which
the accumulators differ. Codes that are no number of their format are excluded.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutwise.errors import ConfigError
from lutwise.hw.bounds import is_legal
from lutwise.hw.dot_product import DotProduct
from lutwise.hw.ports import Direction, Port
from lutwise.hw.synthesis import Synthesizer
from lutwise.hw.verilog import module_text
from lutwise.quant.formats import Format

__all__ = ["Counterexample", "Equivalence", "prove_equal"]

_TOP = "miter"
_OPERANDS = ("w", "a")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterexample:
    """One case in which two units differ.

    Args:
        weights: Code of the weight of each lane.
        activations: Code of the activation of each lane.
        control: Value of each other input, with the operands.
        accumulator: What both accumulators held before, as integer.
        one: What the accumulator of the first unit holds after that.
        other: What the accumulator of the second unit holds after that.
    """

    weights: tuple[int, ...]
    activations: tuple[int, ...]
    control: dict[str, int]
    accumulator: int
    one: int
    other: int

    def __str__(self) -> str:
        control = "".join(f", {name}={value}" for name, value in self.control.items())
        return (
            f"w={list(self.weights)}, a={list(self.activations)}{control}, "
            f"acc={self.accumulator}: {self.one} and {self.other}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivalence:
    """Outcome of a proof.

    Args:
        counterexample: Where the units differ; ``None`` when they are proven equal.
    """

    counterexample: Counterexample | None

    @property
    def proven(self) -> bool:
        """Whether the units are equal."""
        return self.counterexample is None


def prove_equal(
    one: DotProduct, other: DotProduct, *, synthesizer: Synthesizer | None = None
) -> Equivalence:
    """Prove that two units turn the same accumulator and operands into the same accumulator.

    The units may differ in architecture only. The proof is by induction: it holds for all
    operand codes that are numbers of their formats, all values of the other inputs and all
    accumulators; with ``pipeline`` for those that the unit gets to from its inputs. Where
    weights are stored as sign and magnitude, the proof recodes them in front of the unit.

    Effort grows steeply with the bits of all operands together; up to about twenty are a matter
    of seconds. The time limit of the synthesizer applies.

    Args:
        one: A unit.
        other: Another unit.
        synthesizer: The worker to use; by default one is started and ended.

    Raises:
        ConfigError: The units differ in more than their architecture, or have both ``restart``
            and ``pipeline``: registers that may stand still have no bound to look back.
        ToolError: The solver is missing or broke a limit.
    """
    if _interface(one) != _interface(other):
        raise ConfigError(
            f"{one.name} and {other.name} differ in more than their architecture: there is "
            "nothing to prove"
        )
    if one.restart and one.pipeline:
        raise ConfigError("units with both restart and pipeline are out of reach of this proof")
    with _worker(synthesizer) as worker:
        found = worker.prove(
            _miter(one, other),
            _TOP,
            {"one": one.emit(module="one"), "other": other.emit(module="other")},
            steps=one.latency,
        )
    return Equivalence(counterexample=None if found is None else _counterexample(one, found))


def _interface(unit: DotProduct) -> tuple[Any, ...]:
    return unit.weights, unit.activations, unit.lanes, unit.ports, unit.latency


@contextlib.contextmanager
def _worker(synthesizer: Synthesizer | None) -> Iterator[Synthesizer]:
    if synthesizer is not None:
        yield synthesizer
        return
    with Synthesizer() as own:
        yield own


def _miter(one: DotProduct, other: DotProduct) -> str:
    """Write the module that compares two units."""
    inputs = [port for port in one.ports if port.direction is Direction.INPUT]
    body = ["assign equal = acc_one == acc_other;"]
    legal = []
    for name, fmt in zip(_OPERANDS, (one.weights, one.activations), strict=True):
        body.append(_table(f"legal_{name}", [int(legal) for legal in is_legal(fmt)], 1))
        legal += [f"legal_{name}[{code}]" for code in _codes(name, fmt, one.lanes)]
    body.append(f"assign legal = {' & '.join(legal)};")
    for name, unit in (("one", one), ("other", other)):
        body += _recoded(f"w_{name}", unit)
        pins = [f".{port.name}({port.name})" for port in inputs if port.name != "w"]
        body.append(f"{name} {name}_unit ({', '.join(pins)}, .w(w_{name}), .acc(acc_{name}));")
    widths = {"legal": 1, "equal": 1}
    widths |= dict.fromkeys(("acc_one", "acc_other"), one.accumulator_bits)
    outputs = [
        Port(name=name, bits=bits, direction=Direction.OUTPUT) for name, bits in widths.items()
    ]
    return module_text(_TOP, (*inputs, *outputs), body)


def _codes(name: str, fmt: Format, lanes: int) -> list[str]:
    return [f"{name}[{lane * fmt.bits}+:{fmt.bits}]" for lane in range(lanes)]


def _recoded(wire: str, unit: DotProduct) -> list[str]:
    """Turn codes of the weights' format into what the port of the unit wants."""
    bits = unit.weights.bits
    codes = np.arange(1 << bits)
    wanted = unit.weight_bits(codes)
    if np.array_equal(wanted, codes):
        return [f"wire [{unit.lanes * bits - 1}:0] {wire} = w;"]
    texts = [
        f"{wire}_table[{bits}*{code}+:{bits}]" for code in _codes("w", unit.weights, unit.lanes)
    ]
    return [
        _table(f"{wire}_table", [int(word) for word in wanted], bits),
        f"wire [{unit.lanes * bits - 1}:0] {wire} = {{{', '.join(reversed(texts))}}};",
    ]


def _table(name: str, words: list[int], bits: int) -> str:
    """Write a constant that holds words of so many bits, the first one lowest."""
    size = len(words) * bits
    total = sum(word << (place * bits) for place, word in enumerate(words))
    return f"localparam [{size - 1}:0] {name} = {size}'h{total:x};"


def _counterexample(unit: DotProduct, document: dict[str, Any]) -> Counterexample:
    """Read the last steps of a counterexample: operands, then what became of them."""
    waves = {signal["name"]: _wave(signal) for signal in document["signal"]}
    control = {
        port.name: waves[port.name][-1 - unit.latency]
        for port in unit.ports
        if port.direction is Direction.INPUT and port.name not in {"clk", *_OPERANDS}
    }
    after = waves["acc_one"]
    return Counterexample(
        weights=_lanes(waves["w"][-1 - unit.latency], unit.weights, unit.lanes),
        activations=_lanes(waves["a"][-1 - unit.latency], unit.activations, unit.lanes),
        control=control,
        accumulator=_number(after[-2], unit),
        one=_number(after[-1], unit),
        other=_number(waves["acc_other"][-1], unit),
    )


def _wave(signal: dict[str, Any]) -> list[int]:
    """Return the values of a signal per step; WaveJSON repeats with dots."""
    data = iter(signal.get("data", ()))
    found: list[int] = []
    for mark in signal["wave"]:
        if mark == ".":
            found.append(found[-1])
            continue
        text = next(data, "") if mark in "=4" else mark
        found.append(int(text, 2) if text and set(text) <= {"0", "1"} else 0)
    return found


def _lanes(word: int, fmt: Format, lanes: int) -> tuple[int, ...]:
    mask = (1 << fmt.bits) - 1
    return tuple(word >> (lane * fmt.bits) & mask for lane in range(lanes))


def _number(word: int, unit: DotProduct) -> int:
    bits = unit.accumulator_bits
    return word - (word >> (bits - 1) << bits) if unit.accumulator_signed else word
