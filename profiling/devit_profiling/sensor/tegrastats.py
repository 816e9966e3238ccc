"""Parses lines of NVIDIA's ``tegrastats``: loads, clocks, temperatures and rails of a Jetson at one instant.

The grammar is the union over L4T 28 to 39 (JetPack 3 to 7)::

    line    := [MM-DD-YYYY hh:mm:ss] ["SIMULATED"] RAM token*
    RAM     := "RAM" used"/"total"MB" ["(lfb" n"x"size("MB"|"kB")")"]
    SWAP    := "SWAP" used"/"total"MB" ["(cached" cached"MB)"]
    IRAM    := "IRAM" used"/"total"kB" ["(lfb" size"kB)"]
    CPU     := "CPU [" (percent"%@"MHz | "off") {","...} "]"     L4T 28.1: "cpu [17%,13%]@408"
    clocks  := "@"MHz | "@["MHz{","MHz}"]"
    load    := percent"%" [clocks] | clocks | MHz | "off"
    EMC     := "EMC_FREQ" load                                   L4T 28.1: "EMC 1%@408"
    GPU     := "GR3D_FREQ" load, "GR3D2_FREQ" load               L4T 28.1: "GR3D 3%@76"; Thor: clocks alone
    engine  := ("NV..." | "MSENC" | "VIC" | "OFA" | "PVA..." ) ["_FREQ" | "_LOAD"] load
    APE     := "APE" MHz             MTS := "MTS fg" percent"% bg" percent"%"
    zone    := name"@"degrees"C" ["/"max"C"]
    rail    := name instant"mW" ["/"average"mW" ["/"max"mW"]]    L4T 34 and newer
             | name instant"/"average                            L4T 32 and older

Tokens are separated by one or more blanks and come in any order. A line that was cut off loses its last
value instead of showing its first digits: a number counts only with what ends it, be it its unit (``mW``, ``%``,
``C``, ``]``) or, after a number without one, a blank or the line end. So keep the line ends; without one, an L4T 32
line lacks the average of its last rail.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

import msgspec

from devit_profiling.sensor.sample import CoreLoad, EngineLoad, Sample

SIMULATED = "SIMULATED"
"""The token that marks a line as made by the simulator."""
_UNCONNECTED = "NC"
_NO_POWER_C = "-256"
# The PMIC has two alarms and no thermometer: Linux' max77620_thermal.c reports 100 C while neither is raised, 120 and
# 140 C when one is. Every recorded line, of six kinds of boards at rest and under load, shows 100 or 50.
_DUMMY_ZONE = "PMIC"
_DUMMY_C = ("100", "50")
_KB = {"k": 1, "M": 1024}

_CLOCKS = r"@(?: \d{1,5} (?=\s) | \[ \d{1,5} (?:,\d{1,5})* \] )"
_LOAD = rf"(?: \d{{1,3}} % (?:{_CLOCKS})? | {_CLOCKS} | \d{{1,5}} (?=\s) | off (?!\S) )"
_DEGREES = r"-?\d{1,4} (?:\.\d{1,6})?"
_MW = r"-?\d{1,9}"
_MB = r"\d{1,9}"

_HEAD = re.compile(
    rf"""\s* (?:(\d\d-\d\d-\d{{4}}[ ]\d\d:\d\d:\d\d)\s+)? (?:({SIMULATED})\s+)?
    RAM\s+({_MB})/({_MB})MB (?: \s* \(lfb\s+ (\d{{1,9}}) x (\d{{1,9}}) ([kM]) B )?""",
    re.ASCII | re.VERBOSE,
)

# What hardly changes from line to line. The groups' names are those of the fields.
_OTHER_TOKEN = rf"""(?:
    SWAP\s+ (?P<swap_used_mb>{_MB}) / (?P<swap_total_mb>{_MB}) MB (?: \s* \(cached\s+ (?P<swap_cached_mb>{_MB}) MB\) )?
  | IRAM\s+ (?P<iram_used_kb>{_MB}) / (?P<iram_total_kb>{_MB}) kB
        (?: \s* \(lfb\s+ (?P<iram_largest_free_block_kb>{_MB}) kB\) )?
  | (?P<engine> (?:NV|MSENC|VIC|OFA|PVA) \w*? ) (?:_FREQ|_LOAD)? \s+ (?P<load> {_LOAD} )
  | APE\s+ (?P<ape_mhz>\d{{1,5}}) (?=\s)
  | MTS\s+ fg\s+ (?P<mts_foreground_percent>\d{{1,3}})% (?: \s+ bg\s+ (?P<mts_background_percent>\d{{1,3}})% )?
  | {SIMULATED} (?!\S)
)"""
_OTHER = re.compile(rf"(?<!\S) {_OTHER_TOKEN}", re.ASCII | re.VERBOSE)
_OTHER_TEXT = re.sub(r"\?P<\w+>", "?:", _OTHER_TOKEN)

# One pass over the line; the group that is set gives the kind of token. RAM, IRAM and SWAP look like rails of L4T 32.
_TOKEN = re.compile(
    rf"""\s(?:
        ([A-Za-z][\w.-]*) @ ({_DEGREES}) C (?: / ({_DEGREES}) C )?
      | (?!I?RAM\s|SWAP\s) ([A-Za-z]\w*) \s+
            ({_MW}) (?: mW | (?=/-?\d) ) (?: / ({_MW}) (?: mW | (?=[\s/]) ) (?: / ({_MW}) (?: mW | (?=\s) ) )? )?
      | (GR3D2?|EMC) (?:_FREQ)? \s+ ({_LOAD})
      | ({_OTHER_TEXT} (?: \s+ {_OTHER_TEXT} )*)
      | (?:CPU|cpu) \s+ \[ ([^\]]{{1,1000}}) \] (?: @ (\d{{1,5}}) (?=\s) )?
    )""",
    re.ASCII | re.VERBOSE,
)

_CORE = re.compile(r"off|(\d{1,3})%(?:@(\d{1,5}))?", re.ASCII)


def parse_line(line: str) -> Sample | None:
    r"""Read one line, its line end included; ``None`` if it is no sample. Any text is accepted, nothing is raised.

    >>> sample = parse_line("RAM 1697/7620MB (lfb 42x4MB) GR3D_FREQ 7% tj@41.5C VDD_IN 4361mW/4287mW VDD_SOC 13")
    >>> sample.rails_mw, sample.gpu_percent, sample.temperatures_c
    ({'VDD_IN': 4361}, 7, {'tj': 41.5})
    >>> parse_line("Tue Jan 26 18:22:31 UTC 2021\n") is None
    True
    """
    head = _HEAD.match(line)
    if head is None:
        return None
    stamp, simulated, ram_used, ram_total, blocks, block_size, block_unit = head.groups()
    fields = _fields(line, head.end())
    engines, numbers = _others(fields.others)
    return Sample(
        stamp=stamp,
        is_simulated=simulated is not None or SIMULATED in fields.others,
        ram_used_mb=int(ram_used),
        ram_total_mb=int(ram_total),
        ram_largest_free_blocks=int(blocks) if blocks is not None else None,
        ram_largest_free_block_kb=int(block_size) * _KB[block_unit] if blocks is not None else None,
        cpu=fields.cpu,
        emc_percent=fields.emc.percent,
        emc_mhz=fields.emc.mhz[0] if fields.emc.mhz else None,
        gpu_percent=fields.gpu.percent,
        gpu_mhz=fields.gpu.mhz,
        gpu2_percent=fields.gpu2.percent,
        gpu2_mhz=fields.gpu2.mhz,
        engines=engines,
        temperatures_c=fields.temperatures_c,
        temperatures_max_c=fields.temperatures_max_c,
        rails_mw=fields.rails_mw,
        rails_average_mw=fields.rails_average_mw,
        rails_max_mw=fields.rails_max_mw,
        **numbers,
    )


class _Load(msgspec.Struct, frozen=True):
    """The text after the name of an engine, the GPU or the memory controller."""

    is_on: bool = True
    percent: int | None = None
    mhz: tuple[int, ...] = ()


class _Fields(msgspec.Struct):
    """The tokens of a line, sorted."""

    cpu: tuple[CoreLoad, ...] = ()
    emc: _Load = _Load()
    gpu: _Load = _Load()
    gpu2: _Load = _Load()
    temperatures_c: dict[str, float] = {}
    temperatures_max_c: dict[str, float] = {}
    rails_mw: dict[str, int] = {}
    rails_average_mw: dict[str, int] = {}
    rails_max_mw: dict[str, int] = {}
    others: str = ""
    """Text of the tokens that hardly change from line to line."""


def _fields(line: str, start: int) -> _Fields:
    """Sort the tokens in a loop over plain tuples, for most without a call: here the parser spends its time."""
    fields = _Fields()
    temperatures_c, rails_mw, rails_average_mw = fields.temperatures_c, fields.rails_mw, fields.rails_average_mw
    for zone, degrees, max_degrees, rail, instant, average, maximum, unit, load, other, cores, clock in _TOKEN.findall(
        line, start
    ):
        if zone:
            if degrees != _NO_POWER_C and not (zone == _DUMMY_ZONE and degrees in _DUMMY_C):
                temperatures_c[zone] = _degrees(degrees)
                if max_degrees:
                    fields.temperatures_max_c[zone] = float(max_degrees)
        elif rail:
            if rail != _UNCONNECTED:
                rails_mw[rail] = int(instant)
                if average:
                    rails_average_mw[rail] = int(average)
                if maximum:
                    fields.rails_max_mw[rail] = int(maximum)
        elif cores:
            fields.cpu = _cores(cores, clock)
        elif other:
            fields.others += other + " "
        elif unit == "GR3D":
            fields.gpu = _load(load)
        elif unit == "EMC":
            fields.emc = _load(load)
        else:
            fields.gpu2 = _load(load)
    return fields


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


@lru_cache(maxsize=4096)  # as above
def _load(text: str) -> _Load:
    percent, sign, clocks = text.rpartition("%")
    return _Load(
        is_on=text != "off",
        percent=int(percent) if sign else None,
        mhz=tuple(int(clock) for clock in clocks.strip("@[]").split(",") if clock.isdigit()),
    )


_degrees = lru_cache(maxsize=4096)(float)  # as above


@lru_cache(maxsize=256)  # engines are mostly off and swap rests: few texts make up a log
def _others(text: str) -> tuple[Mapping[str, EngineLoad], dict[str, int]]:
    """Read engines by name, and the numbers of the other tokens by the name of their field."""
    engines: dict[str, EngineLoad] = {}
    numbers: dict[str, int] = {}
    for match in _OTHER.finditer(text):
        groups = match.groupdict()
        engine, words = groups.pop("engine"), groups.pop("load")
        if engine is not None:
            load, before = _load(words), engines.get(engine)
            engines[engine] = EngineLoad(
                is_on=load.is_on,
                percent=before.percent if load.percent is None and before is not None else load.percent,
                mhz=load.mhz[0] if load.mhz else before.mhz if before is not None else None,
            )
        numbers.update((name, int(number)) for name, number in groups.items() if number is not None)
    return engines, numbers
