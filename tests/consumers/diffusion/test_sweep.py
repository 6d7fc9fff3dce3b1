# SPDX-License-Identifier: Apache-2.0
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutwise.consumers.diffusion.grid import Formats, Grid
from lutwise.consumers.diffusion.model import Dit, save_dit
from lutwise.consumers.diffusion.run import job_cost
from lutwise.consumers.diffusion.schedule import CacheSchedule, NamedSchedule
from lutwise.consumers.diffusion.sweep_result import Cell, Spread, cheapest_front, read_sweep
from lutwise.errors import ConfigError, DataError, FormatError
from tests.app.command import quantize
from tests.consumers.diffusion.conftest import random_transformer

FEW = ["--steps", 4, "--samples", 20, "--fit-samples", 12, "--calib-samples", 20,
       "--calib-trajectories", 8, "--range", "max", "--threads", 1, "--seeds", 2]  # fmt: skip
GRID = ["--intervals", "1,2", "--formats", "float,int4/int8", "--compensations", "none,std"]
NAMES = ["T4 N1 float", "T4 N1 int4/int8 random", "T4 N1 int4/int8 random +std", "T4 N2 float",
         "T4 N2 float +std", "T4 N2 int4/int8 random", "T4 N2 int4/int8 random +std"]  # fmt: skip


def sweep(model: Path | str, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return quantize("dit", "sweep", model, "--out", out, "--quiet", *FEW, *GRID, *more)


def content(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "sweep.json").read_bytes())
    return found


def without_seconds(found: Any) -> Any:
    """Drop what no two runs share."""
    if isinstance(found, dict):
        return {k: without_seconds(v) for k, v in found.items() if not k.endswith("seconds")}
    return [without_seconds(v) for v in found] if isinstance(found, list) else found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small = Dit(
        name="small", transformer=random_transformer(), scheduler={}, folder=folder, sha256=""
    )
    save_dit(small, folder / "small")
    return folder / "small"


