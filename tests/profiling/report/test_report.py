"""The page: it is whole, needs nothing from outside, says what it must, and is the same for the same run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from devit_contract.errors import InputError
from devit_contract.wire.codec import State
from devit_profiling.figures import power
from devit_profiling.figures.analysis import Report, analyse
from devit_profiling.figures.evidence import Evidence
from devit_profiling.record import clocks
from devit_profiling.report.page import render_html
from devit_profiling.report.report import OUTPUTS, write_report
from devit_profiling.report.summary import calibration_notes, summary_rows
from devit_profiling.report.warning_list import warnings

if TYPE_CHECKING:
    from conftest import FakeDevice, FakeRun
else:
    FakeRun = FakeDevice = object

VOID = {"meta", "br", "hr", "img", "link"}


class Page(HTMLParser):
    """What the tests ask a page for; closing tags must match."""

    def __init__(self, html: str) -> None:
        """Read a page whole."""
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.tags: set[str] = set()
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                self.references.append(value or "")
            elif value is not None and "url(" in value:
                self.references.append(value.partition("url(")[2].partition(")")[0])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, *tags: str) -> list[str]:
        return [text for tag, text in self.texts if tag in tags]

    def text(self) -> str:
        return " ".join(text for _, text in self.texts)


def html_of(run: FakeRun) -> str:
    recording = run.recording()
    evidence = Evidence.of(recording)
    return render_html(analyse(evidence), evidence)


def test_page_needs_nothing_from_outside(two_devices: FakeRun) -> None:
    """It has to open on a train; names of XML namespaces are no resources."""
    html = html_of(two_devices)
    page = Page(html)
    assert all(reference.startswith("#") for reference in page.references)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert "@import" not in html
    bare = html.replace('xmlns="http://www.w3.org/2000/svg"', "").replace(
        'xmlns:xlink="http://www.w3.org/1999/xlink"', ""
    )
    assert "http" not in bare.replace("http-equiv", "")


def test_identifiers_are_unique_and_every_reference_has_its_target(two_devices: FakeRun) -> None:
    """Several SVGs in one page would else take each other's clip paths and marks."""
    page = Page(html_of(two_devices))
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references} <= set(page.ids)


def test_text_in_figures_is_text(fake_run: FakeRun) -> None:
    page = Page(html_of(fake_run))
    assert {"VDD_IN", "total", "power, W", "share of answers, %"} <= set(page.all("text"))


def test_quick_run_is_called_a_quick_look(fake_run: FakeRun) -> None:
    assert Page(html_of(replace(fake_run, is_quick=True))).all("h1") == ["Quick look: jetson1"]
    assert Page(html_of(fake_run)).all("h1") == ["Profile: jetson1"]


def test_simulated_stands_at_every_figure_of_power(fake_run: FakeRun) -> None:
    html = html_of(fake_run.changed(simulated_board="orin-nano"))
    page = Page(html)
    assert "(SIMULATED)" in page.all("title")[0]
    assert "no measurement of any board" in page.text()
    assert "power, W (SIMULATED)" in page.all("text")
    headings = ("Summary", "Power and energy", "The cell", "Power over time", "Profile: jetson1")
    for heading in headings:
        place = page.texts.index(next(pair for pair in page.texts if pair[1] == heading))
        assert page.texts[place + 1] == ("span", "SIMULATED"), heading
    for table in html.split("<table>")[1:]:
        content = table.partition("</table>")[0]
        if "W</th>" in content or "J</th>" in content or "J/inf" in content:
            before = html[: html.index(content)][-200:]
            assert "SIMULATED" in content or "SIMULATED" in before


def test_measured_run_never_says_simulated(fake_run: FakeRun) -> None:
    assert "SIMULATED" not in html_of(fake_run).upper().replace(".SIMULATED {", "")


def test_numbers_of_the_page_are_those_of_the_report(fake_run: FakeRun) -> None:
    cells = Page(html_of(fake_run)).all("td")
    assert {"6.00", "4.00", "0.600", "0.200", "1.67", "module input (VDD_IN)"} <= set(cells)


def test_the_page_names_the_part_of_a_divided_gpu(fake_run: FakeRun) -> None:
    cells = Page(html_of(fake_run.changed(gpu_instance="MIG 2g.0gb"))).all("td")
    assert any(cell.endswith(", L4T 36.4.3, MIG 2g.0gb") for cell in cells)


