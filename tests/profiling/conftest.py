"""Runs made by hand for the tests of the profiler: constant power on clocks that have nothing in common."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec
import pytest

from devit_contract.artefacts.fleet import Device, Fleet, Node, Serving
from devit_contract.artefacts.manifest import Bundle
from devit_contract.machine import OverCurrentEvents
from devit_contract.service.journal import Log
from devit_contract.service.progress import no_progress
from devit_contract.wire.client import Client
from devit_contract.wire.codec import State
from devit_contract.wire.messages import Description, DeviceTiming, Mark, PowerLine
from devit_edge_agent.start import open_agent
from devit_fusion.node import FusionNode
from devit_profiling.load.cell_run import measure_cell
from devit_profiling.load.load_generator import random_images
from devit_profiling.record.record import (
    IDLE,
    IDLE_AFTER,
    OUTSIDE,
    SCHEMA,
    SETTLE,
    TOGETHER,
    WARM_UP,
    WINDOW,
    AnswerRow,
    Boundary,
    CellDevice,
    DeviceRecord,
    NodeRecord,
    Phase,
    Plan,
    Recording,
    Run,
    Scenario,
)
from devit_profiling.record.run_folder import write_recording
from devit_profiling.sensor.board_table import BOARDS
from devit_profiling.simulator.board import SimulatedBoard

TINY = Path(__file__).parents[1] / "data" / "tiny-bundle"
ORIN_NANO_MODEL = "NVIDIA Jetson Orin Nano Developer Kit"
STEP_MS = 100
IDLE_S, WARM_UP_S, WINDOW_S = 10.0, 3.0, 10.0


@dataclass(frozen=True)
class FakeDevice:
    """A device whose power is constant in every phase."""

    name: str = "jetson1"
    model: str = ORIN_NANO_MODEL
    gpu_instance: str = ""
    idle_mw: int | None = 4000
    """``None``: no sensor."""
    windows_mw: tuple[int, ...] = (6000, 6000)
    idle_after_mw: int = 4000
    inferences: int = 100
    """Per window."""
    clock_s: float = 1000.0
    """Its monotonic clock at the start."""
    line: str = (
        "RAM 1697/7620MB (lfb 42x4MB) CPU [0%@{mhz},0%@{mhz},0%@{mhz},0%@{mhz},0%@{mhz},0%@{mhz}] "
        "GR3D_FREQ 0% tj@{tj_c:.3f}C "
        "VDD_IN {mw}mW/1mW VDD_CPU_GPU_CV 400mW/1mW VDD_SOC 1300mW/1mW"
    )
    simulated_board: str = ""
    """Key of a board whose simulated lines are taken instead."""
    busy_ms: float = 0.0
    """Time in the engine of each inference; 0: it counts none."""
    rise_mw: int = 0
    """How much the power rises over each window, in a straight line."""
    windows_mhz: tuple[int, ...] = (729, 729)
    """Clock of its core in each window."""
    warming_c_per_min: float = 0.0
    warm_up_s: float = WARM_UP_S
    sensor_problem: str = ""
    silent: tuple[float, float] = field(default=(0.0, 0.0))
    """Seconds since the start between which no line comes."""
    window_events: tuple[int, ...] | None = None
    """Instantaneous over-current events in each window; ``None``: its board counts none."""


@dataclass(frozen=True)
class FakeRun:
    """A run of one scenario: idle, warm-up, windows, idle."""

    devices: tuple[FakeDevice, ...] = (FakeDevice(),)
    others: tuple[str, ...] = ()
    """Devices of the cell that are not measured."""
    answers: int = 100
    """Per window."""
    is_quick: bool = False
    alone: bool = False
    state: State = State.FULL
    in_flight: int = 1

    def changed(self, **changes: object) -> FakeRun:
        """The same run with another first device."""
        return replace(self, devices=(replace(self.devices[0], **changes), *self.devices[1:]))  # type: ignore[arg-type]

    def recording(self) -> Recording:
        """Make the raw data."""
        devices = tuple(_record(device, index) for index, device in enumerate(self.devices))
        names = [device.name for device in self.devices] + list(self.others)
        node = NodeRecord(
            image_shape=(6, 8, 1),
            min_devices=1,
            deadline_ms=50.0,
            frames={},
            devices=tuple(CellDevice(name, index, "ready", 0, 0, 0) for index, name in enumerate(names)),
        )
        scenario = Scenario(f"{names[0]} alone", 1, names[0]) if self.alone else Scenario(TOGETHER, 0)
        run = Run(
            schema=SCHEMA,
            name="20260102T030405Z-jetson1",
            started_utc="2026-01-02 03:04:05",
            software="0.1.0",
            pictures="32 random images",
            plan=Plan(is_quick=self.is_quick, windows=len(self.devices[0].windows_mw), has_alone=self.alone),
            devices=devices,
            scenarios=(scenario,),
            phases=tuple(self._phases(scenario.name)),
            bundle="tiny 1",
            node_before=node,
            node_after=node,
        )
        lines = {device.name: tuple(_lines(device)) for device in self.devices}
        return Recording(run, lines, tuple(self._answers(scenario.name)))

    def write(self, folder: Path) -> Path:
        """Write the raw files."""
        write_recording(folder, self.recording())
        return folder

    def _phases(self, scenario: str) -> Sequence[Phase]:
        boundaries = [
            Boundary(
                host_ns=round((77.0 + time_s) * 1e9),
                snapshots={
                    device.name: _snapshot(device, time_s, max(0, min(place - 2, len(device.windows_mw))))
                    for device in self.devices
                },
                asked_ns={device.name: _asked_ns(time_s) for device in self.devices},
            )
            for place, time_s in enumerate(_boundaries_s(self.devices[0]))
        ]
        windows = len(self.devices[0].windows_mw)
        kinds = [(IDLE, OUTSIDE), (WARM_UP, OUTSIDE), *((WINDOW, number + 1) for number in range(windows))]
        kinds += [(SETTLE, OUTSIDE), (IDLE_AFTER, OUTSIDE)]
        return [
            Phase(scenario, kind, number, start, end)
            for (kind, number), start, end in zip(kinds, boundaries, boundaries[1:], strict=False)
        ]

    def _answers(self, scenario: str) -> Sequence[AnswerRow]:
        timing = DeviceTiming(0, network_us=500, queue_us=20, decode_us=10, inference_us=4000, arrival_us=4530)
        slower = [
            DeviceTiming(index, network_us=700, queue_us=20, decode_us=10, inference_us=6000, arrival_us=6730)
            for index in range(1, 1 if self.alone else len(self.devices) + len(self.others))
        ]
        rows = []
        for window in range(len(self.devices[0].windows_mw) + 1):
            for number in range(self.answers):
                is_failed = self.state is State.FAILED
                latency_ms = round(5.0 + number / 100, 3)
                parts = () if is_failed else (timing, *slower)
                missing = {0: "deadline"} if is_failed else {}
                sent_ns = self._sent_ns(window, number)
                rows.append(
                    AnswerRow(scenario, window, self.state, 1, latency_ms, 30, 4600, 40, missing, parts, sent_ns)
                )
        return rows

    def _sent_ns(self, window: int, number: int) -> int:
        """Spread the requests of a window evenly, so many at once as are under way."""
        start_s, length_s = (
            (IDLE_S, WARM_UP_S) if window == 0 else (IDLE_S + WARM_UP_S + WINDOW_S * (window - 1), WINDOW_S)
        )
        group = number // self.in_flight * self.in_flight
        return round((77.0 + start_s + length_s * group / self.answers) * 1e9)


def _asked_ns(time_s: float) -> tuple[int, int]:
    """One millisecond before and behind the snapshot."""
    return round((77.0 + time_s - 1e-3) * 1e9), round((77.0 + time_s + 1e-3) * 1e9)


def _snapshot(device: FakeDevice, time_s: float, windows: int) -> Mark:
    """Mark a moment after so many windows."""
    done = device.inferences * windows
    counts = device.window_events
    events = OverCurrentEvents(2, 0, 100 + sum(counts[:windows])) if counts is not None else None
    stamp_ns = round((device.clock_s + 1.0 + time_s) * 1e9)
    return Mark(stamp_ns, 7 + done, round(device.busy_ms * 1e6) * done, over_current=events)


def _boundaries_s(device: FakeDevice) -> list[float]:
    """Idle, warm-up, windows, cooling, idle: seconds since the first snapshot."""
    boundaries_s = [0.0, IDLE_S, IDLE_S + device.warm_up_s]
    boundaries_s += [boundaries_s[-1] + WINDOW_S * (number + 1) for number in range(len(device.windows_mw))]
    return [*boundaries_s, boundaries_s[-1] + WARM_UP_S, boundaries_s[-1] + WARM_UP_S + IDLE_S]


def _power_mw(device: FakeDevice, time_s: float) -> int:
    """Steps lie at the middle of a warm-up and between two windows' boundaries, so that windows see constant power."""
    assert device.idle_mw is not None
    boundaries_s = _boundaries_s(device)
    if time_s < IDLE_S + device.warm_up_s / 2:
        return device.idle_mw
    for power_mw, end_s in zip(device.windows_mw, boundaries_s[3:], strict=False):
        if time_s < end_s:
            risen = 1 - (end_s - time_s) / WINDOW_S
            return power_mw + round(device.rise_mw * max(risen, 0.0))
    return device.windows_mw[-1] if time_s < boundaries_s[-2] - WARM_UP_S / 2 else device.idle_after_mw


