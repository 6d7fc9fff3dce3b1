# SPDX-License-Identifier: Apache-2.0
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx.parser
import pytest
import torch
from safetensors.torch import save_file
from torch import fx

from lutwise.errors import ModelError
from lutwise.quant import model_builders, torchvision_shim
from lutwise.quant.data import Split, load_data
from lutwise.quant.model_builders import ZOO, find_architecture
from lutwise.quant.models import LoadedModel, load_model, zoo_names
from lutwise.quant.preprocessing import ChannelOrder, Interpolation
from lutwise.quant.zoo.architectures import ResNet8

ROOT = Path(__file__).parents[2]
WEIGHTS = [n for n in zoo_names() if (ROOT / "quant" / f"{n}.safetensors").is_file()]


def need(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.fixture
def weights(tmp_path: Path) -> str:
    path = tmp_path / "net.safetensors"
    save_file(ResNet8().state_dict(), path)
    return str(path)


def accuracy(model: LoadedModel, limit: int | None) -> float:
    assert model.data is not None
    data = load_data(
        model.data, model.preprocessing, model.input_shape, split=Split.EVAL, limit=limit
    )
    hits = 0
    with torch.inference_mode():
        for images, labels in data.batches(250):
            assert labels is not None
            hits += int((model.module(images).argmax(1) == labels).sum())
    return hits / len(data)


@pytest.mark.parametrize("name", zoo_names())
def test_zoo_net_comes_with_weights_and_knows_its_data(name: str) -> None:
    if name not in WEIGHTS:
        pytest.skip(f"the weights of {name} have not been trained")
    model = load_model(name)
    assert model.name == name
    assert (model.input_shape, model.data) == ((1, 28, 28), "zoo/fashion_mnist")
    assert not model.random_weights
    assert not model.module.training
    assert accuracy(model, 500) > 0.8


@pytest.mark.parametrize("name", ZOO)
def test_zoo_architecture_traces_and_runs(name: str) -> None:
    architecture = find_architecture(name, trust_code=False)
    module = fx.symbolic_trace(architecture.module())
    assert architecture.input_shape is not None
    with torch.inference_mode():
        logits = module(torch.zeros(2, *architecture.input_shape))
    assert logits.shape == (2, 10 if architecture.data else 1000)
    kinds = {type(m).__module__.partition(".")[0] for m in module.modules() if m is not module}
    assert kinds == {"torch"}
    assert {n.op for n in module.graph.nodes} <= {
        "placeholder", "get_attr", "call_module", "call_function", "output",
    }  # fmt: skip


def test_checkpoint_with_arch(weights: str) -> None:
    model = load_model(weights, arch="zoo/resnet8")
    assert model.name == "net.safetensors"
    assert model.input_shape == (1, 28, 28)
    assert model.preprocessing == ZOO["zoo/resnet8"].preprocessing
    assert re.fullmatch("[0-9a-f]{64}", model.sha256)


def test_pickled_checkpoint_gives_the_same_net(weights: str, tmp_path: Path) -> None:
    net = load_model(weights, arch="zoo/resnet8").module
    path = str(tmp_path / "net.pt")
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, path)
    x = torch.randn(2, 1, 28, 28)
    again = load_model(path, arch="zoo/resnet8").module
    assert torch.equal(net(x), again(x))


def test_loading_leaves_the_random_state_alone(weights: str) -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    load_model(weights, arch="zoo/resnet8")
    assert torch.equal(torch.rand(3), wanted)


ONNX = '<ir_version: 8, opset_import: ["" : 17]> g (float[n,4,9,9] x) => (float[n,k] y) '
ONNX += "<float[4] s = {1.0, 2.0, 3.0, 4.0}> { m = ReduceMean<axes=[2, 3], keepdims=0>(x) "
ONNX += "y = Mul(m, s) }"


def test_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(onnx.parser.parse_model(ONNX), path)
    model = load_model(str(path))
    assert model.input_shape == (4, 9, 9)
    assert model.preprocessing is None
    found = model.module(torch.ones(2, 4, 9, 9))
    assert torch.equal(found, torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2))


def test_onnx_file_with_nan_is_refused(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(ONNX)
    nan = np.array([1, np.nan, 3, 4], np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(nan, "s"))
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=r"net.onnx: 1 of 4 numbers of 's' are NaN"):
        load_model(str(tmp_path / "net.onnx"))


