# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import onnx
import onnx.parser
import pytest
import torch
from torch import Tensor, nn

from lutwise.errors import ModelError
from lutwise.quant.onnx_reader import (
    external_files,
    input_shape,
    load_onnx,
    module_of,
    read_onnx,
)
from lutwise.quant.zoo.architectures import MobileNet, ResNet8
from lutwise.quant.zoo.imagenet import Fire
from tests.quant.onnx_graphs import assert_equal, images, ints, make_model


def test_fixed_batch_is_not_kept() -> None:
    model = make_model("y = Reshape(x, t)", {"t": ints(1, 324)}, shape="1,4,9,9")
    module = module_of(onnx.shape_inference.infer_shapes(model))
    assert module(images(5, 4, 9, 9)).shape == (5, 324)


def test_names_of_nodes_become_names_of_modules() -> None:
    model = make_model("a = Relu(x) b = Relu(a) y = Relu(b)", {})
    for node, name in zip(model.graph.node, ("/layer.1/act", "training", "training"), strict=True):
        node.name = name
    names = [n for n, _ in module_of(model).named_children()]
    assert names == ["layer_1_act", "training_2", "training_3"]


class Squeezed(nn.Module):
    """The kinds of layers of a SqueezeNet, small."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)),
            nn.Conv2d(1, 8, 3, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(8, 4, 8),
            nn.Dropout(),
            nn.Conv2d(16, 10, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3)).view(x.size(0), -1)  # type: ignore[no-any-return]


def randomised(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5, generator=generator)
    return net.eval()


EXPORTED = {"resnet8": ResNet8, "mobilenet": MobileNet, "squeezed": Squeezed}


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Constant folding:UserWarning"
)
@pytest.mark.parametrize(
    ("name", "dynamo", "fixed"),
    [
        pytest.param("resnet8", False, False, id="resnet8-torchscript-free_batch"),
        pytest.param("mobilenet", False, True, id="mobilenet-torchscript-fixed_batch"),
        pytest.param("squeezed", False, False, id="squeezed-torchscript-free_batch"),
        pytest.param("resnet8", True, True, id="resnet8-dynamo-fixed_batch"),
        pytest.param("mobilenet", True, False, id="mobilenet-dynamo-free_batch"),
        pytest.param("squeezed", True, False, id="squeezed-dynamo-free_batch"),
    ],
)
def test_exported_net_equals_onnx_runtime(
    name: str, dynamo: bool, fixed: bool, tmp_path: Path
) -> None:
    if dynamo:
        pytest.importorskip("onnxscript")
    net, path = randomised(EXPORTED[name]()), tmp_path / "net.onnx"
    free = {} if fixed else {"dynamic_shapes" if dynamo else "dynamic_axes": {"x": {0: "n"}}}
    example = torch.zeros(1 if fixed else 2, 1, 28, 28)
    torch.onnx.export(
        net,
        (example,),
        path,
        input_names=["x"],
        dynamo=dynamo,
        verbose=False,
        **free,  # type: ignore[arg-type]
    )
    module = read_onnx(path)
    x = images(1 if fixed else 3, 1, 28, 28)
    assert_equal(str(path), module, x)
    with torch.no_grad():
        batch = images(4, 1, 28, 28)
        assert torch.allclose(module(batch), net(batch), atol=1e-5)
    assert input_shape(load_onnx(path)) == (1, 28, 28)
    layers = [m for m in module.children() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules())


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'.*none.onnx' does not exist"):
        read_onnx(tmp_path / "none.onnx")


@pytest.mark.parametrize("content", [b"", b"hello", bytes(range(256)) * 4], ids=len)
def test_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is no valid ONNX file"):
        read_onnx(path)


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    whole = make_model("y = Conv(x, w)", {"w": (4, 4, 3, 3)}).SerializeToString()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="is no valid ONNX file"):
        read_onnx(path)


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model = make_model("y = Conv(x, w)", {"w": (4, 4, 3, 3)})
    model.graph.output[0].type.tensor_type.shape.SetInParent()
    for size in ("n", "4", "7", "7"):
        dim = model.graph.output[0].type.tensor_type.shape.dim.add()
        dim.dim_param = size
    onnx.save(model, path, save_as_external_data=True, location="net.data", size_threshold=0)
    assert external_files(path) == (tmp_path / "net.data",)
    assert read_onnx(path)(images(2, 4, 9, 9)).shape == (2, 4, 7, 7)
    (tmp_path / "net.data").unlink()
    with pytest.raises(ModelError, match="weights beside it are missing"):
        read_onnx(path)


def test_two_inputs_or_outputs_are_refused() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g '
    two = onnx.parser.parse_model(text + "(float[n] a, float[n] b) => (float[n] y) {y = Add(a, b)}")
    with pytest.raises(ModelError, match=r"one input is needed, got \['a', 'b'\]"):
        module_of(two)
    split = onnx.parser.parse_model(
        text + "(float[n] a) => (float[n] y, float[n] z) {y = Relu(a) z = Tanh(a)}"
    )
    with pytest.raises(ModelError, match=r"one output is needed, got \['y', 'z'\]"):
        module_of(split)


def test_output_without_input_is_refused() -> None:
    model = make_model("a = Relu(x) y = Constant<value_float=1.0>()", {})
    with pytest.raises(ModelError, match="does not depend on its input"):
        module_of(model)


def test_huge_constant_is_refused() -> None:
    model = make_model("c = ConstantOfShape(s) y = Add(x, c)", {"s": ints(1 << 40, 8)})
    with pytest.raises(ModelError, match="makes a constant of 8796093022208 numbers"):
        module_of(model)


def test_ancient_opset_is_refused() -> None:
    with pytest.raises(ModelError, match="opset 7 or later is needed, got 6"):
        module_of(make_model("y = Relu(x)", {}, opset=6))
