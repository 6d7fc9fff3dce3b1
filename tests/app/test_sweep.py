# SPDX-License-Identifier: Apache-2.0
import functools
import os
import signal
from pathlib import Path

import pytest

from lutwise.cost_models.estimate import Folding
from lutwise.errors import LutwiseError
from lutwise.pipeline import Job, load_job
from lutwise.quant.models import load_model
from lutwise.space import load_space
from lutwise.sweep import sweep


def load_or_die(process: int) -> Job:
    """Load a job in one process; any other dies as if memory had run out."""
    if os.getpid() != process:
        os.kill(os.getpid(), signal.SIGKILL)
    return load_job(
        load_model("zoo/resnet8"),
        calib=None,
        evaluation=None,
        calib_images=8,
        eval_images=10,
        seed=0,
        folding=Folding(),
        check_images=0,
        threads=1,
    )


def test_a_killed_worker_is_reported(tmp_path: Path) -> None:
    load = functools.partial(load_or_die, os.getpid())
    with pytest.raises(LutwiseError, match=r"was killed, perhaps for want of memory; .* --jobs"):
        sweep(load, load_space("demo")[:2], tmp_path, jobs=2)
