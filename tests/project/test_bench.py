"""``make bench`` runs what is listed, and its page is that of the kept results."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import msgspec
import pytest
from benchmarks import all as bench
from benchmarks import results
from benchmarks.all import Benchmark, fault
from benchmarks.common.machine import Machine
from benchmarks.common.measure import Figure, Report, results_of
from benchmarks.common.rows import Results, Row

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
MACHINE = Machine("some", 2, "3.11", "27", "4.3", "0.1", (0.1, 0.1, 0.1), (0.2, 0.2, 0.2), {"user": 1.0})
ROW = Row(figure="null cell", side="devit", unit="us", p50=100.0, p99=200.0, samples=10)


def found(*rows: Row, benchmark: str = "some") -> Results:
    return Results(
        benchmark=benchmark,
        about="what it measures",
        command="python -m some",
        settings={"images": 3.0},
        versions={"grpcio": "1"},
        machine=MACHINE,
        rows=rows,
    )


def test_the_page_and_the_rows_are_those_of_the_kept_results() -> None:
    kept = results.load(FOLDER / "results")
    assert (FOLDER / "RESULTS.md").read_text() == results.page(kept), "run python -m benchmarks.results"
    assert (FOLDER / "results.json").read_bytes() == results.rows_json(kept), "run python -m benchmarks.results"
    plots = re.findall(r"\]\((plots/.*?)\)", results.page(kept))
    assert sorted(path.name for path in FOLDER.glob("plots/*")) == sorted(Path(plot).name for plot in plots)


def test_every_kept_file_is_that_of_a_benchmark_that_is_listed() -> None:
    listed = {each.name for each in bench.BENCHMARKS}
    assert {path.stem for path in (FOLDER / "results").glob("*.json")} <= listed
    for path in (FOLDER / "results").glob("*.json"):
        assert fault(path) == ""


def test_every_benchmark_that_can_save_is_listed() -> None:
    listed = {each.module for each in bench.BENCHMARKS}
    runs = [
        path for path in FOLDER.glob("*/*.py") if re.search(r"^def main\(.*Sequence\[str\]", path.read_text(), re.M)
    ]
    there = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in runs}
    assert there <= listed


def test_a_row_of_the_json_has_all_its_columns() -> None:
    (row,) = json.loads(results.rows_json([found(ROW)]))
    assert {"benchmark", "side", "figure", "p50", "p99", "ratio", "wanted", "holds"} <= row.keys()
    assert (row["benchmark"], row["p50"], row["p99"]) == ("some", 100.0, 200.0)


def test_the_page_counts_what_holds_and_the_plot_draws_every_side(tmp_path: Path) -> None:
    sides = [
        msgspec.structs.replace(ROW, side=side, ratio=ratio, against="devit", wanted=">= 4 x", holds=ratio >= 4)
        for side, ratio in (("grpcio unary", 3.0), ("Ray Serve", 30.0))
    ]
    kept = [found(ROW, *sides)]
    page = results.page(kept)
    assert "## What is wanted: 1 of 2 hold" in page
    assert "| some | null cell | grpcio unary | 100 us | 3.00 x devit | >= 4 x | NO |" in page
    assert "python -m some" in page
    assert "grpcio 1" in page
    (plot,) = results.plots(kept, tmp_path)
    drawn = plot.read_text()
    assert all(f"<!-- {name} -->" in drawn for name in ("devit", "grpcio unary", "Ray Serve", "null cell"))
    assert results.plots(kept, tmp_path)[0].read_text() == drawn


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([ROW], ""),
        ([], "no rows"),
        ([msgspec.structs.replace(ROW, samples=0)], "p50 100.0 of 0 samples"),
        ([msgspec.structs.replace(ROW, wanted="<= 2 x")], "wanted <= 2 x, but does it hold"),
    ],
)
def test_a_file_of_results_that_is_not_whole_is_a_fault(tmp_path: Path, rows: list[Row], expected: str) -> None:
    told = fault(found(*rows).save(tmp_path))
    assert expected in told
    assert bool(told) is bool(expected)


def test_a_p50_that_is_no_number_is_a_fault(tmp_path: Path) -> None:
    path = found(msgspec.structs.replace(ROW, p50=math.inf)).save(tmp_path)
    assert "some.json" in fault(path)
    assert fault(tmp_path / "other.json") == "saved no other.json"


def test_what_cannot_be_saved_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(SystemExit, match="the results are on standard output"):
        found(ROW).save(tmp_path / "folder")
    assert msgspec.json.decode(capsys.readouterr().out, type=Results) == found(ROW)


def test_a_benchmark_that_ends_in_an_error_or_saves_nothing_fails_the_smoke(tmp_path: Path) -> None:
    broken = Benchmark("broken", "benchmarks.no_such_module")
    assert not broken.is_there()
    assert bench.run(broken, smoke=True, folder=tmp_path) == "ended with exit code 1"
    silent = Benchmark("silent", "this", smoke=())
    assert bench.run(silent, smoke=True, folder=tmp_path) == "saved no silent.json"


def test_a_report_of_two_columns_becomes_a_row_a_side() -> None:
    figure = Figure("latency p50", "us", 30.0, 10.0, 3.0, "<= 3 x", True, 7, (2.0, 4.0))
    alone = Figure("rate", "1/s", 50.0, None, 50.0, ">= 20", True, 9, (49.0, 51.0))
    rows = results_of(Report("some", "about", "bare cell", {}, (figure, alone), MACHINE)).rows
    assert [(row.side, row.p50, row.ratio, row.against, row.holds, row.samples) for row in rows] == [
        ("devit", 30.0, 3.0, "bare cell", True, 7),
        ("bare cell", 10.0, None, "", None, 7),
        ("devit", 50.0, None, "", True, 9),
    ]