# ---- code of the user

CODE = """
from torch import nn
from lutwise.quant.zoo.architectures import ResNet8
class Nets:
    small = ResNet8
def broken(): raise RuntimeError("no GPU")
def number(): return 3
not_callable = 3
"""


@pytest.fixture
def code(tmp_path: Path) -> str:
    path = tmp_path / "my_net.py"
    path.write_text(CODE)
    return str(path)


@pytest.mark.parametrize(
    "arch", ["lutwise.quant.zoo.architectures:ResNet8", "{code}:ResNet8", "{code}:Nets.small"]
)
def test_code_of_the_user_runs_only_when_trusted(arch: str, code: str, weights: str) -> None:
    arch = arch.format(code=code)
    model = load_model(weights, arch=arch, trust_code=True)
    assert isinstance(model.module, ResNet8)
    assert model.input_shape is None
    assert model.preprocessing is None
    with pytest.raises(ModelError, match="runs only with --trust-code"):
        load_model(weights, arch=arch)


def test_untrusted_code_is_not_even_imported(tmp_path: Path, weights: str) -> None:
    path = tmp_path / "evil.py"
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="runs only with --trust-code"):
        load_model(weights, arch=f"{path}:net")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("{code}:broken", ":broken failed: RuntimeError: no GPU"),
        ("{code}:number", "has to return a torch.nn.Module, got int"),
        ("{code}:absent", "has no callable 'absent'"),
        ("{code}:not_callable", "has no callable 'not_callable'"),
        ("{code}:", "is not package.module:callable"),
        ("none.py:net", "no file 'none.py' to take the architecture from"),
        ("no_such_package:net", "importing 'no_such_package' failed: ModuleNotFoundError"),
    ],
)
def test_bad_code_of_the_user_is_refused(arch: str, message: str, code: str, weights: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        load_model(weights, arch=arch.format(code=code), trust_code=True)


def test_code_that_does_not_compile_is_refused(tmp_path: Path, weights: str) -> None:
    (tmp_path / "bad.py").write_text("def (")
    with pytest.raises(ModelError, match="failed: SyntaxError"):
        load_model(weights, arch=f"{tmp_path}/bad.py:net", trust_code=True)


# ---- bad specs


@pytest.mark.parametrize(
    ("spec", "arch", "message"),
    [
        ("", None, "no model ''; give one of zoo/NAME, file.safetensors or file.pt with --arch"),
        ("resnet8", None, "no model 'resnet8'; give one of"),
        ("net.h5", "zoo/resnet8", "no model 'net.h5'; give one of"),
        ("zoo/vgg", None, "the zoo has zoo/resnet8, zoo/mobilenet"),
        ("zoo/resnet8", "zoo/resnet8", "says the architecture itself"),
        ("zoo/efficientnet_lite0", None, "are not in the package; make the file with"),
        ("{weights}", None, "holds weights but no architecture; give --arch"),
        ("{weights}", "zoo/mobilenet", "does not fit MobileNet: "),
        ("{weights}", "zoo/vgg", "no architecture 'zoo/vgg', the zoo has"),
        ("{weights}", "resnet8", "no architecture 'resnet8'; give one of zoo/NAME, timm/NAME"),
        ("none.safetensors", "zoo/resnet8", "'none.safetensors' does not exist"),
        ("none.onnx", None, "'none.onnx' does not exist"),
        ("net.onnx", "zoo/resnet8", "an ONNX file holds its architecture"),
    ],
)
def test_bad_spec_is_refused(spec: str, arch: str | None, message: str, weights: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        load_model(spec.format(weights=weights), arch=arch)


# ---- timm and torchvision


def hide(monkeypatch: pytest.MonkeyPatch, package: str, error: Exception) -> None:
    """Make the import of a package fail."""
    real_import, real_find = importlib.import_module, importlib.util.find_spec

    def import_module(name: str, *rest: Any) -> ModuleType:
        if name.partition(".")[0] == package:
            raise error
        return real_import(name, *rest)

    def find_spec(name: str, *rest: Any) -> object:
        missing = name == package and isinstance(error, ModuleNotFoundError)
        return None if missing else real_find(name, *rest)

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_absent_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, package, ModuleNotFoundError(f"No module named {package!r}", name=package))
    with pytest.raises(ModelError, match=re.escape(f"pip install lutwise[{package}]")):
        load_model(f"{package}/resnet18")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("libcudart.so.13"), "torchvision cannot be imported: libcudart.so.13"),
        (ModuleNotFoundError("No module named 'x'", name="x"), "cannot be imported: No module"),
    ],
    ids=["library", "dependency"],
)
def test_broken_torchvision_is_reported(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "torchvision", error)
    declared: list[int] = []
    monkeypatch.setattr(torchvision_shim, "_declare_operators", lambda: declared.append(1))
    with pytest.raises(ModelError, match=re.escape(message)):
        load_model("torchvision/resnet18")
    assert not declared


