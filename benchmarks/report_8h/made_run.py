"""A run of any length, whose power comes from the product's own simulated board: 36,000 lines of tegrastats an hour."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from devit_contract.wire.codec import State
from devit_contract.wire.messages import Description, DeviceTiming, Mark, PowerLine
from devit_profiling.record.record import (
    IDLE,
    IDLE_AFTER,
    OUTSIDE,
    SCHEMA,
    TOGETHER,
    WARM_UP,
    WINDOW,
    AnswerRow,
    Boundary,
    CellDevice,
    DeviceRecord,
    NodeRecord,
    Phase,
    PhaseKind,
    Plan,
    Recording,
    Run,
    Scenario,
)
from devit_profiling.record.run_folder import write_recording
from devit_profiling.sensor.board_table import ORIN_NANO
from devit_profiling.simulator.board import SimulatedBoard

NAME = "jetson1"
INTERVAL_S = 0.1
_ANSWERS_PER_S = 1.0
_LATENCY_S = 0.05
_WINDOWS = 48
_EDGE_SHARE = 0.02
"""Of the whole run: each of idle, warm-up and idle after."""
_HOST_S, _DEVICE_S = 1000.0, 5000.0
"""What both clocks show at the start."""


def write_run(folder: Path, samples: int) -> None:
    """Write a run of one device with so many power samples, 100 ms apart, and an answer a second."""
    duration_s = samples * INTERVAL_S
    phases = tuple(_phases(duration_s))
    node = NodeRecord((28, 28, 1), 1, 1000.0, {}, (CellDevice(NAME, 0, "ready", 0, 0, 0),))
    model = ORIN_NANO.model_prefixes[0]
    run = Run(
        schema=SCHEMA,
        name=folder.name,
        started_utc="2026-01-01 00:00:00",
        software=version("devit"),
        pictures="32 random images",
        plan=Plan(has_alone=False, windows=_WINDOWS, duration_s=_windows_s(duration_s) / _WINDOWS),
        devices=(DeviceRecord(NAME, 0, Description(model, "", "null engine", "simulated-tegrastats", 1)),),
        scenarios=(Scenario(TOGETHER, 0),),
        phases=phases,
        bundle="made 1",
        node_before=node,
        node_after=node,
    )
    write_recording(folder, Recording(run, {NAME: _lines(samples, phases)}, _answers(phases)))


def _windows_s(duration_s: float) -> float:
    return duration_s * (1 - 3 * _EDGE_SHARE)


def _phases(duration_s: float) -> list[Phase]:
    edge_s, window_s = duration_s * _EDGE_SHARE, _windows_s(duration_s) / _WINDOWS
    plan: list[tuple[PhaseKind, int, float]] = [(IDLE, OUTSIDE, edge_s), (WARM_UP, OUTSIDE, edge_s)]
    plan += [(WINDOW, number, window_s) for number in range(1, _WINDOWS + 1)]
    plan += [(IDLE_AFTER, OUTSIDE, edge_s)]
    phases, now_s, inferences = [], 0.0, 0
    for kind, number, length_s in plan:
        start = _boundary(now_s, inferences)
        inferences += round(length_s * _ANSWERS_PER_S) if kind == WINDOW else 0
        now_s += length_s
        phases.append(Phase(TOGETHER, kind, number, start, _boundary(now_s, inferences)))
    return phases


def _boundary(time_s: float, inferences: int) -> Boundary:
    host_ns = round((_HOST_S + time_s) * 1e9)
    mark = Mark(round((_DEVICE_S + time_s) * 1e9), inferences, round(inferences * _LATENCY_S * 1e9))
    return Boundary(host_ns, {NAME: mark}, {NAME: (host_ns - 1_000_000, host_ns + 1_000_000)})


def _lines(samples: int, phases: tuple[Phase, ...]) -> tuple[PowerLine, ...]:
    """Busy during windows, at rest else."""
    board = SimulatedBoard(ORIN_NANO, seed=1)
    windows = [phase for phase in phases if phase.kind == WINDOW]
    first_ns, last_ns = windows[0].start.host_ns, windows[-1].end.host_ns
    lines = []
    for number in range(samples):
        time_s = number * INTERVAL_S
        load = 0.6 if first_ns <= (_HOST_S + time_s) * 1e9 < last_ns else 0.0
        lines.append(PowerLine(round((_DEVICE_S + time_s) * 1e9), board.line(time_s, load)))
    return tuple(lines)


def _answers(phases: tuple[Phase, ...]) -> tuple[AnswerRow, ...]:
    found = []
    for phase in phases:
        if phase.kind == WINDOW:
            for second in range(round(phase.duration_s * _ANSWERS_PER_S)):
                latency_ms = _LATENCY_S * 1e3 + second % 7
                timing = DeviceTiming(0, 500, 20, 10, round(_LATENCY_S * 1e6), round(latency_ms * 1e3) - 500)
                sent_ns = phase.start.host_ns + round(second / _ANSWERS_PER_S * 1e9)
                row = AnswerRow(TOGETHER, phase.number, State.FULL, 1, latency_ms, 30, 900, 40, {}, (timing,), sent_ns)
                found.append(row)
    return tuple(found)
