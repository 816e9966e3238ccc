"""A run's folder: the raw files of one measurement, written whole and read back strictly.

============================ =================================================================================
file                         content
============================ =================================================================================
``run.json``                 what was measured and how: :class:`Run`
``DEVICE.tegrastats.log``    a device's sampler lines, verbatim
``DEVICE.stamps.csv``        number of each of these lines, and its arrival on the device's monotonic clock
``latency.csv``              one row an answer, with what each device of the cell cost in it
============================ =================================================================================

Every figure of a report comes from these files, so a report can be made again at any time.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from devit_contract.errors import InputError, ManifestError
from devit_contract.files import new_folder, read_json, write_bytes, write_json
from devit_contract.keys import check_name
from devit_contract.messages import Description, DeviceTiming, Mark, NodeStatus
from devit_contract.wire import State
from devit_profiling.tegrastats import StampedLine

SCHEMA = 1
RUN_FILE = "run.json"
LATENCY_FILE = "latency.csv"
TOGETHER = "together"
"""Name of the scenario in which the whole cell is asked."""
IDLE, IDLE_AFTER, SETTLE, WARM_UP, WINDOW = "idle", "idle after", "settle", "warm-up", "window"
"""Kinds of phases."""
OUTSIDE = 0
"""Window number of answers outside all windows: warm-up, and what was under way at the end."""
_HINT = "measure again with profile --devices"
_KINDS = (IDLE, IDLE_AFTER, SETTLE, WARM_UP, WINDOW)


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is measured, and for how long. The defaults are the full plan; :data:`QUICK` is the quick look."""

    is_quick: bool = False
    has_alone: bool = True
    """Whether each device is asked alone before all are asked together."""
    has_idle_after: bool = True
    """Whether the idle power is measured again after the load, to see it drift."""
    settle_s: float = 3.0
    """Rest before each idle phase: seven time constants of the sensor's lag."""
    idle_s: float = 10.0
    warm_up_s: float = 3.0
    warm_up_answers: int = 20
    """The warm-up lasts until both its time and its number of answers are reached."""
    duration_s: float = 10.0
    """Length of one window."""
    windows: int = 5
    interval_ms: int = 100
    """Sampling period that the sampler is asked for."""
    in_flight: int = 1
    """Requests under way at once; with 1 the latency has no queueing in it."""
    idle_samples: int = 8
    """Least power samples of an idle phase."""
    window_samples: int | None = None
    """Least power samples of a window, of any length; by default the rules of :func:`~.energy.measure_window`."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        bounds = (
            ("settle_s", self.settle_s, 0, 3600),
            ("idle_s", self.idle_s, 0.01, 3600),
            ("warm_up_s", self.warm_up_s, 0, 3600),
            ("warm_up_answers", self.warm_up_answers, 0, 1_000_000),
            ("duration_s", self.duration_s, 0.01, 86_400),
            ("windows", self.windows, 1, 1000),
            ("interval_ms", self.interval_ms, 10, 60_000),
            ("in_flight", self.in_flight, 1, 64),
        )
        for name, value, low, high in bounds:
            if not low <= value <= high:
                raise InputError(f"plan: {name}: expected {low} to {high}, found {value:g}: choose another value")


QUICK = Plan(is_quick=True, has_alone=False, has_idle_after=False, settle_s=0.0, idle_s=5.0, windows=1)
"""A first look in about 20 s: the whole cell, one window, no interval of confidence."""


class Edge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The boundary of a phase: the moment on every clock, and what every device had done by then."""

    desk_ns: int
    """Monotonic clock of the machine that asks; for answers per second only."""
    marks: dict[str, Mark]
    """By device, each on its own clock."""


class Phase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stretch of the run in which nothing changes on purpose."""

    scenario: str
    kind: str
    """One of :data:`IDLE`, :data:`IDLE_AFTER`, :data:`SETTLE`, :data:`WARM_UP`, :data:`WINDOW`."""
    number: int
    """Of a window, from 1; :data:`OUTSIDE` for other phases."""
    start: Edge
    end: Edge

    def __post_init__(self) -> None:
        """Refuse unknown kinds."""
        if self.kind not in _KINDS:
            raise ValueError(f"kind: expected one of {', '.join(_KINDS)}, found {self.kind!r}")

    @property
    def duration_s(self) -> float:
        """Length on the asking machine's clock."""
        return (self.end.desk_ns - self.start.desk_ns) / 1e9


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is asked."""

    name: str
    """:data:`TOGETHER`, or the device's name and "alone"."""
    mask: int
    """Of the requests: bit i for device i; 0 asks all."""
    device: str = ""
    """The device that works alone; empty where all do."""


class CellDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the node knew of one device of the cell, measured or not."""

    name: str
    submodel: int
    state: str
    answered: int
    late: int
    missing: int


class NodeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a run keeps of the node's status, whatever else later nodes tell."""

    bundle: str
    image_shape: tuple[int, int, int]
    k_min: int
    deadline_ms: float
    frames: dict[str, int]
    """Frames ended since the node's start, by state."""
    devices: tuple[CellDevice, ...]

    @classmethod
    def of(cls, status: NodeStatus) -> NodeRecord:
        """Take it from the node's answer."""
        devices = tuple(
            CellDevice(device.name, device.submodel, device.state, device.answered, device.late, device.missing)
            for device in status.devices
        )
        return cls(status.bundle, status.image_shape, status.k_min, status.deadline_ms, status.frames, devices)


class DeviceRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named device of the run."""

    name: str
    submodel: int
    description: Description
    sensor_problem: str = ""
    """Why there are no power samples, or no more from some moment on; empty if there was no trouble."""


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``run.json``."""

    schema: int
    name: str
    started_utc: str
    software: str
    """Version of this package."""
    pictures: str
    """What was sent, for people."""
    plan: Plan
    devices: tuple[DeviceRecord, ...]
    scenarios: tuple[Scenario, ...]
    phases: tuple[Phase, ...]
    before: NodeRecord
    after: NodeRecord

    def names_by_submodel(self) -> dict[int, str]:
        """Give the name of every device of the cell, measured here or not, by device index."""
        return {device.submodel: device.name for device in self.before.devices}


@dataclass(frozen=True)
class AnswerRow:
    """One row of ``latency.csv``."""

    scenario: str
    window: int
    """Window in which it came, from 1; :data:`OUTSIDE` outside of them."""
    state: State
    mask: int
    latency_ms: float
    wait_us: int
    collect_us: int
    fuse_us: int
    missing: Mapping[int, str]
    """Device index to why its feature is not in the answer."""
    devices: tuple[DeviceTiming, ...]

    @property
    def is_answered(self) -> bool:
        """Whether there is an answer; a failed frame has none."""
        return self.state is not State.FAILED


@dataclass(frozen=True)
class Recording:
    """All raw data of a run."""

    run: Run
    lines: Mapping[str, tuple[StampedLine, ...]]
    """By device name; empty where nothing was sampled."""
    answers: tuple[AnswerRow, ...]


def log_name(device: str) -> str:
    """Name a device's log file."""
    return f"{device}.tegrastats.log"


def stamps_name(device: str) -> str:
    """Name the file with the arrival of a device's lines."""
    return f"{device}.stamps.csv"


def write_recording(folder: Path, recording: Recording) -> None:
    """Write all raw files; the folder appears whole or not at all.

    Raises:
        InputError: The folder cannot be written.
    """
    with new_folder(folder) as draft:
        for device in recording.run.devices:
            lines = recording.lines[device.name]
            write_bytes(draft / log_name(device.name), "".join(f"{line.text}\n" for line in lines).encode())
            stamps = ((number, line.monotonic_ns) for number, line in enumerate(lines, 1))
            write_bytes(draft / stamps_name(device.name), _csv(_STAMP_HEADER, stamps))
        names = recording.run.names_by_submodel()
        rows = (_row_cells(row, names) for row in recording.answers)
        write_bytes(draft / LATENCY_FILE, _csv(_latency_header(names), rows))
        write_json(draft / RUN_FILE, recording.run)


def read_recording(folder: Path) -> Recording:
    """Read all raw files.

    Raises:
        InputError: A file is missing.
        ManifestError: A file breaks its format; the message names it and the line or field.
    """
    path = folder / RUN_FILE
    run = read_json(path, Run, schema=SCHEMA, hint=_HINT)
    _check_run(path, run)
    lines = {device.name: _read_lines(folder, device.name) for device in run.devices}
    return Recording(run, lines, _read_answers(folder / LATENCY_FILE, run.names_by_submodel()))


_STAMP_HEADER = ("line", "monotonic_ns")
_ANSWER_HEADER = ("scenario", "window", "state", "mask", "latency_ms", "wait_us", "collect_us", "fuse_us", "missing")
_TIMES = ("network_us", "queue_us", "decode_us", "inference_us", "arrival_us")


