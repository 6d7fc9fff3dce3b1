# SPDX-License-Identifier: Apache-2.0
from fractions import Fraction

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qonnx.custom_op.general.floatquant import float_quant
from qonnx.custom_op.general.intquant import int_quant

from lutwise.errors import FormatError
from lutwise.quant import kernels, numerics, reference
from lutwise.quant.formats import (
    BlockFormat,
    FloatFormat,
    Format,
    IntFormat,
    code_values,
    parse,
    parse_element,
    values,
)
from tests.strategies import FLOAT32_FORMATS, FORMATS, formats, numbers

OCP = {
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}
ALL = (
    *FORMATS,
    *(parse_element(name) for name in ("fp8_e4m3", "fp8_e5m2")),
    parse_element("int4n"),
)


def critical_points(fmt: Format) -> npt.NDArray[np.float64]:
    """Every value, every tie, and both neighbours of each tie; beyond the ends, too."""
    v = values(fmt)
    ties = (v[1:] + v[:-1]) / 2
    near = np.concatenate([np.nextafter(ties, np.inf), np.nextafter(ties, -np.inf)])
    ends = np.array([2 * fmt.max_value, -2 * fmt.max_value, fmt.max_value * 1.01, 0.0, -0.0])
    return np.sort(np.concatenate([v, ties, near, ends]))


@pytest.mark.exhaustive
@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_decode_matches_the_reference_for_every_code(fmt: Format) -> None:
    for code, value in enumerate(code_values(fmt)):
        expected = reference.decode(fmt, code)
        if expected is None:
            assert not np.isfinite(value)
        else:
            assert Fraction(float(value)) == expected


@pytest.mark.exhaustive
@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_encode_inverts_decode(fmt: Format) -> None:
    table = code_values(fmt)
    codes = np.flatnonzero(np.isfinite(table) & ~((table == 0) & np.signbit(table)))
    assert (numerics.encode(fmt, numerics.decode(fmt, codes)) == codes).all()


@pytest.mark.exhaustive
@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_quantize_matches_the_reference_at_every_tie(fmt: Format) -> None:
    points = critical_points(fmt)
    expected = np.array([float(reference.quantize(fmt, Fraction(x))) for x in points])
    assert (numerics.quantize(fmt, points) == expected).all()
    assert (kernels.quantize(fmt, torch.from_numpy(points)).numpy() == expected).all()


@pytest.mark.exhaustive
@pytest.mark.parametrize("fmt", FLOAT32_FORMATS, ids=str)
def test_float32_matches_float64(fmt: Format) -> None:
    with np.errstate(under="ignore", over="ignore"):
        points = np.unique(critical_points(fmt).astype(np.float32))
    points = points[np.isfinite(points)]
    expected = numerics.quantize(fmt, points.astype(np.float64))
    assert (numerics.quantize(fmt, points) == expected).all()
    assert (kernels.quantize(fmt, torch.from_numpy(points)).numpy() == expected).all()


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", OCP)
def test_ocp_formats_match_ml_dtypes(name: str) -> None:
    fmt = parse_element(name)
    rng = np.random.default_rng(0)
    points = np.concatenate(
        [
            critical_points(fmt),
            rng.standard_normal(20000) * fmt.max_value / 3,
            rng.standard_normal(20000) * 2.0**fmt.unit_exponent * 4,
        ]
    ).astype(np.float32)
    clipped = np.clip(points, fmt.min_value, fmt.max_value)
    expected = clipped.astype(OCP[name]).astype(np.float32)
    assert (numerics.quantize(fmt, points) == expected).all()
    codes = np.arange(1 << fmt.bits, dtype=np.uint8)
    theirs = codes.view(OCP[name]).astype(np.float64)
    assert np.array_equal(code_values(fmt), theirs, equal_nan=True)


@pytest.mark.parametrize("fmt", FLOAT32_FORMATS, ids=str)
def test_scaled_quantization_matches_qonnx(fmt: Format) -> None:
    rng = np.random.default_rng(1)
    scale = np.float32(0.0371)
    spread = np.float32(min(fmt.max_value, 1e30))
    x = (rng.standard_normal(5000) * spread * scale / 2).astype(np.float32)
    if isinstance(fmt, IntFormat):
        bits = np.float32(fmt.bits)
        theirs = int_quant(x, scale, np.float32(0), bits, fmt.signed, fmt.narrow, "ROUND")
    else:
        widths = [np.float32(n) for n in (fmt.exponent_bits, fmt.mantissa_bits, fmt.bias)]
        x = x if fmt.signed else np.abs(x)  # their FloatQuant is always signed
        theirs = float_quant(x, scale, *widths, True, np.float32(fmt.max_value))
    theirs = theirs.astype(np.float32)  # as their operator does with its result
    assert (numerics.quantize_scaled(fmt, x, scale) == theirs).all()
    ours = kernels.quantize_scaled(fmt, torch.from_numpy(x), torch.tensor(scale)).numpy()
    assert (ours == theirs).all()


@pytest.mark.property
@given(st.data())
def test_quantize_laws(data: st.DataObject) -> None:
    fmt = data.draw(formats())
    x, y = sorted(data.draw(st.tuples(numbers(fmt), numbers(fmt))))
    qx, qy = numerics.quantize(fmt, np.array([x, y]))
    assert qx in values(fmt)
    assert qx <= qy
    assert numerics.quantize(fmt, np.array([qx]))[0] == qx
    symmetric = isinstance(fmt, FloatFormat) and fmt.signed
    if symmetric:
        assert numerics.quantize(fmt, np.array([-x]))[0] == -qx


