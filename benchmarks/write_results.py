# SPDX-License-Identifier: Apache-2.0
"""Write ``docs/results.md`` from the JSON files in ``docs/results``, and collect these.

python benchmarks/write_results.py --sweep runs/diagonal --run runs/lite0 --run runs/squeezenet
python benchmarks/write_results.py
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the benchmarks are a package of the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.grid_plot import grid_png
from benchmarks.grid_rows import bootstrap, strongest, unpacked
from lutwise.cost_models.library import lut_per_mac
from lutwise.export.integers import integers_of
from lutwise.quant.formats import FloatFormat, IntFormat, parse_element, parse_weight

DOCS = Path(__file__).parents[1] / "docs"
DATA = DOCS / "results"
HEAD = """# Results

Written by `benchmarks/write_results.py` from the files in `results/`. Accuracies are top-1 of the
exact executor with the 95 % Wilson interval; differences are paired on the same images. The
recipe of the first table is the default, `balanced`; graph mode `dataflow`, image `int8`.
"""


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def interval(entry: dict[str, Any]) -> str:
    """Return an accuracy in percent with its interval."""
    value, low, high = (100 * entry[key] for key in ("value", "low", "high"))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def sweep_section(data: dict[str, Any]) -> str:
    """Return the section of the diagonal grid."""
    rows = [
        (
            f"`{p['weights']}`",
            f"`{p['activations']}`",
            interval(p["accuracy"]),
            f"{p['luts_per_mac']:.1f}",
            f"{p['luts_folded']:.0f}",
            f"{p['requantizer_luts']:.0f}",
        )
        for p in sorted(data["points"], key=lambda p: (p["weight_bits"], p["luts_folded"]))
    ]
    heads = (
        "weights",
        "activations",
        "accuracy (%)",
        "LUTs per MAC",
        "LUTs, folded",
        "of these requantizers",
    )
    return (
        f"\n## {data['model']}, every format of 3 to 8 bits\n\n"
        f"![accuracy against bits and LUTs](images/diagonal.png)\n\n"
        f"{data['images']} images of {data['data']}; float {interval(data['float_accuracy'])} %; "
        f"calibrated on {data['calibration']}; folding {data['folding']}.\n\n"
        "`e1mY` has the grid of the integer of its width, but for the most negative code of signed "
        "activations (residual branches), which it lacks: what lies between them says how little "
        "a difference of that size means.\n\n" + table(heads, rows)
    )


def imagenet_section(runs: Sequence[dict[str, Any]]) -> str:
    """Return the section of the ImageNet models."""
    rows = []
    for run in runs:
        found, against = run["evaluation"], run["evaluation"]["against_float"]
        difference, low, high = (
            100 * against[key] for key in ("difference", "difference_low", "difference_high")
        )
        rows.append(
            (
                run["model"].removesuffix(".safetensors"),
                f"`{run['weights']}` / `{run['activations']}`",
                found["images"],
                interval(found["float"]),
                interval(found["exact"]),
                f"{difference:+.2f} ({low:+.2f} to {high:+.2f})",
                f"{run['luts_folded']:.0f}",
            )
        )
    heads = (
        "model",
        "formats",
        "images",
        "float (%)",
        "quantized (%)",
        "difference (points)",
        "LUTs, folded",
    )
    return (
        "\n## ImageNet models\n\nA sample of ImageNet's training images, one per class, 250 to "
        "calibrate and 750 to measure: absolute accuracies are optimistic, differences are what "
        "counts. Cross-layer equalization, rounding to nearest and bias correction (`--algorithms "
        "equalize,bias_correction`).\n\n" + table(heads, rows)
    )


def kernel_section(data: dict[str, Any]) -> str:
    """Return the section of the activation quantizers."""
    heads = ("format", "elements", "lutwise (ms)", "Brevitas (ms)", "ratio", "different results")
    rows = [
        (
            f"`{r['format']}`", r["elements"], r["lutwise_ms"], r["brevitas_ms"],
            f"{r['speedup']:.1f}", r["different"],
        )
        for r in data["rows"]
    ]  # fmt: skip
    return (
        "\n## Quantizing activations\n\n`benchmarks/kernels.py`: one tensor, both in one run, "
        f"{data['threads']} thread(s), torch {data['torch']}.\n\n" + table(heads, rows)
    )


def ptq_section(data: dict[str, Any]) -> str:
    """Return the section of `ptq_vs_brevitas.py`."""
    steps = []
    for r in data["gptq"]["formats"]:
        theirs, ours = r["brevitas_seconds"], r["lutwise_seconds"]
        steps.append(
            (
                f"`{r['format']}`",
                f"{theirs['gptq']:.1f} / {ours['gptq']:.1f}",
                f"{r['speedup']:.1f}",
                f"{theirs['solver']:.1f} / {ours['solver']:.1f}",
                f"{r['solver_speedup']:.1f}",
                f"{r['mse_ratio']:.3f}",
                f"{r['mse_ratio_with_3_sweeps']:.3f}",
            )
        )
    recipes = [
        (
            f"`{r['format']}`",
            f"{r['brevitas_seconds']:.1f} / {r['lutwise_seconds']:.1f}",
            f"{r['speedup']:.1f}",
            f"{r['overhead']:.2f}",
            f"{r['brevitas_overhead']:.2f}",
        )
        for r in data["recipe"]["formats"]
    ]
    return (
        "\n## Against Brevitas on a ResNet-18-shaped net\n\n`benchmarks/ptq_vs_brevitas.py`: "
        f"{data['images']} random images of 32x32, random weights, {data['threads']} threads, "
        f"Brevitas {data['versions']['brevitas']}, torch {data['versions']['torch']}; seconds are "
        "Brevitas / lutwise, GPTQ with the same settings (quantized inputs, columns by activity, "
        "1 % damping). The mean squared error of layers' outputs, relative to the outputs, is "
        "measured on float inputs.\n\n"
        + table(
            (
                "format",
                "GPTQ step (s)",
                "ratio",
                "column solver (s)",
                "ratio",
                "error ratio",
                "with 3 sweeps",
            ),
            steps,
        )
        + "\nThe whole recipe `balanced` against the same steps of Brevitas's flow "
        "(calibration, Qronos, bias correction); then evaluation relative to the float net.\n\n"
        + table(("format", "recipe (s)", "ratio", "evaluation", "Brevitas's"), recipes)
    )


def grid_section(data: dict[str, Any]) -> str:
    """Return the section of `imagenet_grid.py`."""
    page = (
        "\n## Formats on ImageNet nets\n\n`benchmarks/imagenet_grid.py`, mode `layerwise`, scales "
        "of weights per channel; the same images as above. Cells are top-1 (%) · SQNR of the "
        "logits (dB); `best` has its 95 % Wilson interval and its agreement with the float "
        "model's answers (%). Brevitas: least-squared-error ranges, "
        "Qronos (`q`) or GPTQ (`g`) with columns by activity, with cross-layer equalization where "
        "an `e` says so, bias correction; where several were measured the most accurate counts, "
        "as these very images say. The last column is the paired bootstrap of `best` less "
        "Brevitas, in points. Behind a ReLU, activations are unsigned in both tools for integers "
        "and in lutwise for minifloats, which Brevitas does not have.\n\n"
        "![accuracy against bits](images/imagenet_grid.png)\n"
    )
    nets: dict[str, dict[tuple[str, str], dict[str, dict[str, Any]]]] = {}
    for r in data["rows"]:
        formats = (r["weights"], r["activations"])
        nets.setdefault(r["net"], {}).setdefault(formats, {})[r["tool"]] = r
    for net, points in nets.items():
        some = next(iter(next(iter(points.values())).values()))
        page += (
            f"\n**{net}**, float {interval(some['float_accuracy'])} %, {some['images']} images, "
            f"{some['calibration_images']} to calibrate\n\n"
        )
        lines = [grid_row(*formats, found) for formats, found in points.items()]
        filled = [i for i in range(len(GRID_HEADS)) if any(line[i] for line in lines)]
        page += table(
            [GRID_HEADS[i] for i in filled], [[line[i] for i in filled] for line in lines]
        )
    hours = sum(r["seconds"] for r in data["rows"]) / 3600
    return (
        page
        + families(data["rows"])
        + (f"\n{len(data['rows'])} rows took {hours:.1f} hours of processor time.\n")
    )


def families(rows: Sequence[dict[str, Any]]) -> str:
    """Return the comparison of integers and minifloats of one width, both by `best`."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        if row["tool"] == "best" and row["weights"] == row["activations"]:
            bits = parse_element(row["weights"]).bits
            found.setdefault((row["net"], bits), []).append(row)
    lines = []
    verdicts: dict[str, list[str]] = {"minifloats win": [], "undecided": [], "integers win": []}
    for (net, bits), group in found.items():
        integers = [r for r in group if r["weights"].startswith("int")]
        minifloats = [r for r in group if not r["weights"].startswith("int")]
        if not integers or not minifloats:
            continue
        first, second = strongest(minifloats), strongest(integers)
        assert first is not None
        assert second is not None
        low, high = bootstrap(unpacked(first), unpacked(second))
        value = first["accuracy"]["value"] - second["accuracy"]["value"]
        verdict = "minifloats win" if low > 0 else "integers win" if high < 0 else "undecided"
        verdicts[verdict].append(f"{net} {bits}")
        others = ", ".join(
            f"`{r['weights']}` {100 * r['accuracy']['value']:.2f}" for r in group if r is not first
        )
        lines.append(
            (
                net, bits, f"`{first['weights']}` {100 * first['accuracy']['value']:.2f}", others,
                f"{100 * value:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})",
            )
        )  # fmt: skip
    if not lines:
        return ""
    heads = ("net", "bits", "best minifloat (%)", "others (%)", "minifloat less integer")
    return (
        "\n**Integers and minifloats of one width**, both by `best`. Which split is best is read "
        "off these images, which favours minifloats where there are several; the interval is the "
        "paired bootstrap.\n\n"
        + table(heads, lines)
        + "\nOf the statement that minifloats outperform integers from 4 bits up (arXiv "
        "2311.12359), on these nets and images at 95 %: "
        + "; ".join(f"{name}: {', '.join(at)} bits" for name, at in verdicts.items() if at)
        + ". Signal to noise of the logits at 8 bits: "
        + "; ".join(
            f"{net} "
            + ", ".join(
                f"`{r['weights']}` {r['against_float']['sqnr_db']:.1f} dB"
                for r in sorted(group, key=lambda r: -r["against_float"]["sqnr_db"])
            )
            for (net, bits), group in found.items()
            if bits == 8 and len(group) > 1
        )
        + " (its other statement is that splits like E3M4 are best there).\n"
    )


