# SPDX-License-Identifier: Apache-2.0
"""Rounding of weights with the errors of earlier columns fed back, by linear algebra alone.

A layer's weights are rows w, its inputs enter through Gram matrices: ``H = sum q q^T`` of the
quantized inputs and, where wanted, ``G = sum q x^T`` against the float inputs x. All methods here
minimize ``sum ((w, x) - (v, q))^2`` over grid points v, one column after another:

    v_i = round(c_i + sum_{j<i} F_ij (w_j - v_j))

and differ in the start ``c`` and the feedback ``F``. Weights come divided by their scales, so that
rounding needs the format only. Everything is batched over the groups of a convolution.

`lutwise.quant.solvers_reference` has the same methods as their papers write them.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import torch

from lutwise.errors import CalibrationError
from lutwise.quant import kernels
from lutwise.quant.formats import Format

__all__ = ["Order", "Solution", "descend", "gpfq", "gptq", "loss", "qronos"]

_ATTEMPTS: Final = 6
"""Times that the damping grows tenfold before a matrix is given up."""


class Order(StrEnum):
    """In which order columns are rounded."""

    NATURAL = "natural"
    ACTIVITY = "activity"
    """Largest input power first."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """What a solver found.

    Args:
        values: Numbers of the format, shape (g, rows, n).
        damping: The damping that the factorization took, relative to the mean of the diagonal.
    """

    values: torch.Tensor
    damping: float


def loss(weights: torch.Tensor, values: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Return ``(w - v)^T H (w - v)`` of each row, shape (g, rows)."""
    error = weights - values
    return ((error @ gram) * error).sum(-1)


def gptq(
    fmt: Format,
    weights: torch.Tensor,
    gram: torch.Tensor,
    *,
    order: Order = Order.ACTIVITY,
    damping: float = 0.01,
    block: int = 64,
) -> Solution:
    """Round columns one after another, the rest taking up the error of each.

    Args:
        fmt: The format.
        weights: In units of the scale, shape (g, rows, n).
        gram: H, shape (g, n, n).
        order: Of the columns.
        damping: Added to the diagonal, relative to its mean.
        block: Columns between two matrix products; decides speed alone.

    Raises:
        CalibrationError: H has no Cholesky factor even with strong damping.

    Reference:
        GPTQ, arXiv 2210.17323, algorithm 1. With ``H = U U^T``, U upper triangular, the update by
        the inverse's factor equals back substitution, ``F_ij = U_ji / U_ii`` (arXiv 2507.18553),
        so that one factorization is all that is needed and nothing is inverted.
    """
    permutation = _permutation(gram, order)
    backwards = None if permutation is None else permutation.flip(-1)
    flipped = gram.flip(-2, -1) if backwards is None else _permuted(gram, backwards)
    upper, used = _damped_factor(flipped, damping)
    feedback = _feedback(upper)
    start = _columns_first(weights, permutation)
    values = _round_columns(fmt, start, start, feedback, block)
    return Solution(values=_rows_first(values, permutation), damping=used)


def qronos(
    fmt: Format,
    weights: torch.Tensor,
    gram: torch.Tensor,
    cross: torch.Tensor,
    *,
    order: Order = Order.ACTIVITY,
    damping: float = 0.01,
    block: int = 64,
) -> Solution:
    """Round columns one after another, correcting the error of the inputs on the way.

    Args:
        fmt: The format.
        weights: In units of the scale, shape (g, rows, n).
        gram: H, shape (g, n, n).
        cross: G, shape (g, n, n); row by quantized input, column by float input.
        order: Of the columns.
        damping: Added to the diagonals of H and G, relative to the mean of H's.
        block: Columns between two matrix products.

    Raises:
        CalibrationError: H has no Cholesky factor even with strong damping.

    Reference:
        Qronos, arXiv 2505.11695, algorithm 1. Everything but the first column follows from GPTQ
        on the least-squares weights ``H^-1 G w``. The damping of G keeps those at w where the
        inputs say nothing, which the paper leaves open.
    """
    permutation = _permutation(gram, order)
    h, g = _permuted(gram, permutation), _permuted(cross, permutation)
    original = _columns_first(weights, permutation)
    upper, used = _damped_factor(h.flip(-2, -1), damping)
    extra = _diagonal_damping(h.diagonal(dim1=-2, dim2=-1), used)
    h.diagonal(dim1=-2, dim2=-1).add_(extra)
    g.diagonal(dim1=-2, dim2=-1).add_(extra)
    wanted = g @ original
    half = torch.linalg.solve_triangular(upper, wanted, upper=True)
    ideal = torch.linalg.solve_triangular(upper.mT, half, upper=False)
    feedback = _feedback(upper)
    first = (wanted[:, 0] - (h[:, :1, 1:] @ original[:, 1:])[:, 0]) / h[:, 0, :1]
    values = _round_columns(fmt, ideal, ideal, feedback, block, first=first)
    return Solution(values=_rows_first(values, permutation), damping=used)


