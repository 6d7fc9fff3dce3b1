# SPDX-License-Identifier: Apache-2.0
import functools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lutwise import commands
from lutwise.cost_models.folding import Folding
from lutwise.errors import LutwiseError
from lutwise.job import Job, load_job
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


@pytest.mark.parametrize(
    ("cores", "given", "jobs", "threads"),
    [(8, None, 1, 8), (8, None, 3, 2), (2, None, 4, 1), (8, 5, 4, 5)],
)
def test_processes_share_the_cores(
    cores: int, given: int | None, jobs: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr(commands, "load_job", lambda model, **settings: settings)
    names = ("arch", "trust_code", "preprocessing", "calib", "evaluation", "eval_images")
    options: dict[str, Any] = {**dict.fromkeys(names), "model": "zoo/resnet8", "pe": 1, "simd": 1}
    options |= {"check_images": 0, "threads": given, "jobs": jobs}
    job: Any = commands._load(options, 8, 0)
    assert job["threads"] == threads
    assert seen == [threads]
