# SPDX-License-Identifier: Apache-2.0
"""How much work something is, and how fast a machine does it.

Three counts describe the work of tensor programs well enough for an estimate within a factor of
two: floating-point operations of matrix products, numbers that elementwise operations move, and
calls, which bound loops over small tensors.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

__all__ = [
    "TYPICAL",
    "Demand",
    "LayerSize",
    "Speed",
    "Work",
    "descent",
    "factorization",
    "measure_speed",
    "permutation",
    "product",
    "round_columns",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Counts that time is made of.

    Args:
        flops: Floating-point operations of matrix products; a multiply-accumulate is two.
        numbers: That elementwise operations read and write, once per operation.
        calls: Of torch, on small tensors in a loop of Python's.
    """

    flops: float = 0.0
    numbers: float = 0.0
    calls: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            flops=self.flops + other.flops,
            numbers=self.numbers + other.numbers,
            calls=self.calls + other.calls,
        )

    def times(self, count: float) -> "Work":
        """Return the work of doing this so many times."""
        return Work(
            flops=count * self.flops, numbers=count * self.numbers, calls=count * self.calls
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a machine does with the threads that it was given.

    Args:
        flops: Floating-point operations of a large matrix product, per second.
        numbers: That an elementwise operation reads and writes, per second.
        call_s: Seconds that a call of torch takes on a tensor that takes none.
    """

    flops: float
    numbers: float
    call_s: float

    def seconds(self, work: Work) -> float:
        """Return how long some work takes."""
        return work.flops / self.flops + work.numbers / self.numbers + work.calls * self.call_s


TYPICAL: Final = Speed(flops=1e11, numbers=5e9, call_s=3e-6)
"""One thread of a server of today; enough where only shares of the whole count."""


def measure_speed() -> Speed:
    """Measure this machine, with the threads that torch has now; takes about 0.3 s.

    The best of several tries counts: whatever else runs on the machine only ever slows them.
    """
    a = torch.ones(1024, 1024)
    large = torch.ones(1 << 22)
    out = torch.empty_like(large)
    small = torch.ones(64, 64)

    def calls() -> None:
        for i in range(64):
            small[:, i].mul_(1.0)

    return Speed(
        flops=2 * 1024**3 / _best_time(lambda: a @ a),
        numbers=len(large) / _best_time(lambda: torch.mul(large, 2.0, out=out)),
        call_s=_best_time(calls) / 128,  # one for the view, one for the product
    )


def _best_time(run: Callable[[], object], budget_s: float = 0.08) -> float:
    """Return the least time of several runs; the first one does not count."""
    run()
    end = time.perf_counter() + budget_s
    best = float("inf")
    while True:
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return best


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSize:
    """What the work on a layer depends on.

    Args:
        images: For calibration.
        groups: Independent groups of inputs and outputs.
        rows: Outputs per group.
        columns: Length of a dot product, n.
        inputs: Numbers that go in, per image.
        outputs: Numbers that come out, per image.
        forward: Of the layer and what follows up to the next one, per image.
        gram: Of the inputs' second moments (`lutwise.quant.gram`), all images.
        cross: Of those of one input against another.
    """

    images: int
    groups: int
    rows: int
    columns: int
    inputs: int
    outputs: int
    forward: Work
    gram: Work
    cross: Work

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.groups * self.rows * self.columns

    @property
    def square(self) -> int:
        """Numbers of a matrix with a row and a column per input of a dot product."""
        return self.groups * self.columns**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What an algorithm takes for a layer.

    Args:
        work: Of all images.
        numbers: Float32 numbers it holds at a time, at most, its second moments included.
    """

    work: Work = Work()
    numbers: float = 0.0


def product(flops: float, width: int) -> Work:
    """Return the work of products of narrow matrices, which reach a part of the full speed.

    Args:
        flops: Floating-point operations.
        width: The shorter side of the matrices. Of 24, half the full speed is reached.
    """
    return Work(flops=flops * (1 + 24 / width))


def permutation(size: LayerSize) -> Work:
    """Return the work of reordering rows and columns of a square matrix."""
    return Work(numbers=10 * size.square)


def factorization(size: LayerSize) -> Work:
    """Return the work of a Cholesky factor, which runs at two thirds of a product's speed."""
    return Work(flops=1.5 * size.square * size.columns / 3, numbers=12 * size.square, calls=200)


def round_columns(size: LayerSize, block: int) -> Work:
    """Return the work of rounding columns one after another with feedback.

    Args:
        size: Of the layer.
        block: Columns between two matrix products.
    """
    return Work(
        flops=size.weights * size.columns,
        numbers=size.weights * (10 + block),
        calls=12 * size.columns,
    )


def descent(size: LayerSize, sweeps: int, block: int) -> Work:
    """Return the work of coordinate descent.

    Args:
        size: Of the layer.
        sweeps: Times that all columns are visited.
        block: Columns between two matrix products.
    """
    sweep = Work(
        flops=3 * size.weights * size.columns,
        numbers=size.weights * (16 + block),
        calls=14 * size.columns,
    )
    return Work(numbers=4 * size.square) + sweep.times(sweeps)
