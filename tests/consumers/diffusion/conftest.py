# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lutwise.consumers.diffusion.model import SCHEDULER_DEFAULTS, Dit, load_dit, save_dit
from lutwise.consumers.diffusion.stock import DiTTransformer2DModel
from lutwise.quant.checkpoints import state_sha256

SMALL: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 3,
    "in_channels": 2,
    "out_channels": 4,  # the second half is the variance that published DiTs predict
    "num_embeds_ada_norm": 5,
    "sample_size": 4,
    "patch_size": 2,
}


def random_transformer(seed: int = 0, **changes: Any) -> nn.Module:
    """A stock DiT with random weights, whose outputs are of about the size of its inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net: nn.Module = DiTTransformer2DModel(**{**SMALL, **changes})
    return net.eval().requires_grad_(requires_grad=False)


@pytest.fixture
def make_dit(tmp_path: Path) -> Callable[..., Dit]:
    def make(seed: int = 0, **changes: Any) -> Dit:
        net = random_transformer(seed, **changes)
        return Dit(
            name="small",
            transformer=net,
            scheduler=SCHEDULER_DEFAULTS,
            folder=tmp_path / "small",
            sha256=state_sha256(net.state_dict()),
        )

    return make


@pytest.fixture
def dit(make_dit: Callable[..., Dit]) -> Dit:
    return make_dit()


@pytest.fixture
def saved(dit: Dit, tmp_path: Path) -> Path:
    """Folder of a small model."""
    save_dit(dit, tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(scope="session")
def digits_dit() -> Dit:
    return load_dit("zoo/dit-digits")
