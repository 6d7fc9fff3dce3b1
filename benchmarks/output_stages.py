# SPDX-License-Identifier: Apache-2.0
"""What it takes to turn sums into codes: thresholds and multiply, synthesized and compared.

python benchmarks/output_stages.py --json docs/results/output_stages.json

A stage serves one output lane. With one channel its numbers are constants, with more they come
from ROM. Every netlist is compared with the exact model on random sums, and on those around every
threshold.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from lutwise.errors import MismatchError
from lutwise.files import write_atomic
from lutwise.hw.bounds import code_integers, legal_codes, width_of_range
from lutwise.hw.netlist import bits_of, from_bits
from lutwise.hw.output_stage import Form, OutputStage
from lutwise.hw.requantizer import typical_shift
from lutwise.hw.synthesis import Synthesizer, measure
from lutwise.hw.verify import compare
from lutwise.quant.formats import Format, parse_element
from lutwise.workspace import to_json

FORMATS = (
    "uint2", "int2", "uint3", "int3", "uint4", "int4", "int5", "int6", "int8", "e1m1", "e2m1",
    "ue2m2", "e3m0", "e2m2", "e2m3", "e3m2", "e3m4", "e4m3",
)  # fmt: skip
ACCUMULATOR_BITS = 16
MULTIPLIER_BITS = 16
CHANNELS = (1, 8, 64)
VECTORS = 20_000
MOST_THRESHOLDS = 64 * 64
"""With more the multiply form alone is built."""


def stage_of(output: Format, channels: int, form: Form) -> OutputStage:
    """Return a stage with the scales and biases of no net, but of usual sizes."""
    chosen = random.Random(17)
    numbers = code_integers(output)[legal_codes(output)]
    low = 1 << (MULTIPLIER_BITS - 1)
    return OutputStage(
        output=output,
        bias=tuple(chosen.randrange(-2000, 2000) for _ in range(channels)),
        multipliers=tuple(chosen.randrange(low, 2 * low) for _ in range(channels)),
        shift=typical_shift(ACCUMULATOR_BITS, output, MULTIPLIER_BITS),
        low=int(min(numbers)),
        high=int(max(numbers)),
        wanted=form,
    )


def sums_of(stage: OutputStage) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return sums and channels to compare on; sums with their bias fit the accumulator."""
    rng = np.random.default_rng(3)
    channels = rng.integers(0, len(stage.bias), VECTORS)
    reach = (1 << (ACCUMULATOR_BITS - 1)) - 1 - max(map(abs, stage.bias))
    sums = rng.integers(-reach, reach + 1, VECTORS)
    near = [
        (step + delta, channel)
        for channel, row in enumerate(stage.thresholds)
        for step in row
        for delta in (-1, 0)
        if abs(step + delta) <= reach
    ]
    if near:
        sums = np.concatenate([sums, [one for one, _ in near]])
        channels = np.concatenate([channels, [channel for _, channel in near]])
    return sums.astype(np.int64), channels.astype(np.int64)


def build(stage: OutputStage, synthesizer: Synthesizer) -> dict[str, Any]:
    """Synthesize a stage and compare it with its model.

    Raises:
        MismatchError: They differ.
    """
    netlist = synthesizer.map(stage.emit(ACCUMULATOR_BITS), "output_stage")
    sums, channels = sums_of(stage)
    inputs = {
        "acc": bits_of(sums, ACCUMULATOR_BITS),
        "channel": bits_of(channels, width_of_range(0, len(stage.bias) - 1)),
    }
    outputs, _ = netlist.simulate(inputs)
    got = from_bits(outputs["y"], signed=False)
    wanted = stage.model(sums, channels)
    proof = compare(got, wanted, {"acc": sums, "channel": channels}, exhaustive=False)
    if not proof.passed:
        raise MismatchError(f"{stage.output} {stage.form.value}: {proof.first_mismatch}")
    found = measure(netlist)
    return {
        "output": stage.output.name,
        "form": stage.form.value,
        "channels": len(stage.bias),
        "luts": found.luts,
        "depth": found.depth,
        "delay_ns": found.delay_ns,
        "vectors": proof.vectors,
        "mismatches": proof.mismatches,
        "tool": found.tool,
    }


def main() -> None:
    """Build all stages and write what they take."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    console = Console(stderr=True)
    rows = []
    with Synthesizer() as synthesizer:
        for name in FORMATS:
            output = parse_element(name)
            for channels in CHANNELS:
                for form in Form:
                    thresholds = channels * len(legal_codes(output))
                    if form is Form.THRESHOLDS and thresholds > MOST_THRESHOLDS:
                        continue
                    row = build(stage_of(output, channels, form), synthesizer)
                    rows.append(row)
                    console.print(f"{name} {channels} {form.value}: {row['luts']} LUTs")
    document = {
        "accumulator_bits": ACCUMULATOR_BITS,
        "multiplier_bits": MULTIPLIER_BITS,
        "stages": rows,
    }
    write_atomic(args.json, to_json(document))


if __name__ == "__main__":
    main()
