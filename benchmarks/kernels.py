# SPDX-License-Identifier: Apache-2.0
"""Time activation quantization against Brevitas on the same tensor, in one run.

    python benchmarks/kernels.py --json kernels.json

Prints and writes, per format, milliseconds of both, their ratio and the number of elements on
which they differ (0 is wanted).
"""

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lutwise.quant import kernels
from lutwise.quant.formats import FloatFormat, IntFormat, parse_element

FORMATS = ("int4", "int8", "e2m1", "e3m2", "e4m3", "e5m2")


def brevitas_quantizer(name: str) -> Any:
    """Return Brevitas' activation quantizer module of a format, and its scale."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import brevitas.nn as qnn
        from brevitas.quant import Int8ActPerTensorFloat
        from brevitas.quant.float import Fp8e4m3ActPerTensorFloat
    fmt = parse_element(name)
    if isinstance(fmt, IntFormat):
        base, fields = Int8ActPerTensorFloat, {"bit_width": fmt.bits}
    else:
        assert isinstance(fmt, FloatFormat)
        base = Fp8e4m3ActPerTensorFloat
        fields = {
            "bit_width": fmt.bits,
            "exponent_bit_width": fmt.exponent_bits,
            "mantissa_bit_width": fmt.mantissa_bits,
        }
    layer = qnn.QuantIdentity(act_quant=type("Quantizer", (base,), fields))
    layer.train()
    layer(torch.randn(100_000, generator=torch.Generator().manual_seed(1)))
    layer.eval()
    return layer.act_quant.fused_activation_quant_proxy.tensor_quant, layer.act_quant.scale()


def median_ms(function: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


@torch.no_grad()
def measure(name: str, elements: int, repeats: int) -> dict[str, Any]:
    """Compare both on one tensor."""
    x = torch.randn(elements, generator=torch.Generator().manual_seed(0))
    theirs, scale = brevitas_quantizer(name)
    fmt = parse_element(name)
    ours_ms = median_ms(lambda: kernels.quantize_scaled(fmt, x, scale), repeats)
    theirs_ms = median_ms(lambda: theirs(x), repeats)
    different = int((kernels.quantize_scaled(fmt, x, scale) != theirs(x)[0]).sum())
    return {
        "format": name,
        "elements": elements,
        "lutwise_ms": round(ours_ms, 3),
        "brevitas_ms": round(theirs_ms, 3),
        "speedup": round(theirs_ms / ours_ms, 2),
        "different": different,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=4 << 20)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    rows = [measure(name, args.elements, args.repeats) for name in FORMATS]
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if args.json:
        record = {
            "machine": platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": args.threads,
            "seed": 0,
            "rows": rows,
        }
        args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
