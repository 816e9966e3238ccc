"""``trace.json``: a run in the Trace Event Format, as Perfetto and chrome://tracing open it.

A process each for the host, the fusion node and every device; a track each for phases and for concurrent
answers; counters for rails and totals. All times are microseconds since the run's first recorded moment, on the client
machine's clock. The record has one duration for the network, both directions in one; half each is assumed.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

import msgspec

from devit_profiling.figures.evidence import Evidence
from devit_profiling.figures.power import Power
from devit_profiling.record.clocks import ClockFit, TimeAxis
from devit_profiling.record.record import NODE, AnswerRow, Recording
from devit_profiling.sensor.tegrastats import SIMULATED

TRACE_FILE = "trace.json"
MAX_ANSWERS = 500
"""Of each window that are drawn, from its start: viewers become slow beyond some hundred thousand events."""
HOST_PID, NODE_PID, FIRST_DEVICE_PID = 1, 2, 3
PHASES_TID, FIRST_ANSWER_TID = 1, 2

_EVENTS = 10_000
"""In memory at a time."""

Args = dict[str, str | int | float]


class Event(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One event; names and letters are those of the format."""

    ph: str
    """``X`` a slice, ``C`` a counter, ``M`` a name."""
    name: str
    pid: int
    tid: int
    ts: int | None = None
    """Start in microseconds."""
    dur: int | None = None
    cat: str = ""
    args: Args | None = None


