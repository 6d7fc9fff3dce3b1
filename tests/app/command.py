# SPDX-License-Identifier: Apache-2.0
"""The command, run by tests in their own process."""

import contextlib
import io
import subprocess
import sys
from unittest import mock

from lutwise.cli import main


def quantize(*args: object) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which saves importing torch every time."""
    arguments = ["quantize", *map(str, args)]
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", arguments),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
