# SPDX-License-Identifier: Apache-2.0
"""Every error that lutwise raises on purpose.

A message says what was wanted, what came, where, and what to do. The command line prints it
without a traceback and exits with ``exit_code``.
"""

__all__ = [
    "CalibrationError",
    "ConfigError",
    "DataError",
    "ExportError",
    "FormatError",
    "LutwiseError",
    "MismatchError",
    "ModelError",
    "OutputError",
    "ToolError",
    "UnsupportedLayerError",
]


class LutwiseError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class FormatError(LutwiseError):
    """A number format that does not exist, or a value that a format cannot hold."""

    exit_code = 2


class ConfigError(LutwiseError):
    """A recipe, space or option that is not valid."""

    exit_code = 2


class ModelError(LutwiseError):
    """A checkpoint or architecture that cannot be loaded, or holds unusable numbers."""


class DataError(LutwiseError):
    """Images or labels that are missing, unreadable or of the wrong shape."""


class UnsupportedLayerError(LutwiseError):
    """A layer that the requested step cannot handle."""


class CalibrationError(LutwiseError):
    """Calibration saw values from which no range can be made."""


class ExportError(LutwiseError):
    """A network that the requested file format cannot hold."""


class MismatchError(LutwiseError):
    """Two executors that had to agree do not."""


class OutputError(LutwiseError):
    """A place that cannot be written."""


class ToolError(LutwiseError):
    """An external tool failed.

    Args:
        tool: Name of the tool.
        version: Its version, or ``"unknown"``.
        log: The end of what it printed.
    """

    def __init__(self, tool: str, version: str, log: str) -> None:
        self.tool = tool
        self.version = version
        self.log = log
        super().__init__(f"{tool} {version} failed:\n{log.strip()[-2000:]}")
