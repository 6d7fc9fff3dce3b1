# SPDX-License-Identifier: Apache-2.0
import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lutwise.errors import ConfigError, FormatError
from lutwise.hw.architecture import Architecture, architectures
from lutwise.hw.bounds import exact_integers, legal_codes
from lutwise.hw.dot_product import DotProduct, smallest_units
from lutwise.hw.netlist import Net, Netlist, bits_of, from_bits
from lutwise.hw.synthesis import Flow, Synthesizer
from lutwise.hw.verify import verify_dot_product
from lutwise.quant.formats import (
    Format,
    all_formats,
    code_values,
    parse_element,
    parse_weight,
)

_BATCH = 20
_VECTORS = 2048
_SMALL = all_formats(max_bits=4)


def _unit(weights: str, activations: str, lanes: int, style: str, **options: Any) -> DotProduct:
    return DotProduct(
        weights=parse_weight(weights),
        activations=parse_element(activations),
        lanes=lanes,
        architecture=Architecture.parse(style),
        **options,
    )


@pytest.mark.parametrize(
    ("weights", "activations", "bits"),
    [
        ("int4", "int4", 17),
        ("e1m2", "e1m2", 17),
        ("int2", "int2", 13),
        ("e2m1", "e2m1", 19),
        ("e3m0", "e3m0", 24),
        ("e3m2", "e4m2", 37),
        ("uint4", "uint4", 18),
    ],
)
def test_accumulator_bits_follow_one_rule(weights: str, activations: str, bits: int) -> None:
    assert _unit(weights, activations, 1, "plain").accumulator_bits == bits


@pytest.mark.parametrize("pair", [("e2m1", "ue2m2"), ("int4", "e3m2"), ("fp8_e4m3", "uint8")])
def test_model_is_the_exact_sum_of_values(pair: tuple[str, str]) -> None:
    unit = _unit(*pair, 5, "plain")
    rng = np.random.default_rng(1)
    w = rng.choice(legal_codes(unit.weights), (20, 5))
    a = rng.choice(legal_codes(unit.activations), (20, 5))
    got = unit.model(w, a, accumulator=7)
    step = Fraction(2) ** unit.unit_exponent
    for row in range(20):
        wanted = sum(
            Fraction(float(code_values(unit.weights)[i]))
            * Fraction(float(code_values(unit.activations)[j]))
            for i, j in zip(w[row], a[row], strict=True)
        )
        assert int(got[row]) * step == wanted + 7 * step


@pytest.mark.parametrize(
    ("pair", "bits"), [(("int4", "int4"), 11), (("e4m3", "e5m2"), 58), (("e5m2", "ue5m3"), 64)]
)
def test_model_is_exact_in_any_width(pair: tuple[str, str], bits: int) -> None:
    """Up to 62 bits the sums are 64-bit words, above that they are Python's integers."""
    bounds = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    unit = _unit(*pair, 3, "plain", length=16, bounds=bounds)
    rng = np.random.default_rng(2)
    w = rng.choice(legal_codes(unit.weights), (50, 3))
    a = rng.choice(legal_codes(unit.activations), (50, 3))
    low = -(1 << (unit.accumulator_bits - 1))
    got = unit.model(w, a, accumulator=low)
    assert (got.dtype == np.int64) == (unit.accumulator_bits <= 62)
    products = exact_integers(unit.weights, w) * exact_integers(unit.activations, a)
    for total, row in zip(got, products, strict=True):
        assert (int(total) - low - sum(row)) % (1 << unit.accumulator_bits) == 0
        assert low <= total < -low


def test_model_wraps_like_the_register() -> None:
    signed = _unit("int2", "int2", 1, "plain")
    assert signed.model([1], [1], accumulator=4095) == -4096
    unsigned = _unit("uint2", "uint2", 1, "plain")
    assert unsigned.model([1], [1], accumulator=(1 << unsigned.accumulator_bits) - 1) == 0


