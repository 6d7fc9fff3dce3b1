# SPDX-License-Identifier: Apache-2.0
"""Every layer of a run: proven in RTL on real activations, synthesized, and priced.

python benchmarks/rtl_table.py runs/resnet8 --data zoo/fashion_mnist --json docs/results/rtl.json

Proofs are kept in the run (see ``quantize verify``), netlists in the cache.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

if not __package__:  # run as a script: the benchmarks are a package of the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import circumstances, write_record
from lutwise.cost_models.folding import Folding
from lutwise.cost_models.layer_cost import LayerSize, Memory, layer_price
from lutwise.hw.layers import layer_unit
from lutwise.hw.synthesis import Synthesizer, tool_name
from lutwise.quant.data import Split, load_data
from lutwise.quant.network_file import load_network
from lutwise.rtl_proof import RTL_FOLDER, UnitOptions, prove_layers
from lutwise.run_directory import preprocessing_near


def main() -> None:
    """Prove, build and price all layers of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--pe", type=int, default=4)
    parser.add_argument("--simd", type=int, default=8)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    console = Console(stderr=True)
    network = load_network(args.run / "network.safetensors")
    shape = network.tensors[network.input].shape
    data = load_data(
        args.data, preprocessing_near(args.run), shape, split=Split.EVAL, limit=args.images
    )
    proofs = prove_layers(
        network,
        data.images,
        args.run / RTL_FOLDER,
        options=UnitOptions(default=Folding(pe=args.pe, simd=args.simd)),
        tell=lambda step, share=None: console.print(step),
    )
    rows: list[dict[str, Any]] = []
    with Synthesizer() as synthesizer:
        for node, proof in zip(network.layers(), proofs, strict=True):
            unit = layer_unit(
                network, node, name="unit", pe=args.pe, simd=args.simd, weights_inside=False
            )
            result = synthesizer.synthesize(unit.emit(), "unit", flow=unit.architecture.flow)
            rows.append(
                {
                    **asdict(proof),
                    "weights": unit.weights.name,
                    "activations": unit.activations.name,
                    "output": unit.stage.output.name if unit.stage else "",
                    "luts": result.luts,
                    "estimate": round(layer_price(LayerSize.of(unit), Memory.BLOCK).luts, 1),
                    "ffs": result.ffs,
                    "delay_ns": result.delay_ns,
                }
            )
            console.print(f"{node.name}: {result.luts} LUTs, estimated {rows[-1]['estimate']}")
    record = {
        "run": args.run.name,
        "data": data.name,
        "images": len(data.images),
        "synthesis": tool_name(),
        **circumstances(1),
        "rows": rows,
    }
    write_record(record, args.json)


if __name__ == "__main__":
    main()
