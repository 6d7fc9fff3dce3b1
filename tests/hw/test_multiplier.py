# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest

from lutwise.hw.circuit import Bus, Circuit, Part
from lutwise.hw.multiplier import Array, Factor, array_sites, write_array
from lutwise.hw.netlist import Netlist, bits_of, from_bits
from lutwise.hw.ports import Direction, Port
from lutwise.hw.synthesis import Flow, Synthesizer, measure
from lutwise.hw.verilog import library, module_text

_SIZES = tuple((x, b) for x in range(1, 6) for b in range(1, 6))
_SIGNED = [(x, b) for x in (False, True) for b in (False, True)]


def _multipliers(
    sizes: tuple[tuple[int, int], ...], array: Array, *, signed: tuple[bool, bool]
) -> tuple[str, dict[str, Factor], Circuit]:
    """Write multipliers with operands and products of their own; return module and products."""
    circuit = Circuit()
    ports, products = [], {}
    for x_bits, b_bits in sizes:
        suffix = f"_{x_bits}_{b_bits}"
        x, b = Bus(f"x{suffix}", x_bits), Bus(f"b{suffix}", b_bits)
        one, other = (Factor(bus=bus, signed=s) for bus, s in zip((x, b), signed, strict=True))
        product = write_array(circuit, one, other, array)
        ports += [
            *(Port(name=bus.name, bits=bus.bits, direction=Direction.INPUT) for bus in (x, b)),
            Port(name=f"p{suffix}", bits=product.bits, direction=Direction.OUTPUT),
        ]
        circuit.write(f"assign p{suffix} = {product.bus.name};")
        products[suffix] = product
    text = module_text("multipliers", tuple(ports), circuit.lines)
    return library("lw_add", "lw_booth", "lw_lut", "lw_table") + text, products, circuit


def _numbers(bits: int, *, signed: bool) -> range:
    return range(-(1 << (bits - 1)), 1 << (bits - 1)) if signed else range(1 << bits)


def _check(netlist: Netlist, products: dict[str, Factor], *, signed: tuple[bool, bool]) -> None:
    inputs, wanted = {}, {}
    for suffix in products:
        bits = [int(text) for text in suffix[1:].split("_")]
        ranges = [_numbers(n, signed=s) for n, s in zip(bits, signed, strict=True)]
        pairs = np.resize(np.array(list(itertools.product(*ranges))), (1024, 2))
        for name, column, width in zip("xb", pairs.T, bits, strict=True):
            inputs[f"{name}{suffix}"] = bits_of(column, width)
        wanted[suffix] = pairs.prod(axis=1)
    outputs, _ = netlist.simulate(inputs)
    for suffix, product in products.items():
        assert product.signed == any(signed)
        got = from_bits(outputs[f"p{suffix}"], signed=product.signed)
        assert np.array_equal(got, wanted[suffix]), suffix


@pytest.mark.rtl
@pytest.mark.exhaustive
@pytest.mark.parametrize("array", Array)
@pytest.mark.parametrize("signed", _SIGNED, ids=str)
def test_every_product_is_exact(
    array: Array, signed: tuple[bool, bool], synthesizer: Synthesizer
) -> None:
    """All pairs of numbers of up to five bits."""
    sizes = tuple(
        size
        for size in _SIZES
        if all(bits > 1 or not s for bits, s in zip(size, signed, strict=True))
    )
    text, products, _ = _multipliers(sizes, array, signed=signed)
    _check(synthesizer.map(text, "multipliers", flow=Flow.AREA), products, signed=signed)


@pytest.mark.rtl
@pytest.mark.parametrize("array", Array)
@pytest.mark.parametrize("signed", _SIGNED[:3], ids=str)
def test_unequal_operands_are_exact(
    array: Array, signed: tuple[bool, bool], synthesizer: Synthesizer
) -> None:
    """Rows change roles with the shape of the array."""
    sizes = ((2, 8), (8, 2), (3, 7), (7, 3))
    text, products, _ = _multipliers(sizes, array, signed=signed)
    _check(synthesizer.map(text, "multipliers"), products, signed=signed)


@pytest.mark.parametrize("signed", [False, True])
def test_a_factor_of_one_bit_is_a_gate(signed: bool) -> None:
    circuit = Circuit()
    wide = Factor(bus=Bus("x", 6), signed=signed)
    product = write_array(circuit, wide, Factor(bus=Bus("b", 1), signed=False), Array.DIGITS)
    assert (product.bits, product.signed) == (6, signed)
    assert not any(circuit.sites.values())


@pytest.mark.rtl
@pytest.mark.parametrize("array", [Array.DIGITS, Array.BOOTH])
@pytest.mark.parametrize("size", [(2, 2), (3, 3), (4, 4), (5, 5), (8, 8), (3, 6), (8, 4)], ids=str)
def test_counted_sites_are_close_to_synthesis(
    array: Array, size: tuple[int, int], synthesizer: Synthesizer
) -> None:
    text, _, circuit = _multipliers((size,), array, signed=(False, False))
    counted = circuit.sites[Part.MULTIPLY]
    assert counted == array_sites(size[0], False, size[1], False, array)
    result = measure(synthesizer.map(text, "multipliers", flow=Flow.AREA))
    assert counted == pytest.approx(result.luts, rel=0.15, abs=3)


def test_digits_never_cost_more_than_booth_rows_on_small_operands() -> None:
    for x, b in itertools.product(range(2, 5), repeat=2):
        digits, booth = (array_sites(x, False, b, False, a) for a in (Array.DIGITS, Array.BOOTH))
        assert digits <= booth, (x, b)
        assert digits == array_sites(b, False, x, False, Array.DIGITS)
