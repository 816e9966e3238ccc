"""Lines of NVIDIA's ``tegrastats`` as values: rails, loads and temperatures of a Jetson at one instant.

The grammar is the union over L4T 28 to 39 (JetPack 3 to 7). What a line does not say is absent, never zero::

    line  := [MM-DD-YYYY hh:mm:ss] ["SIMULATED"] "RAM" used"/"total"MB" token*
    SWAP  := "SWAP" used"/"total"MB"
    CPU   := "CPU [" (load"%@"MHz | "off") {","...} "]"          L4T 28.1: "cpu [17%,13%]@408"
    EMC   := "EMC_FREQ" load"%"...                               L4T 28.1: "EMC 1%@408"
    GPU   := "GR3D_FREQ" load"%"...                              L4T 28.1: "GR3D 3%@76"; Thor gives clocks alone
    temp  := zone"@"value"C" ["/"max"C"]                         -256: the zone has no power
    rail  := name instant"mW" ["/"average"mW" ["/"max"mW"]]      L4T 34 and newer
           | name instant"/"average                              L4T 32 and older

Of a rail only the instant is read: the average runs since tegrastats was started, so it belongs to no window.
Every number that is read is followed by its own end mark (``mW``, ``%``, ``C``, ``]``), so a line that was cut
off loses its last value instead of showing its first digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

SIMULATED = "SIMULATED"
"""The token that marks a line as made by the simulator."""


@dataclass(frozen=True)
class CoreLoad:
    """One CPU core."""

    percent: int | None
    """Load; ``None`` for a core that is off."""
    mhz: int | None
    """Clock; ``None`` for a core that is off or where the line does not tell."""


@dataclass(frozen=True)
class Sample:
    """What one line says."""

    stamp: str | None
    """``MM-DD-YYYY hh:mm:ss``, local time, whole seconds; too coarse to integrate over."""
    ram_used_mb: int | None
    """``None`` on lines that are not of tegrastats."""
    ram_total_mb: int | None
    swap_used_mb: int | None
    swap_total_mb: int | None
    cpu: tuple[CoreLoad, ...]
    """In the order of the line; empty if the line has no whole list."""
    gpu_percent: int | None
    """Sampled at another instant than the rails: 0 % stands on lines of 10.9 W. ``None`` without the privilege."""
    emc_percent: int | None
    """Load of the memory controller; mostly root only."""
    temperatures_c: Mapping[str, float]
    """By zone name as printed (upper case up to L4T 35); zones without power are left out."""
    rails_mw: Mapping[str, int]
    """Instantaneous power in the order of the line; may be negative by one code. Unconnected rails are left out."""
    is_simulated: bool


@dataclass(frozen=True)
class StampedLine:
    """A line of text and when it arrived."""

    monotonic_ns: int
    """``time.monotonic_ns()`` of the machine that read it."""
    text: str


@dataclass(frozen=True)
class StampedSample:
    """A sample and when its line arrived."""

    monotonic_ns: int
    sample: Sample


@dataclass(frozen=True)
class Log:
    """The samples of a recording."""

    samples: tuple[StampedSample, ...]
    foreign_lines: int
    """Lines with text that are no samples: dates, summaries, messages of other programs."""


def parse_line(line: str) -> Sample | None:
    """Read one line; ``None`` if it is no sample. Any text is accepted, nothing is raised.

    >>> sample = parse_line("RAM 1697/7620MB (lfb 42x4MB) GR3D_FREQ 7% tj@41.5C VDD_IN 4361mW/4287mW VDD_SOC 13")
    >>> sample.rails_mw, sample.gpu_percent, sample.temperatures_c
    ({'VDD_IN': 4361}, 7, {'tj': 41.5})
    >>> parse_line("Tue Jan 26 18:22:31 UTC 2021") is None
    True
    """
    head = _HEAD.match(line)
    if head is None:
        return None
    stamp, mark, ram_used, ram_total = head.groups()
    swap_used_mb = swap_total_mb = gpu_percent = emc_percent = None
    cpu: tuple[CoreLoad, ...] = ()
    temperatures_c: dict[str, float] = {}
    rails_mw: dict[str, int] = {}
    is_simulated = mark is not None
    for zone, celsius, rail, power, gpu, emc, cores, clock, swap_used, swap_total, late_mark in _TOKEN.findall(
        line, head.end()
    ):
        if zone:
            if celsius != _NO_POWER_C:
                temperatures_c[zone] = float(celsius)
        elif rail:
            if rail != _UNCONNECTED:
                rails_mw[rail] = int(power)
        elif gpu:
            gpu_percent = int(gpu)
        elif cores:
            cpu = _cores(cores, clock)
        elif emc:
            emc_percent = int(emc)
        elif swap_used:
            swap_used_mb, swap_total_mb = int(swap_used), int(swap_total)
        elif late_mark:
            is_simulated = True
    return Sample(
        stamp=stamp,
        ram_used_mb=int(ram_used),
        ram_total_mb=int(ram_total),
        swap_used_mb=swap_used_mb,
        swap_total_mb=swap_total_mb,
        cpu=cpu,
        gpu_percent=gpu_percent,
        emc_percent=emc_percent,
        temperatures_c=temperatures_c,
        rails_mw=rails_mw,
        is_simulated=is_simulated,
    )


def parse_log(lines: Iterable[StampedLine]) -> Log:
    """Read a recording line by line; lines that are no samples are counted, empty ones are not."""
    samples = []
    foreign_lines = 0
    for line in lines:
        sample = parse_line(line.text)
        if sample is not None:
            samples.append(StampedSample(line.monotonic_ns, sample))
        elif line.text.strip():
            foreign_lines += 1
    return Log(tuple(samples), foreign_lines)


def _cores(cores: str, shared_clock: str) -> tuple[CoreLoad, ...]:
    """Read the list inside ``CPU [...]``; empty if one entry is none, so that no core takes another's place."""
    shared_mhz = int(shared_clock) if shared_clock else None
    loads = [_core(core, shared_mhz) for core in cores.split(",")]
    whole = [load for load in loads if load is not None]
    return tuple(whole) if len(whole) == len(loads) else ()


