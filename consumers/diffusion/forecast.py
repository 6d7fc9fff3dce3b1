# SPDX-License-Identifier: Apache-2.0
"""What stands in for a layer's output at steps that do not compute it."""

from typing import Protocol

from torch import Tensor

from lutwise.errors import ConfigError

__all__ = ["Forecaster", "Reuse", "Taylor"]


class Forecaster(Protocol):
    """Predicts one tensor over steps from the steps at which it was computed.

    Each serves one layer and one trajectory.
    """

    def refresh(self, step: int, value: Tensor) -> None:
        """Take the computed value of a step; later steps only."""

    def predict(self, step: int) -> Tensor:
        """Return what the value would be; not to be changed in place.

        Raises:
            ConfigError: Nothing was computed yet.
        """


class Reuse:
    """The last computed value.

    Reference:
        FORA: Fast-Forward Caching in Diffusion Transformer Acceleration, arXiv 2407.01425.
    """

    def __init__(self) -> None:
        self._value: Tensor | None = None

    def refresh(self, step: int, value: Tensor) -> None:
        """Take the computed value of a step."""
        self._value = value

    def predict(self, step: int) -> Tensor:
        """Return the last computed value.

        Raises:
            ConfigError: Nothing was computed yet.
        """
        return _known(self._value, step)


class Taylor:
    """The polynomial through the last computed values.

    Newton's form with divided differences over the steps at which values were computed, whatever
    their distances. Until there are ``order + 1`` values the order is lower, so the first is
    reused as it is. A polynomial of degree ``order`` is predicted exactly.

    Args:
        order: 0 reuses the last value, 1 is linear.

    Raises:
        ConfigError: The order is negative.

    Reference:
        From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers, arXiv
        2503.06923. There the i-th backward difference over N^i, N being the distance between
        computed steps, is put in place of the i-th derivative; that is the same for order 1 and
        misses a term from order 2 on.
    """

    def __init__(self, order: int = 1) -> None:
        if order < 0:
            raise ConfigError(f"the order of a forecast is 0 or more, got {order}")
        self._order = order
        self._steps: list[int] = []
        self._differences: list[Tensor] = []

    def refresh(self, step: int, value: Tensor) -> None:
        """Take the computed value of a step.

        Raises:
            ConfigError: The step is not after those before.
        """
        if self._steps and step <= self._steps[0]:
            raise ConfigError(
                f"a forecast takes computed steps in their order, got step {step} after step "
                f"{self._steps[0]}; make a new one for each trajectory"
            )
        # The newest step first: f[s0], f[s0, s1], f[s0, s1, s2], ...
        differences = [value]
        for earlier, difference in zip(self._steps, self._differences, strict=True):
            if len(differences) > self._order:
                break
            differences.append((differences[-1] - difference) / (step - earlier))
        self._differences = differences
        self._steps = [step, *self._steps][: len(differences)]

    def predict(self, step: int) -> Tensor:
        """Return the polynomial's value at a step.

        Raises:
            ConfigError: Nothing was computed yet.
        """
        if not self._differences:
            return _known(None, step)
        *lower, result = self._differences
        for known, difference in zip(
            reversed(self._steps[: len(lower)]), reversed(lower), strict=True
        ):
            result = difference + (step - known) * result
        return result


def _known(value: Tensor | None, step: int) -> Tensor:
    if value is None:
        raise ConfigError(
            f"step {step} shall reuse a value that no step has computed; the first step of a "
            "schedule computes everything"
        )
    return value
