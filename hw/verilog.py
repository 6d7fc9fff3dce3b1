# SPDX-License-Identifier: Apache-2.0
"""Small helpers to write Verilog text, and the hand-written modules in ``rtl/``."""

from functools import cache
from importlib.resources import files

from lutwise.hw.ports import Direction, Port

__all__ = ["extend", "library", "module_text"]


@cache
def _library_file(name: str) -> str:
    return (files("lutwise.hw") / "rtl" / f"{name}.v").read_text(encoding="utf-8")


def library(*names: str) -> str:
    """Return the text of hand-written modules, each once, in the order asked for."""
    return "\n".join(_library_file(name) for name in dict.fromkeys(names))


def extend(name: str, bits: int, *, signed: bool, to: int) -> str:
    """Return an expression that cuts or extends a wire of ``bits`` bits to ``to`` bits."""
    if bits == to:
        return name
    if bits > to:
        return f"{name}[{to - 1}:0]"
    if signed:
        return f"{{{{{to - bits}{{{name}[{bits - 1}]}}}}, {name}}}"
    return f"{{{to - bits}'d0, {name}}}"


def module_text(
    name: str, ports: tuple[Port, ...], body: list[str], *, registered: str = ""
) -> str:
    """Write one module.

    Args:
        name: Name of the module.
        ports: Its ports.
        body: Lines between the header and ``endmodule``.
        registered: Name of an output that is a register.
    """
    header = []
    for port in ports:
        kind = " reg" if port.direction is Direction.OUTPUT and port.name == registered else ""
        span = f" [{port.bits - 1}:0]" if port.bits > 1 or port.name in {"w", "a"} else ""
        header.append(f"    {port.direction.value}{kind}{span} {port.name}")
    lines = [f"module {name} (", ",\n".join(header), ");", *(f"  {line}" for line in body)]
    return "\n".join([*lines, "endmodule", ""])
