"""The trace by the rules of the Trace Event Format, read back as plain JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devit_contract.wire.codec import State
from devit_profiling.figures.evidence import Evidence
from devit_profiling.record.record import Recording
from devit_profiling.report import trace_events as trace_module
from devit_profiling.report.trace_events import trace_bytes, trace_of

if TYPE_CHECKING:
    from conftest import FakeRun
else:
    FakeRun = object

Json = dict[str, Any]


def trace(recording: Recording) -> Json:
    read: Json = json.loads(b"".join(trace_bytes(trace_of(Evidence.of(recording)))))
    check(read)
    return read


def check(read: Json) -> None:
    """Hold a file against the format's rules, with no help from the code that wrote it."""
    assert set(read) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert read["displayTimeUnit"] in ("ms", "ns")
    last: dict[tuple[int, int, str], int] = {}
    opened: dict[tuple[int, int], list[str]] = {}
    ends: dict[tuple[int, int], list[int]] = {}
    for event in read["traceEvents"]:
        assert {"ph", "name", "pid", "tid"} <= set(event)
        assert isinstance(event["name"], str)
        assert event["name"]
        track = (event["pid"], event["tid"])
        if event["ph"] == "M":
            key = {"process_name": "name", "thread_name": "name"}.get(event["name"], "sort_index")
            assert set(event["args"]) == {key}
            continue
        assert event["ph"] in "XBEC"
        assert isinstance(event["ts"], int)
        assert event["ts"] >= 0
        place = (*track, event["name"] if event["ph"] == "C" else "")
        assert event["ts"] >= last.get(place, 0)
        last[place] = event["ts"]
        if event["ph"] == "C":
            assert event["args"]
            assert all(type(value) in (int, float) for value in event["args"].values())
        elif event["ph"] == "B":
            opened.setdefault(track, []).append(event["name"])
        elif event["ph"] == "E":
            assert opened[track].pop() == event["name"]
        else:
            assert event["dur"] >= 0
            inside = ends.setdefault(track, [])
            while inside and inside[-1] <= event["ts"]:
                inside.pop()
            # Slices of one track nest or follow each other.
            assert not inside or event["ts"] + event["dur"] <= inside[-1]
            inside.append(event["ts"] + event["dur"])
    assert not any(opened.values())
    named = {event["pid"] for event in read["traceEvents"] if event["name"] == "process_name"}
    tracks = {(event["pid"], event["tid"]) for event in read["traceEvents"] if event["name"] == "thread_name"}
    assert named == {event["pid"] for event in read["traceEvents"]}
    assert tracks == {(event["pid"], event["tid"]) for event in read["traceEvents"] if event["ph"] == "X"}


def named(read: Json, name: str) -> list[Json]:
    return [event for event in read["traceEvents"] if event["name"] == name]


def pid_of(read: Json, name: str) -> int:
    (found,) = [event["pid"] for event in named(read, "process_name") if event["args"]["name"] == name]
    assert isinstance(found, int)
    return found


def test_every_answer_is_drawn_where_its_time_went(two_devices: FakeRun) -> None:
    """Sent 11 s after the first sample: 5 ms at the client, its parts at the node and at both devices."""
    read = trace(replace(two_devices, answers=3).recording())
    slices = named(read, "answer 1")
    by_pid = {event["pid"]: event for event in slices}
    client = by_pid[pid_of(read, "host")]
    assert (client["ts"], client["dur"]) == (11_000_000, 5000)
    assert client["args"] == {"scenario": "together", "window": 0, "state": "full"}
    first, second = by_pid[pid_of(read, "jetson1")], by_pid[pid_of(read, "jetson2")]
    node = by_pid[pid_of(read, "fusion node")]
    assert (node["dur"], first["dur"], second["dur"]) == (30 + 4600 + 40, 4530, 6730)
    assert first["ts"] == second["ts"] == node["ts"] + 30
    engines = [event for event in named(read, "engine") if event["pid"] == first["pid"]]
    assert (engines[0]["ts"], engines[0]["dur"]) == (first["ts"] + 250 + 20 + 10, 4000)


