# SPDX-License-Identifier: Apache-2.0
"""Files that others read: QONNX, plots and reports."""
