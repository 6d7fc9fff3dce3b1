# SPDX-License-Identifier: Apache-2.0
"""Post-training quantization that knows what it costs in FPGA LUTs."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("lutwise")
