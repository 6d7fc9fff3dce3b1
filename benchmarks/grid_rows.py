# SPDX-License-Identifier: Apache-2.0
"""Rows of the ImageNet grid: which images were classified rightly, and by how much one row wins."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lutwise.errors import DataError

__all__ = ["bootstrap", "compared", "packed", "strongest", "theirs", "unpacked"]

RESAMPLES: Final = 10_000


def theirs(row: Mapping[str, Any]) -> bool:
    """Return whether a row is Brevitas's."""
    return str(row["tool"]).startswith("brevitas")


def packed(right: npt.NDArray[np.bool_]) -> str:
    """Return which images are classified rightly, eight to a byte, in hexadecimal."""
    return np.packbits(right).tobytes().hex()


def unpacked(row: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Return which images are classified rightly, of a row."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["right"]), np.uint8))
    return bits[: row["images"]].astype(bool)


def bootstrap(
    first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of the accuracy of the first less that of the second.

    Paired: images are drawn with replacement, both models answer the same ones.

    Args:
        first: Which images the first classifies rightly.
        second: Which of the same images the second does.
        seed: Of the draws.
    """
    if first.shape != second.shape:
        raise DataError(
            f"paired answers are needed, got those to {len(first)} and to {len(second)} images; "
            "rows of different runs have come together"
        )
    # Drawn images only count by whether the first, the second or both are right.
    gained = first.astype(np.int64) - second
    shares = [(gained == value).mean() for value in (-1, 0, 1)]
    draws = np.random.default_rng(seed).multinomial(len(gained), shares, RESAMPLES)
    low, high = np.quantile((draws[:, 2] - draws[:, 0]) / len(gained), (0.025, 0.975))
    return float(low), float(high)


def compared(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield rows, ours beside the best of Brevitas's on the same formats.

    Which of Brevitas's is best is decided by the images that measure, in its favour.
    """
    for row in rows:
        rivals = [
            r
            for r in rows
            if theirs(r) and all(r[key] == row[key] for key in ("net", "weights", "activations"))
        ]
        if theirs(row) or not rivals:
            yield row
            continue
        rival = strongest(rivals)
        assert rival is not None
        low, high = bootstrap(unpacked(row), unpacked(rival))
        difference = row["accuracy"]["value"] - rival["accuracy"]["value"]
        against = {"tool": rival["tool"], "difference": difference, "low": low, "high": high}
        yield {**row, "against_brevitas": against}


def strongest(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the most accurate of rows on the same formats, None of none."""
    accuracy_then_noise = (
        (row["accuracy"]["value"], row["against_float"]["sqnr_db"], i) for i, row in enumerate(rows)
    )
    best = max(accuracy_then_noise, default=None)
    return None if best is None else rows[best[2]]
