# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies, all in one place."""

from hypothesis import strategies as st

from lutwise.quant.formats import Format, all_formats

FORMATS = all_formats()
FLOAT32_FORMATS = tuple(f for f in FORMATS if f.max_value < 2.0**128)


def formats() -> st.SearchStrategy[Format]:
    """Any integer or minifloat format."""
    return st.sampled_from(FORMATS)


def numbers(fmt: Format) -> st.SearchStrategy[float]:
    """Numbers around a format's range: tiny, inside, beyond."""
    return st.one_of(
        st.floats(-2 * fmt.max_value, 2 * fmt.max_value, allow_nan=False),
        st.floats(-8.0, 8.0).map(lambda x: x * 2.0**fmt.unit_exponent),
        st.sampled_from([0.0, -0.0, fmt.max_value, -fmt.max_value]),
    )
