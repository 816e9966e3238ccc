"""A run's folder: the raw files of one measurement, written whole and read back strictly.

============================ =================================================================================
file                         content
============================ =================================================================================
``run.json``                 what was measured and how: :class:`~devit_profiling.record.record.Run`
``DEVICE.tegrastats.log``    a device's sampler lines, verbatim
``DEVICE.stamps.csv``        number and arrival of each of these lines, on the device's monotonic clock
``latency.csv``              one row per answer: when its request was due, and the time of each device in it
============================ =================================================================================

Every figure of a report comes from these files, so a report can be made again at any time.
"""

from __future__ import annotations

import csv
import io
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice, zip_longest
from pathlib import Path
from typing import TypeVar

import numpy as np

from devit_contract.arrays import Int64Array
from devit_contract.artefacts.files import (
    make_folder,
    named_failure,
    new_folder,
    read_bytes,
    read_json,
    write_bytes,
    write_json,
)
from devit_contract.artefacts.keys import check_name
from devit_contract.artefacts.regular import open_regular
from devit_contract.errors import InputError, ManifestError
from devit_contract.wire.codec import State
from devit_contract.wire.messages import DeviceTiming, PowerLine
from devit_profiling.record.record import NODE, SCHEMA, AnswerRow, Recording, Run

RUN_FILE = "run.json"
LATENCY_FILE = "latency.csv"
_LOG_SUFFIX, _STAMPS_SUFFIX = ".tegrastats.log", ".stamps.csv"
_MAX_NAME_CHARS = 120
# The second is memory: a full disk does not fill it.
_ELSEWHERE = (Path(os.environ.get("TMPDIR", "/tmp")), Path("/dev/shm"))
_ROWS = 10_000
"""Of a table, in memory at a time."""
_Row = TypeVar("_Row")
_HINT = "measure again with profile --devices"


def log_name(device: str) -> str:
    """Give the name of a device's log file."""
    return f"{device.replace(' ', '+')}{_LOG_SUFFIX}"


def stamps_name(device: str) -> str:
    """Give the name of the file with the arrival times of a device's lines."""
    return f"{device.replace(' ', '+')}{_STAMPS_SUFFIX}"


def new_run(out: Path, title: str) -> tuple[Path, str]:
    """Name the folder of a run that starts now by UTC time and title, and write the time out.

    Raises:
        InputError: ``out`` cannot be written; better now than after minutes of measuring.
    """
    make_folder(out)
    started = datetime.now(timezone.utc)
    return out / f"{started:%Y%m%dT%H%M%SZ}-{title}"[:_MAX_NAME_CHARS], f"{started:%Y-%m-%d %H:%M:%S}"


def write_recording(folder: Path, recording: Recording) -> None:
    """Write all raw files; the folder appears whole or not at all.

    Raises:
        InputError: The folder cannot be written; the message says where on this machine the files are kept instead.
    """
    try:
        _write_files(folder, recording)
    except InputError as err:
        why = err.__cause__.strerror if isinstance(err.__cause__, OSError) else err  # which draft it was, helps nobody
        raise InputError(f"{folder}: cannot be written ({why}); {_kept_elsewhere(folder, recording)}") from err


def _kept_elsewhere(folder: Path, recording: Recording) -> str:
    """Write what may have taken an hour to measure to another file system; tell where it is."""
    for place in _ELSEWHERE:
        with suppress(InputError):
            _write_files(place / folder.name, recording)
            return f"the run is kept in {place / folder.name}: make room, move it, and run profile report on it"
    return "the run is lost: make room, and measure again"


def _write_files(folder: Path, recording: Recording) -> None:
    with new_folder(folder) as draft:
        for device in recording.run.machines:
            lines = recording.lines[device.name]
            write_bytes(draft / log_name(device.name), (f"{line.text}\n".encode() for line in lines))
            stamps = ((number, line.monotonic_ns) for number, line in enumerate(lines, 1))
            write_bytes(draft / stamps_name(device.name), csv_bytes(_STAMP_HEADER, stamps))
        names = recording.run.names_by_submodel()
        rows = (_row_cells(row, names) for row in recording.answers)
        write_bytes(draft / LATENCY_FILE, csv_bytes(_latency_header(names), rows))
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
    lines = {device.name: _read_lines(folder, device.name) for device in run.machines}
    names = run.names_by_submodel()
    answers = _read_rows(folder / LATENCY_FILE, _latency_header(names), lambda cells: _answer_row(cells, names))
    return Recording(run, lines, tuple(answers))


_STAMP_HEADER = ("line", "monotonic_ns")
_ANSWER_HEADER = ("scenario", "window", "state", "mask", "latency_ms", "wait_us", "collect_us", "fuse_us", "missing")
_SENT = ("sent_ns", "late_us")
_TIMES = ("network_us", "queue_us", "decode_us", "inference_us", "arrival_us")


