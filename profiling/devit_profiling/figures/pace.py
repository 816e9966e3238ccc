"""What a fixed rate of requests came to: how many were sent and answered in a second, and how late they were sent."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from devit_profiling.record.record import WINDOW, AnswerRow, Phase


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


def pace(rows: Sequence[AnswerRow], phases: Sequence[Phase], rate_hz: float) -> Pace:
    """Look at the requests that were sent within windows, whenever they were answered.

    Args:
        rows: All answers of one scenario, those outside of its windows too.
        phases: Of the scenario.
        rate_hz: Requests that were due in a second.
    """
    windows = [phase for phase in phases if phase.kind == WINDOW]
    spans = [(phase.start.host_ns, phase.end.host_ns) for phase in windows]
    late_ms = [
        row.late_us / 1e3
        for row in rows
        if row.sent_ns is not None
        and any(start_ns <= row.sent_ns + row.late_us * 1000 < end_ns for start_ns, end_ns in spans)
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
