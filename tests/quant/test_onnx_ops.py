# SPDX-License-Identifier: Apache-2.0
import re

import numpy as np
import onnx
import pytest
from torch import nn

from lutwise.errors import UnsupportedLayerError
from lutwise.quant.onnx_reader import input_shape, module_of
from tests.quant.onnx_graphs import Arrays, assert_equal, floats, images, ints, make_model

BN: Arrays = {"s": (4,), "b": (4,), "m": (4,), "v": floats(0.5, 1, 2, 3)}

# name: (nodes, weights, kinds of the modules in order)
GRAPHS: dict[str, tuple[str, Arrays, list[type[nn.Module]]]] = {
    "conv": ("y = Conv<pads=[1,1,1,1]>(x, w, b)", {"w": (6, 4, 3, 3), "b": (6,)}, [nn.Conv2d]),
    "conv_no_bias": ("y = Conv<strides=[2,1]>(x, w)", {"w": (6, 4, 3, 2)}, [nn.Conv2d]),
    "conv_depthwise": (
        "y = Conv<group=4, pads=[2,2,2,2], dilations=[2,2]>(x, w)",
        {"w": (8, 1, 3, 3)},
        [nn.Conv2d],
    ),
    "conv_uneven": (
        "y = Conv<pads=[0,1,1,2], strides=[2,2]>(x, w)",
        {"w": (6, 4, 3, 3)},
        [nn.ZeroPad2d, nn.Conv2d],
    ),
    "conv_same_upper": (
        'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)',
        {"w": (6, 4, 4, 4)},
        [nn.ZeroPad2d, nn.Conv2d],
    ),
    "conv_same_lower": (
        'y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)',
        {"w": (6, 4, 4, 4)},
        [nn.ZeroPad2d, nn.Conv2d],
    ),
    "conv_valid": ('y = Conv<auto_pad="VALID">(x, w)', {"w": (6, 4, 3, 3)}, [nn.Conv2d]),
    "conv_then_added_bias": (
        "a = Conv(x, w) y = Add(a, c)",
        {"w": (6, 4, 1, 1), "c": (1, 6, 1, 1)},
        [nn.Conv2d],
    ),
    "shared_weight": (
        "a = Conv(x, w) r = Relu(a) b = Conv(r, w) y = Add(a, b)",
        {"w": (4, 4, 1, 1)},
        [nn.Conv2d, nn.ReLU, nn.Conv2d],
    ),
    "bias_of_a_layer_read_twice_stays_apart": (
        "a = Conv(x, w) i = Identity(a) b = Add(i, c) y = Mul(a, b)",
        {"w": (4, 4, 1, 1), "c": (1, 4, 1, 1)},
        [nn.Conv2d],
    ),
    "batch_norm": (
        "a = BatchNormalization<epsilon=0.01>(x, s, b, m, v) y = Relu(a)",
        BN,
        [nn.BatchNorm2d, nn.ReLU],
    ),
    "gemm": (
        "f = Flatten(x) y = Gemm<transB=1, alpha=0.5, beta=2.0>(f, w, b)",
        {"w": (5, 324), "b": (1, 5)},
        [nn.Flatten, nn.Linear],
    ),
    "gemm_untransposed": (
        "f = Flatten<axis=-3>(x) y = Gemm(f, w)",
        {"w": (324, 5)},
        [nn.Flatten, nn.Linear],
    ),
    "gemm_scalar_bias": (
        "f = Flatten(x) y = Gemm(f, w, b)",
        {"w": (324, 5), "b": floats(0.5)},
        [nn.Flatten, nn.Linear],
    ),
    "matmul_and_bias": (
        "f = Flatten(x) a = MatMul(f, w) y = Add(b, a)",
        {"w": (324, 5), "b": (5,)},
        [nn.Flatten, nn.Linear],
    ),
    "matmul_stored_transposed": (
        "f = Flatten(x) t = Transpose<perm=[1,0]>(w) y = MatMul(f, t)",
        {"w": (5, 324)},
        [nn.Flatten, nn.Linear],
    ),
    "matmul_last_axis": ("y = MatMul(x, w)", {"w": (9, 5)}, [nn.Linear]),
    "matmul_of_two": ("t = Transpose<perm=[0,1,3,2]>(x) y = MatMul(x, t)", {}, []),
    "relu6": ("y = Clip(x, l, h)", {"l": floats(0)[0], "h": floats(6)[0]}, [nn.ReLU6]),
    "clip_below_is_relu": ("y = Clip(x, l)", {"l": floats(0)[0]}, [nn.ReLU]),
    "clip_to_float_max_is_relu": (
        "y = Clip(x, l, h)",
        {"l": floats(0)[0], "h": floats(3.4028234663852886e38)[0]},
        [nn.ReLU],
    ),
    "clip": ("y = Clip(x, l, h)", {"l": floats(-1)[0], "h": floats(0.5)[0]}, [nn.Hardtanh]),
    "clip_limit_by_constant_node": (
        "l = Constant<value_float=0.0>() h = Constant<value_float=6.0>() y = Clip(x, l, h)",
        {},
        [nn.ReLU6],
    ),
    "max_pool": (
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)",
        {},
        [nn.MaxPool2d],
    ),
    "max_pool_ceil": (
        "y = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)",
        {},
        [nn.MaxPool2d],
    ),
    "max_pool_uneven": (
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[0,0,2,1]>(x)",
        {},
        [nn.ConstantPad2d, nn.MaxPool2d],
    ),
    "max_pool_uneven_after_relu": (
        "r = Relu(x) y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[0,0,1,1]>(r)",
        {},
        [nn.ReLU, nn.ZeroPad2d, nn.MaxPool2d],
    ),
    "average_pool": (
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)",
        {},
        [nn.AvgPool2d],
    ),
    "average_pool_pads_count": (
        "y = AveragePool<kernel_shape=[3,2], pads=[1,1,1,1], count_include_pad=1>(x)",
        {},
        [nn.AvgPool2d],
    ),
    "average_pool_uneven": (
        "y = AveragePool<kernel_shape=[3,3], pads=[0,0,1,1], count_include_pad=1>(x)",
        {},
        [nn.ZeroPad2d, nn.AvgPool2d],
    ),
    "average_pool_ceil": (
        "y = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)",
        {},
        [nn.AvgPool2d],
    ),
    "global_average_pool": ("y = GlobalAveragePool(x)", {}, [nn.AdaptiveAvgPool2d]),
    "global_max_pool": ("y = GlobalMaxPool(x)", {}, [nn.AdaptiveMaxPool2d]),
    "reduce_mean": ("y = ReduceMean<axes=[2,3]>(x)", {}, [nn.AdaptiveAvgPool2d]),
    "reduce_mean_dropped": (
        "y = ReduceMean<axes=[-1,-2], keepdims=0>(x)",
        {},
        [nn.AdaptiveAvgPool2d, nn.Flatten],
    ),
    "reduce_mean_of_one_axis": ("y = ReduceMean<axes=[3], keepdims=0>(x)", {}, []),
    "reshape_minus_one": ("y = Reshape(x, t)", {"t": ints(0, -1)}, [nn.Flatten]),
    "reshape_fixed": ("y = Reshape(x, t)", {"t": ints(-1, 324)}, [nn.Flatten]),
    "reshape_to_more_axes": ("y = Reshape(x, t)", {"t": ints(0, 2, 2, -1, 9)}, []),
    "reshape_by_shape_of_input": (
        """s = Shape(x) i = Constant<value_int=0>() g = Gather<axis=0>(s, i)
        a = Constant<value_ints=[0]>() u = Unsqueeze(g, a) m = Constant<value_ints=[-1]>()
        t = Concat<axis=0>(u, m) y = Reshape(x, t)""",
        {},
        [nn.Flatten],
    ),
    "reshape_by_product_of_sizes": (
        """s = Shape(x) z = Constant<value_ints=[0]>() e = Constant<value_ints=[1]>()
        n = Slice(s, z, e) c = Gather(s, e) m = Constant<value_ints=[-1]>()
        d = Mul(c, c) h = Div(d, c) t = Concat<axis=0>(n, h, m) y = Reshape(x, t)""",
        {},
        [],
    ),
    "squeeze": (
        "p = GlobalAveragePool(x) y = Squeeze(p, a)",
        {"a": ints(2, 3)},
        [nn.AdaptiveAvgPool2d, nn.Flatten],
    ),
    "concat": ("r = Relu(x) y = Concat<axis=1>(x, r)", {}, [nn.ReLU]),
    "pad": ("y = Pad(x, p)", {"p": ints(0, 0, 0, 1, 0, 0, 2, 3)}, [nn.ZeroPad2d]),
    "pad_value": (
        "y = Pad(x, p, c)",
        {"p": ints(0, 0, 1, 1, 0, 0, 1, 1), "c": floats(2)[0]},
        [nn.ConstantPad2d],
    ),
    "pad_reflect": (
        'y = Pad<mode="reflect">(x, p)',
        {"p": ints(0, 0, 1, 2, 0, 0, 3, 4)},
        [nn.ReflectionPad2d],
    ),
    "pad_edge": (
        'y = Pad<mode="edge">(x, p)',
        {"p": ints(0, 0, 1, 2, 0, 0, 3, 4)},
        [nn.ReplicationPad2d],
    ),
    "identity_and_dropout": ("a = Identity(x) b = Dropout(a) y = Relu(b)", {}, [nn.ReLU]),
    "squeeze_and_excite": (
        "p = GlobalAveragePool(x) a = Conv(p, w) g = Sigmoid(a) y = Mul(x, g)",
        {"w": (4, 4, 1, 1)},
        [nn.AdaptiveAvgPool2d, nn.Conv2d, nn.Sigmoid],
    ),
    "softmax": ("y = Softmax(x)", {}, [nn.Softmax]),
    "softmax_over_channels": ("y = Softmax<axis=1>(x)", {}, [nn.Softmax]),
    "add_stored": ("y = Add(x, c)", {"c": (4, 1, 1)}, []),
    "sub_div_of_stored": ("a = Sub(x, c) y = Div(a, d)", {"c": (4, 1, 1), "d": floats(3)}, []),
    "residual": (
        "a = Conv<pads=[1,1,1,1]>(x, w) b = Add(a, x) y = Relu(b)",
        {"w": (4, 4, 3, 3)},
        [nn.Conv2d, nn.ReLU],
    ),
    "activations": (
        "a = LeakyRelu<alpha=0.1>(x) b = HardSwish(a) c = Tanh(b) "
        "y = HardSigmoid<alpha=0.16666667, beta=0.5>(c)",
        {},
        [nn.LeakyReLU, nn.Hardswish, nn.Tanh, nn.Hardsigmoid],
    ),
    "layer_norm": (
        "y = LayerNormalization(x, s, b)",
        {"s": (9,), "b": (9,)},
        [nn.LayerNorm],
    ),
    "unread_nodes_do_not_matter": ("z = NonZero(x) y = Relu(x)", {}, [nn.ReLU]),
    "half_precision_weight": (
        "c = Cast<to=1>(h) y = Mul(x, c)",
        {"h": floats(0.5).astype(np.float16)},
        [],
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_equals_onnx_runtime(name: str) -> None:
    nodes, weights, kinds = GRAPHS[name]
    model = make_model(nodes, weights)
    module = module_of(onnx.shape_inference.infer_shapes(model, data_prop=True))
    assert_equal(model, module, images(3, 4, 9, 9))
    assert [type(m) for m in module.children()] == kinds
    assert not module.training


# operators whose form changed between opsets
OLD: dict[str, tuple[str, Arrays, int, type[nn.Module]]] = {
    "clip_attributes": ("y = Clip<min=0.0, max=6.0>(x)", {}, 10, nn.ReLU6),
    "pad_attributes": ("y = Pad<pads=[0,0,1,1,0,0,2,2]>(x)", {}, 10, nn.ZeroPad2d),
    "softmax_on_last_axis": ("f = Flatten(x) y = Softmax(f)", {}, 12, nn.Softmax),
    "squeeze_attributes": (
        "p = GlobalAveragePool(x) y = Squeeze<axes=[2,3]>(p)",
        {},
        11,
        nn.Flatten,
    ),
    "reduce_mean_input": ("y = ReduceMean(x, a)", {"a": ints(2, 3)}, 18, nn.AdaptiveAvgPool2d),
    "pad_axes": ("y = Pad(x, p, , a)", {"p": ints(1, 2), "a": ints(-1)}, 18, nn.ZeroPad2d),
    "gelu": ('y = Gelu<approximate="tanh">(x)', {}, 20, nn.GELU),
}


@pytest.mark.parametrize("name", OLD)
def test_other_opset_equals_onnx_runtime(name: str) -> None:
    nodes, weights, opset, kind = OLD[name]
    model = make_model(nodes, weights, opset=opset)
    module = module_of(onnx.shape_inference.infer_shapes(model, data_prop=True))
    assert_equal(model, module, images(3, 4, 9, 9))
    assert isinstance(list(module.children())[-1], kind)


def test_batch_norm_of_vectors_equals_onnx_runtime() -> None:
    model = make_model("y = BatchNormalization(x, s, b, m, v)", BN, shape="n,4")
    module = module_of(onnx.shape_inference.infer_shapes(model))
    assert_equal(model, module, images(3, 4))


UNSUPPORTED: dict[str, tuple[str, Arrays, str]] = {
    "operator": ('y = Einsum<equation="a->a">(x)', {}, "(Einsum): the operator is not supported"),
    "quantized": (
        "q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)",
        {"s": floats(0.5)[0]},
        "quantized already, give the float model",
    ),
    "class_token": (
        "s = Shape(x) t = Expand(c, s) y = Concat<axis=1>(t, x)",
        {"c": (1, 1, 9, 9)},
        "(Expand): the operator is not supported; the graph computes with sizes at run time",
    ),
    "weight_at_run_time": ("w = Relu(x) y = Conv(x, w)", {}, "input 1 is computed at run time"),
    "one_dimension": ("y = MaxPool<kernel_shape=[3]>(x)", {}, "two-dimensional only"),
    "gemm_transposed": ("y = Gemm<transA=1>(x, w)", {"w": (4, 4)}, "transA=1"),
    "mean_of_batch": ("y = ReduceMean<axes=[0,2]>(x)", {}, "a mean over the batch"),
    "mean_of_all": ("y = ReduceMean(x)", {}, "mean over all axes"),
    "batch_moves": ("y = Transpose<perm=[1,0,2,3]>(x)", {}, "the batch moves: perm=[1, 0, 2, 3]"),
    "batch_reshaped": ("y = Reshape(x, t)", {"t": ints(-1, 9)}, "export with a fixed image size"),
    "flatten_axis": ("y = Flatten<axis=2>(x)", {}, "only the batch may be kept"),
    "pad_channels": ("y = Pad(x, p)", {"p": ints(0, 1, 0, 0, 0, 0, 0, 0)}, "got axes [1]"),
    "pad_wrap": ('y = Pad<mode="wrap">(x, p)', {"p": ints(*[0] * 8)}, "mode 'wrap'"),
    "average_uneven": (
        "y = AveragePool<kernel_shape=[2,2], pads=[0,0,1,1]>(x)",
        {},
        "that the average leaves out",
    ),
    "pool_indices": ("y, i = MaxPool<kernel_shape=[2,2]>(x) z = Add(i, i)", {}, "indices"),
    "hard_sigmoid": ("y = HardSigmoid(x)", {}, "alpha=0.2"),
    "clip_empty": ("y = Clip(x, l, h)", {"l": floats(1)[0], "h": floats(0)[0]}, "empty range"),
    "second_output": ("a, k = Dropout(x) c = Cast<to=1>(k) y = Add(a, c)", {}, "second output"),
    "bad_fold": ("t = Transpose<perm=[5,6]>(w) y = Add(x, t)", {"w": (2, 2)}, "stored inputs"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_node_is_named(name: str) -> None:
    nodes, weights, message = UNSUPPORTED[name]
    opset = 19 if "wrap" in nodes else 17
    shape = "n,4" if "Gemm" in nodes else "n,4,9,9"
    model = make_model(nodes, weights, shape=shape, opset=opset)
    with pytest.raises(UnsupportedLayerError, match=re.escape(message)) as caught:
        module_of(onnx.shape_inference.infer_shapes(model))
    assert str(caught.value).startswith("ONNX node '")


def test_unsupported_domain_is_named() -> None:
    model = make_model("y = Relu(x)", {})
    model.graph.node[0].domain = "com.vendor"
    with pytest.raises(UnsupportedLayerError, match=r"operator of domain com.vendor"):
        module_of(model)


def test_softmax_of_old_opset_is_refused() -> None:
    model = make_model("y = Softmax<axis=1>(x)", {}, opset=12)
    with pytest.raises(UnsupportedLayerError, match="before opset 13"):
        module_of(onnx.shape_inference.infer_shapes(model))


def test_auto_pad_of_a_free_size_is_refused() -> None:
    nodes = 'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)'
    model = make_model(nodes, {"w": (4, 4, 3, 3)}, shape="n,4,h,w")
    with pytest.raises(UnsupportedLayerError, match="needs a fixed image size"):
        module_of(onnx.shape_inference.infer_shapes(model))
    assert input_shape(model) is None
