"""The whole way, in real processes: a node, two agents with two SIMULATED boards, and the command ``profile``."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devit_pipeline.local_cell import LocalCell, LocalDevice

TINY = Path(__file__).parents[2] / "data" / "tiny-bundle"
BOARDS = {"jetson1": ("orin-nano", "NVIDIA Jetson Orin Nano Developer Kit"), "jetson2": ("agx-orin", "Jetson AGX Orin")}
RAILS = {"jetson1": ("VDD_IN",), "jetson2": ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")}


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[LocalCell]:
    """Null engines: the energy is that of the boards, whatever they compute."""
    devices = []
    for index, (name, (board, model)) in enumerate(BOARDS.items()):
        root = tmp_path / name
        (root / "proc" / "device-tree").mkdir(parents=True)
        (root / "proc" / "device-tree" / "model").write_text(f"{model}\0")
        (root / "etc").mkdir()
        (root / "etc" / "nvpmodel.conf").write_text("< POWER_MODEL ID=2 NAME=MODE_30W >\n< PM_CONFIG DEFAULT=2 >\n")
        sampler = (sys.executable, "-m", "devit_profiling.simulator.program", "--board", board, "--seed", str(index))
        devices.append(LocalDevice(name, index, sampler, str(root), "null"))
    with LocalCell(TINY, tmp_path / "cell", devices) as opened:
        yield opened


def profile(cell: LocalCell, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    code = "from devit_profiling.cli import main; main()"
    where = ["--fleet", str(cell.fleet_path), "--key", str(cell.client_key_path), "--out", str(out)]
    command = [sys.executable, "-c", code, "--devices", "jetson1,jetson2", *where, *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


def cell_joules_per_answer(run: Path) -> float:
    """Twenty lines that know nothing of the package: trapezoids between the snapshots, from the raw files alone."""
    record = json.loads((run / "run.json").read_text())
    windows = [phase for phase in record["phases"] if phase["kind"] == "window" and phase["scenario"] == "together"]
    with (run / "latency.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["scenario"] == "together" and row["state"] != "failed"]
    each = []
    for window in windows:
        joules = 0.0
        for name, rails in RAILS.items():
            start, end = (window[boundary]["snapshots"][name]["monotonic_ns"] / 1e9 for boundary in ("start", "end"))
            stamps = [int(line.split(",")[1]) / 1e9 for line in (run / f"{name}.stamps.csv").read_text().split()[1:]]
            watts = []
            for line in (run / f"{name}.tegrastats.log").read_text().splitlines():
                words = line.split()
                watts.append(sum(int(words[words.index(rail) + 1].partition("mW")[0]) for rail in rails) / 1000)
            for t0, t1, w0, w1 in zip(stamps, stamps[1:], watts, watts[1:], strict=False):
                a, b = max(t0, start), min(t1, end)
                if a < b:
                    slope = (w1 - w0) / (t1 - t0)
                    joules += (b - a) * (w0 + slope * ((a + b) / 2 - t0))
        each.append(joules / sum(row["window"] == str(window["number"]) for row in rows))
    return sum(each) / len(each)


@pytest.mark.system
def test_energy_of_the_cell_is_what_a_short_script_finds_in_the_raw_files(cell: LocalCell, tmp_path: Path) -> None:
    done = profile(cell, tmp_path / "runs", "--quick")
    assert done.returncode == 0, done.stderr
    assert "SIMULATED" in done.stdout
    (run,) = (tmp_path / "runs").iterdir()
    report = json.loads((run / "report.json").read_text())
    assert [device["power_mode"] for device in report["devices"]] == ["MODE_30W (mode 2, by default)"] * 2
    (scenario,) = report["scenarios"]
    found = scenario["cell"]["total_j_per_answer"]["mean"]
    expected = cell_joules_per_answer(run)
    print(f"cell: {found:.9f} J per answer in the report, {expected:.9f} by the script: {found / expected - 1:+.2e}")
    assert found == pytest.approx(expected, rel=1e-3)
    # An agent that is gone, and a name that the fleet has not: one sentence each, before anything is measured.
    cell.kill("jetson2")
    offline = profile(cell, tmp_path / "runs", "--quick")
    assert offline.returncode == 1
    (error,) = offline.stderr.splitlines()
    assert error.startswith("error: jetson2: ")
    assert list((tmp_path / "runs").iterdir()) == [run]