@pytest.mark.property
@given(st.data())
def test_result_is_a_nearest_value(data: st.DataObject) -> None:
    fmt = data.draw(formats())
    x = data.draw(numbers(fmt))
    q = float(numerics.quantize(fmt, np.array([x]))[0])
    exact = Fraction(min(max(x, fmt.min_value), fmt.max_value))
    assert abs(Fraction(q) - exact) == min(abs(v - exact) for v in reference.finite_values(fmt))


@pytest.mark.parametrize(
    "shape", [(3, 5, 7, 11), (2, 70000), (0, 4), ()], ids=["small", "pieces", "empty", "scalar"]
)
@pytest.mark.parametrize("fmt", ["int4", "e2m1", "ue3m2"])
def test_kernel_takes_any_layout(shape: tuple[int, ...], fmt: str) -> None:
    form = parse_element(fmt)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
    expected = torch.from_numpy(
        np.asarray(numerics.quantize_scaled(form, np.atleast_1d(x.numpy()), 0.3))
    ).reshape(shape)
    scale = torch.tensor(0.3)
    kept = x.clone()
    assert torch.equal(kernels.quantize_scaled(form, x, scale), expected)
    assert torch.equal(x, kept)
    if x.dim() == 4:
        for view in (x.to(memory_format=torch.channels_last), x.transpose(0, 3), x[:, ::2]):
            plain = kernels.quantize_scaled(form, view.contiguous(), scale)
            assert torch.equal(kernels.quantize_scaled(form, view, scale), plain)


def test_kernel_scales_per_channel() -> None:
    fmt = parse_element("e2m1")
    x = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.1, 0.2, 0.4, 0.8]).reshape(4, 1, 1, 1)
    rows = [kernels.quantize_scaled(fmt, x[c], scale[c]) for c in range(4)]
    assert torch.equal(kernels.quantize_scaled(fmt, x, scale), torch.stack(rows))
    assert (
        numerics.quantize_scaled(fmt, x.numpy(), scale.numpy()) == torch.stack(rows).numpy()
    ).all()


@pytest.mark.parametrize("name", ["int8", "e4m3", "uint2", "e2m0"])
def test_specials_saturate_or_stay(name: str) -> None:
    fmt = parse_element(name)
    x = np.array([np.inf, -np.inf, np.nan, -0.0], dtype=np.float32)
    for q in (numerics.quantize(fmt, x), kernels.quantize(fmt, torch.from_numpy(x)).numpy()):
        assert q[0] == fmt.max_value
        assert q[1] == fmt.min_value
        assert np.isnan(q[2])
        assert q[3] == 0.0
        assert not np.signbit(q[3])


def test_float32_is_refused_where_it_is_too_narrow() -> None:
    fmt = parse_element("ue8m0")
    with pytest.raises(FormatError, match="does not hold"):
        numerics.quantize(fmt, np.zeros(1, np.float32))
    with pytest.raises(FormatError, match="does not hold"):
        kernels.quantize(fmt, torch.zeros(1))


def test_other_types_are_refused() -> None:
    fmt = parse_element("int4")
    with pytest.raises(FormatError, match="float32 or float64"):
        kernels.quantize(fmt, torch.zeros(1, dtype=torch.float16))
    with pytest.raises(FormatError, match="float32 or float64"):
        numerics.quantize(fmt, np.zeros(1, np.int32))  # type: ignore[type-var]


def test_codes_and_values_out_of_range_are_refused() -> None:
    fmt = parse_element("e2m1")
    with pytest.raises(FormatError, match=r"is in 0\.\.15"):
        numerics.decode(fmt, [16])
    with pytest.raises(FormatError, match=r"1 of 2 values are not in e2m1, the first is 5\.0"):
        numerics.encode(fmt, [4.0, 5.0])


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8_e4m3", "mxfp6_e2m3", "mxint8"])
def test_block_scale_is_the_largest_power_of_two(name: str) -> None:
    fmt = parse(name)
    assert isinstance(fmt, BlockFormat)
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((5, 64)) * np.exp2(rng.integers(-20, 20, (5, 1)))).astype(np.float32)
    x[0] = 0
    q = numerics.quantize_block(fmt, x).reshape(5, 2, 32)
    for block, got in zip(x.reshape(-1, 32), q.reshape(-1, 32), strict=True):
        largest = Fraction(float(np.abs(block).max()))
        if largest == 0:
            assert (got == 0).all()
            continue
        exponent = 0
        while Fraction(2) ** exponent > largest:
            exponent -= 1
        while Fraction(2) ** (exponent + 1) <= largest:
            exponent += 1
        step = Fraction(2) ** (exponent - fmt.max_exponent + fmt.element_exponent)
        expected = [
            float(reference.quantize(fmt.element, Fraction(float(v)) / step) * step) for v in block
        ]
        assert got.tolist() == expected


def test_block_needs_whole_blocks() -> None:
    fmt = parse("mxfp4")
    assert isinstance(fmt, BlockFormat)
    with pytest.raises(FormatError, match="multiple of 32"):
        numerics.quantize_block(fmt, np.zeros((2, 33), np.float32))
