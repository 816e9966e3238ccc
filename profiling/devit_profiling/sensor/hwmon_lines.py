"""Lines of the power monitor chips, as ``hwmon-power`` prints them and as a raw log keeps them.

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

from devit_profiling.sensor.sample import Sample
from devit_profiling.sensor.tegrastats import SIMULATED

HEAD = "INA3221"
"""How every line begins. The INA238 of some boards stands on the same lines."""


def sample_line(time_ns: int, rails_mw: Iterable[tuple[str, int]], *, is_simulated: bool) -> str:
    """Write a sample.

    >>> sample_line(86400123456789, [("VDD_IN", 4361), ("VDD_GPU", -392)], is_simulated=False)
    'INA3221 86400123456789ns VDD_IN 4361mW VDD_GPU -392mW'
    """
    mark = f" {SIMULATED}" if is_simulated else ""
    return f"{HEAD} {time_ns}ns{mark}" + "".join(f" {rail} {power_mw}mW" for rail, power_mw in rails_mw)


def note_line(text: str) -> str:
    """Write a note.

    >>> note_line("VDD_SOC is left out")
    'INA3221 note: VDD_SOC is left out'
    """
    return _NOTE + " ".join(text.split())


def time_ns_of(line: str) -> int | None:
    """Tell when a sample was read; ``None`` for any other text."""
    head = _HEAD.match(line)
    return int(head[1]) if head is not None else None


def note_of(line: str) -> str | None:
    """Give the text of a note; ``None`` for any other line."""
    return line.removeprefix(_NOTE).rstrip() if line.startswith(_NOTE) else None


def parse_hwmon_line(line: str) -> Sample | None:
    """Read one line; ``None`` if it is no sample. Any text is accepted, nothing is raised.

    >>> parse_hwmon_line("INA3221 86400123456789ns VDD_IN 4361mW VDD_SOC 13").rails_mw
    {'VDD_IN': 4361}
    """
    head = _HEAD.match(line)
    if head is None:
        return None
    rails_mw = {rail: int(power_mw) for rail, power_mw in _RAIL.findall(line, head.end())}
    if not rails_mw:
        return None
    return Sample(rails_mw=rails_mw, is_simulated=head[2] is not None)


_NOTE = f"{HEAD} note: "
# 18 digits of nanoseconds: 31 years since the start.
_HEAD = re.compile(rf"{HEAD} (\d{{1,18}})ns(?=\s)(?: ({SIMULATED})(?=\s))?", re.ASCII)
_RAIL = re.compile(r"\s([A-Za-z]\w*) (-?\d{1,9})mW(?!\S)", re.ASCII)