def test_model_refuses_bad_operands() -> None:
    unit = _unit("int4", "int4", 2, "plain")
    with pytest.raises(ConfigError, match=r"weights of shape \(\.\.\., 2\)"):
        unit.model([1], [1])
    with pytest.raises(FormatError, match="0x8 is not a number of int4n"):
        unit.model([8, 0], [0, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 0}, "1..length lanes"),
        ({"lanes": 8, "length": 4}, "1..length lanes"),
        (
            {"architecture": Architecture.parse("array-booth-1")},
            "architecture array-booth-1 does not fit int4n x int4; wanted plain or one of table, "
            "chain-w, chain-a$",
        ),
        ({"architecture": Architecture.parse("magnitude-table")}, "magnitude-table does not fit"),
    ],
    ids=["no lane", "longer than the dot product", "array", "magnitude"],
)
def test_impossible_units_are_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "weights": parse_weight("int4"),
        "activations": parse_element("int4"),
        "lanes": 2,
        "architecture": Architecture.parse("table"),
    }
    with pytest.raises(ConfigError, match=message):
        DotProduct(**(arguments | changes))


def test_an_accumulator_has_64_bits_at_most() -> None:
    message = (
        "the sum of 1024 products of e5m2 x e5m2 takes 77 bits, a unit has 64 at most; give fewer "
        "products, tighter bounds or formats with less exponent"
    )
    with pytest.raises(ConfigError, match=message):
        _unit("e5m2", "e5m2", 1, "array-booth-8")
    reach = 1 << 63
    assert _unit("e5m2", "e5m2", 1, "plain", bounds=(-reach, reach - 1)).accumulator_bits == 64
    with pytest.raises(ConfigError, match="takes 65 bits"):
        _unit("e5m2", "e5m2", 1, "plain", bounds=(-reach, reach))


def test_ports_describe_the_emitted_module() -> None:
    unit = _unit("e2m1", "ue2m2", 3, "table")
    verilog = unit.emit(module="mac3")
    top = verilog[verilog.index("module mac3 (") :]
    for port in unit.ports:
        span = f"[{port.bits - 1}:0] " if port.bits > 1 else ""
        reg = "reg " if port.name == "acc" else ""
        assert f"{port.direction.value} {reg}{span}{port.name}" in top


def test_the_name_tells_units_apart() -> None:
    units = [
        _unit("int4", "uint4", 2, style, **options)
        for style in ("table", "magnitude-table", "chain-w")
        for options in ({}, {"restart": True}, {"pipeline": True}, {"bounds": (-8, 7)})
    ]
    assert len({unit.name for unit in units}) == len(units)


def test_weights_of_a_magnitude_unit_are_recoded() -> None:
    codes = np.array([[0b0000, 0b0011, 0b0111], [0b1111, 0b1001, 0b1100]])
    plain, recoded = (_unit("int4", "uint4", 3, s) for s in ("table", "magnitude-table"))
    assert np.array_equal(plain.weight_bits(codes), codes)
    assert recoded.weight_bits(codes).tolist() == [[0, 3, 7], [0b1001, 0b1111, 0b1100]]


@pytest.mark.parametrize("pair", [("int4", "uint4"), ("e2m1", "e3m2"), ("int8", "int8")])
@pytest.mark.parametrize("lanes", [1, 8])
def test_smallest_units_have_the_fewest_counted_sites(pair: tuple[str, str], lanes: int) -> None:
    w, a = parse_weight(pair[0]), parse_element(pair[1])
    every = [
        sum(_unit(*pair, lanes, str(architecture)).counted_sites().values())
        for architecture in architectures(w, a)
    ]
    found = smallest_units(w, a, lanes)
    counts = [sum(unit.counted_sites().values()) for unit in found]
    assert counts == sorted(every)[: len(counts)]
    assert counts[-1] <= 1.04 * counts[0]
    assert len(counts) == min(3, sum(count <= 1.04 * counts[0] for count in every))
    assert smallest_units(w, a, lanes, most=1) == found[:1]


def _together(units: list[DotProduct]) -> str:
    """Put units side by side in one module, with ports of their own."""
    libraries, bodies, ports, instances = [], [], ["input clk"], []
    for index, unit in enumerate(units):
        before, found, after = unit.emit(module=f"unit{index}").partition(f"module unit{index} (")
        libraries.append(before)
        bodies.append(found + after)
        pins = []
        for port in unit.ports:
            pins.append(f".{port.name}({port.name}{'' if port.name == 'clk' else index})")
            if port.name != "clk":
                ports.append(f"{port.direction.value} [{port.bits - 1}:0] {port.name}{index}")
        instances.append(f"unit{index} instance{index} ({', '.join(pins)});")
    top = ["module dot_product (", ",\n".join(ports), ");", *instances, "endmodule\n"]
    return "\n".join([*dict.fromkeys(libraries), *bodies, *top])