class About(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a viewer shows as the trace's metadata."""

    run: str
    power: str
    answers: str
    clocks: dict[str, ClockFit]
    network: str = "network slices: the record has both directions in one; half each is assumed"


class Trace(msgspec.Struct, frozen=True, rename="camel"):
    """The content of ``trace.json``."""

    trace_events: Iterable[Event]
    """Made as they are gone through, once: a day has millions."""
    display_time_unit: str
    other_data: About


def trace_of(evidence: Evidence) -> Trace:
    """Draw a run as a trace."""
    recording, powers, axis = evidence.recording, evidence.machines, evidence.axis
    names = recording.run.names_by_submodel()
    mark = {power.device.name: f" ({SIMULATED})" if power.is_simulated else "" for power in powers}
    cell = dict.fromkeys([*(names[index] for index in sorted(names)), *(name for name in axis.clocks if name != NODE)])
    pids = {name: FIRST_DEVICE_PID + place for place, name in enumerate(cell)}
    pids[NODE] = NODE_PID
    answers, left_out = _drawn(recording.answers)
    slices = [*_phase_slices(recording, axis, pids), *_answer_slices(answers, names, pids, axis)]
    counters = [_counters(power, axis, pids[power.device.name]) for power in powers]
    titles = {HOST_PID: "host"}
    titles |= {pid: name + mark.get(name, "") for name, pid in pids.items()}
    events = heapq.merge(sorted(slices, key=_order), *counters, key=_order)
    simulated = [power.device.name for power in powers if power.is_simulated]
    rest = f"; {left_out} later ones are in latency.csv alone" if left_out else ""
    return Trace(
        trace_events=chain(_titles(titles, slices), events),
        display_time_unit="ms",
        other_data=About(
            run=recording.run.name,
            power=f"{SIMULATED}, no measurement of a board: {', '.join(simulated)}" if simulated else "measured",
            answers=f"{len(answers)}: the first {MAX_ANSWERS} of each window and outside of windows{rest}",
            clocks=dict(axis.clocks),
        ),
    )


def trace_bytes(trace: Trace) -> Iterator[bytes]:
    """Encode a trace in parts, one event a line."""
    encode = msgspec.json.Encoder().encode
    before, mark, behind = encode(msgspec.structs.replace(trace, trace_events=())).partition(b'"traceEvents":[')
    yield before + mark + b"\n"
    events = iter(trace.trace_events)
    separator = b""
    while part := b",\n".join(map(encode, islice(events, _EVENTS))):
        yield separator + part
        separator = b",\n"
    yield b"\n" + behind + b"\n"


def _order(event: Event) -> tuple[int, int]:
    """By time; of slices that begin together the outer one first."""
    return event.ts or 0, -(event.dur or 0)


def _drawn(rows: Iterable[AnswerRow]) -> tuple[list[AnswerRow], int]:
    """Choose the first answers of every window, in order of their requests; count the others."""
    chosen = []
    counts: Counter[tuple[str, int]] = Counter()
    for row in rows:
        counts[row.scenario, row.window] += 1
        if counts[row.scenario, row.window] <= MAX_ANSWERS:
            chosen.append(row)
    return sorted(chosen, key=lambda row: row.sent_ns), counts.total() - len(chosen)


def _titles(titles: Mapping[int, str], slices: Iterable[Event]) -> Iterable[Event]:
    """Name processes and tracks, and keep them in this order."""
    for place, (pid, title) in enumerate(sorted(titles.items())):
        yield Event("M", "process_name", pid, 0, args={"name": title})
        yield Event("M", "process_sort_index", pid, 0, args={"sort_index": place})
    for pid, tid in sorted({(event.pid, event.tid) for event in slices}):
        title = "phases" if tid == PHASES_TID else f"answers, {tid - FIRST_ANSWER_TID + 1}"
        yield Event("M", "thread_name", pid, tid, args={"name": title})
        yield Event("M", "thread_sort_index", pid, tid, args={"sort_index": tid})


def _slice(name: str, pid: int, tid: int, start_us: int, end_us: int, cat: str, args: Args | None = None) -> Event:
    return Event("X", name, pid, tid, start_us, max(0, end_us - start_us), cat, args)


def _phase_slices(recording: Recording, axis: TimeAxis, pids: Mapping[str, int]) -> Iterable[Event]:
    """Draw scenarios and phases on the host's clock, and phases by every device's own snapshots."""
    phases = recording.run.phases
    for scenario in recording.run.scenarios:
        inside = [phase for phase in phases if phase.scenario == scenario.name]
        if inside:
            start_us, end_us = axis.host_us(inside[0].start.host_ns), axis.host_us(inside[-1].end.host_ns)
            yield _slice(scenario.name, HOST_PID, PHASES_TID, start_us, end_us, "scenario")
    for phase in phases:
        args: Args = {"scenario": phase.scenario}
        start_us, end_us = axis.host_us(phase.start.host_ns), axis.host_us(phase.end.host_ns)
        yield _slice(phase.title, HOST_PID, PHASES_TID, start_us, end_us, "phase", args)
        for name in axis.clocks:
            start_us, end_us = (axis.device_us(name, at_ns) for at_ns in phase.span_ns(name))
            done = phase.end.snapshots[name].inferences - phase.start.snapshots[name].inferences
            yield _slice(phase.title, pids[name], PHASES_TID, start_us, end_us, "phase", {**args, "inferences": done})


def _answer_slices(
    rows: Sequence[AnswerRow], names: Mapping[int, str], pids: Mapping[str, int], axis: TimeAxis
) -> Iterable[Event]:
    """Draw each answer at the host, at the node, and at each device whose feature is in it."""
    lanes: dict[int, list[int]] = {}
    for number, row in enumerate(rows, 1):
        start_us = axis.host_us(row.sent_ns)
        latency_us = round(row.latency_ms * 1000)
        node_us = row.wait_us + row.collect_us + row.fuse_us
        title = f"answer {number}"
        args: Args = {"scenario": row.scenario, "window": row.window, "state": row.state.name.lower()}
        for index, why in sorted(row.missing.items()):
            args[f"without {names.get(index, index)}"] = why
        tid = _lane(lanes, HOST_PID, start_us, latency_us)
        yield _slice(title, HOST_PID, tid, start_us, start_us + latency_us, "answer", args)
        arrived_us = start_us + max(0, latency_us - node_us) // 2
        at_node = (("wait", row.wait_us), ("collect", row.collect_us), ("fuse", row.fuse_us))
        yield from _nested(title, NODE_PID, lanes, arrived_us, at_node)
        for timing in row.devices:
            out_us = timing.network_us // 2
            at_device = (
                ("network out", out_us),
                ("queue", timing.queue_us),
                ("decode", timing.decode_us),
                ("engine", timing.inference_us),
                ("network back", timing.network_us - out_us),
            )
            yield from _nested(title, pids[names[timing.device]], lanes, arrived_us + row.wait_us, at_device)


def _nested(
    title: str, pid: int, lanes: dict[int, list[int]], start_us: int, parts: Sequence[tuple[str, int]]
) -> Iterable[Event]:
    """Draw a slice that is filled by its parts, one after the other; parts without length are left out."""
    length_us = sum(part_us for _, part_us in parts)
    tid = _lane(lanes, pid, start_us, length_us)
    yield _slice(title, pid, tid, start_us, start_us + length_us, "answer")
    for name, part_us in parts:
        if part_us:
            yield _slice(name, pid, tid, start_us, start_us + part_us, "part")
        start_us += part_us


def _lane(lanes: dict[int, list[int]], pid: int, start_us: int, length_us: int) -> int:
    """Find a track of a process that is free from then on: slices of one track may nest, but not overlap."""
    ends_us = lanes.setdefault(pid, [])
    place = next((place for place, end_us in enumerate(ends_us) if end_us <= start_us), len(ends_us))
    ends_us[place : place + 1] = [start_us + length_us]
    return FIRST_ANSWER_TID + place


def _counters(power: Power, axis: TimeAxis, pid: int) -> Iterator[Event]:
    """Count every rail, and the total, in milliwatts; viewers stack the values of one event, so each has its own."""
    mark = f" {SIMULATED}" if power.is_simulated else ""
    for at_ns, readings_mw in power.readings():
        at_us = axis.device_us(power.device.name, at_ns)
        for rail, power_mw in readings_mw.items():
            yield Event("C", rail + mark, pid, 0, at_us, args={"mW": power_mw})
