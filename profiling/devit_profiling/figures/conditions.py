"""At which temperature and clocks a device worked, read off its samples, and what its board counted meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from statistics import median

import msgspec
import numpy as np
from msgspec.structs import astuple

from devit_contract.machine import OverCurrentEvents
from devit_profiling.figures.energy import slope
from devit_profiling.record.record import WINDOW, Phase
from devit_profiling.sensor.sample import StampedSample

_MAX_CLOCK_DROP = 0.1
_JUNCTION = "tj"


class Conditions(msgspec.Struct, frozen=True):
    """What the lines of all windows of a scenario say; absent where they do not."""

    zone: str = ""
    """The junction's zone, or the hottest one where none is named so."""
    temperature_c: float | None = None
    """Highest reading of the zone."""
    temperature_slope_c_per_min: float | None = None
    """Of the straight line through its readings."""
    clocks_mhz: dict[int, float] = {}
    """By window: median of the fastest core's clock."""


def conditions(samples: Sequence[StampedSample], phases: Sequence[Phase], device: str) -> Conditions:
    """Read the conditions of the windows among the phases of a scenario off the device's samples."""
    stamps_ns = np.array([sample.monotonic_ns for sample in samples], np.int64)
    windows = {}
    for phase in phases:
        if phase.kind == WINDOW:
            start_ns, end_ns = phase.span_ns(device)
            inside = (start_ns <= stamps_ns) & (stamps_ns < end_ns)
            windows[phase.number] = list(itertools.compress(samples, inside))
    chosen = [sample for window in windows.values() for sample in window]
    zone = _zone(chosen)
    warm = [sample for sample in chosen if zone in sample.temperatures_c]
    clocks_mhz = {}
    for number, window in windows.items():
        cores_mhz = ([core.mhz for core in sample.cpu if core.mhz is not None] for sample in window)
        fastest_mhz = [max(each) for each in cores_mhz if each]
        if fastest_mhz:
            clocks_mhz[number] = float(median(fastest_mhz))
    if not warm:
        return Conditions(clocks_mhz=clocks_mhz)
    time_s = np.fromiter((sample.monotonic_ns / 1e9 for sample in warm), np.float64)
    degrees = np.fromiter((sample.temperatures_c[zone] for sample in warm), np.float64)
    return Conditions(zone, float(degrees.max()), 60 * slope(time_s, degrees), clocks_mhz)


def throttling_warnings(clocks_mhz: Mapping[int, float]) -> list[str]:
    """Warn of windows whose clock is more than a tenth below the fastest window's."""
    top_mhz = max(clocks_mhz.values(), default=0.0)
    return [
        f"{WINDOW} {number}: clocks fell to {clock:.0f} MHz from {top_mhz:.0f} MHz in another window: the board may "
        "have throttled, fix its clocks with jetson_clocks or cool it"
        for number, clock in clocks_mhz.items()
        if clock < (1 - _MAX_CLOCK_DROP) * top_mhz
    ]


def over_current(phases: Sequence[Phase], device: str) -> dict[int, OverCurrentEvents]:
    """Count the events in each window among the phases; absent where the device's board or agent does not."""
    found = {}
    for phase in phases:
        if phase.kind == WINDOW:
            start, end = (boundary.snapshots[device].over_current for boundary in (phase.start, phase.end))
            events = end.since(start) if end is not None else None
            if events is not None:
                found[phase.number] = events
    return found


def over_current_warnings(events: Mapping[int, OverCurrentEvents]) -> list[str]:
    """Warn of windows in which the board slowed itself down, in one sentence."""
    numbers = [str(number) for number, each in events.items() if each.total]
    if not numbers:
        return []
    total = OverCurrentEvents(*map(sum, zip(*map(astuple, events.values()), strict=True)))
    return [
        f"{WINDOW} {', '.join(numbers)}: the board slowed itself down ({total}): choose a lower power mode, or a "
        "supply that holds voltage and current"
    ]


def _zone(samples: Sequence[StampedSample]) -> str:
    """Choose the zone to watch; empty if there is none."""
    hottest: dict[str, float] = {}
    for sample in samples:
        for zone, degrees in sample.temperatures_c.items():
            hottest[zone] = max(degrees, hottest.get(zone, degrees))
    for zone in hottest:
        if zone.lower() == _JUNCTION:
            return zone
    return max(hottest, key=lambda zone: hottest[zone], default="")