def _check_run(path: Path, run: Run) -> None:
    for device in run.devices:
        check_name(device.name)  # it names files
    devices = {device.name for device in run.devices}
    scenarios = {scenario.name for scenario in run.scenarios}
    if not devices or not scenarios:
        raise ManifestError(f"{path}: expected at least one device and one scenario: {_HINT}")
    for number, phase in enumerate(run.phases):
        for edge in (phase.start, phase.end):
            if missing := devices - edge.marks.keys():
                raise ManifestError(
                    f"{path}: phases[{number}]: expected a mark of {', '.join(sorted(missing))}: {_HINT}"
                )
        if phase.scenario not in scenarios:
            raise ManifestError(f"{path}: phases[{number}]: scenario {phase.scenario!r} is not listed: {_HINT}")


def _read_lines(folder: Path, device: str) -> tuple[StampedLine, ...]:
    path = folder / stamps_name(device)
    texts = _read_text(folder / log_name(device)).split("\n")[:-1]
    stamps = []
    for number, cells in _rows(path, _STAMP_HEADER):
        with _Line(path, number):
            stamps.append(int(cells[1]))
    if len(texts) != len(stamps):
        raise ManifestError(
            f"{folder / log_name(device)}: expected {len(stamps)} lines, as many as {path.name} has, "
            f"found {len(texts)}: {_HINT}"
        )
    return tuple(StampedLine(stamp, text) for stamp, text in zip(stamps, texts, strict=True))


def _read_answers(path: Path, names: Mapping[int, str]) -> tuple[AnswerRow, ...]:
    answers = []
    for number, cells in _rows(path, _latency_header(names)):
        with _Line(path, number):
            answers.append(_answer_row(cells, names))
    return tuple(answers)


def _latency_header(names: Mapping[int, str]) -> tuple[str, ...]:
    return (*_ANSWER_HEADER, *(f"{names[index]}.{time}" for index in sorted(names) for time in _TIMES))


def _row_cells(row: AnswerRow, names: Mapping[int, str]) -> Iterable[str | int]:
    yield from (row.scenario, row.window, row.state.name.lower(), row.mask, f"{row.latency_ms:.3f}")
    yield from (row.wait_us, row.collect_us, row.fuse_us)
    yield ";".join(f"{index}={why}" for index, why in sorted(row.missing.items()))
    timings = {timing.device: timing for timing in row.devices}
    for index in sorted(names):
        timing = timings.get(index)
        yield from ("",) * len(_TIMES) if timing is None else (getattr(timing, time) for time in _TIMES)


def _answer_row(cells: Sequence[str], names: Mapping[int, str]) -> AnswerRow:
    pairs = (part.partition("=") for part in cells[8].split(";") if part)
    devices = []
    for place, index in enumerate(sorted(names)):
        first = len(_ANSWER_HEADER) + place * len(_TIMES)
        times = cells[first : first + len(_TIMES)]
        if any(times):
            devices.append(DeviceTiming(index, *(int(time) for time in times)))
    return AnswerRow(
        scenario=cells[0],
        window=int(cells[1]),
        state=State[cells[2].upper()],
        mask=int(cells[3]),
        latency_ms=float(cells[4]),
        wait_us=int(cells[5]),
        collect_us=int(cells[6]),
        fuse_us=int(cells[7]),
        missing={int(index): why for index, _, why in pairs},
        devices=tuple(devices),
    )


def _csv(header: Sequence[str], rows: Iterable[Iterable[str | int]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def _rows(path: Path, header: Sequence[str]) -> Iterable[tuple[int, list[str]]]:
    """Give the rows behind the header with their line numbers."""
    reader = csv.reader(io.StringIO(_read_text(path)))
    try:
        for number, cells in enumerate(reader, 1):
            if number == 1 and tuple(cells) != tuple(header):
                raise ManifestError(
                    f"{path}: expected the columns {','.join(header)}, found {','.join(cells)}: {_HINT}"
                )
            if len(cells) != len(header):
                raise ManifestError(f"{path}: line {number}: expected {len(header)} cells, found {len(cells)}: {_HINT}")
            if number > 1:
                yield number, cells
    except csv.Error as err:
        raise ManifestError(f"{path}: not a CSV file ({err}): {_HINT}") from err


class _Line:
    """Adds file and line to what a cell's conversion raises."""

    def __init__(self, path: Path, number: int) -> None:
        self._where = f"{path}: line {number}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (KeyError, ValueError)):
            raise ManifestError(f"{self._where}: expected numbers and a known state, found {error}: {_HINT}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as err:
        raise InputError(f"{path}: cannot be read ({err.strerror}): {_HINT}") from err
    except UnicodeDecodeError as err:
        raise ManifestError(f"{path}: expected UTF-8 text, found {err}: {_HINT}") from err