GRID_HEADS = (
    "formats", "fast", "balanced", "best", "agreement", "Brevitas", "best less Brevitas",
)  # fmt: skip
FLOWS = {
    "brevitas": "ge",
    "brevitas_plain": "g",
    "brevitas_qronos": "q",
    "brevitas_qronos_equalized": "qe",
}


def grid_row(weights: str, activations: str, found: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """Return the line of a pair of formats, from the rows of each tool."""

    def brief(row: dict[str, Any] | None, value: str | None = None) -> str:
        if row is None:
            return ""
        value = value or f"{100 * row['accuracy']['value']:.2f}"
        return f"{value} · {row['against_float']['sqnr_db']:.1f}"

    best, theirs = found.get("best"), strongest([found[tool] for tool in FLOWS if tool in found])
    agreement = difference = ""
    if best is not None:
        agreement = f"{100 * best['against_float']['agreement']:.1f}"
        if rival := best.get("against_brevitas"):
            value, low, high = (100 * rival[key] for key in ("difference", "low", "high"))
            difference = f"{value:+.2f} ({low:+.2f} to {high:+.2f})"
    return (
        f"`{weights}` / `{activations}`",
        brief(found.get("fast")),
        brief(found.get("balanced")),
        brief(best, interval(best["accuracy"]) if best else None),
        agreement,
        "" if theirs is None else f"{brief(theirs)} ({FLOWS[theirs['tool']]})",
        difference,
    )


def runtimes_section(data: dict[str, Any]) -> str:
    """Return the section of `runtimes.py`."""
    rows = [
        (
            r["net"],
            f"`{r['weights']}` / `{r['activations']}`, {r['mode']}",
            r["nodes"],
            r["batch"],
            f"{r['onnxruntime_ms']:.1f}",
            f"{r['qonnx_ms']:.0f}",
            f"{r['speedup']:.1f}",
        )
        for r in data["rows"]
    ]
    heads = ("net", "formats", "nodes", "batch", "ONNX Runtime (ms)", "qonnx (ms)", "ratio")
    return (
        "\n## Running the exported file\n\n`benchmarks/runtimes.py`: the same file, the same "
        "images, in turn, one thread; all outputs are equal. qonnx makes a session for each node "
        "and call, "
        "which many images share.\n\n" + table(heads, rows)
    )


def agreement_section(data: dict[str, Any]) -> str:
    """Return the section of `agreement.py`."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for r in data["rows"]:
        wrong = sum(r["differing"].values())
        share = 1e6 * r["torch_codes_differing"] / r["codes"]
        row = cells.setdefault((f"{r['topology']} ({r['net']})", r["mode"]), {})
        row[f"`{r['weights']}`"] = f"{wrong} · {share:.0f}"
    heads = list(next(iter(cells.values())))
    rows = [(*key, *(row[h] for h in heads)) for key, row in cells.items()]
    images = data["rows"][0]["images"]
    return (
        "\n## Executors agree\n\n`benchmarks/agreement.py`: outputs of the exported file, in qonnx "
        "and in ONNX Runtime together, that differ from the exact executor, bit for bit · codes "
        f"of torch's fake quantization, per million, that do; {images} images to evaluate on. "
        "Weights and activations of one format. torch sums in float32, so that a code next to a "
        "tie may fall on the other side, and layers behind it follow.\n\n"
        + table(("topology", "mode", *heads), rows)
    )


def finn_section(data: dict[str, Any]) -> str:
    """Return the section of `finn_proof.py`."""
    rows = []
    for r in data["rows"]:
        ran = r.get("simulation")
        rows.append(
            (
                r["net"],
                f"`{r['weights']}` / `{r['activations']}`",
                f"{ran['differing']} of {ran['numbers']}" if ran else "HLS layers: not simulated",
                f"{ran['cycles_per_image']:.0f}" if ran else "",
                r["finn"]["max_cycles"],
                r["lutwise"]["max_cycles"],
                f"{r['finn']['luts']} + {r['finn']['dsps']} DSP",
                f"{r['finn_in_luts']['product_luts']} + {r['finn_in_luts']['threshold_luts']}",
                f"{r['lutwise']['mac_luts']} + {r['lutwise']['requantizer_luts']}",
            )
        )
    heads = (
        "net", "formats", "sums that differ in RTL", "cycles per image, RTL",
        "slowest layer, FINN+", "slowest layer, lutwise", "LUTs, FINN+, its choice",
        "products + thresholds in LUTs, FINN+", "products + requantizers, lutwise",
    )  # fmt: skip
    return (
        f"\n## Through FINN+\n\n`benchmarks/finn_proof.py`: exported files in FINN+ "
        f"{data['finn_plus']} without a vendor tool, folded to PE 1 and SIMD 1 by its target "
        "of images per second; its RTL, stitched and run in Verilator on images of the evaluation "
        "set, against the exact executor's sums of the last layer. FINN+'s LUTs are its analytic "
        "estimates for whole layers, control and thresholds in distributed memory included, "
        "and in its own choice products are in DSP blocks; ours are those of the arithmetic alone, "
        "from synthesis, so that the two columns say different things. FINN+ has residual sums and "
        "depthwise convolutions as HLS only, which needs a vendor tool to run.\n\n"
        + table(heads, rows)
    )


def hls4ml_section(data: dict[str, Any]) -> str:
    """Return the section of `hls4ml_proof.py`."""
    rows = [
        (
            r["net"],
            f"`{r['weights']}` / `{r['activations']}`",
            r["images"],
            r["against_exact"]["classes_differing"],
            f"{r['against_exact']['largest_in_codes']:.1g}",
            r["against_qonnx"]["classes_differing"],
            f"{r['against_qonnx']['largest_in_codes']:.1g}",
            r["layers"],
        )
        for r in data["rows"]
    ]
    heads = (
        "net", "formats", "images", "classes that differ from the exact executor",
        "largest difference (codes)", "classes that differ from qonnx",
        "largest difference (codes)", "layers in hls4ml",
    )  # fmt: skip
    return (
        f"\n## Through hls4ml\n\n`benchmarks/hls4ml_proof.py`: exported files in hls4ml "
        f"{data['hls4ml']} (Vitis, io_parallel), its C++ compiled with g++ and run on images of "
        "the evaluation set. A code is a unit of the last layer's sums; what is left is float32's "
        "rounding of the output's scale.\n\n" + table(heads, rows)
    )


LOWERED = ("e1m2", "e2m0", "e2m1", "e3m0", "e2m2", "e2m3", "e3m1", "e2m4", "e3m2", "e4m3")


def lowering_section() -> str:
    """Return what minifloats cost as integers, from the library of units."""
    rows = []
    for name in LOWERED:
        weights = parse_weight(name)
        assert isinstance(weights, FloatFormat)
        activations = parse_element(f"ue{weights.exponent_bits}m{weights.mantissa_bits + 1}")
        native = lut_per_mac(weights, activations, 8).value
        w, a = integers_of(weights), integers_of(activations)
        lowered = "wider than 8 bits"
        ratio = ""
        if max(w.bits, a.bits) <= 8:
            price = lut_per_mac(
                IntFormat(bits=w.bits, narrow=True), IntFormat(bits=a.bits, signed=False), 8
            ).value
            lowered, ratio = f"{price:.1f}", f"{price / native:.2f}"
        rows.append(
            (
                f"`{name}` / `{activations.name}`",
                f"{w.type_name} / {a.type_name}",
                f"{native:.1f}",
                lowered,
                ratio,
                a.high - a.low,
            )
        )
    heads = (
        "minifloats", "as integers", "LUTs per MAC", "as integers", "ratio", "thresholds",
    )  # fmt: skip
    return (
        "\n## Minifloats as integers\n\nWhat FINN and hls4ml are given: weights and activations "
        "counted in the format's unit. LUTs of a dot product of 8 lanes, from the library of "
        "synthesized units; thresholds per channel of an activation in FINN. Up to two exponent "
        "bits integers are as cheap as minifloats or nearly so, but for `e2m0`; from three on they "
        "are not.\n\n" + table(heads, rows)
    )


def recipes_section(data: dict[str, Any]) -> str:
    """Return the section of `recipes.py`."""
    nets: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for r in data["rows"]:
        formats = f"`{r['weights']}` / `{r['activations']}`"
        cell = f"{100 * r['accuracy']['value']:.2f} · {r['against_float']['sqnr_db']:.1f}"
        reference = 100 * r["float_accuracy"]["value"]
        key = (r["net"], f"mode `{r['mode']}`, float {reference:.2f} %, {r['images']} images")
        nets.setdefault(key, {}).setdefault(r["recipe"], {})[formats] = cell
    page = (
        "\n## Recipes on the built-in nets\n\n`benchmarks/recipes.py`: accuracy (%) · SQNR of "
        f"the logits (dB), {data['calibration_images']} images to calibrate. The interval of an "
        "accuracy (95 %) is 1.2 points up and down at 92 %, 1.5 at 88 %.\n"
    )
    for (net, about), rows in nets.items():
        heads = list(next(iter(rows.values())))
        cells = [(recipe, *(found[f] for f in heads)) for recipe, found in rows.items()]
        page += f"\n**{net}**, {about}\n\n" + table(("recipe", *heads), cells)
    return page


def collect(sweep: Path | None, runs: Sequence[Path], records: dict[str, Path | None]) -> None:
    """Copy what the page is made of into ``docs``."""
    DATA.mkdir(exist_ok=True)
    if sweep is not None:
        shutil.copy(sweep / "sweep.json", DATA / "diagonal.json")
        shutil.copy(sweep / "pareto.png", DOCS / "images" / "diagonal.png")
    for name, record in records.items():
        if record is not None and record.resolve() != (DATA / f"{name}.json").resolve():
            shutil.copy(record, DATA / f"{name}.json")
    if (DATA / "grid.json").exists():
        rows = json.loads((DATA / "grid.json").read_text())["rows"]
        (DOCS / "images" / "imagenet_grid.png").write_bytes(grid_png(rows))
    if runs:
        found = []
        for run in runs:
            metrics = json.loads((run / "metrics.json").read_text())
            cost = json.loads((run / "cost.json").read_text())
            layer = cost["layers"][1]
            metrics |= {
                "weights": layer["weights"].removesuffix("n"),
                "activations": layer["activations"],
                "luts_folded": cost["total"]["folded"]["luts"],
            }
            found.append(metrics)
        (DATA / "imagenet.json").write_text(json.dumps(found, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", type=Path, help="directory of the diagonal sweep")
    parser.add_argument("--run", type=Path, action="append", default=[], help="an ImageNet run")
    parser.add_argument("--kernels", type=Path, help="JSON of benchmarks/kernels.py")
    parser.add_argument("--ptq", type=Path, help="JSON of benchmarks/ptq_vs_brevitas.py")
    parser.add_argument("--grid", type=Path, help="JSON of benchmarks/imagenet_grid.py")
    parser.add_argument("--recipes", type=Path, help="JSON of benchmarks/recipes.py")
    parser.add_argument("--runtimes", type=Path, help="JSON of benchmarks/runtimes.py")
    parser.add_argument("--agreement", type=Path, help="JSON of benchmarks/agreement.py")
    parser.add_argument("--finn", type=Path, help="JSON of benchmarks/finn_proof.py")
    parser.add_argument("--hls4ml", type=Path, help="JSON of benchmarks/hls4ml_proof.py")
    args = parser.parse_args(argv)
    records = {
        name: getattr(args, name)
        for name in (
            "kernels", "ptq", "grid", "recipes", "runtimes", "agreement", "finn", "hls4ml",
        )
    }  # fmt: skip
    collect(args.sweep, args.run, records)
    page = HEAD
    page += sweep_section(json.loads((DATA / "diagonal.json").read_text()))
    sections: Sequence[tuple[str, Callable[[Any], str]]] = (
        ("imagenet", imagenet_section),
        ("recipes", recipes_section),
        ("grid", grid_section),
        ("ptq", ptq_section),
        ("agreement", agreement_section),
        ("runtimes", runtimes_section),
        ("finn", finn_section),
        ("hls4ml", hls4ml_section),
        ("kernels", kernel_section),
    )
    for name, section in sections:
        path = DATA / f"{name}.json"
        if path.exists():
            page += section(json.loads(path.read_text()))
    page += lowering_section()
    (DOCS / "results.md").write_text(page)


if __name__ == "__main__":
    main()
