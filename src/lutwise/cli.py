# SPDX-License-Identifier: Apache-2.0
"""The command line. Handlers parse, call the library and print; heavy imports wait until then.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage,
130 interrupted.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from lutwise import __version__
from lutwise.cli_support import JSON_OPTION, QUIET_OPTION, print_result, stack
from lutwise.dit_cli import dit
from lutwise.errors import LutwiseError
from lutwise.interrupts import interrupted, remember_interrupts

__all__ = ["cli", "main"]

_MODEL_OPTIONS = stack(
    click.argument("model"),
    click.option("--arch", help="Architecture of a checkpoint: zoo/NAME, timm/NAME, ..."),
    click.option("--trust-code", is_flag=True, help="Allow --arch to run Python code of yours."),
    click.option("--calib", help="Calibration images: a folder, an .npz file, or zoo/NAME."),
    click.option("--eval", "evaluation", help="Labelled images to measure accuracy on."),
    click.option("--preprocessing", metavar="TEXT",
                 help="How images become numbers, where the model does not know: imagenet, or "
                      "'mean=0.5;std=0.25;size=28' and more; see the documentation."),
    click.option("--eval-images", type=click.IntRange(1),
                 help="Images to measure on, at most; all if left out."),
    click.option("--calib-images", type=click.IntRange(1),
                 help="Images to calibrate with, at most; 256 if left out."),
    click.option("--pe", type=click.IntRange(1), default=4, show_default=True,
                 help="Outputs computed side by side in the priced hardware."),
    click.option("--simd", type=click.IntRange(1), default=8, show_default=True,
                 help="Products per output and cycle in the priced hardware."),
    click.option("--threads", type=click.IntRange(1, 1024),
                 help="Threads of each process; default: all cores, shared by --jobs."),
    JSON_OPTION,
    QUIET_OPTION,
)  # fmt: skip

_RECIPE_OPTIONS = stack(
    click.option("--recipe", type=click.Path(path_type=Path), help="Recipe file (YAML)."),
    click.option("--mode", help="dataflow (default) or layerwise."),
    click.option("--preset", help="fast, balanced (default) or best; see the documentation."),
    click.option("--algorithms", help="Names, separated by commas; '' for none."),
    click.option("--seed", type=int, help="Seed of every random choice."),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                 help="Any recipe key, e.g. --set weights.range=max. Repeatable."),
)  # fmt: skip


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="quantize")
def cli() -> None:
    """Quantize trained networks to integers and minifloats, and know what they cost in LUTs.

    Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, or what was
    compared differs, 2 wrong usage (an option, recipe or format that is not valid), 130
    interrupted.
    """


@cli.command("run")
@_MODEL_OPTIONS
@click.option("--weights", help="Format of the weights: int4, e2m1, ...; default: int8.")
@click.option("--acts", help="Format of the activations: uint4, ue2m2, ...; default: uint8.")
@_RECIPE_OPTIONS
@click.option(
    "--check-images",
    type=click.IntRange(0),
    default=2000,
    show_default=True,
    help="Compare the exported file on so many images, at most.",
)
@click.option(
    "--for",
    "tools",
    type=click.Choice(["finn", "hls4ml"]),
    multiple=True,
    help="Write a file for this tool as well; see `quantize export`.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run directory; runs/MODEL-WEIGHTS-ACTS if left out.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
def _run(**options: Any) -> None:
    """Quantize MODEL, measure it, export it, price it.

    MODEL is zoo/NAME, a .safetensors or .pt file with --arch, an .onnx file, timm/NAME or
    torchvision/NAME. Without --calib and --eval a zoo model uses the images it came with.
    """
    from lutwise import commands

    print_result(commands.run(options, _changes(options)), as_json=options["as_json"])


@cli.command("sweep")
@_MODEL_OPTIONS
@click.option(
    "--space", default="demo", show_default=True, help="Points: demo, diagonal, or a YAML file."
)
@_RECIPE_OPTIONS
@click.option(
    "--check-images",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="Compare every exported file on so many images, at most.",
)
@click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Points at a time."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Sweep directory.")
@click.option("--dry-run", is_flag=True, help="List the points, and stop.")
def _sweep(**options: Any) -> None:
    """Run many points of MODEL; plot accuracy against bits and LUTs."""
    from lutwise import commands

    print_result(commands.sweep(options, _changes(options)), as_json=options["as_json"])


@cli.command("synth")
@click.argument("weights")
@click.argument("activations")
@click.option(
    "--lanes", type=click.IntRange(1, 256), default=8, show_default=True, help="Products per cycle."
)
@click.option(
    "--style",
    default="auto",
    show_default=True,
    help="How products are built: plain, table, chain-a, array-digits-2, ...; auto synthesizes "
    "up to three of which the fewest LUTs are counted, and takes the smallest.",
)
@JSON_OPTION
def _synth(**options: Any) -> None:
    """Synthesize a dot-product unit, prove the netlist against its model, count its LUTs."""
    from lutwise import commands

    print_result(commands.synth(options), as_json=options["as_json"])


@cli.command("atlas")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the tables; cost_models/data is the one that prices come from.",
)
@click.option(
    "--only",
    type=click.Choice(["diagonal", "dot_products", "requantizers"]),
    help="diagonal: units of one format only, written to dot_products.csv.",
)
@click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Units at a time."
)
@JSON_OPTION
@QUIET_OPTION
def _atlas(**options: Any) -> None:
    """Synthesize and prove every unit of the price tables again, and write the tables.

    Finished units are kept by content, so a run that was stopped continues where it was.
    """
    from lutwise import commands

    print_result(commands.atlas(options), as_json=options["as_json"])


@cli.command("estimate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--pe",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Outputs computed side by side.",
)
@click.option(
    "--simd",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Products per output and cycle.",
)
@click.option(
    "--folding",
    metavar="auto|FILE",
    help="Instead of --pe and --simd, which then do nothing: auto finds the fastest within "
    "--budget; a JSON file gives PE and SIMD of each layer, as --folding-out writes it.",
)
@click.option(
    "--budget", metavar="lut=N", help="LUTs of all layers together, at most; with --folding auto."
)
@click.option(
    "--folding-out",
    type=click.Path(path_type=Path),
    help="Write PE and SIMD of each layer to this JSON file.",
)
@click.option(
    "--weights-in",
    type=click.Choice(["auto", "lut", "block"]),
    default="auto",
    show_default=True,
    help="Where weights lie; auto: in block RAM in layers where that saves more than 150 LUTs for "
    "each RAMB18, else in LUTs.",
)
@click.option(
    "--clock",
    type=click.FloatRange(0, min_open=True),
    default=200.0,
    show_default=True,
    help="Clock in MHz for inputs per second; taken as given, not estimated.",
)
@JSON_OPTION
def _estimate(**options: Any) -> None:
    """Price the layers of RUN with a folding.

    RUN is the directory of a finished run, or a QONNX file. Every layer is priced as a unit of
    its own: LUTs with an interval, block RAM, cycles. All units work at the same time, so the
    slowest sets the speed; it is named.
    """
    from lutwise import commands

    print_result(commands.estimate_run(options), as_json=options["as_json"])


@cli.command("check")
@click.argument("first")
@click.argument("second", required=False)
@click.option("--data", help="Images, as for --eval of run; random numbers if left out.")
@click.option(
    "--images", type=click.IntRange(1), default=64, show_default=True, help="Images, at most."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Absolute difference that counts as none.",
)
@JSON_OPTION
def _check(**options: Any) -> None:
    """Run two executors and name the first tensor that differs.

    FIRST and SECOND are QONNX files, each alone or as qonnx:FILE, onnxruntime:FILE or
    hls4ml:FILE (its C++, compiled), or finished runs, as exact:RUN (the exact executor) or
    torch:RUN (fake quantization). With FIRST alone qonnx and ONNX Runtime run that file. Exit
    code 1 says that the outputs differ.
    """
    from lutwise import commands

    found = commands.check(options)
    print_result(found, as_json=options["as_json"])
    if found["output"]:
        sys.exit(1)


@cli.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "tool",
    type=click.Choice(["finn", "hls4ml"]),
    required=True,
    help="The tool that reads the file.",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="The file; RUN/model.TOOL.onnx if left out.",
)
@click.option(
    "--data", help="Images to prove it on, as for --eval of run; random numbers if left out."
)
@click.option(
    "--images", type=click.IntRange(1), default=16, show_default=True, help="Images, at most."
)
@JSON_OPTION
def _export(**options: Any) -> None:
    """Write the network of a finished RUN for FINN or hls4ml, and prove the file.

    Minifloats become integers, exactly. The file is run in qonnx and compared with the exact
    executor, code by code, before it is written.
    """
    from lutwise import commands

    print_result(commands.export(options), as_json=options["as_json"])


@cli.command("verify")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--rtl", is_flag=True, required=True, help="Simulate the layers' own Verilog.")
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="GLOB",
    help="Layers to prove; all if left out. Repeatable.",
)
@click.option("--data", help="Images, as for --eval of run; random numbers if left out.")
@click.option(
    "--images", type=click.IntRange(1), default=1, show_default=True, help="Images, at most."
)
@click.option("--vectors", type=click.IntRange(1), help="Input vectors per layer, at most.")
@click.option(
    "--pe",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Outputs computed side by side.",
)
@click.option(
    "--simd",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    help="Products per output and cycle.",
)
@click.option(
    "--folding",
    type=click.Path(path_type=Path),
    help="Instead of --pe and --simd: a file that `estimate --folding-out` wrote.",
)
@click.option("--pipeline", is_flag=True, help="Registers inside the dot products.")
@click.option(
    "--pressure/--no-pressure",
    default=True,
    show_default=True,
    help="Let writer and reader of the streams pause at random.",
)
@JSON_OPTION
@QUIET_OPTION
def _verify(**options: Any) -> None:
    """Prove the layers of a finished RUN in RTL.

    Every layer becomes a matrix-vector unit with the run's own weights; the activations of real
    images go through it in Verilator, and each result is compared with the exact executor's.
    Units hold their weights in LUTs. PE and SIMD are clipped to each layer; groups side by side
    are proven as one unit that takes one after the other. Units and transcripts with hashes are
    written to RUN/rtl. Exit code 1 says that a result differs.
    """
    from lutwise import commands

    found = commands.verify(options)
    print_result(found, as_json=options["as_json"])
    if found["mismatches"]:
        sys.exit(1)


@cli.command("convert")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
def _convert(**options: Any) -> None:
    """Rewrite a QONNX file SOURCE in standard operators, as TARGET.

    QuantizeLinear, Clip and DequantizeLinear stand for its quantizers (QCDQ): integers of up to
    8 bits, and 8-bit floats of float32 tensors. The results stay the same bit for bit.
    """
    from lutwise import commands

    print_result(commands.convert(options), as_json=False)


@cli.command("report")
@click.argument("directory", type=click.Path(path_type=Path))
def _report(directory: Path) -> None:
    """Draw the plots and the page of a finished sweep again."""
    from lutwise import commands

    print_result(commands.report(directory), as_json=False)


@cli.command("doctor")
@JSON_OPTION
def _doctor(as_json: bool) -> None:
    """Say what is installed and what it can do."""
    from lutwise import commands

    print_result(commands.doctor(), as_json=as_json)


cli.add_command(dit)


def _changes(options: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe values that the options give, by dotted key."""
    import yaml

    found: dict[str, Any] = {}
    for setting in options["settings"]:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise click.UsageError(f"--set wants KEY=VALUE, got {setting!r}")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise click.UsageError(f"--set {key}: {value!r} is no YAML value") from error
    keys = {
        "weights": "weights.format",
        "acts": "activations.format",
        "mode": "mode",
        "preset": "preset",
        "seed": "seed",
        "calib_images": "calibration.images",
    }
    found.update({key: options[o] for o, key in keys.items() if options.get(o) is not None})
    if options["algorithms"] is not None:
        found["algorithms"] = [n.strip() for n in options["algorithms"].split(",") if n.strip()]
    return found


@contextmanager
def _errors() -> Iterator[None]:
    """Turn errors raised on purpose into one message and an exit code."""
    remember_interrupts()
    try:
        with _interrupts():
            yield
    except LutwiseError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has gone; what is left to say goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except MemoryError as error:
        click.echo(f"error: not enough memory: {error}; fewer images take less", err=True)
        sys.exit(1)


@contextmanager
def _interrupts() -> Iterator[None]:
    """Exit with 130 on Ctrl-C, and on any error that an interrupt has turned into."""
    try:
        yield
    except Exception as error:
        if not interrupted() and not isinstance(error, click.Abort):
            raise
    except KeyboardInterrupt:
        pass
    else:
        return
    click.echo("interrupted; the same command continues where it stopped", err=True)
    sys.exit(130)


def main() -> None:
    """Run the command line."""
    with _errors():
        try:
            cli.main(standalone_mode=False)
        except click.exceptions.Exit as stop:
            sys.exit(stop.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
