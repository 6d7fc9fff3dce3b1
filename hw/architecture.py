# SPDX-License-Identifier: Apache-2.0
"""Ways to build the products of a dot-product unit, and which of them fit two formats."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from lutwise.errors import ConfigError
from lutwise.hw.circuit import LUT_INPUTS
from lutwise.hw.multiplier import Array
from lutwise.hw.operand import Operand, operand_of
from lutwise.hw.synthesis import Flow
from lutwise.quant.formats import FloatFormat, Format, IntFormat

__all__ = ["PLAIN", "Architecture", "Kind", "architectures", "as_magnitude"]

_TABLE_INPUTS: Final = 8


class Kind(Enum):
    """How products come about."""

    PLAIN = "plain"
    """Behavioural Verilog throughout, one expression; the reference that others beat."""

    TABLE = "table"
    """A truth table of the magnitudes."""

    CHAIN = "chain"
    """Booth rows of neighbouring lanes on one carry chain; no lane has a product of its own."""

    ARRAY = "array"
    """A multiplier for the significands, then a shift in two steps: by up to ``step - 1``, and
    by multiples of ``step`` in the LUTs of the adder that takes the product in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How the products of a unit are built.

    Args:
        kind: The principle.
        array: Multiplier of the significands (``ARRAY``).
        step: Bits that the second shift moves by (``ARRAY``); 1 without exponents.
        recoded: Which operand the Booth digits come from, ``w`` or ``a`` (``CHAIN``).
        magnitude: Integer weights of the narrow range are stored as sign and magnitude.
    """

    kind: Kind
    array: Array = Array.DIGITS
    step: int = 1
    recoded: str = "a"
    magnitude: bool = False

    def __str__(self) -> str:
        """Spell the architecture, for ``parse``.

        ``table``, ``chain-w``, ``array-booth-8``, ``magnitude-table``.
        """
        parts = ["magnitude"] if self.magnitude else []
        parts.append(self.kind.value)
        if self.kind is Kind.CHAIN:
            parts.append(self.recoded)
        elif self.kind is Kind.ARRAY:
            parts += [self.array.value, str(self.step)]
        return "-".join(parts)

    @property
    def flow(self) -> Flow:
        """How to map a unit of this architecture to the fewest LUTs."""
        if self.kind is Kind.PLAIN:
            return Flow.ABC9
        return Flow.LEAN if self.kind is Kind.CHAIN else Flow.AREA

    @classmethod
    def parse(cls, text: str) -> "Architecture":
        """Read what ``str`` wrote.

        Raises:
            ConfigError: The text names no architecture.
        """
        first, *rest = text.split("-")
        magnitude = first == "magnitude"
        if magnitude and rest:
            first, *rest = rest
        try:
            kind = Kind(first)
            if kind is Kind.ARRAY:
                array, step = rest
                return cls(kind=kind, array=Array(array), step=int(step), magnitude=magnitude)
            if kind is Kind.CHAIN:
                (recoded,) = rest
                if recoded in {"w", "a"}:
                    return cls(kind=kind, recoded=recoded, magnitude=magnitude)
            elif not rest:
                return cls(kind=kind, magnitude=magnitude)
        except ValueError:
            pass
        raise ConfigError(
            f"no architecture {text!r}; wanted plain, table, chain-w, chain-a, "
            "array-digits-STEP or array-booth-STEP, such as array-digits-4; magnitude- in front "
            "of table or array stores the weights as sign and magnitude"
        )


PLAIN: Final = Architecture(kind=Kind.PLAIN)


def as_magnitude(fmt: Format) -> FloatFormat | None:
    """Return the sign-magnitude format with the values of a narrow integer, if there is one."""
    if isinstance(fmt, IntFormat) and fmt.signed and fmt.narrow:
        return FloatFormat(exponent_bits=1, mantissa_bits=fmt.bits - 2)
    return None


def architectures(weights: Format, activations: Format) -> tuple[Architecture, ...]:
    """List the structured architectures that make sense for a pair of formats.

    ``PLAIN`` is left out: it fits every pair and is only a reference.

    Args:
        weights: Format of the weights.
        activations: Format of the activations.
    """
    found = _fitting(operand_of(weights), operand_of(activations), magnitude=False)
    recoded = as_magnitude(weights)
    a = operand_of(activations)
    if recoded is not None and not a.twos_complement:
        found += _fitting(operand_of(recoded), a, magnitude=True)
    return tuple(found)


def _fitting(w: Operand, a: Operand, *, magnitude: bool) -> list[Architecture]:
    found = []
    if w.magnitude_bits + a.magnitude_bits <= _TABLE_INPUTS:
        found.append(Architecture(kind=Kind.TABLE, magnitude=magnitude))
    if not (w.exponent_bits or a.exponent_bits):
        found += [
            Architecture(kind=Kind.CHAIN, recoded=recoded, magnitude=magnitude)
            for recoded, operand in (("w", w), ("a", a))
            if operand.significand_bits > 1
        ]
    if not (w.twos_complement and a.twos_complement):
        found += [
            Architecture(kind=Kind.ARRAY, array=array, step=step, magnitude=magnitude)
            for array in _arrays(w, a)
            for step in _steps(w, a)
        ]
    return found


def _arrays(w: Operand, a: Operand) -> tuple[Array, ...]:
    if min(w.significand_bits, a.significand_bits) == 1:
        return (Array.DIGITS,)
    return (Array.DIGITS, Array.BOOTH)


def _steps(w: Operand, a: Operand) -> tuple[int, ...]:
    """List steps of the second shift.

    A bit of a sign-magnitude product comes from two places at most when the step is no less
    than the significand product less one; a two's complement product needs a shift by all or
    nothing. Steps that are no power of two need the exponents in one table.
    """
    reach = w.max_shift + a.max_shift
    if not reach:
        return (1,)
    powers = [1 << k for k in range(reach.bit_length())]
    if w.twos_complement or a.twos_complement:
        return (powers[-1],)
    enough = w.significand_bits + a.significand_bits - 1
    power = next((power for power in powers if power >= max(4, enough)), powers[-1])
    found = {power, max(2, power // 2)}
    if w.exponent_bits + a.exponent_bits <= LUT_INPUTS:
        found |= {3, enough}
    return tuple(sorted(step for step in found if 1 < step <= reach))