def test_requests_under_way_at_once_have_tracks_of_their_own(two_devices: FakeRun) -> None:
    read = trace(replace(two_devices, in_flight=4).recording())
    tracks = {event["tid"] for event in named(read, "engine") if event["pid"] == pid_of(read, "jetson1")}
    assert len(tracks) == 4


def test_phases_stand_on_every_machine_at_the_same_time(two_devices: FakeRun) -> None:
    """Clocks a million seconds apart, brought together."""
    read = trace(two_devices.recording())
    windows = named(read, "window 1")
    assert {event["pid"] for event in windows} == {pid_of(read, name) for name in ("host", "jetson1", "jetson2")}
    assert {(event["ts"], event["dur"]) for event in windows} == {(14_000_000, 10_000_000)}
    (scenario,) = named(read, "together")
    assert scenario["dur"] == 46_000_000


def test_rails_and_total_are_counters_in_milliwatts(fake_run: FakeRun) -> None:
    read = trace(fake_run.recording())
    totals, rails = named(read, "total"), named(read, "VDD_SOC")
    assert len(totals) == len(rails) == 481
    assert totals[0] == {"ph": "C", "name": "total", "pid": 3, "tid": 0, "ts": 0, "args": {"mW": 4000}}
    assert read["otherData"]["power"] == "measured"


def test_unknown_board_has_no_total(fake_run: FakeRun) -> None:
    run = fake_run.changed(model="Mystery Board", line="RAM 1/2000MB (lfb 1x4MB) VDD_A {mw}mW/1mW")
    read = trace(run.recording())
    assert named(read, "VDD_A")
    assert not named(read, "total")


def test_simulated_stands_in_the_names(fake_run: FakeRun) -> None:
    read = trace(fake_run.changed(simulated_board="orin-nano").recording())
    assert pid_of(read, "jetson1 (SIMULATED)") == 3
    counters = {event["name"] for event in read["traceEvents"] if event["ph"] == "C"}
    assert all(name.endswith(" SIMULATED") for name in counters)
    assert "SIMULATED" in read["otherData"]["power"]


def test_residual_of_the_clocks_is_told(two_devices: FakeRun) -> None:
    clocks = trace(two_devices.recording())["otherData"]["clocks"]
    assert set(clocks) == {"jetson1", "jetson2"}
    assert clocks["jetson2"]["half_round_trip_us"] == 1000.0
    assert clocks["jetson2"]["residual_max_us"] == pytest.approx(0.0, abs=0.5)
    assert clocks["jetson2"]["offset_ns"] == pytest.approx(77e9 - 1_000_001e9, abs=1000)


def test_answers_beyond_the_limit_are_counted(fake_run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "MAX_ANSWERS", 10)
    read = trace(fake_run.recording())
    assert len(named(read, "collect")) == 30
    assert read["otherData"]["answers"].endswith("270 later ones are in latency.csv alone")


def test_failed_frames_have_no_devices(fake_run: FakeRun) -> None:
    read = trace(replace(fake_run, state=State.FAILED).recording())
    assert named(read, "answer 1")[0]["args"]["without jetson1"] == "deadline"
    assert not named(read, "engine")


def test_device_without_sensor_has_no_counters(fake_run: FakeRun) -> None:
    read = trace(fake_run.changed(idle_mw=None, sensor_problem="no sensor is set").recording())
    assert not [event for event in read["traceEvents"] if event["ph"] == "C"]


def test_real_run_keeps_the_rules(real_run: Path) -> None:
    from devit_profiling.report.report import write_report

    write_report(real_run)
    read = json.loads((real_run / "trace.json").read_bytes())
    check(read)
    assert len(named(read, "engine")) > 100
    assert all(clock["half_round_trip_us"] < 50_000 for clock in read["otherData"]["clocks"].values())