@pytest.fixture(scope="module")
def done(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a finished sweep."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    ended = sweep(model, out, "--json")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    printed = json.loads(ended.stdout)
    assert [row["cell"] for row in printed["cells"]] == NAMES
    return out


def test_cells_have_seeds_measures_and_costs(done: Path, model: Path) -> None:
    found = content(done)
    cells = {cell["name"]: cell for cell in found["cells"]}
    assert list(cells) == NAMES
    for name, cell in cells.items():
        assert [seed["seed"] for seed in cell["seeds"]] == [0, 1]
        for seed in cell["seeds"]:
            assert ("paired_mse" in seed) == (name != "T4 N1 float")
            assert np.array(seed["variance_by_step_and_channel"]).shape == (4, 2)
    # Seeds have noise of their own.
    first, second = cells["T4 N2 float"]["seeds"]
    assert first["paired_mse"]["value"] != second["paired_mse"]["value"]
    base, cached = cells["T4 N1 float"]["cost"], cells["T4 N2 float"]["cost"]
    assert base["bops"] == 1024 * base["macs"]
    assert base["cache_bits"] == 0
    # Attention and feed-forward of 3 blocks: 4 tokens of 16 channels in float32.
    assert cached["cache_bits"] == 32 * 2 * 3 * 4 * 16
    assert cached["macs"] < base["macs"]
    assert cells["T4 N1 int4/int8 random"]["cost"]["lut_per_mac"] > 0
    assert base["lut_per_mac"] is None


def test_cells_are_what_single_runs_find(done: Path, model: Path, tmp_path: Path) -> None:
    ended = quantize(
        "dit", "run", model, "--weights", "int4", "--acts", "int8", "--interval", 2, "--seed", 1,
        "--out", tmp_path / "run", "--quiet", *FEW[:-2],
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    models = json.loads((tmp_path / "run" / "metrics.json").read_bytes())["models"]
    cells = {cell["name"]: cell["seeds"][1] for cell in content(done)["cells"]}
    for name, entry in zip(NAMES[-2:], models[1:], strict=True):
        assert cells[name]["paired_mse"] == entry["paired_mse"]
        assert cells[name]["paired_mse_by_step"] == entry["paired_mse_by_step"]


def test_pictures_and_page_show_every_cell(done: Path) -> None:
    page = (done / "report.html").read_text()
    assert all(name in page for name in NAMES)
    assert page.count("data:image/png;base64,") == 2
    for name in ("samples_T4.png", "variance_T4.png", "trade_off_bops.png"):
        assert (done / name).read_bytes().startswith(b"\x89PNG")
    with np.load(done / "samples.npz") as kept:
        assert kept["cells"].tolist() == NAMES
        assert kept["latents"].shape == (7, 12, 2, 4, 4)
    summary = read_sweep(done)
    assert not summary.measured
    assert list(summary.floats()) == [4]


def test_what_is_large_is_dropped(done: Path) -> None:
    kept = [path.name for path in (done / ".steps").iterdir()]
    assert not [name for name in kept if name.startswith(("dit-sample", "dit-quantize"))]
    assert len([name for name in kept if name.startswith("dit-measure")]) == 14


def test_larger_grid_runs_what_is_new(done: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "larger"
    shutil.copytree(done, out)
    before = content(out)
    events = (out / "events.jsonl").read_text().count('"dit-measure"')
    ended = sweep(model, out, "--compensations", "none,std,qdrift")
    assert ended.returncode == 0, ended.stderr
    after = {cell["name"]: cell for cell in content(out)["cells"]}
    assert len(after) == 10
    assert all(after[cell["name"]] == cell for cell in before["cells"])
    assert (out / "events.jsonl").read_text().count('"dit-measure"') == events + 3 * 2
    # The old grid comes back without any work.
    assert sweep(model, out).returncode == 0
    assert content(out) == before


def test_processes_find_the_same(done: Path, model: Path, tmp_path: Path) -> None:
    ended = sweep(model, tmp_path / "two", "--jobs", 2)
    assert ended.returncode == 0, ended.stderr
    assert without_seconds(content(tmp_path / "two")) == without_seconds(content(done))


def test_killed_sweep_continues_to_the_same_bytes(done: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    command: Sequence[object] = [
        sys.executable, "-m", "lutwise", "dit", "sweep", model, "--out", out, *FEW, *GRID,
    ]  # fmt: skip
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while len(list((out / ".steps").glob("dit-measure-*"))) < 3:
        assert process.poll() is None, "ended before it was killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "sweep.json").exists()
    finished = {path.name for path in (out / ".steps").glob("dit-measure-*")}
    assert sweep(model, out).returncode == 0
    whole, cut = (json.dumps(without_seconds(content(folder)), indent=2) for folder in (done, out))
    assert cut == whole
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    again = [line["result"] for line in lines if line["result"] in finished]
    assert len(again) == len(set(again)), "a finished cell was measured again"


def test_another_model_is_refused(done: Path, tmp_path: Path) -> None:
    other = Dit(
        name="other", transformer=random_transformer(1), scheduler={}, folder=tmp_path, sha256=""
    )
    save_dit(other, tmp_path / "other")
    ended = sweep(tmp_path / "other", done)
    assert ended.returncode == 2
    assert "holds a sweep of 'small'" in ended.stderr
    assert "give another --out" in ended.stderr


def test_dry_run_lists_cells_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    ended = sweep(model, tmp_path / "none", "--dry-run", "--json")
    assert ended.returncode == 0, ended.stderr
    assert [cell["cell"] for cell in json.loads(ended.stdout)["cells"]] == NAMES
    assert not (tmp_path / "none").exists()


def test_progress_says_of_how_many(model: Path, tmp_path: Path) -> None:
    ended = quantize(
        "dit", "sweep", model, "--out", tmp_path, *FEW, "--intervals", 1, "--formats", "int8",
        "--compensations", "none",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "4/4  T4 N1 int8/int8 random, seed 1" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--formats", "int8,int9"], "no format 'int9'"),
        (["--formats", ""], "needs at least one of its formats"),
        (["--steps", ""], "needs at least one of its steps"),
        (["--steps", "many"], "--steps wants numbers such as 1,2,3, got 'many'"),
        (["--intervals", "2,2"], "the intervals of a sweep name 2 twice"),
        (["--intervals", "0"], "steps, intervals and seeds of a sweep are at least 1"),
        (["--orders", "-1"], "orders at least 0"),
        (["--compensations", "magic"], "compensations of a sweep are of none, printed"),
        (["--calibs", "best"], "calibrations of a sweep are of random, uniform, tap"),
        (["--steps", "1001"], "the model has 1000 timesteps"),
        (["--steps", "4,2"], "takes 20 samples, and 8 trajectories of 2 steps have 16"),
        (["--steps", "4,2", "--timestep-groups", "3"], "3 groups of timesteps"),
        (["--formats", "float", "--intervals", "1"], "add formats or intervals"),
        (["--formats", "uint4"], "weights of a DiT take both signs"),
        (["--classes", "9"], "has classes 0 .. 4, got (9,)"),
    ],
)
def test_bad_options_are_named(
    model: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    ended = sweep(model, tmp_path / "out", *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert message in ended.stderr
    assert not (tmp_path / "out" / "sweep.json").exists()


def test_schedule_files_stand_beside_intervals(model: Path, tmp_path: Path) -> None:
    table = CacheSchedule(
        attention=((True,) * 3, (True, False, True), (False,) * 3, (True,) * 3),
        feed_forward=((True,) * 3,) * 4,
    )
    table.save(tmp_path / "late.json")
    CacheSchedule.every(2, steps=4, blocks=3).save(tmp_path / "two.json")
    out = tmp_path / "out"
    ended = sweep(model, out, "--schedule", tmp_path / "late.json", "--schedule",
                  tmp_path / "two.json", "--steps", "4,5", "--orders", "0,1", "--formats", "int8",
                  "--compensations", "none", "--seeds", 1, "--json")  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    names = [row["cell"] for row in json.loads(ended.stdout)["cells"]]
    # Schedules are of four steps, so there are none at five.
    late = [name for name in names if "late" in name]
    assert late == ["T4 late int8/int8 random", "T4 late int8/int8 order 1 random"]
    cells = {cell["name"]: cell for cell in content(out)["cells"]}
    # The same table by another name is the same cell.
    for order in ("", "order 1 "):
        named, fixed = (cells[f"T4 {c} int8/int8 {order}random"] for c in ("two", "N2"))
        assert named["seeds"] == fixed["seeds"]
        assert named["cost"] == fixed["cost"]
    (read,) = (c for c in read_sweep(out).cells if c.name == late[0])
    assert read.setting.schedule == NamedSchedule(name="late", table=table)
    page = (out / "report.html").read_text()
    assert all(name in page for name in names)


@pytest.mark.parametrize(
    ("file", "steps", "blocks", "message"),
    [
        ("s.json", 5, 3, "the schedule s is for 5 steps, and the sweep samples with 4"),
        ("s.json", 4, 2, "for 2 blocks and the model has 3"),
        ("N2.json", 4, 3, "two caches of a sweep are called N2; rename"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(
    model: Path, tmp_path: Path, file: str, steps: int, blocks: int, message: str
) -> None:
    CacheSchedule.every(2, steps=steps, blocks=blocks).save(tmp_path / file)
    ended = sweep(model, tmp_path / "out", "--schedule", tmp_path / file)
    assert ended.returncode == 2
    assert message in ended.stderr


def test_report_draws_a_sweep_again(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    shutil.copytree(done, out)
    drawn = [path for path in out.iterdir() if path.suffix in {".png", ".svg", ".html"}]
    assert len(drawn) == 7
    for path in drawn:
        if path.name != "samples_T4.png":
            path.unlink()
    ended = quantize("report", out)
    assert ended.returncode == 0, ended.stderr
    assert str(out / "report.html") in ended.stdout
    assert content(out) == content(done)
    for name in ("report.html", "samples_T4.png", "variance_T4.png", "trade_off_bops.png"):
        assert (out / name).read_bytes() == (done / name).read_bytes(), name


@pytest.mark.parametrize("damage", [b"", b"PK", None])
def test_report_names_damaged_samples(done: Path, tmp_path: Path, damage: bytes | None) -> None:
    out = tmp_path / "damaged"
    shutil.copytree(done, out)
    if damage is None:
        (out / "samples.npz").unlink()
    else:
        (out / "samples.npz").write_bytes(damage)
    ended = quantize("report", out)
    assert ended.returncode == 1
    assert "samples.npz" in ended.stderr
    assert "`quantize dit sweep` command makes it again" in ended.stderr


def test_report_keeps_pictures_that_an_autoencoder_made(done: Path, tmp_path: Path) -> None:
    """Latents of two channels are no pixels, and the model is not there to decode them."""
    out = tmp_path / "kept"
    shutil.copytree(done, out)
    picture = (out / "samples_T4.png").read_bytes() + b"decoded"
    (out / "samples_T4.png").write_bytes(picture)
    assert quantize("report", out).returncode == 0
    assert (out / "samples_T4.png").read_bytes() == picture
    (out / "samples_T4.png").unlink()
    ended = quantize("report", out)
    assert ended.returncode == 1
    assert "samples_T4.png" in ended.stderr


def test_sweep_in_which_nothing_differs_is_drawn(model: Path, tmp_path: Path) -> None:
    ended = sweep(model, tmp_path, "--steps", 1, "--formats", "float", "--compensations", "none",
                  "--calib-samples", 4)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("metrics.json", "holds a run (metrics.json)"),
        ("sweep.json", "holds a sweep of `quantize sweep` (sweep.json)"),
        ("model.json", "was not written by a sweep of diffusion transformers"),
    ],
)
def test_results_of_other_commands_are_kept(
    model: Path, tmp_path: Path, file: str, message: str
) -> None:
    (tmp_path / file).write_text("{}")
    ended = sweep(model, tmp_path)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "give another --out" in ended.stderr
    assert (tmp_path / file).read_text() == "{}"


def test_one_writer_at_a_time(model: Path, tmp_path: Path) -> None:
    from lutwise.files import locked

    with locked(tmp_path / "out"):
        ended = sweep(model, tmp_path / "out")
    assert ended.returncode == 1
    assert "another process is writing" in ended.stderr


def test_model_that_ships_is_measured_by_its_classifier(tmp_path: Path) -> None:
    ended = quantize(
        "dit", "sweep", "zoo/dit-digits", "--out", tmp_path, "--quiet", *FEW, "--intervals", "1",
        "--formats", "int8", "--compensations", "none", "--samples", "40",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = content(tmp_path)
    exact, quantized = found["cells"]
    assert "frechet_to_float" not in exact["seeds"][0]
    near = quantized["seeds"][0]["frechet_to_float"]["value"]
    # Eight bits are nearer to the float model of the same noise than that is to itself.
    (itself,) = found["float"]["4"]["between_seeds"]
    assert itself["seeds"] == [0, 1]
    assert near < 0.1 * itself["value"]
    assert read_sweep(tmp_path).measured
    page, picture = tmp_path / "report.html", tmp_path / "samples_T4.png"
    assert "Frechet distance" in page.read_text()
    # Its latents are pixels, so the picture of samples is drawn again without the model.
    before = page.read_bytes(), picture.read_bytes()
    page.unlink()
    picture.unlink()
    assert quantize("report", tmp_path).returncode == 0
    assert (page.read_bytes(), picture.read_bytes()) == before


def test_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        read_sweep(tmp_path)


def test_formats_are_read_and_written() -> None:
    assert Formats.parse("int8") == Formats("int8", "int8")
    assert str(Formats.parse("e2m1/int8")) == "e2m1/int8"
    assert str(Formats.parse("float")) == "float"
    assert Formats.parse("int4/float").is_float is False
    with pytest.raises(FormatError, match="no format 'x'"):
        Formats.parse("int8/x")


def test_what_does_not_matter_makes_no_cells() -> None:
    grid = Grid(
        steps=(4, 8),
        intervals=(1, 2),
        formats=(Formats("float", "float"), Formats("int8", "int8")),
        orders=(0, 1),
        calibrations=("random", "tap"),
        compensations=("none", "std"),
        seeds=1,
    )
    names = [setting.name(compensated) for setting, compensated in grid.cells()]
    assert len(names) == len(set(names))
    # Float: 1 at N=1, 2 orders of 2 compensations at N=2. Quantized: 2 calibrations each.
    assert len(names) == 2 * (1 + 2 * 2 + 2 * 2 + 2 * 2 * 2)
    assert names[0] == "T4 N1 float"


def test_empty_grids_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one of its intervals"):
        Grid(steps=(4,), intervals=(), formats=(Formats("float", "float"),))


def test_cost_of_a_cell_is_that_of_its_formats(model: Path) -> None:
    """A cache takes its share, formats theirs, and products of attention stay float."""
    from lutwise.dit_commands import _grid, _sweep_base

    options = {
        "model": str(model), "steps": "4", "intervals": "1", "formats": "int4/int8", "seeds": 1,
        "orders": "0", "calibs": "random", "compensations": "none", "samples": 20, "jobs": 1,
        "schedules": (),
        "fit_samples": 12, "calib_samples": 20, "calib_trajectories": 8, "search": "max",
        "timestep_groups": 1, "algorithm": None, "sampler": "ddpm", "guidance": 1.0,
        "classes": None, "batch": 20, "threads": 1,
    }  # fmt: skip
    grid = _grid(options)
    base = _sweep_base(options, grid)
    job = grid.settings()[1].job(base, "none", 0)
    assert job.schedule == CacheSchedule.none(steps=4, blocks=3)
    cost, floats = job_cost(job), job_cost(job, exact=True)
    assert cost.macs == floats.macs
    products = 4 * 3 * 2 * 4 * 4 * 16 + 4 * 4 * 2 * 4 * 16  # attention, and the patches
    assert cost.bops == 1024 * products + 32 * (cost.macs - products)


def test_front_is_what_nothing_as_cheap_beats(done: Path) -> None:
    cells = read_sweep(done).cells
    front = cheapest_front([cell for cell in cells if cell.paired_mse is not None])

    def value(cell: Cell) -> float:
        assert cell.quality is not None
        return cell.quality.mean

    for cell in cells:
        if cell.quality is not None:
            within = [f for f in front if f.cost["bops"] <= cell.cost["bops"]]
            assert min(map(value, within)) <= value(cell)
    assert sorted(front, key=value, reverse=True) == list(front)


def test_spread_is_of_all_seeds() -> None:
    assert Spread.of([2.0, 1.0, 6.0]) == Spread(mean=3.0, low=1.0, high=6.0)
