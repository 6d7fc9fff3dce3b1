# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from lutwise.errors import CalibrationError
from lutwise.quant.formats import parse_element
from lutwise.quant.ranges import RangeMethod, RangeSearch, ScaleKind, search, squared_error

ROWS = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0)) * torch.tensor(
    [[0.1], [1.0], [30.0]]
)
FORMATS = ["int4", "uint4", "e2m1", "e3m0", "ue7m1"]


@pytest.mark.parametrize("name", FORMATS)
def test_maximum_puts_the_largest_number_at_the_end(name: str) -> None:
    fmt = parse_element(name)
    scale = search(fmt, ROWS, RangeSearch(method=RangeMethod.MAX))
    torch.testing.assert_close(scale * fmt.max_value, ROWS.abs().amax(1))


@pytest.mark.parametrize("name", FORMATS)
def test_least_error_is_no_worse_than_the_maximum_or_a_fine_search(name: str) -> None:
    fmt = parse_element(name)
    rows = ROWS.abs() if not fmt.signed else ROWS
    best = squared_error(fmt, rows, search(fmt, rows, RangeSearch()))
    largest = search(fmt, rows, RangeSearch(method=RangeMethod.MAX))
    assert (best <= squared_error(fmt, rows, largest)).all()
    for share in torch.linspace(0.15, 1.2, 200):
        assert (best <= squared_error(fmt, rows, largest * share) * 1.05).all()


def test_percentile_cuts_outliers() -> None:
    row = torch.cat([torch.linspace(-1, 1, 9999), torch.tensor([1000.0])]).reshape(1, -1)
    scale = search(
        parse_element("int8"), row, RangeSearch(method=RangeMethod.PERCENTILE, percentile=99.9)
    )
    assert scale.item() * 127 <= 1.0


@pytest.mark.parametrize("method", list(RangeMethod))
def test_power_of_two_scales_are(method: RangeMethod) -> None:
    how = RangeSearch(method=method, scale=ScaleKind.POWER_OF_TWO)
    scale = search(parse_element("int4"), ROWS, how)
    assert torch.equal(scale, torch.exp2(torch.log2(scale).round()))


def test_zero_rows_get_scale_one() -> None:
    for method in RangeMethod:
        scale = search(parse_element("e2m1"), torch.zeros(2, 5), RangeSearch(method=method))
        assert (scale > 0).all()


def test_nan_is_refused() -> None:
    with pytest.raises(CalibrationError, match="NaN"):
        search(parse_element("int4"), torch.tensor([[1.0, torch.nan]]), RangeSearch())