def test_operators_are_declared_only_where_torchvision_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hide(monkeypatch, "torchvision", RuntimeError("operator torchvision::nms does not exist"))
    declared: list[int] = []
    monkeypatch.setattr(torchvision_shim, "_declare_operators", lambda: declared.append(1))
    with pytest.raises(ModelError, match="install the build that belongs to torch"):
        load_model("torchvision/resnet18")
    assert declared == [1]


@pytest.mark.parametrize(
    ("spec", "short_side", "interpolation"),
    [
        ("torchvision/squeezenet1_1", 256, Interpolation.BILINEAR),
        ("timm/test_vit", None, None),
        ("timm/mobilenetv2_035", 256, Interpolation.BICUBIC),
    ],
)
def test_library_net_has_random_weights_and_says_so(
    spec: str, short_side: int | None, interpolation: Interpolation | None
) -> None:
    need("torchvision", spec.partition("/")[0])
    model = load_model(spec)
    assert model.name == f"{spec} (random weights)"
    assert model.random_weights
    assert model.input_shape is not None
    assert model.preprocessing is not None
    assert model.preprocessing.channels is ChannelOrder.RGB
    assert model.preprocessing.size == model.input_shape[1]
    if short_side is not None:
        assert model.preprocessing.short_side == short_side
        assert model.preprocessing.interpolation is interpolation
    assert load_model(spec).sha256 == model.sha256


def test_library_net_takes_weights_from_a_file(tmp_path: Path) -> None:
    need("torchvision")
    net = find_architecture("torchvision/squeezenet1_1", trust_code=False).module()
    save_file({k: v + 1 for k, v in net.state_dict().items()}, tmp_path / "a.safetensors")
    model = load_model(str(tmp_path / "a.safetensors"), arch="torchvision/squeezenet1_1")
    assert not model.random_weights
    first = next(iter(net.parameters()))
    assert torch.equal(next(iter(model.module.parameters())), first + 1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision/resnt18", "no classification model 'resnt18', did you mean resnet18"),
        ("timm/resnt18", "timm has no model 'resnt18', did you mean resnet18"),
        ("torchvision/zzz", "no classification model 'zzz'"),
    ],
)
def test_misspelt_library_net_is_refused(spec: str, message: str) -> None:
    need("torchvision", spec.partition("/")[0])
    with pytest.raises(ModelError, match=re.escape(message)):
        load_model(spec)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"input_size": (3, 224, 160), "mean": (0.5,) * 3, "std": (0.5,) * 3}, None),
        ({"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.0,) * 3}, None),
        ({"input_size": (3, 8, 8), "mean": (0,) * 3, "std": (1,) * 3, "interpolation": "x"}, None),
        ({"input_size": (3, 8, 8), "mean": (0,) * 3, "std": (1,) * 3, "crop_pct": 0.5}, 16),
        ({"input_size": (3, 8, 8), "mean": (0,) * 3, "std": (1,) * 3, "crop_pct": 1.0}, 8),
    ],
    ids=["not_square", "zero_std", "unknown_interpolation", "crop", "no_crop"],
)
def test_timm_config_becomes_a_preprocessing(config: dict[str, Any], wanted: int | None) -> None:
    found = model_builders._timm_preprocessing(config)
    assert (None if found is None else found.short_side) == wanted


def test_importing_models_imports_neither_timm_nor_torchvision() -> None:
    program = (
        "import sys, lutwise.quant.models\n"
        "print([m for m in ('timm', 'torchvision', 'brevitas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
