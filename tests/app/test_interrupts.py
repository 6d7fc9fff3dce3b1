# SPDX-License-Identifier: Apache-2.0
"""Interrupts that something swallows, or turns into another error, still end the command."""

import os
import subprocess
import sys

import pytest

SAID = "interrupted; the same command continues where it stopped"

SCRIPT = """
import os, signal, sys
import click
from lutwise import commands
from lutwise.cli import main
from lutwise.shown import steps_shown

def doctor():
    with steps_shown(quiet=os.environ["HOW"] == "quiet") as tell:
        tell("before")
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            {after}
        tell("after")
        print("not reached")

commands.doctor = doctor
main()
"""


@pytest.mark.parametrize("how", ["quiet", "loud"])
@pytest.mark.parametrize("after", ["pass", "raise ValueError('module has no attribute')"])
def test_swallowed_interrupts_end_the_command(after: str, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(after=after), "doctor"],
        env={**os.environ, "HOW": how},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == SAID
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
