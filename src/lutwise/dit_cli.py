# SPDX-License-Identifier: Apache-2.0
"""``quantize dit``: diffusion transformers. Heavy imports wait until a handler runs."""

from pathlib import Path
from typing import Any

import click

from lutwise.cli_support import JSON_OPTION, QUIET_OPTION, print_result, stack

__all__ = ["dit"]


_QUANTIZE_OPTIONS = stack(
    click.option(
        "--range",
        "search",
        type=click.Choice(["mse", "max", "percentile"]),
        default="mse",
        show_default=True,
        help="How scales are found.",
    ),
    click.option(
        "--timestep-groups",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Groups of timesteps with activation scales of their own.",
    ),
    click.option("--algorithm", help="That rounds weights: gptq, qronos, gpfq, learned_rounding."),
)

_SAMPLE_OPTIONS = stack(
    click.option(
        "--sampler", type=click.Choice(["ddpm", "ddim"]), default="ddpm", show_default=True
    ),
    click.option(
        "--guidance", type=float, default=1.0, show_default=True, help="Scale; 1 for none."
    ),
    click.option("--classes", help="Numbers, separated by commas; all if left out."),
    click.option(
        "--batch", type=click.IntRange(1), default=250, show_default=True, help="Samples at a time."
    ),
)

_FIT_OPTIONS = stack(
    click.option(
        "--fit-samples",
        type=click.IntRange(2),
        default=200,
        show_default=True,
        help="Trajectories that the compensation is fitted on.",
    ),
    click.option("--calib-samples", type=click.IntRange(1), default=256, show_default=True),
    click.option(
        "--calib-trajectories",
        type=click.IntRange(1),
        default=64,
        show_default=True,
        help="To choose them from.",
    ),
)

_COMMON_OPTIONS = stack(
    click.option("--threads", type=click.IntRange(1, 1024), help="Default: all cores."),
    JSON_OPTION,
    QUIET_OPTION,
)


@click.group("dit")
def dit() -> None:
    """Quantize diffusion transformers of diffusers, and cache what their layers give."""


@dit.command("run")
@click.argument("model")
@click.option("--weights", default="int8", show_default=True, help="Format, or float.")
@click.option("--acts", default="int8", show_default=True, help="Format, or float.")
@click.option(
    "--layer",
    "overrides",
    multiple=True,
    metavar="GLOB=W[/A]",
    help="Other formats for some layers, e.g. 'proj_out_*=float/float'. Repeatable.",
)
@_QUANTIZE_OPTIONS
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True)
@_SAMPLE_OPTIONS
@click.option(
    "--interval",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Steps from one refresh of the cache to the next; 1 for no cache.",
)
@click.option(
    "--schedule",
    type=click.Path(path_type=Path),
    help="Instead: a file that says what is computed when (JSON).",
)
@click.option(
    "--order",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of the forecast of cached outputs; 0 reuses them.",
)
@click.option(
    "--compensation",
    default="std",
    show_default=True,
    help="none, std, moments, least_squares, minimiser, printed or qdrift.",
)
@click.option(
    "--calib",
    type=click.Choice(["random", "uniform", "tap"]),
    default="random",
    show_default=True,
    help="How calibration samples are chosen.",
)
@_FIT_OPTIONS
@click.option(
    "--samples",
    type=click.IntRange(2),
    default=200,
    show_default=True,
    help="To make of each model.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Run directory.")
@_COMMON_OPTIONS
def _run(**options: Any) -> None:
    """Quantize MODEL, cache its layers, compensate, and sample it beside the float model.

    MODEL is a folder of diffusers with a DiT (a pipeline or its transformer), or zoo/dit-digits.
    Models see the same noise. Writes metrics.json, samples.png, variance.png, and what was
    quantized and fitted; the same command continues a run that was stopped.
    """
    from lutwise import dit_commands

    print_result(dit_commands.run(options), as_json=options["as_json"])


@dit.command("sweep")
@click.argument("model")
@click.option("--steps", default="20", show_default=True, help="Of sampling, e.g. 20,50.")
@click.option(
    "--intervals",
    default="1,2,3,5",
    show_default=True,
    help="Steps from one refresh of the cache to the next; 1 for no cache.",
)
@click.option(
    "--schedule",
    "schedules",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Beside the intervals: a file that says what is computed when (JSON). Repeatable.",
)
@click.option(
    "--formats",
    default="float,int8/int8,int4/int8,int4/int4",
    show_default=True,
    help="Weights/activations, or one format for both.",
)
@click.option(
    "--orders",
    default="0",
    show_default=True,
    help="Of the forecast of cached outputs; 0 reuses them.",
)
@click.option(
    "--compensations",
    default="none,std",
    show_default=True,
    help="Of none, std, moments, least_squares, minimiser, printed and qdrift.",
)
@click.option(
    "--calibs",
    default="random",
    show_default=True,
    help="How calibration samples are chosen: of random, uniform and tap.",
)
@click.option(
    "--seeds", type=click.IntRange(1), default=3, show_default=True, help="Repetitions of each."
)
@click.option(
    "--samples",
    type=click.IntRange(2),
    default=500,
    show_default=True,
    help="To make for each cell and seed.",
)
@_QUANTIZE_OPTIONS
@_SAMPLE_OPTIONS
@_FIT_OPTIONS
@click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Cells at a time."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Sweep directory.")
@click.option("--dry-run", is_flag=True, help="List the cells and their costs, and stop.")
@_COMMON_OPTIONS
def _sweep(**options: Any) -> None:
    """Compare formats, cache intervals and compensations of MODEL: quality against cost.

    Runs every combination of the lists and the float model. Writes sweep.json, report.html and
    pictures; the same command continues a sweep that was stopped, and a larger one runs what is
    new.
    """
    from lutwise import dit_commands

    print_result(dit_commands.sweep(options), as_json=options["as_json"])