def _operands(
    unit: DotProduct, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Give legal codes, shape (vectors, lanes): every pair for one lane, else at random."""
    legal = [legal_codes(fmt) for fmt in (unit.weights, unit.activations)]
    if unit.lanes == 1:
        pairs = np.array(list(itertools.product(*legal)))
        assert len(pairs) <= _VECTORS
        w, a = np.resize(pairs, (_VECTORS, 2)).T
        return w[:, None], a[:, None]
    w, a = (rng.choice(codes, (_VECTORS, unit.lanes)) for codes in legal)
    return w, a


def _check(units: list[DotProduct], netlist: Netlist) -> None:
    """Compare units that are side by side, for many operands and accumulators before them."""
    rng = np.random.default_rng(len(units))
    inputs: dict[str, npt.NDArray[np.bool_]] = {}
    state: dict[Net, npt.NDArray[np.bool_]] = {}
    wanted: list[npt.NDArray[Any]] = []
    for index, unit in enumerate(units):
        w, a = _operands(unit, rng)
        before = rng.integers(0, 2, (unit.accumulator_bits, _VECTORS)).astype(np.bool_)
        for port, codes, fmt in (
            ("w", unit.weight_bits(w), unit.weights),
            ("a", a, unit.activations),
        ):
            inputs[f"{port}{index}"] = np.concatenate([bits_of(lane, fmt.bits) for lane in codes.T])
        state |= dict(zip(netlist.ports[f"acc{index}"][1], before, strict=True))
        start = from_bits(before, signed=unit.accumulator_signed)
        wanted.append(unit.model(w, a, accumulator=start))
    _, following = netlist.simulate(inputs, state)
    for index, unit in enumerate(units):
        after = np.array([following[net] for net in netlist.ports[f"acc{index}"][1]])
        got = from_bits(after, signed=unit.accumulator_signed)
        assert np.array_equal(got, wanted[index]), unit.name


@pytest.mark.rtl
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "weights", dict.fromkeys([*(parse_weight(f.name) for f in _SMALL), *_SMALL]), ids=str
)
def test_every_architecture_of_every_small_pair_is_exact(
    weights: Format, synthesizer: Synthesizer
) -> None:
    units = [
        DotProduct(weights=weights, activations=a, lanes=1, architecture=architecture, length=4)
        for a in _SMALL
        for architecture in architectures(weights, a)
    ]
    for start in range(0, len(units), _BATCH):
        batch = units[start : start + _BATCH]
        _check(batch, synthesizer.map(_together(batch), "dot_product", flow=Flow.AREA))


_LANES = (1, 2, 3, 5, 9)


@pytest.mark.rtl
@pytest.mark.parametrize(
    ("weights", "activations", "style"),
    [
        ("int4", "uint4", "table"),
        ("int4", "uint4", "magnitude-table"),
        ("int4", "uint3", "chain-w"),
        ("int4", "uint4", "magnitude-array-digits-1"),
        ("int5", "int4", "chain-a"),
        ("uint5", "int4", "chain-w"),
        ("uint4", "uint4", "array-booth-1"),
        ("uint3", "ue2m2", "array-digits-2"),
        ("e2m1", "e2m1", "table"),
        ("e2m2", "int5", "array-booth-2"),
        ("e3m1", "e3m1", "array-digits-3"),
        ("fp8_e4m3", "e2m0", "array-digits-4"),
        ("e4m1", "ue3m2", "array-digits-4"),
        ("e1m2", "e1m2", "array-digits-1"),
    ],
)
def test_any_number_of_lanes_is_exact(
    weights: str, activations: str, style: str, synthesizer: Synthesizer
) -> None:
    units = [_unit(weights, activations, lanes, style) for lanes in _LANES]
    flow = units[0].architecture.flow
    _check(units, synthesizer.map(_together(units), "dot_product", flow=flow))


@pytest.mark.rtl
@pytest.mark.parametrize(
    ("weights", "activations", "styles", "bounds"),
    [
        ("int4", "int4", "chain-w chain-a table", (-4, 3)),
        ("int4", "uint4", "chain-w table magnitude-table magnitude-array-booth-1", (0, 1000)),
        ("e2m1", "e2m1", "table array-digits-2 array-booth-4", (-20, 40)),
        ("e3m2", "ue3m2", "array-digits-4 array-digits-5 array-booth-3", (-100, 100)),
        ("uint4", "uint4", "chain-a table array-digits-1", (0, 225)),
        ("e5m2", "e5m2", "array-digits-4 array-booth-8", (-(1 << 63), (1 << 63) - 1)),
        ("ue7m0", "ue2m0", "array-digits-2 array-digits-4", (0, 1 << 20)),
    ],
)
def test_given_bounds_are_kept(
    weights: str,
    activations: str,
    styles: str,
    bounds: tuple[int, int],
    synthesizer: Synthesizer,
) -> None:
    """An accumulator narrower than a product, and one that is unsigned though products are not."""
    units = [
        _unit(weights, activations, lanes, style, bounds=bounds)
        for lanes in (1, 2, 3)
        for style in styles.split()
        if lanes > 1 or weights != "e5m2"
    ]
    for unit in units:
        assert unit.accumulator_signed == (bounds[0] < 0)
    _check(units, synthesizer.map(_together(units), "dot_product"))


@pytest.mark.rtl
@pytest.mark.parametrize(
    ("weights", "activations", "lanes", "style"),
    [
        ("int4", "uint4", 1, "magnitude-table"),
        ("e2m1", "e2m1", 1, "array-digits-3"),
        ("int8", "uint8", 3, "chain-a"),
        ("e3m2", "ue2m4", 4, "array-booth-4"),
        ("fp8_e4m3", "fp8_e5m2", 2, "array-digits-8"),
        ("e4m2", "ue3m1", 2, "plain"),
        ("uint5", "int3", 2, "plain"),
    ],
)
def test_verification_passes(
    weights: str, activations: str, lanes: int, style: str, synthesizer: Synthesizer
) -> None:
    unit = _unit(weights, activations, lanes, style, length=16)
    netlist = synthesizer.map(unit.emit(), "dot_product", flow=unit.architecture.flow)
    proof = verify_dot_product(unit, netlist, vectors=2048)
    assert proof.mismatches == 0, proof.first_mismatch
    assert proof.exhaustive == (lanes == 1)


@pytest.mark.rtl
def test_a_wrong_circuit_is_noticed(synthesizer: Synthesizer) -> None:
    unit = _unit("int4", "int4", 1, "chain-w")
    broken = unit.emit().replace(".cin(w_1[1])", ".cin(1'b0)")
    assert broken != unit.emit()
    proof = verify_dot_product(unit, synthesizer.map(broken, "dot_product"))
    assert not proof.passed
    assert proof.first_mismatch is not None
    assert "netlist" in proof.first_mismatch


@pytest.mark.rtl
@pytest.mark.parametrize("style", ["table", "array-digits-2", "array-booth-4", "array-digits-3"])
def test_behavioural_branches_do_the_same(style: str, synthesizer: Synthesizer) -> None:
    units = [_unit("e2m1", "e2m1", lanes, style) for lanes in (1, 2, 3)]
    text = "`undef LUTWISE_ALU\n" + _together(units)
    assert text.count("`ifdef LUTWISE_ALU") >= 4
    netlist = synthesizer.map(text, "dot_product")
    assert not netlist.count()["LUT6_2"], "lw_add3 places them"
    _check(units, netlist)


@pytest.mark.rtl
@pytest.mark.parametrize(
    ("weights", "activations", "lanes"),
    [
        ("int4", "int4", 1),
        ("int4", "uint4", 8),
        ("int8", "uint8", 4),
        ("uint6", "int5", 3),
        ("e2m1", "e2m1", 1),
        ("e2m1", "e2m1", 8),
        ("e3m2", "e3m2", 4),
        ("e4m3", "ue3m3", 2),
        ("e2m3", "int6", 4),
        ("e3m0", "ue3m0", 8),
        ("fp8_e4m3", "e2m1", 2),
    ],
)
def test_counted_sites_are_close_to_synthesis(
    weights: str, activations: str, lanes: int, synthesizer: Synthesizer
) -> None:
    (unit,) = smallest_units(parse_weight(weights), parse_element(activations), lanes, most=1)
    result = synthesizer.synthesize(unit.emit(), "dot_product", flow=unit.architecture.flow)
    assert sum(unit.counted_sites().values()) == pytest.approx(result.luts, rel=0.15)