def _lines(device: FakeDevice) -> Sequence[PowerLine]:
    if device.idle_mw is None:
        return []
    board = SimulatedBoard(BOARDS[device.simulated_board], seed=1) if device.simulated_board else None
    lines = []
    for step in range(round((_boundaries_s(device)[-1] + 2.0) * 1000 / STEP_MS) + 1):
        time_s = step * STEP_MS / 1000
        if device.silent[0] <= time_s < device.silent[1]:
            continue
        power_mw = _power_mw(device, time_s - 1.0)
        load = 0.0 if power_mw == device.idle_mw else 0.5
        text = board.line(time_s, load) if board is not None else _text(device, time_s, power_mw)
        lines.append(PowerLine(round((device.clock_s + time_s) * 1e9), text))
    return lines


def _text(device: FakeDevice, time_s: float, power_mw: int) -> str:
    ends_s = _boundaries_s(device)[3:]
    clocks_mhz = (mhz for mhz, end_s in zip(device.windows_mhz, ends_s, strict=False) if time_s - 1.0 < end_s)
    tj_c = 41.5 + device.warming_c_per_min * time_s / 60
    return device.line.format(mw=power_mw, mhz=next(clocks_mhz, 729), tj_c=tj_c)


def _record(device: FakeDevice, index: int) -> DeviceRecord:
    sensor = "" if device.idle_mw is None else "tegrastats"
    about = Description(device.model, "36.4.3", "ORT", sensor, 1, gpu_instance=device.gpu_instance)
    return DeviceRecord(device.name, index, about, device.sensor_problem)


