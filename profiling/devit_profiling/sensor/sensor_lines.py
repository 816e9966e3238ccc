"""A recording of either sensor, ``tegrastats`` or the power monitor chips themselves, as samples and notes."""

from __future__ import annotations

from collections.abc import Iterable

from devit_contract.wire.messages import PowerLine
from devit_profiling.sensor.hwmon_lines import note_of, parse_hwmon_line
from devit_profiling.sensor.sample import Sample
from devit_profiling.sensor.tegrastats import Log, StampedSample, parse_line


def parse_sensor_line(line: str) -> Sample | None:
    """Read one line of either sensor; ``None`` if it is no sample."""
    return parse_hwmon_line(line) or parse_line(line)


def parse_sensor_log(lines: Iterable[PowerLine]) -> Log:
    """Read a recording; lines that are neither samples nor notes nor empty are counted."""
    samples = []
    foreign_lines = 0
    for line in lines:
        sample = parse_sensor_line(line.text)
        if sample is not None:
            samples.append(StampedSample(line.monotonic_ns, sample))
        elif line.text.strip() and note_of(line.text) is None:
            foreign_lines += 1
    return Log(tuple(samples), foreign_lines)


def sensor_notes(lines: Iterable[PowerLine]) -> tuple[str, ...]:
    """Give what the sensor itself noted, each note once, in their order."""
    notes = (note_of(line.text) for line in lines)
    return tuple(dict.fromkeys(note for note in notes if note is not None))
