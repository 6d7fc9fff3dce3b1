# SPDX-License-Identifier: Apache-2.0
"""Numbers and models: formats, numerics, calibration, PTQ algorithms, models and data."""
