# SPDX-License-Identifier: Apache-2.0
"""Something that remembers finished work, so that a killed run goes on where it was."""

from collections.abc import Callable
from typing import Protocol

import torch

__all__ = ["Keep", "Tensors", "compute"]

Tensors = dict[str, torch.Tensor]


class Keep(Protocol):
    """Something that remembers finished work."""

    def __call__(self, name: str, work: Callable[[], Tensors]) -> Tensors:
        """Return what the work gave in an earlier run, or do it now."""
        ...


def compute(name: str, work: Callable[[], Tensors]) -> Tensors:
    """Do the work; the `Keep` that remembers nothing."""
    del name
    return work()