def test_fewer_digits_are_printed_where_the_sensor_tells_no_more(fake_run: FakeRun) -> None:
    """One inference in 10 s: 60 J, known to 0.12 J."""
    energy = fake_run.changed(inferences=1)
    assert "60.0" in Page(html_of(energy)).all("td")


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$x_1$ {{ 7 * 7 }}"]
)
def test_hostile_names_are_shown_and_not_run(fake_run: FakeRun, hostile: str) -> None:
    run = fake_run.changed(name=hostile, model=hostile + " board")
    html = html_of(replace(run, others=(hostile + "2",)))
    page = Page(html)
    assert not page.tags & {"script", "img"}
    assert hostile + " board" in page.text()
    assert "49" not in page.all("h1")[0]


def test_device_without_sensor_is_called_not_measured(fake_run: FakeRun) -> None:
    page = Page(html_of(fake_run.changed(idle_mw=None, sensor_problem="no sensor is set")))
    assert "jetson1: not measured: no sensor is set." in page.text()
    assert "not measured" in page.all("td")
    assert "Power over time" not in page.all("h2")


def test_run_without_an_answer_has_a_page(fake_run: FakeRun) -> None:
    page = Page(html_of(replace(fake_run, state=State.FAILED)))
    assert "No frame was answered." in page.text()
    assert "jetson1 is missing in 200 answers (deadline)" in page.text()


def test_unknown_board_has_its_rails_drawn(fake_run: FakeRun) -> None:
    run = fake_run.changed(model="Mystery Board", line="RAM 1/2000MB (lfb 1x4MB) VDD_A {mw}mW/1mW")
    figure = Page(html_of(run)).all("text")
    assert "VDD_A" in figure
    assert "total" not in figure


def test_warnings_and_raw_files_stand_in_the_page(fake_run: FakeRun) -> None:
    text = Page(html_of(fake_run.changed(idle_after_mw=5000))).text()
    assert "idle power drifted" in text
    for file in ("run.json", "latency.csv", "jetson1.tegrastats.log", "jetson1.stamps.csv"):
        assert file in text