def gpfq(
    fmt: Format,
    weights: torch.Tensor,
    gram: torch.Tensor,
    cross: torch.Tensor,
    *,
    order: Order = Order.ACTIVITY,
    block: int = 64,
) -> Solution:
    """Round each column to what cancels the error of all columns before it.

    Args:
        fmt: The format.
        weights: In units of the scale, shape (g, rows, n).
        gram: H, shape (g, n, n).
        cross: G, shape (g, n, n); row by quantized input, column by float input.
        order: Of the columns.
        block: Columns between two matrix products.

    Reference:
        GPFQ, arXiv 2201.11113, equation 2, written with Gram matrices instead of the inputs
        themselves.
    """
    permutation = _permutation(gram, order)
    h, g = _permuted(gram, permutation), _permuted(cross, permutation)
    original = _columns_first(weights, permutation)
    power = h.diagonal(dim1=-2, dim2=-1)
    power = torch.where(power > 0, power, torch.ones_like(power))[:, :, None]
    start = original + torch.tril(g - h) @ original / power
    values = _round_columns(fmt, start, original, (torch.tril(h, -1) / power).mT, block)
    return Solution(values=_rows_first(values, permutation), damping=0.0)


def descend(
    fmt: Format,
    weights: torch.Tensor,
    values: torch.Tensor,
    gram: torch.Tensor,
    *,
    sweeps: int,
    block: int = 64,
) -> torch.Tensor:
    """Improve values by coordinate descent: each column in turn takes its best grid point.

    The loss of no row ever grows.

    Args:
        fmt: The format.
        weights: In units of the scale, shape (g, rows, n).
        values: Numbers of the format to start from, the same shape.
        gram: H, shape (g, n, n).
        sweeps: Times that all columns are visited.
        block: Columns between two matrix products.

    Reference:
        QuantEase, arXiv 2309.01885, algorithm 1.
    """
    power = gram.diagonal(dim1=-2, dim2=-1)
    scaled = gram / torch.where(power > 0, power, torch.ones_like(power))[:, None, :]
    target, held = (t.mT.contiguous() for t in (weights, values))
    round_ = kernels.rounder(fmt, held.dtype)
    n = held.shape[1]
    for _ in range(sweeps):
        before = held.clone()
        pull = scaled.mT @ (target - held)  # what each column would move by
        for start in range(0, n, block):
            end = min(n, start + block)
            inner = scaled[:, start:end, start:end]
            moved = torch.empty_like(held[:, start:end])
            for i in range(end - start):
                old = held[:, start + i]
                new = round_(old + pull[:, start + i])
                torch.sub(old, new, out=moved[:, i])
                held[:, start + i] = new
                pull[:, start + i : end].baddbmm_(inner[:, i, i:, None], moved[:, i : i + 1])
            pull[:, end:].baddbmm_(scaled[:, start:end, end:].mT, moved)
        if torch.equal(before, held):
            break
    return held.mT.contiguous()


def _permutation(gram: torch.Tensor, order: Order) -> torch.Tensor | None:
    """Return for each group the columns in the order of work, (g, n); None for as they are."""
    if order is Order.NATURAL:
        return None
    return gram.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True, stable=True)


def _permuted(gram: torch.Tensor, permutation: torch.Tensor | None) -> torch.Tensor:
    """Return a copy with rows and columns in order."""
    if permutation is None:
        return gram.clone()
    rows = torch.gather(gram, 1, permutation[:, :, None].expand_as(gram))
    return torch.gather(rows, 2, permutation[:, None, :].expand_as(gram))


