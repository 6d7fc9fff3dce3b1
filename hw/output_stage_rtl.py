# SPDX-License-Identifier: Apache-2.0
"""Verilog of output stages, and of read-only memories in LUTs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lutwise.hw.bounds import code_integers, width_of_range

if TYPE_CHECKING:
    from lutwise.hw.output_stage import OutputStage

__all__ = [
    "OUTPUT_STAGE_PARTS",
    "bits_for",
    "rom",
    "span",
    "write_bias_stage",
    "write_output_stage",
]

OUTPUT_STAGE_PARTS: Final = ("lw_rom", "lw_at_least")
"""Modules of the library that the thresholds form needs; others need ``REQUANTIZER_PARTS``."""

_LONGEST_COLUMN: Final = 256


def bits_for(count: int) -> int:
    """Return the width of a counter of so many states."""
    return width_of_range(0, count - 1)


def span(bits: int) -> str:
    """Return the range of a vector of so many bits."""
    return f"[{bits - 1}:0]"


def rom(name: str, address: str, address_bits: int, words: Sequence[int], bits: int) -> list[str]:
    """Write a read-only memory as statements, one column of LUTs per bit."""
    depth = len(words)
    columns = []
    for bit in range(bits):
        column = int("".join(str(word >> bit & 1) for word in reversed(words)), 2)
        if column in {0, (1 << depth) - 1}:
            columns.append(f"assign {name}[{bit}] = 1'b{int(column != 0)};")
            continue
        columns.append(
            f"lw_rom #(.DEPTH({depth}), .A({address_bits}), .INIT({depth}'h{column:x})) "
            f"{name}_{bit} (.address({address}), .y({name}[{bit}]));"
        )
    lines = [f"wire {span(bits)} {name};"]
    if depth <= _LONGEST_COLUMN:
        return lines + columns
    # Verilator's time for a number grows with the square of its length, but not with the numbers.
    array = ",\n".join(f"{bits}'h{word:x}" for word in words)
    return [
        *lines,
        "`ifdef VERILATOR",
        f"localparam {span(bits)} {name}_words[0:{depth - 1}] = '{{\n{array}}};",
        f"assign {name} = {name}_words[{address}];",
        "`else",
        *columns,
        "`endif",
    ]


def write_output_stage(
    stage: "OutputStage",
    channels: Sequence[int],
    *,
    accumulator_bits: int,
    module: str,
    requantizer: str | None,
) -> str:
    """Write a module that turns sums of some channels into codes, without its library.

    Ports: ``acc``, a sum without its bias; ``channel``, a place in the list of channels; ``y``,
    the code.

    Args:
        stage: With the numbers of all channels.
        channels: Those that the module serves.
        accumulator_bits: Width of the sums.
        module: Its name.
        requantizer: Name of the module of ``stage.requantizer``; ``None`` for thresholds.
    """
    bits = accumulator_bits
    if requantizer is None:
        body = _thresholds(stage, channels, bits)
    else:
        body = _multiply(stage, channels, bits, requantizer)
    return _module(module, bits, len(channels), stage.output.bits, body)


def write_bias_stage(
    bias: Sequence[int], channels: Sequence[int], *, accumulator_bits: int, module: str
) -> str:
    """Write a module that adds each channel's bias, ports as of ``write_output_stage``."""
    bits = accumulator_bits
    body = rom(
        "bias", "channel", bits_for(len(channels)), [_wrap(bias[c], bits) for c in channels], bits
    )
    body += [f"lw_add #(.W({bits})) add (.a(acc), .b(bias), .cin(1'b0), .y(y));"]
    return _module(module, bits, len(channels), bits, body)


def _module(module: str, bits: int, channels: int, output_bits: int, body: list[str]) -> str:
    ports = [
        f"input {span(bits)} acc",
        f"input {span(bits_for(channels))} channel",
        f"output {span(output_bits)} y",
    ]
    lines = [f"module {module} (", ",\n".join(f"    {p}" for p in ports), ");"]
    return "\n".join([*lines, *(f"  {line}" for line in body), "endmodule", ""])


def _wrap(number: int, bits: int) -> int:
    return number & ((1 << bits) - 1)


def _thresholds(stage: "OutputStage", served: Sequence[int], bits: int) -> list[str]:
    """Write a binary search: one comparison per bit of the number of thresholds reached."""
    channel_bits = bits_for(len(served))
    results = len(stage.codes)
    levels = (results - 1).bit_length()
    wide = bits + 1  # so that "always" and "never" are thresholds too
    least, never = -(1 << (bits - 1)), 1 << (bits - 1)
    body = [f"wire {span(wide)} sum = {{acc[{bits - 1}], acc}};"]
    for level in range(levels):
        words = []
        for channel in served:
            row = [min(max(t, least), never) for t in stage.thresholds[channel]]
            row += [never] * ((1 << levels) - 1 - len(row))
            words += [
                _wrap(row[(prefix << (levels - level)) + (1 << (levels - 1 - level)) - 1], wide)
                for prefix in range(1 << level)
            ]
        above = [f"reached{before}" for before in range(level)]
        address = ["channel"] if len(served) > 1 else []
        text = "{" + ", ".join([*address, *above]) + "}" if address or above else "1'b0"
        address_bits = max(1, (channel_bits if address else 0) + level)
        body += rom(f"threshold{level}", text, address_bits, words, wide)
        body += [
            f"wire reached{level};",
            f"lw_at_least #(.W({wide})) compare{level} (.a(sum), .b(threshold{level}), "
            f".y(reached{level}));",
        ]
    place = "{" + ", ".join(f"reached{level}" for level in range(levels)) + "}"
    codes = [*stage.codes, *([stage.codes[-1]] * ((1 << levels) - results))]
    body += rom("code", place, levels, codes, stage.output.bits)
    return [*body, "assign y = code;"]


def _multiply(stage: "OutputStage", served: Sequence[int], bits: int, module: str) -> list[str]:
    channel_bits = bits_for(len(served))
    unit = stage.requantizer(bits)
    output = stage.output
    body = rom("bias", "channel", channel_bits, [_wrap(stage.bias[c], bits) for c in served], bits)
    body += rom(
        "multiplier",
        "channel",
        channel_bits,
        [stage.multipliers[c] for c in served],
        unit.multiplier_bits,
    )
    body += [
        f"wire {span(bits)} sum;",
        f"lw_add #(.W({bits})) add (.a(acc), .b(bias), .cin(1'b0), .y(sum));",
        f"wire {span(output.bits)} rounded;",
        f"{module} requantizer (.acc(sum), .m(multiplier), .y(rounded));",
    ]
    numbers = code_integers(output)
    if stage.codes[-1] == max(range(len(numbers)), key=lambda code: int(numbers[code])):
        return [*body, "assign y = rounded;"]
    # Codes of positive numbers rise with the numbers.
    top = stage.codes[-1]
    positive = f"~rounded[{output.bits - 1}] & " if output.signed else ""
    return [
        *body,
        f"wire over = {positive}(rounded > {output.bits}'d{top});",
        f"assign y = over ? {output.bits}'d{top} : rounded;",
    ]
