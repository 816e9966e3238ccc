"""Images to send, and requests at a fixed rate: their ticks, and that no late one is hidden."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from devit_contract.errors import InputError
from devit_contract.wire.client import Picture
from devit_profiling.figures.answers import pace
from devit_profiling.load.load_generator import load_images, random_images, send_requests
from devit_profiling.record.record import Plan

if TYPE_CHECKING:
    from conftest import FakeRun, LiveCell
else:
    FakeRun = LiveCell = object

IMAGE = np.zeros((6, 8, 1), np.uint8)


def test_requests_are_due_at_every_tick_and_each_is_answered_once(live_cell: LiveCell) -> None:
    with live_cell.client() as client:
        answered = list(send_requests(client, [IMAGE] * 40, Plan(rate_hz=200.0), mask=0))
    due_ms = np.array(sorted(sent.due_ns for _, sent in answered)) / 1e6
    assert np.diff(due_ms) == pytest.approx([5.0] * 39, abs=1e-3)
    assert all(sent.late_us >= 0 for _, sent in answered)


def test_requests_that_a_stall_delays_are_made_up_for_and_count_from_their_beat(live_cell: LiveCell) -> None:
    """A closed loop would ask nothing during the stall, and see one slow answer where twenty were due."""

    def pictures() -> Iterator[Picture]:
        for number in range(60):
            if number == 20:
                threading.Event().wait(0.1)
            yield IMAGE

    with live_cell.client() as client:
        answered = sorted(
            send_requests(client, pictures(), Plan(rate_hz=200.0), mask=0), key=lambda pair: pair[1].due_ns
        )
    late_ms = [sent.late_us / 1e3 for _, sent in answered]
    assert len(answered) == 60
    # The tick of the stall itself passed while it lasted: 95 ms late, each one after it 5 ms less.
    assert late_ms[20] > 90
    assert sum(late > 20 for late in late_ms[20:40]) >= 14
    due_ns = [sent.due_ns for _, sent in answered]
    assert {after - before for before, after in itertools.pairwise(due_ns)} == {5_000_000}


def test_pace_counts_what_was_sent_in_windows_whenever_it_was_answered(fake_run: FakeRun) -> None:
    """Two windows of 10 s with 100 requests each, all 3 ms late; the last ones are answered behind them."""
    recording = fake_run.recording()
    rows = [replace(row, late_us=3000) for row in recording.answers]
    found = pace(rows, recording.run.phases, rate_hz=12.5)
    assert (found.asked_hz, found.sent_hz, found.answered_hz) == (12.5, 10.0, 10.0)
    assert (found.late_p50_ms, found.late_p99_ms, found.late_max_ms) == (3.0, 3.0, 3.0)
    drained = [replace(row, window=0) if row.latency_ms > 5.5 else row for row in rows]
    assert (
        pace(drained, recording.run.phases, 12.5).sent_hz,
        pace(drained, recording.run.phases, 12.5).answered_hz,
    ) == (
        10.0,
        pytest.approx(5.1),
    )


def test_random_images_are_the_same_for_the_same_seed_and_say_so() -> None:
    first, second = random_images((6, 8, 1)), random_images((6, 8, 1))
    assert np.array_equal(np.stack(list(first)), np.stack(list(second)))  # type: ignore[arg-type]
    assert first.origin == "32 random images of 6 x 8 x 1 (noise, seed 0), ready for the graph"


def test_folder_gives_its_pictures_by_name_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    pictures = load_images([tmp_path])
    assert list(pictures) == [b"a.jpg", b"b.PNG"]
    assert pictures.origin == "2 image files, decoded on the devices"


def test_missing_file_and_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lost\.png: cannot be read"):
        load_images([tmp_path / "lost.png"])
    with pytest.raises(InputError, match="no image files"):
        load_images([tmp_path])
