# SPDX-License-Identifier: Apache-2.0
"""Prices: the characterised unit library and the LUT, memory and cycle models."""
