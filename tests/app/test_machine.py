# SPDX-License-Identifier: Apache-2.0
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from lutwise.machine import reuse_memory, use_threads

if sys.argv[1] == "reused":
    use_threads(1)
    assert torch.get_num_threads() == 1
    assert reuse_memory()
images = torch.ones(1 << 24)
for _ in range(16):  # until the holes in the heap are large enough
    images + 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    images + 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's allocator")
def test_freed_memory_is_not_cleared_again() -> None:
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", FAULTS, how], text=True))
        for how in ("reused", "plain")
    }
    assert faults["reused"] < 100 < faults["plain"]
