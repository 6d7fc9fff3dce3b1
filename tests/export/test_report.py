# SPDX-License-Identifier: Apache-2.0
import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lutwise.errors import ConfigError
from lutwise.export.layer_row import LayerRow
from lutwise.export.markup import join, raw, tag
from lutwise.export.points import Check, RunSummary
from lutwise.export.report import write_run_report, write_sweep_report
from lutwise.export.sweep_page import cheapest_within
from lutwise.export.text import count, decibel, file_size, interval, percent, short, shorten
from tests.export.samples import estimate, point, run, sweep

EVIL = "<script>alert('x')</script>&\"\x07"


class Page(HTMLParser):
    """What a page holds, and whether its elements close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(name)
        self.attributes += [(name, key, value) for key, value in attrs]
        if name not in {"meta", "br"}:
            self.open.append(name)

    def handle_startendtag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(name, attrs)
        self.open.pop()

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def write(folder: Path, result: object = None) -> str:
    if isinstance(result, RunSummary):
        return write_run_report(result, folder).read_text()
    return write_sweep_report(sweep(), folder).read_text()


@pytest.mark.parametrize("result", [None, run()], ids=["sweep", "run"])
def test_page_is_whole_and_loads_nothing(result: object, tmp_path: Path) -> None:
    text = write(tmp_path, result)
    page = Page(text)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert page.tags.count("script") == 1
    for name, key, value in page.attributes:
        assert key not in ("src", "srcset", "action"), name
        assert not key.startswith("on"), (name, key)
        if key in ("href", "xlink:href"):
            assert value is not None
            assert value.startswith("#")
    style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert not any("url(" in s.replace("url(#", "") or "@import" in s for s in style)


@pytest.mark.parametrize("result", [None, run()], ids=["sweep", "run"])
def test_page_is_the_same_byte_for_byte(result: object, tmp_path: Path) -> None:
    assert write(tmp_path / "a", result) == write(tmp_path / "b", result)


def test_page_allows_its_own_script_only(tmp_path: Path) -> None:
    text = write(tmp_path)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'" in text
    assert f"script-src 'sha256-{digest}'" in text


def test_sweep_page_escapes_names(tmp_path: Path) -> None:
    odd = point("int4", weights=EVIL, activations=EVIL)
    result = sweep(
        (replace(odd, name=EVIL), point("int5")), model=EVIL, data=EVIL, folding=EVIL, mode=EVIL,
        calibration=EVIL, interval=EVIL, versions={EVIL: EVIL}, assumptions={EVIL: EVIL},
    )  # fmt: skip
    text = write_sweep_report(result, tmp_path).read_text()
    assert text.count("<script") == 1
    assert "alert(" in Page(text).text


def test_run_page_escapes_names(tmp_path: Path) -> None:
    rows = tuple(
        replace(
            row, layer=EVIL + str(i), kind=EVIL, weights=EVIL, inputs=EVIL, price=EVIL,
            gains={EVIL: 1.0},
        )
        for i, row in enumerate(run().layers)
    )  # fmt: skip
    points = tuple(replace(point, node=EVIL, format=EVIL) for point in run().points)
    advice = tuple(replace(a, layer=EVIL, text=EVIL, override=EVIL) for a in run().advice)
    odd = run(
        name=EVIL, model=EVIL, mode=EVIL, recipe_yaml=EVIL, calibration_data=EVIL, layers=rows,
        evaluation_data=EVIL, checks=(Check(executor=EVIL, images=1, outputs=1, mismatches=1),),
        cost={EVIL: {EVIL: EVIL}, "assumptions": {EVIL: EVIL}}, files={EVIL: EVIL},
        versions={EVIL: EVIL}, interval=EVIL, points=points, advice=advice,
    )  # fmt: skip
    text = write_run_report(odd, tmp_path).read_text()
    assert text.count("<script") == 1
    assert "alert(" in Page(text).text
    note = write_run_report(run(export_note=EVIL), tmp_path).read_text()
    assert note.count("<script") == 1


def test_sweep_page_says_what_was_measured(tmp_path: Path) -> None:
    result = sweep(
        calibration="train, 256 images", assumptions={"accumulators": "exact", "luts": "guessed"}
    )
    text = Page(write_sweep_report(result, tmp_path).read_text()).text
    for wanted in (
        "zoo/net", "some images, 2,000", "train, 256 images", "95 % Wilson score interval",
        "PE 4, SIMD 8", "dataflow", "accumulators exact", "luts guessed", "± 6.0 %",
        "lutwise 0.1.0, torch 2.0", "seed 7", "92.10 % (90.90 to 93.30)",
        "One point of accuracy is 20 of the 2,000 images",
    ):  # fmt: skip
        assert wanted in text, wanted
    for p in result.points:
        assert p.name in text


def test_headline_is_the_cheapest_good_point(tmp_path: Path) -> None:
    result = sweep()
    best = cheapest_within(result, result.points)
    assert best is not None
    assert best.weights == "e2m2"
    text = Page(write_sweep_report(result, tmp_path).read_text()).text
    assert "e2m2-ue2m2 needs the fewest LUTs of all points within one point" in text


@pytest.mark.parametrize(
    ("accuracy", "found"), [(0.911, True), (0.9109, False), (0.93, True)], ids=str
)
def test_headline_takes_points_within_one_point(accuracy: float, found: bool) -> None:
    result = sweep((point("int4", accuracy),))
    assert (cheapest_within(result, result.points) is not None) is found


def test_headline_of_equal_costs_is_the_more_accurate() -> None:
    points = (
        point("int4", 0.915, luts_folded=9.0),
        point("int5", 0.918, luts_folded=9.0),
        point("int6", 0.921, luts_folded=10.0),
    )
    assert cheapest_within(sweep(points), points) == points[1]


def test_sweep_page_says_when_no_point_is_good_enough(tmp_path: Path) -> None:
    result = sweep((point("int2", 0.3), point("e2m0", 0.5)))
    text = Page(write_sweep_report(result, tmp_path).read_text()).text
    assert "No point is within one point of the float accuracy" in text
    assert "The most accurate is e2m0-ue2m0 with 50.0 %" in text


def test_sweep_page_links_to_the_points_that_have_pages(tmp_path: Path) -> None:
    write_run_report(run(), tmp_path / "points" / "int4-uint4")
    page = Page(write_sweep_report(sweep(), tmp_path).read_text())
    links = [value for name, key, value in page.attributes if (name, key) == ("a", "href")]
    assert links == ["points/int4-uint4/report.html"]


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "a\0b", "x" * 300])
def test_sweep_page_links_to_no_place_outside(name: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("")
    result = sweep((replace(point(), name=name),))
    page = Page(write_sweep_report(result, tmp_path).read_text())
    assert not [v for t, k, v in page.attributes if (t, k) == ("a", "href")]


def test_sweep_report_of_no_points_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no points to draw"):
        write_sweep_report(sweep(()), tmp_path)


def test_run_page_says_what_was_found(tmp_path: Path) -> None:
    text = Page(write_run_report(run(), tmp_path).read_text()).text
    for wanted in (
        "92.10 % (90.90 to 93.30)", "90.85 % (89.65 to 92.05)", "90.80 % (89.60 to 92.00)",
        "-1.30 points (-1.85 to -0.75), paired", "99.85 %", "14.2 dB", "onnxruntime 64 640 none",
        "qonnx 64 640 3", "format: e2m1", "conv1 conv int8 int8 ue2m2", "folded: LUTs 1,420",
        "LUTs: estimated", "ab" * 32, "train images, 256 images", "exact",
    ):  # fmt: skip
        assert wanted in text, wanted


def test_run_page_says_what_the_search_tried(tmp_path: Path) -> None:
    path = write_run_report(run(), tmp_path / "a")
    text = path.read_text()
    assert "A search chose it" in text
    assert text.index("equalize") > text.index("0.125")
    path = write_run_report(run(trials=()), tmp_path / "b")
    assert "A search chose it" not in path.read_text()


def test_run_page_without_evaluation_or_hardware(tmp_path: Path) -> None:
    bare = RunSummary(
        name="r", model="m", mode="layerwise", recipe_yaml="", calibration_data="c",
        calibration_images=1, export_note="floats between layers",
        layers=(LayerRow(layer="a", weight_sqnr_db=3.0),),
    )  # fmt: skip
    text = Page(write_run_report(bare, tmp_path).read_text()).text
    for wanted in (
        "Nothing was evaluated", "No file was written: floats between layers", "Not priced",
        "not evaluated", "No file was recorded",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert "requantizer LUTs" not in text
    empty = replace(bare, layers=(), export_note="")
    text = Page(write_run_report(empty, tmp_path).read_text()).text
    assert "No layer was recorded" in text
    assert "No other executor ran the file" in text


def test_run_page_does_not_call_an_empty_check_good(tmp_path: Path) -> None:
    nothing = run(checks=(Check(executor="qonnx", images=0, outputs=0, mismatches=0),))
    text = write_run_report(nothing, tmp_path).read_text()
    assert "nothing compared" in text


def test_run_page_reports_fake_quantization_without_exact(tmp_path: Path) -> None:
    text = Page(write_run_report(run(exact_accuracy=None), tmp_path).read_text()).text
    assert "accuracy, fake quantization in float32 90.8 %" in text


def test_run_page_says_which_layers_dominate(tmp_path: Path) -> None:
    text = write_run_report(run(), tmp_path).read_text()
    page = Page(text)
    assert (
        "Layers that dominate the error conv1 makes 62 %. For the recipe: "
        'overrides: - {layers: "conv1", weights: int8}'
    ) in page.text
    assert re.findall(r'<tr class="marked"><th scope="row">(\w+)<', text) == ["conv1"]
    assert "48 calibration images" in page.text
    calm = Page(write_run_report(run(advice=()), tmp_path).read_text())
    assert "dominate" not in calm.text
    assert "marked" not in {value for _, key, value in calm.attributes if key == "class"}


def test_run_page_shows_shares_gains_and_points(tmp_path: Path) -> None:
    page = Page(write_run_report(run(), tmp_path).read_text())
    for words in (
        "share of the error", "62.0 %", "-8.0 %", "1.23 %", "outputs SQNR won by gptq", "2.5 dB",
        "Quantizers that belong to no layer", "add int4 11.0 % 31.5 dB 0.40 % 25.0 %",
    ):  # fmt: skip
        assert words in page.text, words
    bare = Page(write_run_report(run(points=(), layers=run().layers[1:]), tmp_path).read_text())
    assert "won by" not in bare.text
    assert "belong to no layer" not in bare.text


def test_tag_escapes_text_but_not_elements() -> None:
    assert tag("p", "a<b", tag("b", "&"), title='"') == '<p title="&quot;">a&lt;b<b>&amp;</b></p>'
    assert join("<", raw("<br>")) == "&lt;<br>"
    assert tag("p", f"{tag('b')}") == "<p>&lt;b&gt;&lt;/b&gt;</p>"  # formatting loses the mark


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (count(1234567.0), "1,234,567"),
        (count(12.34), "12.3"),
        (count(1.234), "1.23"),
        (count(0), "0"),
        (short(5.25e7), "52.5 M"),
        (short(999_900.0), "1 M"),
        (short(12.0), "12"),
        (file_size(999.0), "999 B"),
        (file_size(38800.0), "38.8 kB"),
        (file_size(2.5e12), "2,500 GB"),
        (decibel(None), "n/a"),
        (decibel(200.0), "exact"),
        (decibel(12.34), "12.3 dB"),
        (percent(0.12345, 2), "12.35 %"),
        (interval(estimate(0.9, 0.02)), "90.0 % (88.0 to 92.0)"),
        (shorten("a\nb\x00", 9), "a b\ufffd"),
        (shorten("abcdefghij", 5), "ab…ij"),
    ],
)
def test_numbers_are_spelled(found: str, wanted: str) -> None:
    assert found == wanted
