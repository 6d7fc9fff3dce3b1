# SPDX-License-Identifier: Apache-2.0
"""``quantize dit``: diffusion transformers. Heavy imports wait until a handler runs."""

import json
from pathlib import Path
from typing import Any

import click

__all__ = ["dit"]


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
@click.option(
    "--range",
    "search",
    type=click.Choice(["mse", "max", "percentile"]),
    default="mse",
    show_default=True,
    help="How scales are found.",
)
@click.option(
    "--timestep-groups",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Groups of timesteps with activation scales of their own.",
)
@click.option("--algorithm", help="That rounds weights: gptq, qronos, gpfq, learned_rounding.")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True)
@click.option("--sampler", type=click.Choice(["ddpm", "ddim"]), default="ddpm", show_default=True)
@click.option("--guidance", type=float, default=1.0, show_default=True, help="Scale; 1 for none.")
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
    help="none, std, least_squares, minimiser, printed or qdrift.",
)
@click.option(
    "--fit-samples",
    type=click.IntRange(2),
    default=200,
    show_default=True,
    help="Trajectories that the compensation is fitted on.",
)
@click.option(
    "--calib",
    type=click.Choice(["random", "uniform", "tap"]),
    default="random",
    show_default=True,
    help="How calibration samples are chosen.",
)
@click.option("--calib-samples", type=click.IntRange(1), default=256, show_default=True)
@click.option(
    "--calib-trajectories",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="To choose them from.",
)
@click.option(
    "--samples",
    type=click.IntRange(2),
    default=200,
    show_default=True,
    help="To make of each model.",
)
@click.option("--classes", help="Numbers, separated by commas; all if left out.")
@click.option(
    "--batch", type=click.IntRange(1), default=250, show_default=True, help="Samples at a time."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Default: all cores.")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def _run(**options: Any) -> None:
    """Quantize MODEL, cache its layers, compensate, and sample it beside the float model.

    MODEL is a folder of diffusers with a DiT (a pipeline or its transformer), or zoo/dit-digits.
    Models see the same noise. Writes metrics.json, samples.png, variance.png, and what was
    quantized and fitted; the same command continues a run that was stopped.
    """
    from lutwise import dit_commands

    _print(dit_commands.run(options), as_json=options["as_json"])


def _print(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    from lutwise.commands import for_people

    for line in for_people(result):
        click.echo(line)
