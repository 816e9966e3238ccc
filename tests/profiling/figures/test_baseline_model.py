"""The baseline model on one device of a running cell, beside the cell itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from devit_contract.errors import InputError, LinkError
from devit_contract.service.progress import no_progress
from devit_engines.building.build_all import build_engines
from devit_engines.building.store import Store
from devit_pipeline.local_cell import LocalCell, LocalDevice
from devit_profiling.figures.analysis import analyse
from devit_profiling.figures.evidence import Evidence
from devit_profiling.load.cell_run import measure_cell
from devit_profiling.load.load_generator import random_images
from devit_profiling.record.record import Plan
from devit_profiling.report.report import write_report
from devit_profiling.report.summary import against_baseline_text

if TYPE_CHECKING:
    from conftest import LiveCell
    from devit_contract.artefacts.manifest import Bundle
else:
    LiveCell = Bundle = object

SIMULATOR = (sys.executable, "-m", "devit_profiling.simulator.program", "--board", "orin-nano")
PICTURES = random_images((6, 8, 1))
PLAN = Plan(
    has_alone=False,
    has_idle_after=False,
    settle_s=0.05,
    idle_s=0.3,
    warm_up_s=0.1,
    duration_s=0.4,
    windows=2,
    interval_ms=20,
    idle_samples=3,
    window_samples=3,
    baseline="jetson1",
)


def test_ctrl_c_frees_the_baseline_model_and_keeps_its_windows(live_cell: LiveCell, tmp_path: Path) -> None:
    def interrupt(stage: str, _done: float, _total: float, note: str = "") -> None:
        if stage == "jetson1 baseline" and note == "window 2 of 2":
            raise KeyboardInterrupt

    with live_cell.client() as client:
        folder = measure_cell(client, live_cell.fleet, ["jetson1"], PICTURES, PLAN, tmp_path, interrupt)
        assert client.baseline("jetson1", "state").state == "nothing"
    report = analyse(Evidence.read(folder))
    assert report.cut_short is not None
    (scenario,) = report.scenarios
    assert scenario.baseline is not None
    assert scenario.baseline.inferences == scenario.energies[0].windows[0].inferences > 0
    assert len(scenario.energies[0].windows) == 1


def test_baseline_model_on_a_device_that_is_not_measured_is_refused(live_cell: LiveCell, tmp_path: Path) -> None:
    plan = msgspec.structs.replace(PLAN, baseline="jetson2")
    with live_cell.client() as client, pytest.raises(InputError, match="expected one that is measured: jetson1"):
        measure_cell(client, live_cell.fleet, ["jetson1"], PICTURES, plan, tmp_path, no_progress)


@pytest.fixture(scope="module")
def submodels_alone(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    """A store without the baseline."""
    folder = tmp_path_factory.mktemp("store")
    build_engines(bundle, Store(folder), backend="ort")
    return folder


@pytest.fixture(scope="module")
def built_cell(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle, submodels_alone: Path) -> Iterator[LocalCell]:
    devices = [LocalDevice(f"jetson{index + 1}", index, tegrastats=SIMULATOR) for index in range(2)]
    folder = tmp_path_factory.mktemp("cell")
    with LocalCell(bundle.folder, folder, devices, store=submodels_alone, deadline_ms=1000) as cell:
        yield cell


@pytest.mark.system
def test_baseline_that_is_not_built_is_refused_in_one_line_and_then_compared(
    built_cell: LocalCell, submodels_alone: Path, bundle: Bundle, tmp_path: Path
) -> None:
    """Real engines and processes: first the store lacks the baseline, then it is built while the agents serve."""
    with built_cell.client() as client:
        names = ["jetson1", "jetson2"]
        with pytest.raises(LinkError, match=r"jetson1: .* run devit build .* --baseline --store ") as caught:
            measure_cell(client, built_cell.fleet, names, PICTURES, PLAN, tmp_path, no_progress)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []
        build_engines(bundle, Store(submodels_alone), submodels=[], baseline=True, backend="ort")
        folder = measure_cell(client, built_cell.fleet, names, PICTURES, PLAN, tmp_path, no_progress)
        assert client.baseline("jetson1", "state").state == "nothing"
        assert client.classify(PICTURES.items[0]).state.name == "FULL"
    report = write_report(folder)
    first, together = report.scenarios
    assert (first.name, first.baseline is not None) == ("jetson1 baseline", True)
    assert first.baseline is not None
    assert "ONNX Runtime" in first.baseline.engine
    assert first.baseline.p50_ms is not None
    found = report.against_baseline
    assert found is not None
    energy = first.energies[0].total_j_per_inference
    assert energy is not None
    assert found.baseline_j == energy.mean
    assert together.cell is not None
    assert together.cell.total_j_per_answer is not None
    assert found.devices_j == together.cell.total_j_per_answer.mean
    assert "jetson1 alone spends" in against_baseline_text(report)
    assert b"Beside the baseline model" in (folder / "report.html").read_bytes()


@pytest.mark.system
def test_link_lost_while_the_baseline_model_runs_frees_it(
    built_cell: LocalCell, bundle: Bundle, submodels_alone: Path
) -> None:
    build_engines(bundle, Store(submodels_alone), submodels=[], baseline=True, backend="ort")
    with built_cell.client() as client:
        client.baseline("jetson2", "load")
        while client.baseline("jetson2", "state").state != "resting":
            client.wait(0.05)
        client.baseline("jetson2", "run")
        assert client.baseline("jetson2", "state").state == "running"
    built_cell.kill("node")
    built_cell.start_node()
    with built_cell.client() as client:
        while client.status().devices[1].state != "ready":
            client.wait(0.1)
        while client.baseline("jetson2", "state").state == "freeing":
            client.wait(0.05)
        assert client.baseline("jetson2", "state").state == "nothing"
        assert client.classify(PICTURES.items[0], mask=0b10).mask == 0b10
