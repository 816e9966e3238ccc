"""The joules of a cell with its node and with stated watts: what is added, what is not, and that it is said."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from devit_contract.artefacts.fleet import Extra
from devit_contract.service.progress import no_progress
from devit_contract.wire.messages import Description, Mark, PowerLine
from devit_profiling.figures.analysis import Report, analyse
from devit_profiling.figures.evidence import Evidence
from devit_profiling.load.cell_run import measure_cell
from devit_profiling.load.load_generator import random_images
from devit_profiling.load.node_power import ELSEWHERE, is_here
from devit_profiling.record.record import NODE, Boundary, DeviceRecord, Phase, Plan, Recording
from devit_profiling.record.run_folder import read_recording, write_recording
from devit_profiling.report.page import render_html
from devit_profiling.report.summary import summary_rows
from devit_profiling.report.warning_list import warnings

if TYPE_CHECKING:
    from conftest import FakeRun, LiveCell
else:
    FakeRun = LiveCell = object

NODE_LINE = (
    "RAM 1/7620MB CPU [0%@729,0%@729,0%@729,0%@729,0%@729,0%@729] "
    "VDD_IN 3000mW/1mW VDD_CPU_GPU_CV 400mW/1mW VDD_SOC 300mW/1mW"
)
SWITCH = Extra("switch", 4.5, "wall meter")


def with_node(recording: Recording, *, same_clock: bool = False) -> Recording:
    """Put a node of 3 W beside a run's devices, sampled on the host's clock, and a switch of 4.5 W."""
    run = recording.run

    def boundary(boundary: Boundary, answers: int) -> Boundary:
        snapshots = {**boundary.snapshots, NODE: Mark(boundary.host_ns, answers, 0)}
        if same_clock:
            first = run.devices[0].name
            snapshots[first] = msgspec.structs.replace(snapshots[first], monotonic_ns=boundary.host_ns)
        return msgspec.structs.replace(boundary, snapshots=snapshots)

    phases = tuple(
        Phase(
            phase.scenario,
            phase.kind,
            phase.number,
            boundary(phase.start, 100 * max(0, phase.number - 1)),
            boundary(phase.end, 100 * phase.number),
        )
        for phase in run.phases
    )
    record = DeviceRecord(NODE, -1, Description("NVIDIA Jetson Orin Nano", "", "", "tegrastats", 0))
    first_ns, last_ns = phases[0].start.host_ns, phases[-1].end.host_ns
    stamps = range(first_ns - 10**9, last_ns + 10**9, 10**8)
    lines = {**recording.lines, NODE: tuple(PowerLine(stamp, NODE_LINE) for stamp in stamps)}
    return replace(
        recording, run=msgspec.structs.replace(run, phases=phases, node=record, extras=(SWITCH,)), lines=lines
    )


def whole_of(report: Report) -> float:
    cell = report.scenarios[0].cell
    assert cell is not None
    assert cell.whole is not None
    return cell.whole.total_j_per_answer.mean


def test_whole_cell_is_devices_and_node_and_extras_by_name(two_devices: FakeRun) -> None:
    """6 W and 9 W of devices, 3 W of the node, 4.5 W stated: ten answers a second cost 2.25 J each."""
    report = analyse(Evidence.of(with_node(two_devices.recording())))
    cell = report.scenarios[0].cell
    assert cell is not None
    assert cell.total_j_per_answer is not None
    assert cell.total_j_per_answer.mean == pytest.approx(1.5)  # of the devices, as ever
    assert whole_of(report) == pytest.approx(2.25)
    assert [(part.name, part.mean_w, part.left_out) for part in cell.parts] == [
        ("jetson1", pytest.approx(6.0), ""),
        ("jetson2", pytest.approx(9.0), ""),
        (NODE, pytest.approx(3.0), ""),
        ("switch", 4.5, ""),
    ]
    assert cell.whole is not None
    assert cell.whole.scope.endswith("switch 4.5 W stated (wall meter)")
    assert cell.node is not None
    assert cell.node.total_j_per_inference is not None
    assert cell.node.total_j_per_inference.mean == pytest.approx(0.3)
    assert summary_rows(report)[-1][:4] == ["whole cell", "", "with fusion node, switch", "22.5"]


def test_node_without_a_sensor_is_left_out_in_words(two_devices: FakeRun) -> None:
    recording = with_node(two_devices.recording())
    assert recording.run.node is not None
    blind = DeviceRecord(NODE, -1, Description("", "", "", "", 0), "this machine has no sensor")
    recording = replace(recording, run=msgspec.structs.replace(recording.run, node=blind))
    report = analyse(Evidence.of(recording))
    assert whole_of(report) == pytest.approx(1.95)
    assert "power of the fusion node: not measured: this machine has no sensor" in report.not_measured
    page = render_html(report, Evidence.of(recording))
    assert "not measured, and in no sum: this machine has no sensor" in page
    assert "stated: wall meter" in page


def test_node_on_the_machine_of_a_device_is_not_added_twice(fake_run: FakeRun) -> None:
    """Device and host read the same clock at every boundary: they are one."""
    recording = with_node(fake_run.recording(), same_clock=True)
    stamps = [line.monotonic_ns for line in recording.lines[NODE]]
    lines = {**recording.lines}
    lines["jetson1"] = tuple(PowerLine(stamp, line.text) for stamp, line in zip(stamps, lines["jetson1"], strict=False))
    report = analyse(Evidence.of(replace(recording, lines=lines)))
    cell = report.scenarios[0].cell
    assert cell is not None
    (node,) = [part for part in cell.parts if part.kind == "node"]
    assert node.left_out == "it runs on the machine of jetson1, whose joules contain it"


def test_different_scopes_are_added_with_a_word_about_it(two_devices: FakeRun) -> None:
    recording = with_node(two_devices.recording())
    thor = "RAM 1/125000MB VDD_GPU 1000mW/1mW VDD_CPU_SOC_MSS 1000mW/1mW VIN_SYS_5V0 1000mW/1mW VIN 30000mW/1mW"
    assert recording.run.node is not None
    about = msgspec.structs.replace(recording.run.node.description, board_model="NVIDIA Jetson AGX Thor Developer Kit")
    node = msgspec.structs.replace(recording.run.node, description=about)
    lines = {**recording.lines, NODE: tuple(msgspec.structs.replace(line, text=thor) for line in recording.lines[NODE])}
    report = analyse(
        Evidence.of(replace(recording, lines=lines, run=msgspec.structs.replace(recording.run, node=node)))
    )
    assert any("the cell's joules add different scopes, jetson1: module" in doubt for doubt in warnings(report))


def test_run_with_a_node_is_read_back_as_it_was_written(two_devices: FakeRun, tmp_path: Path) -> None:
    recording = with_node(two_devices.recording())
    write_recording(tmp_path / "run", recording)
    assert read_recording(tmp_path / "run") == recording
    assert (tmp_path / "run" / "fusion+node.tegrastats.log").is_file()


def test_node_of_this_machine_is_sampled_with_its_own_sensor(
    live_cell: LiveCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tegrastats on the path is the simulator, so all of it is called simulated."""
    tool = tmp_path / "tegrastats"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m devit_profiling.simulator.program --board agx-orin "$@"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    plan = Plan(
        has_alone=False,
        has_idle_after=False,
        settle_s=0.5,
        idle_s=0.3,
        warm_up_s=0.1,
        duration_s=0.4,
        windows=2,
        interval_ms=20,
        idle_samples=3,
        window_samples=3,
    )
    with live_cell.client() as client:
        fleet = msgspec.structs.replace(live_cell.fleet, extra=(SWITCH,))
        folder = measure_cell(
            client, fleet, ["jetson1"], random_images((6, 8, 1)), plan, tmp_path / "runs", no_progress
        )
    report = analyse(Evidence.read(folder))
    cell = report.scenarios[0].cell
    assert cell is not None
    assert [(part.name, part.is_simulated, part.left_out) for part in cell.parts] == [
        ("jetson1", True, ""),
        (NODE, True, ""),
        ("switch", False, ""),
    ]
    assert report.node is not None
    assert report.node.sampler_cpu_percent is not None
    watts = [part.mean_w or 0.0 for part in cell.parts]
    assert cell.whole is not None
    assert cell.whole.mean_w == pytest.approx(sum(watts), rel=1e-6)


def test_own_addresses_are_told_from_others() -> None:
    assert is_here("tcp://localhost:7712")
    assert not is_here("tcp://192.0.2.1:7712")
    assert "[[extra]]" in ELSEWHERE