@pytest.fixture
def fake_run() -> FakeRun:
    """One Orin Nano: 4 W idle, two windows of 6 W with 100 inferences in 10 s each."""
    return FakeRun()


@pytest.fixture
def two_devices() -> FakeRun:
    """Two devices on clocks a million seconds apart; the second takes 9 W."""
    second = FakeDevice(name="jetson2", windows_mw=(9000, 9000), idle_mw=5000, idle_after_mw=5000, clock_s=1e6)
    return FakeRun(devices=(FakeDevice(), second))


@pytest.fixture
def make_device() -> Callable[..., FakeDevice]:
    """Make further devices."""
    return FakeDevice


@dataclass
class LiveCell:
    """A real node and two real agents in threads, on loopback; ``jetson2`` has no power sensor."""

    fleet: Fleet
    fleet_path: Path
    pid_path: Path
    """Holds the process id of ``jetson1``'s sampler."""

    @property
    def names(self) -> list[str]:
        """Name all devices."""
        return [device.name for device in self.fleet.device]

    def client(self) -> Client:
        """Connect to the node."""
        return Client.of_fleet(self.fleet, None, timeout_s=20.0)


@pytest.fixture(scope="session")
def live_cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCell]:
    """Null engines, so that an answer takes about a millisecond."""
    folder = tmp_path_factory.mktemp("cell")
    pid_path = folder / "sampler.pid"
    simulator = f"{sys.executable} -m devit_profiling.simulator.program --board orin-nano"
    samplers = {"jetson1": ["/bin/sh", "-c", f'echo $$ > {pid_path}; exec {simulator} "$@"', "sampler"], "jetson2": []}
    devices = tuple(Device(name, index) for index, name in enumerate(samplers))
    free = Node("tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
    fleet = Fleet(2, free, devices, Serving(deadline_ms=2000.0))
    stop = threading.Event()
    with FusionNode(Bundle(TINY), fleet, None) as node, ExitStack() as threads:
        real = Node(_loopback(node.endpoint), _loopback(node.client_endpoint))
        _run_thread(threads, stop, lambda: node.serve(stop.is_set))
        for device in devices:
            path = folder / f"{device.name}.toml"
            path.write_text(
                f'schema = 1\nname = "{device.name}"\nsubmodel = {device.submodel}\nnode = "{real.endpoint}"\n'
                f'bundle = "{TINY}"\ntegrastats = {json.dumps(samplers[device.name])}\n'
            )
            ready = threading.Event()
            _run_thread(threads, stop, partial(_serve_agent, path, ready, stop))
            assert ready.wait(30.0)
        open_fleet = msgspec.structs.replace(fleet, node=real)
        yield LiveCell(open_fleet, _write_fleet(folder / "fleet.toml", open_fleet), pid_path)


@pytest.fixture(scope="session")
def recorded_run(live_cell: LiveCell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw files of one short run of the live cell; to be copied by whoever writes."""
    plan = Plan(
        settle_s=0.05,
        idle_s=0.4,
        warm_up_s=0.1,
        warm_up_answers=5,
        duration_s=0.5,
        windows=3,
        interval_ms=20,
        idle_samples=3,
        window_samples=3,
    )
    out = tmp_path_factory.mktemp("recorded")
    with live_cell.client() as client:
        return measure_cell(client, live_cell.fleet, live_cell.names, random_images((6, 8, 1)), plan, out, no_progress)


@pytest.fixture
def real_run(recorded_run: Path, tmp_path: Path) -> Path:
    """A run's folder of one's own."""
    return Path(shutil.copytree(recorded_run, tmp_path / recorded_run.name))


def _loopback(endpoint: str) -> str:
    """Write the address plainly, whatever form the socket gives it."""
    return f"tcp://127.0.0.1:{endpoint.rpartition(':')[2]}"


def _run_thread(threads: ExitStack, stop: threading.Event, work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join(20.0)
        assert not thread.is_alive()

    threads.callback(end)


def _serve_agent(path: Path, ready: threading.Event, stop: threading.Event) -> None:
    with open_agent(path, "null", log=Log("edge-agent"), on_ready=ready.set) as agent:
        agent.serve(stop.is_set)


def _write_fleet(path: Path, fleet: Fleet) -> Path:
    node = fleet.node
    lines = ["schema = 2", "[node]", f'endpoint = "{node.endpoint}"', f'client_endpoint = "{node.client_endpoint}"']
    for device in fleet.device:
        lines += ["[[device]]", f'name = "{device.name}"', f"submodel = {device.submodel}"]
    path.write_text("\n".join(lines) + "\n")
    return path
