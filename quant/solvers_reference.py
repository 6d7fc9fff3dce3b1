# SPDX-License-Identifier: Apache-2.0
"""The solvers as their papers write them: one group, float64, a column at a time, inverses and all.

Slow, and kept to decide what `lutwise.quant.solvers` must give.
"""

import numpy as np
import numpy.typing as npt

from lutwise.quant import numerics
from lutwise.quant.formats import Format

__all__ = ["descend", "gpfq", "gptq", "qronos"]

Array = npt.NDArray[np.float64]


def _order(gram: Array, by_activity: bool) -> npt.NDArray[np.intp]:
    if by_activity:
        return np.argsort(-np.diag(gram), kind="stable")
    return np.arange(len(gram))


def _damped(gram: Array, damping: float) -> Array:
    power = np.diag(gram)
    mean = power.mean()
    silent = np.where(power <= 0, mean if mean > 0 else 1.0, 0.0)
    damped: Array = gram + np.diag(damping * mean + silent)
    return damped


def gptq(fmt: Format, weights: Array, gram: Array, *, by_activity: bool, damping: float) -> Array:
    """Round rows (r, n) against H (n, n).

    Reference:
        arXiv 2210.17323, equations 2 and 3: round a column, then move the others by
        ``-(w_i - v_i) / [H^-1]_ii  [H^-1]_i:``, and remove i from the inverse.
    """
    order = _order(gram, by_activity)
    inverse = np.linalg.inv(_damped(gram[np.ix_(order, order)], damping))
    rest = weights[:, order].copy()
    found = np.empty_like(rest)
    for i in range(len(order)):
        found[:, i] = numerics.quantize(fmt, rest[:, i])
        step = inverse[i] / inverse[i, i]
        rest = rest - np.outer(rest[:, i] - found[:, i], step)
        inverse = inverse - np.outer(inverse[:, i], step)
    result = np.empty_like(found)
    result[:, order] = found
    return result


def qronos(
    fmt: Format, weights: Array, gram: Array, cross: Array, *, by_activity: bool, damping: float
) -> Array:
    """Round rows (r, n) against H and G (n, n).

    Reference:
        arXiv 2505.11695, equations 3 and 4: round the column that serves the float outputs best
        while the others stay, then solve for all the others; the damping is that of `gptq`.
    """
    order = _order(gram, by_activity)
    h = _damped(gram[np.ix_(order, order)], damping)
    g = cross[np.ix_(order, order)] + (h - gram[np.ix_(order, order)])
    wanted = weights[:, order] @ g.T
    current = weights[:, order].copy()
    for i in range(len(order)):
        best = (wanted[:, i] - np.delete(current, i, 1) @ np.delete(h[i], i)) / h[i, i]
        current[:, i] = numerics.quantize(fmt, best if i == 0 else current[:, i])
        if i + 1 < len(order):
            right = wanted[:, i + 1 :] - current[:, : i + 1] @ h[: i + 1, i + 1 :]
            current[:, i + 1 :] = np.linalg.solve(h[i + 1 :, i + 1 :], right.T).T
    result = np.empty_like(current)
    result[:, order] = current
    return result


def gpfq(fmt: Format, weights: Array, inputs: Array, floats: Array, *, by_activity: bool) -> Array:
    """Round rows (r, n) along quantized inputs and float inputs, both (patches, n).

    Reference:
        arXiv 2201.11113, equation 2: round the projection of the error so far plus the next term.
    """
    result = np.empty_like(weights)
    error = np.zeros((len(inputs), len(weights)))
    for i in _order(inputs.T @ inputs, by_activity):
        quantized, exact = inputs[:, i], floats[:, i]
        power = quantized @ quantized
        carried = error + np.outer(exact, weights[:, i])
        best = quantized @ carried / power if power > 0 else weights[:, i]
        result[:, i] = numerics.quantize(fmt, best)
        error = carried - np.outer(quantized, result[:, i])
    return result


def descend(fmt: Format, weights: Array, values: Array, gram: Array, *, sweeps: int) -> Array:
    """Improve rows (r, n) a column at a time.

    Reference:
        arXiv 2309.01885, algorithm 1.
    """
    held = values.copy()
    for _ in range(sweeps):
        for i in range(len(gram)):
            if gram[i, i] > 0:
                slope = (weights - held) @ gram[:, i]
                held[:, i] = numerics.quantize(fmt, held[:, i] + slope / gram[i, i])
    return held