@lru_cache(maxsize=4096)  # the same few loads and clocks come back on every line
def _core(core: str, shared_mhz: int | None) -> CoreLoad | None:
    match = _CORE.fullmatch(core.strip())
    if match is None:
        return None
    percent, mhz = match.groups()
    if percent is None:
        return CoreLoad(percent=None, mhz=None)
    return CoreLoad(percent=int(percent), mhz=int(mhz) if mhz is not None else shared_mhz)


_UNCONNECTED = "NC"
_NO_POWER_C = "-256"

_HEAD = re.compile(
    rf"""\s* (?:(\d\d-\d\d-\d{{4}}[ ]\d\d:\d\d:\d\d)\s+)? (?:({SIMULATED})\s+)?
    RAM\s+(\d{{1,9}})/(\d{{1,9}})MB""",
    re.ASCII | re.VERBOSE,
)

# One pass over the line; which group is set tells the kind of token. RAM, IRAM and SWAP look like rails of L4T 32.
_TOKEN = re.compile(
    r"""\s(?:
        ([A-Za-z][\w.-]*) @ (-?\d{1,4}(?:\.\d{1,6})?) C
      | (?!I?RAM\s|SWAP\s) ([A-Za-z]\w*) \s+ (-?\d{1,9}) (?:mW|/-?\d)
      | GR3D(?:_FREQ)? \s+ (\d{1,3}) %
      | EMC(?:_FREQ)? \s+ (\d{1,3}) %
      | (?:CPU|cpu) \s+ \[ ([^\]]{1,1000}) \] (?: @ (\d{1,5}) (?=\s) )?
      | SWAP \s+ (\d{1,9}) / (\d{1,9}) MB
      | (SIMULATED) (?!\S)
    )""",
    re.ASCII | re.VERBOSE,
)

_CORE = re.compile(r"off|(\d{1,3})%(?:@(\d{1,5}))?", re.ASCII)
