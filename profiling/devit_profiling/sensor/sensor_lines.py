"""Lines of either sensor, ``tegrastats`` or ``hwmon-power``, as samples; those of ``hwmon-power`` are specified here.

The grammar::

    line   := "INA3221" time"ns" ["SIMULATED"] (rail power"mW")+     a sample
            | "INA3221 note:" text                                   what was left out, or changed at the sensor

``time`` is the middle of the reading on the monotonic clock of the machine, which all its processes share. Power is
instantaneous. No line of ``tegrastats`` begins so. A line that was cut off loses its last value instead of showing its
first digits, since a number counts only with its unit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devit_profiling.sensor.sample import Sample, StampedSample
from devit_profiling.sensor.tegrastats import SIMULATED, parse_line

if TYPE_CHECKING:
    from devit_contract.wire.messages import PowerLine

_HEAD = "INA3221"  # also where the chip is an INA238
_NOTE = f"{_HEAD} note: "
# 18 digits of nanoseconds: 31 years since the start.
_SAMPLE = re.compile(rf"{_HEAD} (\d{{1,18}})ns(?=\s)(?: ({SIMULATED})(?=\s))?", re.ASCII)
# Where a sample begins behind what loggers put before it: stamps, names, brackets. IRAM is no RAM.
_START = re.compile(
    rf"(?<!\w)(?:(?:\d\d-\d\d-\d{{4}} \d\d:\d\d:\d\d\s+)?(?:{SIMULATED}\s+)?RAM\s+\d{{1,9}}/\d|{_HEAD} \d)", re.ASCII
)
_COLOUR = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_RAIL = re.compile(r"\s([A-Za-z]\w*) (-?\d{1,9})mW(?!\S)", re.ASCII)


@dataclass(frozen=True)
class SensorLog:
    """What a recording holds."""

    samples: tuple[StampedSample, ...]
    unparsed_lines: int
    """Lines with text that are neither samples nor notes: dates, summaries, messages of other programs."""
    notes: tuple[str, ...]
    """What the sensor itself noted, each note once, in their order."""


def parse_sensor_log(lines: Iterable[PowerLine]) -> SensorLog:
    """Read a recording of either sensor."""
    samples: list[StampedSample] = []
    notes: dict[str, None] = {}
    unparsed_lines = 0
    before = None
    for line in lines:
        if (sample := parse_sensor_line(line.text)) is not None:
            before = sample.at(line.monotonic_ns, before)
            samples.append(before)
        elif (note := note_of(line.text)) is not None:
            notes[note] = None
        elif line.text.strip():
            unparsed_lines += 1
    return SensorLog(tuple(samples), unparsed_lines, tuple(notes))


def parse_sensor_line(line: str) -> Sample | None:
    """Read one line of either sensor, whatever a logger has put before it; ``None`` if it is no sample."""
    line = _without_colours(line)
    sample = parse_hwmon_line(line) or parse_line(line)
    if sample is None and (start := _START.search(line)) is not None:
        line = line[start.start() :]
        sample = parse_hwmon_line(line) or parse_line(line)
    return sample


def parse_hwmon_line(line: str) -> Sample | None:
    """Read one line of ``hwmon-power``; ``None`` if it is no sample. Any text is accepted, nothing is raised.

    >>> parse_hwmon_line("INA3221 86400123456789ns VDD_IN 4361mW VDD_SOC 13").rails_mw
    {'VDD_IN': 4361}
    """
    head = _SAMPLE.match(line)
    if head is None:
        return None
    rails_mw = {rail: int(power_mw) for rail, power_mw in _RAIL.findall(line, head.end())}
    return Sample(rails_mw=rails_mw, is_simulated=head[2] is not None) if rails_mw else None


def time_ns_of(line: str) -> int | None:
    """Tell when ``hwmon-power`` read a sample; ``None`` for any other text."""
    head = _SAMPLE.match(line)
    return int(head[1]) if head is not None else None


def note_of(line: str) -> str | None:
    """Give the text of a note, whatever a logger has put before it; ``None`` for any other line."""
    _, mark, text = _without_colours(line).partition(_NOTE)
    return text.rstrip() if mark else None


def _without_colours(line: str) -> str:
    return _COLOUR.sub("", line) if "\x1b" in line else line


def sample_line(time_ns: int, rails_mw: Iterable[tuple[str, int]], *, is_simulated: bool) -> str:
    """Write a sample.

    >>> sample_line(86400123456789, [("VDD_IN", 4361), ("VDD_GPU", -392)], is_simulated=False)
    'INA3221 86400123456789ns VDD_IN 4361mW VDD_GPU -392mW'
    """
    simulated = f" {SIMULATED}" if is_simulated else ""
    return f"{_HEAD} {time_ns}ns{simulated}" + "".join(f" {rail} {power_mw}mW" for rail, power_mw in rails_mw)


def note_line(text: str) -> str:
    """Write a note.

    >>> note_line("VDD_SOC is left out")
    'INA3221 note: VDD_SOC is left out'
    """
    return _NOTE + " ".join(text.split())
