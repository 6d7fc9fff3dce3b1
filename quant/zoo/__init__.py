# SPDX-License-Identifier: Apache-2.0
"""Small nets that ship with the package, with their weights and a subset of their data."""
