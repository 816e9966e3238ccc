"""Faults of processes and links, and what must hold of a run in spite of them."""

from __future__ import annotations

import os
import re
import select
import signal
from collections import Counter
from collections.abc import Sequence

from tests.network.open_loop import Outcome, Record

from devit_contract.wire.codec import State
from devit_pipeline.local_cell import LocalCell

_DEADLINE_S = 20.0
_STARVED_S = 0.050
"""Threads that waited so long for a core, in sum, may have made a device miss a deadline of 100 ms; 20 ms are usual
where little else runs."""


def stop_softly(cell: LocalCell, name: str) -> None:
    """Send SIGTERM and wait for the process to end by itself."""
    watched = os.pidfd_open(cell.pid(name))
    try:
        os.kill(cell.pid(name), signal.SIGTERM)
        assert select.select([watched], [], [], _DEADLINE_S)[0], f"{name} did not end"
    finally:
        os.close(watched)
    cell.kill(name)  # reaps it


def redirect(cell: LocalCell, name: str, endpoint: str) -> None:
    """Have an agent that is started from now on connect to another address."""
    path = cell.folder / f"{name}.toml"
    text, count = re.subn(r'^node = ".*"$', f'node = "{endpoint}"', path.read_text(), flags=re.MULTILINE)
    assert count == 1
    path.write_text(text)


def check_ends(record: Record, frames: int) -> None:
    """Every frame was answered, and none twice."""
    assert len(record.outcomes) == frames
    assert record.states[State.NONE.name] == 0, "lost"
    assert len(record.answers) == frames
    assert set(record.answers.values()) == {1}
    states = Counter(record.status.frames)
    del states["shed"]  # they are among the failed
    assert states.total() == frames
    assert record.status.open_frames == 0
    assert record.status.waiting_requests == 0


def check_reasons(record: Record) -> None:
    """The node counts what its answers say, and they say a reason for each feature that is not there."""
    assert record.counted == record.missing
    all_devices = (1 << len(record.status.devices)) - 1
    for outcome in record.outcomes:
        assert outcome.mask ^ sum(1 << device for device in outcome.missing) == all_devices, outcome


def undisturbed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Leave those out in whose time other programs had the cores."""
    return [outcome for outcome in outcomes if outcome.starved_s < _STARVED_S]


def not_full(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Find the answers that lack a feature for no reason outside of the cell."""
    return [outcome for outcome in undisturbed(outcomes) if outcome.state is not State.FULL]


def check_times(record: Record, deadline_s: float) -> None:
    """Of thousand answers 999 come within 50 ms of the deadline, and all within 250 ms, on cores that are free."""
    assert len(record.later_than(deadline_s + 0.050)) <= len(record.outcomes) // 1000, record.summary()
    assert not record.later_than(deadline_s + 0.250), record.summary()
