# SPDX-License-Identifier: Apache-2.0
"""Verilog of layer units: control, memories, dot products and output stages.

Three steps of a pipeline follow each other: operands are registered, sums accumulate, results
are registered. All of them stand still while a result waits for its reader.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lutwise.hw.bounds import code_integers, width_of_range
from lutwise.hw.output_stage import Form, OutputStage
from lutwise.hw.verilog import library

if TYPE_CHECKING:
    from lutwise.hw.layer_unit import LayerUnit

__all__ = ["write_layer_unit"]

_LONGEST_COLUMN: Final = 256


def write_layer_unit(unit: "LayerUnit") -> str:
    """Write a layer unit and all modules that it needs."""
    dot = unit.dot.emit(module=f"{unit.name}_dot")
    stages = [_output_module(unit, lane) for lane in range(unit.pe)]
    text = library("lw_rom", "lw_buffer", "lw_at_least")
    if unit.stage is not None and unit.stage.form is Form.MULTIPLY:
        # The dot product brings the modules that a requantizer needs.
        requantizer = unit.stage.requantizer(unit.accumulator_bits)
        dot += "\n" + requantizer.emit_alone(module=f"{unit.name}_requantizer")
    return "\n".join([text, dot, *stages, _top(unit)])


def _bits_for(count: int) -> int:
    """Return the width of a counter of so many states."""
    return width_of_range(0, count - 1)


def _span(bits: int) -> str:
    return f"[{bits - 1}:0]"


def _rom(name: str, address: str, address_bits: int, words: Sequence[int], bits: int) -> list[str]:
    """Write a read-only memory, one column of LUTs per bit."""
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
    lines = [f"wire {_span(bits)} {name};"]
    if depth <= _LONGEST_COLUMN:
        return lines + columns
    # Verilator's time for a number grows with the square of its length, but not with the numbers.
    array = ",\n".join(f"{bits}'h{word:x}" for word in words)
    return [
        *lines,
        "`ifdef VERILATOR",
        f"localparam {_span(bits)} {name}_words[0:{depth - 1}] = '{{\n{array}}};",
        f"assign {name} = {name}_words[{address}];",
        "`else",
        *columns,
        "`endif",
    ]


def _top(unit: "LayerUnit") -> str:
    beats, folds = unit.input_beats, unit.folds
    words = len(unit.weight_words)
    in_bits = unit.simd * unit.activations.bits
    weight_bits = unit.pe * unit.simd * unit.weights.bits
    out_bits = unit.pe * unit.output_bits
    beat_bits, fold_bits, address_bits = map(_bits_for, (beats, folds, words))
    channels = unit.groups * folds
    channel_bits = _bits_for(channels)
    ports = [
        "input clk",
        "input rst",
        f"input {_span(in_bits)} in_data",
        "input in_valid",
        "output in_ready",
        f"output reg {_span(out_bits)} out_data",
        "output reg out_valid",
        "input out_ready",
    ]
    if not unit.weights_inside:
        ports += [
            f"output {_span(address_bits)} weight_address",
            "output weight_enable",
            f"input {_span(weight_bits)} weight_data",
        ]
    body = [
        f"reg {_span(beat_bits)} beat;",
        f"reg {_span(fold_bits)} fold;",
        f"reg {_span(address_bits)} address;",
        f"reg {_span(in_bits)} a;",
        "reg first, last, take;",
        "wire step = ~out_valid | out_ready;",
        f"wire fill = fold == {fold_bits}'d0;",
        f"wire ends = beat == {beat_bits}'d{beats - 1};",
        "wire fire = step & (~fill | in_valid);",
        "assign in_ready = step & fill;",
    ]
    now = "in_data"
    if folds > 1:
        now = "fill ? in_data : kept"
        body += [
            f"wire {_span(in_bits)} kept;",
            f"lw_buffer #(.DEPTH({beats}), .A({beat_bits}), .W({in_bits})) vector (.clk(clk), "
            ".write(fire & fill), .write_address(beat), .write_data(in_data), "
            ".read_address(beat), .read_data(kept));",
        ]
    body += [
        "always @(posedge clk)",
        "  if (rst) begin",
        f"    beat <= {beat_bits}'d0;",
        f"    fold <= {fold_bits}'d0;",
        f"    address <= {address_bits}'d0;",
        "  end else if (fire) begin",
        f"    beat <= ends ? {beat_bits}'d0 : beat + {beat_bits}'d1;",
        f"    if (ends) fold <= fold == {fold_bits}'d{folds - 1} ? {fold_bits}'d0 : "
        f"fold + {fold_bits}'d1;",
        f"    address <= address == {address_bits}'d{words - 1} ? {address_bits}'d0 : "
        f"address + {address_bits}'d1;",
        "  end",
        "always @(posedge clk)",
        "  if (step) begin",
        f"    a <= {now};",
        f"    first <= beat == {beat_bits}'d0;",
        "    last <= ends;",
        "  end",
        "always @(posedge clk) if (rst) take <= 1'b0; else if (step) take <= fire;",
    ]
    if unit.weights_inside:
        body += _rom("stored", "address", address_bits, unit.weight_words, weight_bits)
        body += [
            f"reg {_span(weight_bits)} w;",
            "always @(posedge clk) if (step) w <= stored;",
        ]
    else:
        body += [
            "assign weight_address = address;",
            "assign weight_enable = step;",
            f"wire {_span(weight_bits)} w = weight_data;",
        ]
    body += _sums(unit, channels, channel_bits)
    lines = [f"module {unit.name} (", ",\n".join(f"    {port}" for port in ports), ");"]
    return "\n".join([*lines, *(f"  {line}" for line in body), "endmodule", ""])


def _sums(unit: "LayerUnit", channels: int, channel_bits: int) -> list[str]:
    """Write the dot products, what follows them, and when a result is ready."""
    per_output = unit.simd * unit.weights.bits
    bits = unit.output_bits
    body = [f"reg {_span(channel_bits)} channel;"]
    for lane in range(unit.pe):
        body += [
            f"wire {_span(unit.accumulator_bits)} acc{lane};",
            f"{unit.name}_dot dot{lane} (.clk(clk), .ce(step), .take(take), .first(first), "
            f".w(w[{lane * per_output}+:{per_output}]), .a(a), .acc(acc{lane}));",
            f"wire {_span(bits)} y{lane};",
            f"{unit.name}_output{lane} output{lane} (.acc(acc{lane}), .channel(channel), "
            f".y(y{lane}));",
        ]
    done = [f"done{step}" for step in range(unit.dot.latency)]
    body += [f"reg {', '.join(done)};"]
    for before, after in zip(["take & last", *done], done, strict=False):
        body.append(
            f"always @(posedge clk) if (rst) {after} <= 1'b0; else if (step) {after} <= {before};"
        )
    joined = ", ".join(f"y{lane}" for lane in reversed(range(unit.pe)))
    body += [
        "always @(posedge clk)",
        "  if (rst) begin",
        "    out_valid <= 1'b0;",
        f"    channel <= {channel_bits}'d0;",
        "  end else if (step) begin",
        f"    out_valid <= {done[-1]};",
        f"    if ({done[-1]}) channel <= channel == {channel_bits}'d{channels - 1} ? "
        f"{channel_bits}'d0 : channel + {channel_bits}'d1;",
        "  end",
        f"always @(posedge clk) if (step) out_data <= {{{joined}}};",
    ]
    return body


def _output_module(unit: "LayerUnit", lane: int) -> str:
    """Write what follows the accumulator of one output lane, for all channels it serves."""
    folds, outputs = unit.folds, unit.outputs
    served = [
        group * outputs + min(fold * unit.pe + lane, outputs - 1)
        for group in range(unit.groups)
        for fold in range(folds)
    ]
    channel_bits = _bits_for(len(served))
    bits = unit.accumulator_bits
    if unit.stage is None:
        body = _rom(
            "bias", "channel", channel_bits, [_wrap(unit.bias[c], bits) for c in served], bits
        )
        body += [f"lw_add #(.W({bits})) add (.a(acc), .b(bias), .cin(1'b0), .y(y));"]
    elif unit.stage.form is Form.THRESHOLDS:
        body = _thresholds(unit.stage, served, channel_bits, bits)
    else:
        body = _multiply(unit.stage, served, channel_bits, bits, f"{unit.name}_requantizer")
    ports = [
        f"input {_span(bits)} acc",
        f"input {_span(channel_bits)} channel",
        f"output {_span(unit.output_bits)} y",
    ]
    lines = [f"module {unit.name}_output{lane} (", ",\n".join(f"    {p}" for p in ports), ");"]
    return "\n".join([*lines, *(f"  {line}" for line in body), "endmodule", ""])


def _wrap(number: int, bits: int) -> int:
    return number & ((1 << bits) - 1)


def _thresholds(stage: OutputStage, served: list[int], channel_bits: int, bits: int) -> list[str]:
    """Write a binary search: one comparison per bit of the number of thresholds reached."""
    results = len(stage.codes)
    levels = (results - 1).bit_length()
    wide = bits + 1  # so that "always" and "never" are thresholds too
    least, never = -(1 << (bits - 1)), 1 << (bits - 1)
    body = [f"wire {_span(wide)} sum = {{acc[{bits - 1}], acc}};"]
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
        body += _rom(f"threshold{level}", text, address_bits, words, wide)
        body += [
            f"wire reached{level};",
            f"lw_at_least #(.W({wide})) compare{level} (.a(sum), .b(threshold{level}), "
            f".y(reached{level}));",
        ]
    place = "{" + ", ".join(f"reached{level}" for level in range(levels)) + "}"
    codes = [*stage.codes, *([stage.codes[-1]] * ((1 << levels) - results))]
    body += _rom("code", place, levels, codes, stage.output.bits)
    return [*body, "assign y = code;"]


def _multiply(
    stage: OutputStage, served: list[int], channel_bits: int, bits: int, module: str
) -> list[str]:
    unit = stage.requantizer(bits)
    output = stage.output
    body = _rom("bias", "channel", channel_bits, [_wrap(stage.bias[c], bits) for c in served], bits)
    body += _rom(
        "multiplier",
        "channel",
        channel_bits,
        [stage.multipliers[c] for c in served],
        unit.multiplier_bits,
    )
    body += [
        f"wire {_span(bits)} sum;",
        f"lw_add #(.W({bits})) add (.a(acc), .b(bias), .cin(1'b0), .y(sum));",
        f"wire {_span(output.bits)} rounded;",
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
