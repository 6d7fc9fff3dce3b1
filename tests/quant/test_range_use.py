# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lutwise.quant import numerics
from lutwise.quant.formats import Format, all_formats, parse_element, values
from lutwise.quant.quantized import QuantizedWeight, TensorQuantizer
from lutwise.quant.range_use import activation_use, weight_use

FLOAT32_FORMATS = [fmt for fmt in all_formats() if fmt.max_value < 2.0**128]


def test_activations_are_counted_by_hand() -> None:
    # In units of the scale: 0.2 and -0.5 become 0; 7.6 and -9 are beyond -8..7; 7.4 is, too.
    x = torch.tensor([0.0, 0.2, -0.5, 1.0, 7.4, 7.6, -8.0, -9.0]) * 0.5
    use = activation_use(TensorQuantizer(format=parse_element("int4"), scale=0.5), [x])
    assert use.numbers == 8
    assert use.clipped_share == 3 / 8
    assert use.zero_share == 2 / 8
    assert use.taken == {0.0, 1.0, 7.0, -8.0}
    assert use.dead_share == 12 / 16
    noise = 0.2**2 + 0.5**2 + 0.4**2 + 0.6**2 + 1.0**2
    signal = 0.2**2 + 0.5**2 + 1 + 7.4**2 + 7.6**2 + 64 + 81
    assert use.rounding_db == pytest.approx(10 * np.log10(signal / noise), abs=1e-4)


def test_the_end_of_the_range_is_not_clipped() -> None:
    scale = float(np.float32(1.7) / np.float32(7))  # float32(1.7) / scale is 7 up to rounding
    x = torch.tensor([1.7, -1.7])
    assert (
        activation_use(TensorQuantizer(format=parse_element("int4"), scale=scale), [x]).clipped == 0
    )


def test_batches_add_up() -> None:
    quantizer = TensorQuantizer(format=parse_element("ue2m2"), scale=0.3)
    x = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)) * 4
    whole, parts = activation_use(quantizer, [x]), activation_use(quantizer, x.split(2))
    assert parts.rounding_db == pytest.approx(whole.rounding_db)
    assert (parts.numbers, parts.clipped, parts.taken) == (60, whole.clipped, whole.taken)


@pytest.mark.parametrize("fmt", FLOAT32_FORMATS, ids=str)
@pytest.mark.exhaustive
def test_every_value_is_told_apart(fmt: Format) -> None:
    table = torch.from_numpy(values(fmt).copy()).float()
    quantizer = TensorQuantizer(format=fmt, scale=1.0)
    whole = activation_use(quantizer, [table])
    assert (whole.dead_share, whole.clipped, whole.noise) == (0.0, 0, 0.0)
    for i in range(len(table)):
        assert activation_use(quantizer, [table[i : i + 1]]).taken == {float(table[i])}


@pytest.mark.property
@given(
    fmt=st.sampled_from([parse_element(n) for n in ("int3", "uint4", "e2m1", "ue2m2", "e3m0")]),
    numbers=st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=30),
)
def test_taken_values_are_those_of_the_numpy_path(fmt: Format, numbers: list[float]) -> None:
    x = np.array(numbers, dtype=np.float32)
    expected = {float(v) for v in numerics.quantize(fmt, x.astype(np.float64))}
    use = activation_use(TensorQuantizer(format=fmt, scale=1.0), [torch.from_numpy(x)])
    assert use.taken == expected
    beyond = sum(v > fmt.max_value or v < fmt.min_value for v in x.astype(np.float64))
    assert abs(use.clipped - beyond) <= sum(abs(abs(x) - fmt.max_value) < 1e-4)


def test_weights_keep_the_values_they_have() -> None:
    # The last weight was rounded up on purpose, as reconstruction does; 0.4 was lost.
    real = torch.tensor([[0.8, -2.0], [0.1, 0.3]])
    weight = QuantizedWeight(
        format=parse_element("int2"),
        values=torch.tensor([[1.0, -2.0], [0.0, 1.0]], dtype=torch.float64),
        scales=torch.tensor([1.0, 0.25]),
    )
    use = weight_use(weight, real)
    assert use.zero_share == 1 / 4
    assert use.taken == {-2.0, 0.0, 1.0}
    assert use.dead_share == 1 / 4
    assert use.clipped == 1  # 0.3 / 0.25 is beyond the largest value, one
