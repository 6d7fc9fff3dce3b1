# SPDX-License-Identifier: Apache-2.0
import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pytest

from lutwise.errors import ConfigError, OutputError
from lutwise.export.layer_row import LayerRow
from lutwise.export.plot_style import STYLES, THEME_VARIABLES, short_count
from lutwise.export.plot_window import accuracy_window
from lutwise.export.plots import layers_svg, plot_layers, plot_sweep, sweep_svg
from lutwise.export.points import Family, SweepResult
from tests.export.samples import ACCURACIES, estimate, layers, point, sweep

STEMS = (
    "pareto", "pareto_weight_bits", "pareto_bits_per_mac", "pareto_luts", "pareto_luts_per_mac",
)  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    return plot_sweep(sweep(), tmp_path_factory.mktemp("drawn"))  # type: ignore[return-value]


def test_plot_sweep_writes_every_picture(drawn: list[Path]) -> None:
    wanted = [stem + suffix for stem in STEMS for suffix in (".png", ".svg")]
    assert [path.name for path in drawn] == wanted
    for path in drawn:
        content = path.read_bytes()
        if path.suffix == ".png":
            assert content.startswith(b"\x89PNG")
            width, height = struct.unpack(">II", content[16:24])
            assert min(width, height) > 1000
        else:
            assert ET.fromstring(content).tag == f"{SVG}svg"


def test_plot_sweep_is_the_same_byte_for_byte(drawn: list[Path], tmp_path: Path) -> None:
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.hashsalt": "x"}):
        again = plot_sweep(sweep(), tmp_path)
    for first, second in zip(drawn, again, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_pictures_hold_no_date(drawn: list[Path]) -> None:
    for path in drawn:
        assert not re.search(rb"dc:date|tIME|Creation Time", path.read_bytes()), path.name


def test_drawing_leaves_settings_as_they_were() -> None:
    with mpl.rc_context({"font.size": 17.5}):
        before = dict(mpl.rcParams)
        sweep_svg(sweep())
        layers_svg(layers())
        assert dict(mpl.rcParams) == before


def test_labels_name_the_best_and_the_collapsed_points() -> None:
    found = texts(sweep_svg(sweep()))
    for label in ("int3", "int4", "e2m1", "e2m2", "int2 28 %", "e2m0 61 %", "e4m0 10 %"):
        assert found.count(label) == 3, label
    assert "e4m3" not in found  # on no front


def test_title_says_model_data_and_images() -> None:
    found = texts(sweep_svg(sweep()))
    assert "zoo/net on some images" in found
    assert any("2,000 images" in text and "95 % confidence interval" in text for text in found)


def test_legend_lists_the_families_that_are_there() -> None:
    found = " ".join(texts(sweep_svg(sweep())))
    assert "integers, their" in found
    assert "minifloats, their" in found
    assert "mixed" not in found
    mixed = sweep((point("int4"), point("e2m1", family=Family.MIXED)))
    assert "mixed, their" in " ".join(texts(sweep_svg(mixed)))


def test_families_differ_by_more_than_colour() -> None:
    assert len({(s.marker, s.filled) for s in STYLES.values()}) == len(Family)
    assert len({str(s.line) for s in STYLES.values()}) == len(Family)


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(sweep((point(),)), id="one-point"),
        pytest.param(sweep((point(cost_error=0.0, luts_folded=0.0),)), id="free"),
        pytest.param(
            sweep(tuple(point(name, 0.1) for name in ACCURACIES)), id="all-collapsed-the-same"
        ),
        pytest.param(
            sweep(tuple(point(n, 0.1 if k % 3 else 0.92) for k, n in enumerate(ACCURACIES))),
            id="most-collapsed",
        ),
        pytest.param(sweep((point("int4", 1.0),), float_accuracy=estimate(1.0)), id="perfect"),
        pytest.param(sweep((point("int4", 0.0),), float_accuracy=estimate(0.0)), id="nothing"),
        pytest.param(
            sweep(
                (point("int4", name="a$_\\frac^$\x00\n"), point("int4", name="日本\ud800")),
                model="$\\bad{" + "x" * 300, data="<b>&", folding="$$",
            ),
            id="hostile-names",
        ),
    ],
)  # fmt: skip
def test_odd_sweeps_are_drawn(result: SweepResult) -> None:
    assert ET.fromstring(sweep_svg(result)) is not None