def _check_run(path: Path, run: Run) -> None:
    for device in run.devices:
        check_name(device.name)  # it names files
    devices = {device.name for device in run.machines}
    if run.node is not None and run.node.name != NODE:
        raise ManifestError(f"{path}: field node.name: expected {NODE!r}, found {run.node.name!r}: {_HINT}")
    scenarios = {scenario.name for scenario in run.scenarios}
    if not devices or not scenarios:
        raise ManifestError(f"{path}: expected at least one device and one scenario: {_HINT}")
    for number, phase in enumerate(run.phases):
        if missing := devices - (phase.start.snapshots.keys() & phase.end.snapshots.keys()):
            raise ManifestError(
                f"{path}: phases[{number}]: expected a snapshot of {', '.join(sorted(missing))}: {_HINT}"
            )
        if phase.scenario not in scenarios:
            raise ManifestError(f"{path}: phases[{number}]: scenario {phase.scenario!r} is not listed: {_HINT}")


@dataclass(frozen=True, eq=False)
class LoggedLines(Collection[PowerLine]):
    """A device's lines in its log, of which one at a time is in memory: eight hours have 100 MB."""

    path: Path
    stamps_ns: Int64Array
    """Shape ``(n,)``."""

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def __iter__(self) -> Iterator[PowerLine]:
        """Read them.

        Raises:
            InputError: The log cannot be read.
            ManifestError: It is no text, or has not as many lines as there are stamps.
        """
        for number, (stamp_ns, text) in enumerate(zip_longest(self.stamps_ns, self._texts()), 1):
            if stamp_ns is None or text is None:
                stamps = self.path.name.replace(_LOG_SUFFIX, _STAMPS_SUFFIX)
                raise ManifestError(
                    f"{self.path}: expected {len(self)} lines, as many as {stamps} has, "
                    f"found {'more' if stamp_ns is None else number - 1}: {_HINT}"
                )
            yield PowerLine(int(stamp_ns), text)

    def __contains__(self, line: object) -> bool:
        return any(line == each for each in self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Collection) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def _texts(self) -> Iterator[str]:
        """Read what ends with a line feed; the rest is a line that was cut off."""
        with named_failure(f"{self.path}: cannot be read", _HINT), open_regular(self.path) as file:
            for line in file:
                if line.endswith(b"\n"):
                    try:
                        yield line[:-1].decode()
                    except UnicodeDecodeError as err:
                        raise ManifestError(f"{self.path}: expected UTF-8 text, found {err}: {_HINT}") from err


def _read_lines(folder: Path, device: str) -> Collection[PowerLine]:
    stamps_ns = _read_rows(folder / stamps_name(device), _STAMP_HEADER, lambda cells: int(cells[1]))
    lines = LoggedLines(folder / log_name(device), np.array(stamps_ns, np.int64))
    deque(lines, maxlen=0)  # once, for what is wrong with them
    return lines


def _latency_header(names: Mapping[int, str]) -> tuple[str, ...]:
    return (*_ANSWER_HEADER, *(f"{names[index]}.{time}" for index in sorted(names) for time in _TIMES), *_SENT)


def _row_cells(row: AnswerRow, names: Mapping[int, str]) -> Iterable[str | int]:
    yield from (row.scenario, row.window, row.state.name.lower(), row.mask, f"{row.latency_ms:.3f}")
    yield from (row.wait_us, row.collect_us, row.fuse_us)
    yield ";".join(f"{index}={why}" for index, why in sorted(row.missing.items()))
    timings = {timing.device: timing for timing in row.devices}
    for index in sorted(names):
        timing = timings.get(index)
        yield from ("",) * len(_TIMES) if timing is None else (getattr(timing, time) for time in _TIMES)
    yield from (row.sent_ns, row.late_us)


def _answer_row(cells: Sequence[str], names: Mapping[int, str]) -> AnswerRow:
    pairs = (part.partition("=") for part in cells[8].split(";") if part)
    width = len(_ANSWER_HEADER) + len(names) * len(_TIMES)
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
        sent_ns=int(cells[width]),
        late_us=int(cells[width + 1]),
    )


def csv_bytes(header: Sequence[str], rows: Iterable[Iterable[str | int]]) -> Iterator[bytes]:
    """Write a table with a header, comma separated, lines ended by a line feed each; in parts of many rows."""
    rows = iter(rows)
    part: list[Iterable[str | int]] = [header]
    while part:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(part)
        yield text.getvalue().encode()
        part = list(islice(rows, _ROWS))


def _read_rows(path: Path, header: Sequence[str], make_row: Callable[[list[str]], _Row]) -> list[_Row]:
    """Convert the rows after the header."""
    reader = csv.reader(io.StringIO(_read_text(path)))
    rows = []
    try:
        for number, cells in enumerate(reader, 1):
            if number == 1 and tuple(cells) != tuple(header):
                raise ManifestError(
                    f"{path}: expected the columns {','.join(header)}, found {','.join(cells)}: {_HINT}"
                )
            if len(cells) != len(header):
                raise ManifestError(f"{path}: line {number}: expected {len(header)} cells, found {len(cells)}: {_HINT}")
            if number > 1:
                rows.append(make_row(cells))
    except csv.Error as err:
        raise ManifestError(f"{path}: not a CSV file ({err}): {_HINT}") from err
    except (KeyError, ValueError) as err:
        where = f"{path}: line {number}"
        raise ManifestError(f"{where}: expected numbers and a known state, found {err}: {_HINT}") from err
    return rows


def _read_text(path: Path) -> str:
    try:
        return read_bytes(path, _HINT).decode()
    except UnicodeDecodeError as err:
        raise ManifestError(f"{path}: expected UTF-8 text, found {err}: {_HINT}") from err
