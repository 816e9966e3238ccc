"""From answers to milliseconds: latency, how frames ended, and what each device had to do with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from devit_profiling.record import AnswerRow


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


def answer_stats(rows: Sequence[AnswerRow], names: Mapping[int, str], windows_s: float) -> AnswerStats:
    """Sum up the answers of one scenario's windows.

    Args:
        rows: The answers.
        names: Device index to name, of the whole cell.
        windows_s: Length of all windows together, on the asking machine's clock.
    """
    states = Counter(row.state.name.lower() for row in rows)
    given = [row for row in rows if row.is_answered]
    latency_ms = [row.latency_ms for row in given]
    return AnswerStats(
        answers=len(rows),
        states=dict(sorted(states.items())),
        per_second=len(given) / windows_s if windows_s > 0 else 0.0,
        p50_ms=_percentile(latency_ms, 50),
        p95_ms=_percentile(latency_ms, 95),
        p99_ms=_percentile(latency_ms, 99),
        wait_ms=_percentile([row.wait_us / 1e3 for row in given], 50),
        collect_ms=_percentile([row.collect_us / 1e3 for row in given], 50),
        fuse_ms=_percentile([row.fuse_us / 1e3 for row in given], 50),
        devices=_device_times(rows, names),
        missing=_missing(rows, names),
    )


def _device_times(rows: Sequence[AnswerRow], names: Mapping[int, str]) -> tuple[DeviceTimes, ...]:
    slowest: Counter[int] = Counter()
    for row in rows:
        if len(row.devices) > 1:
            slowest[max(row.devices, key=lambda timing: timing.arrival_us).device] += 1
    result = []
    for index, name in sorted(names.items()):
        timings = [timing for row in rows for timing in row.devices if timing.device == index]
        if not timings:
            continue
        # Columns as in DeviceTiming behind the index: (answers, 5)
        times_ms = np.array([[t.network_us, t.queue_us, t.decode_us, t.inference_us, t.arrival_us] for t in timings])
        network, queue, decode, inference, arrival = np.median(times_ms / 1e3, axis=0).tolist()
        result.append(
            DeviceTimes(
                device=name,
                features=len(timings),
                inference_ms=inference,
                queue_ms=queue,
                decode_ms=decode,
                network_ms=network,
                arrival_p50_ms=arrival,
                arrival_p99_ms=float(np.percentile(times_ms[:, 4], 99)) / 1e3,
                slowest=slowest[index],
            )
        )
    return tuple(result)


def _missing(rows: Sequence[AnswerRow], names: Mapping[int, str]) -> dict[str, dict[str, int]]:
    reasons: dict[str, Counter[str]] = {}
    for row in rows:
        for index, why in row.missing.items():
            if why != _NOT_ASKED:
                reasons.setdefault(names.get(index, f"device {index}"), Counter())[why] += 1
    return {name: dict(sorted(counts.items())) for name, counts in sorted(reasons.items())}


_NOT_ASKED = "not asked"


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(np.array(values), percent)) if values else None
