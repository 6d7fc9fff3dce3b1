# SPDX-License-Identifier: Apache-2.0
"""Ports of an emitted module."""

from dataclasses import dataclass
from enum import Enum

__all__ = ["Direction", "Port"]


class Direction(Enum):
    """Which way a port points, seen from the unit."""

    INPUT = "input"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One port.

    Args:
        name: Name in the Verilog text.
        bits: Width.
        direction: Input or output.
        signed: Whether the number on it is two's complement.
    """

    name: str
    bits: int
    direction: Direction
    signed: bool = False
