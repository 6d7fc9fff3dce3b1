# SPDX-License-Identifier: Apache-2.0
"""Numbers and names as people read them in plots and reports."""

from lutwise.export.points import Estimate

__all__ = ["count", "decibel", "file_size", "interval", "percent", "printable", "short", "shorten"]

_EXACT_DB = 199.5
"""Signal to noise is cut off at 200 dB: no noise at all."""


def printable(text: str) -> str:
    """Return text without line breaks, control characters and lone surrogates."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def shorten(text: str, length: int) -> str:
    """Return printable text of at most ``length`` characters, cut in the middle."""
    text = printable(text)
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def percent(share: float, digits: int = 1) -> str:
    """Return a share as per cent."""
    return f"{100 * share:.{digits}f} %"


def interval(estimate: Estimate, digits: int = 1) -> str:
    """Return an estimate as per cent, with its interval."""
    low, high = f"{100 * estimate.low:.{digits}f}", f"{100 * estimate.high:.{digits}f}"
    return f"{percent(estimate.value, digits)} ({low} to {high})"


def count(number: float) -> str:
    """Return a number with thousands apart, and one decimal only below 100."""
    if abs(number) < 100 and number != int(number):
        return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"
    return f"{round(number):,}"


def short(number: float) -> str:
    """Return a large number with three digits and the unit that suits it: ``52.5 M``."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def file_size(size: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def decibel(value: float | None) -> str:
    """Return a signal-to-noise ratio."""
    if value is None:
        return "n/a"
    if value >= _EXACT_DB:
        return "exact"
    return f"{value:.1f} dB"
