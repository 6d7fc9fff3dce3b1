# SPDX-License-Identifier: Apache-2.0
"""Circuits: arithmetic units in Verilog with bit-exact models, simulation and synthesis."""
