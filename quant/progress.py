# SPDX-License-Identifier: Apache-2.0
"""How long work says where it stands."""

from typing import Protocol

__all__ = ["Tell", "silent"]


class Tell(Protocol):
    """Somebody who is told where the work stands."""

    def __call__(self, step: str, share: float | None = None) -> None:
        """Take note of the step that begins now.

        Args:
            step: For people.
            share: How much of a long stage is done before this step, from 0 to 1; None where the
                step is no part of one. The next stage begins where the share falls.
        """
        ...


def silent(step: str, share: float | None = None) -> None:
    """Tell nobody."""
