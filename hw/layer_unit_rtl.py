# SPDX-License-Identifier: Apache-2.0
"""Verilog of layer units: control, memories, dot products and output stages.

Three steps of a pipeline follow each other: operands are registered, sums accumulate, results
are registered. All of them stand still while a result waits for its reader.
"""

from typing import TYPE_CHECKING

from lutwise.hw.output_stage import Form
from lutwise.hw.output_stage_rtl import bits_for, rom, span, write_bias_stage, write_output_stage
from lutwise.hw.verilog import library

if TYPE_CHECKING:
    from lutwise.hw.layer_unit import LayerUnit

__all__ = ["write_layer_unit"]


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


def _top(unit: "LayerUnit") -> str:
    beats, folds = unit.input_beats, unit.folds
    words = len(unit.weight_words)
    in_bits = unit.simd * unit.activations.bits
    weight_bits = unit.pe * unit.simd * unit.weights.bits
    out_bits = unit.pe * unit.output_bits
    beat_bits, fold_bits, address_bits = map(bits_for, (beats, folds, words))
    channels = unit.groups * folds
    channel_bits = bits_for(channels)
    ports = [
        "input clk",
        "input rst",
        f"input {span(in_bits)} in_data",
        "input in_valid",
        "output in_ready",
        f"output reg {span(out_bits)} out_data",
        "output reg out_valid",
        "input out_ready",
    ]
    if not unit.weights_inside:
        ports += [
            f"output {span(address_bits)} weight_address",
            "output weight_enable",
            f"input {span(weight_bits)} weight_data",
        ]
    body = [
        f"reg {span(beat_bits)} beat;",
        f"reg {span(fold_bits)} fold;",
        f"reg {span(address_bits)} address;",
        f"reg {span(in_bits)} a;",
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
            f"wire {span(in_bits)} kept;",
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
        body += rom("stored", "address", address_bits, unit.weight_words, weight_bits)
        body += [
            f"reg {span(weight_bits)} w;",
            "always @(posedge clk) if (step) w <= stored;",
        ]
    else:
        body += [
            "assign weight_address = address;",
            "assign weight_enable = step;",
            f"wire {span(weight_bits)} w = weight_data;",
        ]
    body += _sums(unit, channels, channel_bits)
    lines = [f"module {unit.name} (", ",\n".join(f"    {port}" for port in ports), ");"]
    return "\n".join([*lines, *(f"  {line}" for line in body), "endmodule", ""])


def _sums(unit: "LayerUnit", channels: int, channel_bits: int) -> list[str]:
    """Write the dot products, what follows them, and when a result is ready."""
    per_output = unit.simd * unit.weights.bits
    bits = unit.output_bits
    body = [f"reg {span(channel_bits)} channel;"]
    for lane in range(unit.pe):
        body += [
            f"wire {span(unit.accumulator_bits)} acc{lane};",
            f"{unit.name}_dot dot{lane} (.clk(clk), .ce(step), .take(take), .first(first), "
            f".w(w[{lane * per_output}+:{per_output}]), .a(a), .acc(acc{lane}));",
            f"wire {span(bits)} y{lane};",
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
    bits, module = unit.accumulator_bits, f"{unit.name}_output{lane}"
    if unit.stage is None:
        return write_bias_stage(unit.bias, served, accumulator_bits=bits, module=module)
    multiplies = unit.stage.form is Form.MULTIPLY
    return write_output_stage(
        unit.stage,
        served,
        accumulator_bits=bits,
        module=module,
        requantizer=f"{unit.name}_requantizer" if multiplies else None,
    )
