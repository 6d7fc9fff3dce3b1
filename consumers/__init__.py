# SPDX-License-Identifier: Apache-2.0
"""Downstream users of quantized models."""
