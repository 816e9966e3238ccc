"""From answers to milliseconds: latency, how frames ended, each device's share, and what became of a fixed rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from devit_contract.wire.messages import DeviceTiming
from devit_contract.wire.words import NEVER_ASKED, MissingReason
from devit_profiling.record.record import WINDOW, AnswerRow, Phase


class WindowTimes(msgspec.Struct, frozen=True):
    """One device in the answers of one window."""

    number: int
    arrival_p50_ms: float
    arrival_p99_ms: float


class WindowAnswers(msgspec.Struct, frozen=True):
    """The answers of one window."""

    number: int
    duration_s: float
    """On the host's clock."""
    answers: int
    """Failed ones left out, as in the figures below."""
    per_second: float
    p50_ms: float | None
    p99_ms: float | None


class TimeParts(msgspec.Struct, frozen=True):
    """Where the time of an answer went: means, which add up to the mean latency."""

    client_ms: float
    """The client, and the way to the node and back."""
    queue_ms: float
    """At the node before dispatch."""
    devices_ms: float
    """From dispatch until one device alone was waited for."""
    slowest_ms: float
    """Until the last feature came, or the deadline: all others were there. 0 where one device is asked."""
    fuse_ms: float

    @property
    def latency_ms(self) -> float:
        """Mean latency: the sum of the parts."""
        return self.client_ms + self.queue_ms + self.devices_ms + self.slowest_ms + self.fuse_ms


class DeviceTimes(msgspec.Struct, frozen=True):
    """One device's part in the answers; medians over the answers that hold its feature."""

    device: str
    features: int
    """Answers that hold its feature."""
    inference_ms: float
    queue_ms: float
    """From reading the frame to starting on it."""
    decode_ms: float
    network_ms: float
    """Both ways, and all that the device does not account for."""
    arrival_p50_ms: float
    """From the frame's dispatch to its feature's arrival at the node."""
    arrival_p99_ms: float
    slowest: int
    """Answers of two devices or more in which it came last."""
    waited_ms: float | None = None
    """Median time that its feature lay at the node until the last one came; absent where it alone was asked."""
    windows: tuple[WindowTimes, ...] = ()


class AnswerStats(msgspec.Struct, frozen=True):
    """All answers in the windows of one scenario."""

    answers: int
    states: dict[str, int]
    """How the frames ended: full, certain, partial, failed."""
    per_second: float
    """Answers, without failed ones, per second of the windows."""
    p50_ms: float | None
    """From request to answer as the client sees it, failed frames left out; absent where all failed."""
    p95_ms: float | None
    p99_ms: float | None
    wait_ms: float | None
    """Median time at the node before dispatch."""
    collect_ms: float | None
    """Median time from dispatch to the last feature."""
    fuse_ms: float | None
    devices: tuple[DeviceTimes, ...]
    missing: dict[str, dict[str, int]]
    """Device to number of answers without its feature, by reason; devices that were not asked are left out."""
    parts: TimeParts | None = None
    """Absent where no frame was answered."""
    windows: tuple[WindowAnswers, ...] = ()


class Pace(msgspec.Struct, frozen=True):
    """Requests at a fixed rate, over the windows of one scenario."""

    asked_hz: float
    """Requests that were due in a second."""
    sent_hz: float
    """Requests that were sent in a second."""
    answered_hz: float
    """Answers in a second, failed ones left out."""
    late_p50_ms: float | None
    """How much later than due they were sent, which their latency contains; absent where none was sent."""
    late_p99_ms: float | None
    late_max_ms: float | None


def answer_stats(rows: Sequence[AnswerRow], names: Mapping[int, str], windows_s: Mapping[int, float]) -> AnswerStats:
    """Sum up the answers of one scenario's windows, whose lengths are on the host's clock; names: of the whole cell."""
    states = Counter(row.state.name.lower() for row in rows)
    given = [row for row in rows if row.is_answered]
    latency_ms = [row.latency_ms for row in given]
    total_s = sum(windows_s.values())
    return AnswerStats(
        answers=len(rows),
        states=dict(sorted(states.items())),
        per_second=len(given) / total_s if total_s > 0 else 0.0,
        p50_ms=_percentile(latency_ms, 50),
        p95_ms=_percentile(latency_ms, 95),
        p99_ms=_percentile(latency_ms, 99),
        wait_ms=_percentile([row.wait_us / 1e3 for row in given], 50),
        collect_ms=_percentile([row.collect_us / 1e3 for row in given], 50),
        fuse_ms=_percentile([row.fuse_us / 1e3 for row in given], 50),
        devices=_device_times(rows, names),
        missing=_missing(rows, names),
        parts=_parts(given),
        windows=tuple(_window(number, length_s, given) for number, length_s in sorted(windows_s.items())),
    )


