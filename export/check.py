# SPDX-License-Identifier: Apache-2.0
"""Compare two executors, tensor by tensor, and say where they differ."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from lutwise.errors import ConfigError, DataError, MismatchError
from lutwise.export.runnable import Maker, Runnable

__all__ = ["Comparison", "Difference", "check"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How a tensor differs.

    Args:
        tensor: Its name.
        node: That makes it in the first file.
        operator: Of that node.
        differing: Numbers that differ by more than the tolerance.
        numbers: Numbers compared.
        largest: Largest absolute difference.
        magnitude: Largest absolute number of the first.
        first: Index (image, ...) of the first number that differs.
        values: What the first and the second give there.
    """

    tensor: str
    node: str
    operator: str
    differing: int
    numbers: int
    largest: float
    magnitude: float
    first: tuple[int, ...]
    values: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was compared, and what differs.

    Args:
        images: How many were run.
        tensors: How many tensors of the same name and shape both have.
        outputs: Numbers of the output, over all images.
        output: How the output differs; None where it does not.
        differences: In the order of execution.
    """

    images: int
    tensors: int
    outputs: int
    output: Difference | None
    differences: tuple[Difference, ...]

    def raise_if_differs(self) -> None:
        """Do nothing where the outputs agree.

        Raises:
            MismatchError: They differ; the first tensor that does is named.
        """
        if self.output is None:
            return
        first, end = self.differences[0], self.output
        raise MismatchError(
            f"{end.differing} of {self.outputs} outputs differ, by up to {end.largest:g}; the "
            f"first tensor that differs is {first.tensor!r} of {first.operator} {first.node!r}: "
            f"{first.differing} of {first.numbers} numbers, by up to {first.largest:g}, the first "
            f"at {first.first}: {first.values[0]!r} and {first.values[1]!r}"
        )


def check(
    first: Runnable,
    second: Runnable,
    images: npt.NDArray[np.float32],
    *,
    batch: int = 16,
    tolerance: float = 0.0,
) -> Comparison:
    """Compare all tensors that both have, and their outputs, over all images.

    Args:
        first: One.
        second: The other.
        images: Shape (n, *input shape).
        batch: Images at a time.
        tolerance: Absolute difference that counts as none.

    Raises:
        ConfigError: The tolerance is negative or not finite.
        DataError: The images do not fit an input, or the outputs have different shapes.
        ToolError: A runtime fails.
    """
    if not (tolerance >= 0 and isfinite(tolerance)):
        # Nothing is above NaN: all differences would pass.
        raise ConfigError(f"a tolerance is a finite number from 0 on, got {tolerance}")
    for one in (first, second):
        wanted = one.image_shape
        if not len(images) or images.shape[1:] != wanted:
            raise DataError(
                f"{one.name} takes images of shape {wanted}, got {len(images)} of shape "
                f"{images.shape[1:]}"
            )
    end = first.output
    totals: dict[str, _Total] = {}
    start = 0
    for left, right in zip(*(one.run(images, batch) for one in (first, second)), strict=True):
        for name in first.makers:
            other = second.output if name == end else name
            if name not in left or other not in right:
                continue
            if left[name].shape != right[other].shape:
                if name == end:
                    raise DataError(
                        f"outputs of shape {left[name].shape} and {right[other].shape} cannot be "
                        "compared"
                    )
                continue
            total = totals.setdefault(name, _Total())
            total.add(left[name], right[other], start, tolerance)
        start += batch
    found = {
        name: total.difference(name, first.makers[name])
        for name, total in totals.items()
        if total.differing
    }
    output = found.get(end)
    return Comparison(
        images=len(images),
        tensors=len(totals),
        outputs=totals[end].numbers,
        output=output,
        differences=tuple(found.values()),
    )


@dataclass(slots=True)
class _Total:
    """What was found of a tensor so far."""

    numbers: int = 0
    differing: int = 0
    largest: float = 0.0
    magnitude: float = 0.0
    first: tuple[int, ...] = ()
    values: tuple[float, float] = (0.0, 0.0)

    def add(
        self, left: npt.NDArray[Any], right: npt.NDArray[Any], start: int, tolerance: float
    ) -> None:
        self.numbers += left.size
        self.magnitude = max(self.magnitude, float(np.abs(left).max(initial=0.0)))
        if np.array_equal(left, right):
            return
        one, two = left.astype(np.float64), right.astype(np.float64)
        with np.errstate(invalid="ignore"):
            apart = np.abs(one - two)
        # Infinities of one sign agree; a number and a NaN differ by any tolerance.
        apart = np.where((one == two) | (np.isnan(one) & np.isnan(two)), 0.0, apart)
        apart = np.where(np.isnan(apart), np.inf, apart)
        wrong = np.argwhere(apart > tolerance)
        if len(wrong) and not self.differing:
            at = tuple(int(i) for i in wrong[0])
            self.first = (at[0] + start, *at[1:]) if at else at
            self.values = (float(one[at]), float(two[at]))
        self.differing += len(wrong)
        self.largest = max(self.largest, float(apart.max(initial=0.0)))

    def difference(self, tensor: str, maker: Maker) -> Difference:
        return Difference(
            tensor=tensor,
            node=maker.node,
            operator=maker.operator,
            differing=self.differing,
            numbers=self.numbers,
            largest=self.largest,
            magnitude=self.magnitude,
            first=self.first,
            values=self.values,
        )