def test_each_log_is_parsed_once_and_the_clocks_are_fitted_once(
    two_devices: FakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of ten minutes has some 30,000 lines a device."""
    parse, fit = power.parse_sensor_log, clocks.fit_clock
    parsed, fitted = [], []
    monkeypatch.setattr(power, "parse_sensor_log", lambda lines: (parsed.append(len(lines)), parse(lines))[1])
    monkeypatch.setattr(clocks, "fit_clock", lambda boundaries, name: (fitted.append(name), fit(boundaries, name))[1])
    write_report(two_devices.write(tmp_path / "run"))
    assert parsed == [481, 481]
    assert fitted == ["jetson1", "jetson2"]


def test_same_run_gives_the_same_bytes(two_devices: FakeRun, tmp_path: Path) -> None:
    folder = two_devices.write(tmp_path / "run")
    written = []
    for _ in range(2):
        report = write_report(folder)
        written.append({name: (folder / name).read_bytes() for name in OUTPUTS})
    assert written[0] == written[1]
    assert msgspec.json.decode(written[0]["report.json"], type=Report) == report


@pytest.mark.system
def test_a_report_that_cannot_be_written_leaves_the_raw_files_and_says_what_to_run(
    fake_run: FakeRun, tmp_path: Path
) -> None:
    """A folder in the place of a file stands in for a full disk."""
    folder = fake_run.write(tmp_path / "run")
    (folder / "report.html").mkdir()
    with pytest.raises(InputError, match=rf"html: cannot be written.*make room, and run profile report {folder}$"):
        write_report(folder)
    (folder / "report.html").rmdir()
    assert write_report(folder).name


def test_raw_files_alone_make_every_output_to_the_byte_in_another_process(real_run: Path) -> None:
    """Of a real run: nothing of the first making is needed, and no order of a set or a dict gets in."""
    raw = {path.name: path.read_bytes() for path in real_run.iterdir()}
    written = []
    for seed in ("1", "2"):
        code = "import sys, pathlib; from devit_profiling.report.report import write_report;"
        code += "write_report(pathlib.Path(sys.argv[1]))"
        environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": "C", "TZ": "Asia/Kathmandu"}
        subprocess.run([sys.executable, "-c", code, str(real_run)], env=environment, check=True, timeout=100)
        made = {path.name: path.read_bytes() for path in real_run.iterdir() if path.name not in raw}
        assert sorted(made) == sorted(OUTPUTS)
        written.append(made)
        for name in made:
            (real_run / name).unlink()
    assert written[0] == written[1]
    assert {name: (real_run / name).read_bytes() for name in raw} == raw


def test_figures_show_energy_latency_and_waiting_for_the_slowest_device(two_devices: FakeRun) -> None:
    page = Page(html_of(two_devices))
    assert {"mJ per inference, 95 % interval of the mean", "total", "above idle"} <= set(page.all("text"))
    assert {"slowest device alone", "jetson1: p50 4.53 (—), p95 4.53 (- -), p99 4.53 ms (···)"} <= set(page.all("text"))
    # 6.73 less 4.53 ms of a mean of 5.495 ms.
    waited = "Together: of 5.50 ms, 2.20 ms (40 %) pass while all features but the slowest have come"
    assert f"{waited}; jetson2 comes last in 100 % of the answers." in page.all("p")


def test_joules_of_different_scopes_have_no_common_figure(
    fake_run: FakeRun, make_device: Callable[..., FakeDevice]
) -> None:
    other = make_device(name="jetson2", simulated_board="agx-orin", model="NVIDIA Jetson AGX Orin Developer Kit")
    page = Page(html_of(replace(fake_run, devices=(*fake_run.devices, other))))
    assert {"Scope: module input (VDD_IN)", "Scope: sum of 3 module rails"} <= set(page.all("h3"))
    axes = [text for text in page.all("text") if "per inference, 95 %" in text]
    assert axes == [
        "mJ per inference, 95 % interval of the mean",
        "J per inference, 95 % interval of the mean (SIMULATED)",
    ]


def test_warnings_stand_before_the_figures(fake_run: FakeRun) -> None:
    page = Page(html_of(fake_run.changed(idle_after_mw=5000)))
    assert page.all("h2")[:3] == ["Summary", "Warnings", "Energy per inference"]
    assert any("idle power drifted" in text for text in page.all("li"))
    assert "None: every window was sampled, and there is no warning." in Page(html_of(fake_run)).all("p")


def test_what_holds_for_several_devices_or_windows_stands_once(two_devices: FakeRun) -> None:
    report = analyse(Evidence.of(two_devices.changed(inferences=0).recording()))
    assert list(calibration_notes(report)) == ["jetson1; jetson2: not calibrated, gain error about 5 %"]
    assert "jetson1, together: window 1; window 2: the device made no inference" in list(warnings(report))


def test_summary_has_a_row_per_device_and_one_for_the_cell(
    two_devices: FakeRun, make_device: Callable[..., FakeDevice]
) -> None:
    assert summary_rows(analyse(Evidence.of(two_devices.recording()))) == [
        ["jetson1", "Orin Nano", "module input (VDD_IN)", "6.00", "0.600 ±0.0023", "4.53", "4.53"],
        ["jetson2", "Orin Nano", "module input (VDD_IN)", "9.00", "0.900 ±0.0023", "6.73", "6.73"],
        ["cell", "", "2 of 2 devices, node left out", "15.0", "1.50 ±0.0032", "5.50", "5.98"],
    ]
    simulated = replace(two_devices, devices=(make_device(simulated_board="agx-orin", model="x86_64"),))
    assert summary_rows(analyse(Evidence.of(simulated.recording())))[0][1] == "AGX Orin (guessed, SIMULATED)"


def test_the_page_marks_windows_in_which_the_board_slowed_itself_down(fake_run: FakeRun) -> None:
    """In the table of windows, in the figures of the scenario, and as a red edge of the window's band in the plot."""
    pages = {}
    for events in (None, (0, 0), (0, 37)):
        evidence = Evidence.of(fake_run.changed(window_events=events).recording())
        pages[events] = render_html(analyse(evidence), evidence)
    assert "37 instantaneous over-current</td>" in pages[0, 37]
    assert '<th scope="row">Over-current events in the windows</th><td class="number">37</td>' in pages[0, 37]
    assert '<th scope="row">Over-current events in the windows</th><td class="number">0</td>' in pages[0, 0]
    edges = [pages[events].count("fill: #b3261e") for events in (None, (0, 0), (0, 37))]
    assert edges == [0, 0, 1]


def test_a_run_of_an_earlier_version_has_a_report_without_events(fake_run: FakeRun, tmp_path: Path) -> None:
    """Its snapshots have no such field."""
    folder = fake_run.changed(window_events=(0, 37)).write(tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    for phase in record["phases"]:
        for boundary in (phase["start"], phase["end"]):
            for snapshot in boundary["snapshots"].values():
                assert snapshot.pop("over_current") is not None
    (folder / "run.json").write_text(json.dumps(record))
    (scenario,) = write_report(folder).scenarios
    assert scenario.energies[0].over_current == {}
    assert scenario.energies[0].total_j_per_inference is not None