def _columns_first(weights: torch.Tensor, permutation: torch.Tensor | None) -> torch.Tensor:
    """Return (g, n, rows), so that a column is contiguous."""
    columns = weights.mT
    if permutation is not None:
        columns = torch.gather(columns, 1, permutation[:, :, None].expand_as(columns))
    return columns.contiguous()


def _rows_first(columns: torch.Tensor, permutation: torch.Tensor | None) -> torch.Tensor:
    if permutation is not None:
        index = permutation[:, :, None].expand_as(columns)
        columns = torch.empty_like(columns).scatter_(1, index, columns)
    return columns.mT.contiguous()


def _diagonal_damping(power: torch.Tensor, damping: float) -> torch.Tensor:
    """Return what is added to a diagonal (g, n): silent inputs get one, decoupled from all."""
    mean = power.mean(-1, keepdim=True)
    return damping * mean + torch.where(power <= 0, torch.where(mean > 0, mean, 1.0), 0.0)


def _cholesky(gram: torch.Tensor) -> torch.Tensor | None:
    """Return the lower factor, or None where there is none."""
    # Where single precision has lost definiteness, double precision may still see it.
    for dtype in (gram.dtype, torch.float64):
        factor, failed = torch.linalg.cholesky_ex(gram.to(dtype))
        # The last entry of the diagonal has seen all others: NaN anywhere is NaN there.
        if not failed.any() and bool(torch.isfinite(factor.diagonal(dim1=-2, dim2=-1)).all()):
            found: torch.Tensor = factor.to(gram.dtype)
            return found
    return None


def _damped_factor(flipped: torch.Tensor, damping: float) -> tuple[torch.Tensor, float]:
    """Return U with ``H + damping = U U^T``, upper triangular, and the damping it took.

    Args:
        flipped: H with the order of rows and columns reversed, shape (g, n, n); changed.
        damping: To begin with.
    """
    diagonal = flipped.diagonal(dim1=-2, dim2=-1)
    power = diagonal.clone()
    used = damping
    for _ in range(_ATTEMPTS):
        diagonal.copy_(power + _diagonal_damping(power, used))
        factor = _cholesky(flipped)
        if factor is not None:
            return factor.flip(-2, -1), used
        used = max(used * 10, 1e-4)
    raise CalibrationError(
        "the inputs' second moments have no Cholesky factor, damped up to "
        f"{used / 10:g} times their mean; their largest entry is {power.max().item():g}. Look for "
        "weights or images far larger than usual: sums of squares go up to 3e38"
    )


def _feedback(upper: torch.Tensor) -> torch.Tensor:
    """Return F^T of a factor, in place: upper triangular with unit diagonal."""
    return upper.div_(upper.diagonal(dim1=-2, dim2=-1)[:, None, :].clone())


def _round_columns(
    fmt: Format,
    start: torch.Tensor,
    original: torch.Tensor,
    feedback: torch.Tensor,
    block: int,
    *,
    first: torch.Tensor | None = None,
) -> torch.Tensor:
    """Round with feedback, a block of columns at a time.

    Args:
        fmt: The format.
        start: c, shape (g, n, rows).
        original: w, the same shape.
        feedback: F^T, shape (g, n, n); what is on or below the diagonal is not looked at.
        block: Columns between two matrix products.
        first: What is rounded in the first column, (g, rows), instead of ``c_0``.
    """
    n = start.shape[1]
    values, errors = start.clone(), torch.empty_like(start)
    if first is not None:
        values[:, 0] = first
    round_ = kernels.rounder(fmt, start.dtype)
    # Views of all columns, made once: the loop below is bound by the number of calls.
    columns, originals, rests = (t.unbind(1) for t in (values, original, errors))
    for begin in range(0, n, block):
        end = min(n, begin + block)
        if begin:
            values[:, begin:end].baddbmm_(feedback[:, :begin, begin:end].mT, errors[:, :begin])
        inner = feedback[:, begin:end, begin:end, None]
        for i in range(begin, end):
            torch.sub(originals[i], round_(columns[i]), out=rests[i])
            if i + 1 < end:
                values[:, i + 1 : end].baddbmm_(
                    inner[:, i - begin, i + 1 - begin :], rests[i][:, None]
                )
    return values