def pace(rows: Sequence[AnswerRow], phases: Sequence[Phase], rate_hz: float) -> Pace:
    """Look at the requests that were sent within windows, whenever they were answered; rows: all of the scenario."""
    windows = [phase for phase in phases if phase.kind == WINDOW]
    spans = [(phase.start.host_ns, phase.end.host_ns) for phase in windows]
    late_ms = [
        row.late_us / 1e3
        for row in rows
        if any(start_ns <= row.sent_ns + row.late_us * 1000 < end_ns for start_ns, end_ns in spans)
    ]
    total_s = sum(phase.duration_s for phase in windows)
    answered = sum(row.is_answered and row.window > 0 for row in rows)
    p50, p99, largest = np.percentile(late_ms, (50, 99, 100)).tolist() if late_ms else (None, None, None)
    return Pace(
        asked_hz=rate_hz,
        sent_hz=len(late_ms) / total_s if total_s else 0.0,
        answered_hz=answered / total_s if total_s else 0.0,
        late_p50_ms=p50,
        late_p99_ms=p99,
        late_max_ms=largest,
    )


def slowest_us(row: AnswerRow) -> int:
    """Give the time in which an answer waited for its slowest device alone: all other features had come.

    Where a device missed the deadline, it was waited for from the last feature until then.
    """
    arrivals_us = sorted(timing.arrival_us for timing in row.devices)
    if MissingReason.DEADLINE in row.missing.values():
        return max(0, row.collect_us - arrivals_us[-1]) if arrivals_us else row.collect_us
    return arrivals_us[-1] - arrivals_us[-2] if len(arrivals_us) > 1 else 0


def _parts(given: Sequence[AnswerRow]) -> TimeParts | None:
    if not given:
        return None
    # The client's share takes what is left, so that the sum is the latency: (answers, 4)
    node_us = np.array([[row.wait_us, row.collect_us, slowest_us(row), row.fuse_us] for row in given], np.float64)
    queue_ms, collect_ms, slowest_ms, fuse_ms = (node_us.mean(axis=0) / 1e3).tolist()
    latency_ms = float(np.mean([row.latency_ms for row in given]))
    slowest_ms = min(slowest_ms, collect_ms)
    return TimeParts(
        client_ms=max(0.0, latency_ms - queue_ms - collect_ms - fuse_ms),
        queue_ms=queue_ms,
        devices_ms=collect_ms - slowest_ms,
        slowest_ms=slowest_ms,
        fuse_ms=fuse_ms,
    )


def _window(number: int, length_s: float, given: Sequence[AnswerRow]) -> WindowAnswers:
    latency_ms = [row.latency_ms for row in given if row.window == number]
    return WindowAnswers(
        number=number,
        duration_s=length_s,
        answers=len(latency_ms),
        per_second=len(latency_ms) / length_s if length_s > 0 else 0.0,
        p50_ms=_percentile(latency_ms, 50),
        p99_ms=_percentile(latency_ms, 99),
    )


def _device_times(rows: Sequence[AnswerRow], names: Mapping[int, str]) -> tuple[DeviceTimes, ...]:
    slowest: Counter[int] = Counter()
    for row in rows:
        if len(row.devices) > 1:
            slowest[max(row.devices, key=lambda timing: timing.arrival_us).device] += 1
    result = []
    for index, name in sorted(names.items()):
        found = [(row, timing) for row in rows for timing in row.devices if timing.device == index]
        if found:
            result.append(_times(name, found, slowest[index]))
    return tuple(result)


def _times(name: str, found: Sequence[tuple[AnswerRow, DeviceTiming]], slowest: int) -> DeviceTimes:
    # Columns as in DeviceTiming after the index: (answers, 5)
    times_ms = np.array([[t.network_us, t.queue_us, t.decode_us, t.inference_us, t.arrival_us] for _, t in found]) / 1e3
    network, queue, decode, inference, arrival = np.median(times_ms, axis=0).tolist()
    lay_ms = [
        (max(other.arrival_us for other in row.devices) - timing.arrival_us) / 1e3
        for row, timing in found
        if len(row.devices) > 1
    ]
    windows = np.array([row.window for row, _ in found])
    return DeviceTimes(
        device=name,
        features=len(found),
        inference_ms=inference,
        queue_ms=queue,
        decode_ms=decode,
        network_ms=network,
        arrival_p50_ms=arrival,
        arrival_p99_ms=float(np.percentile(times_ms[:, 4], 99)),
        slowest=slowest,
        waited_ms=_percentile(lay_ms, 50),
        windows=tuple(
            WindowTimes(number, *np.percentile(times_ms[windows == number, 4], (50, 99)).tolist())
            for number in sorted(set(windows.tolist()))
        ),
    )


def _missing(rows: Sequence[AnswerRow], names: Mapping[int, str]) -> dict[str, dict[str, int]]:
    reasons: dict[str, Counter[str]] = {}
    for row in rows:
        for index, why in row.missing.items():
            if why not in NEVER_ASKED:
                reasons.setdefault(names.get(index, f"device {index}"), Counter())[why] += 1
    return {name: dict(sorted(counts.items())) for name, counts in sorted(reasons.items())}


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(np.array(values), percent)) if values else None