def test_points_of_equal_formats_are_labelled_by_name() -> None:
    both = (point("int4", 0.90, name="with"), point("int4", 0.91, name="without"))
    assert "without" in texts(sweep_svg(sweep(both)))
    pair = (point("int4", 0.90, name="a"), point("int4", 0.91, name="b", activations="uint8"))
    assert "int4/uint8" in texts(sweep_svg(sweep(pair)))


def test_inline_picture_takes_its_colours_from_the_page() -> None:
    for svg in (sweep_svg(sweep()), layers_svg(layers())):
        assert svg.startswith("<svg")
        for colour, variable in THEME_VARIABLES.items():
            bare = re.findall(rf"(?<!, ){colour}", svg)
            assert not bare, (colour, variable)
        assert "var(--integer, #0072b2)" in svg


def test_no_points_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'zoo/net' has no points to draw"):
        plot_sweep(sweep(()), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        plot_sweep(sweep((point(),)), tmp_path / "file")


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot_layers_is_the_same_byte_for_byte(suffix: str, tmp_path: Path) -> None:
    first = plot_layers(layers(), tmp_path / f"a{suffix}")
    second = plot_layers(layers(), tmp_path / f"b{suffix}")
    assert first.read_bytes() == second.read_bytes()


def test_plot_layers_without_prices_shows_noise_only() -> None:
    rows = [LayerRow(layer="a$b$", weight_sqnr_db=20.0), LayerRow(layer="c", output_sqnr_db=-3.0)]
    found = texts(layers_svg(rows))
    assert "a$b$" in found
    assert "LUTs, folded" not in found


def test_plot_layers_marks_layers_without_noise() -> None:
    assert "exact" in texts(layers_svg(layers()))


def test_plot_layers_names_large_shares() -> None:
    found = texts(layers_svg(layers()))
    assert "62 %" in found
    assert "share of the final error (%)" in found


def test_plot_layers_cuts_the_axis_at_one_huge_share() -> None:
    rows = [LayerRow(layer="a", error_share=0.2), LayerRow(layer="b", error_share=-9.0)]
    found = texts(layers_svg(rows))
    assert {"20 %", "-900 %"} <= set(found)
    ticks = [
        float(t.replace("\N{MINUS SIGN}", "-"))
        for t in found
        if t.strip("\N{MINUS SIGN}").isdigit()
    ]
    assert min(ticks) >= -30


def test_plot_layers_of_nothing_is_drawn() -> None:
    free = replace(layers()[1], dot_product_luts=0.0, weight_sqnr_db=None, output_sqnr_db=None)
    assert "fc" in texts(layers_svg([free]))


@pytest.mark.parametrize(
    ("rows", "name", "message"),
    [
        pytest.param((), "x.png", "no layers", id="no-layers"),
        pytest.param(layers(), "x.pdf", r"\.png or \.svg file, got 'x.pdf'", id="suffix"),
    ],
)
def test_plot_layers_refuses(
    rows: tuple[LayerRow, ...], name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        plot_layers(rows, tmp_path / name)


@pytest.mark.parametrize(
    ("accuracies", "cut"),
    [
        pytest.param([0.92, 0.91, 0.85], False, id="close"),
        pytest.param([0.92, 0.91, 0.90, 0.10], True, id="one-collapsed"),
        pytest.param([0.11, 0.10, 0.10], False, id="all-collapsed"),
        pytest.param([0.92], False, id="one-point"),
    ],
)
def test_window_is_cut_only_for_a_few_collapsed_points(accuracies: list[float], cut: bool) -> None:
    window = accuracy_window([estimate(a) for a in accuracies], estimate(0.921))
    assert window.cut is cut
    assert window.top > 92.1
    assert all(window.shows(a) for a in accuracies) is not cut


def test_window_shows_points_that_lose_little_to_scale() -> None:
    accuracies = [0.92, 0.91, 0.90, 0.83, 0.10]
    window = accuracy_window([estimate(a) for a in accuracies], estimate(0.921))
    assert [window.shows(a) for a in accuracies] == [True, True, True, True, False]


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5"), (500, "500"), (20000, "20k"), (1.5e6, "1.5M"), (2e9, "2G")]
)
def test_short_count_spells(value: float, text: str) -> None:
    assert short_count(value) == text
