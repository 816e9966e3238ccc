"""The node's side: who may record it, and that a recorder never holds it up."""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fusion.hand_made_devices import DEADLINE_S
from tests.fusion.record.recorded_cell import RecordedCell

from devit_contract.errors import AddressError, InputError, LostLinkError
from devit_fusion.record import records, tap
from devit_fusion.record.door import Door
from devit_fusion.record.file import Recording
from devit_fusion.record.recorder import Batches, Recorder


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[RecordedCell]:
    with ExitStack() as stack:
        yield RecordedCell(stack, tmp_path, is_calm=True)


def until(holds: Callable[[], bool]) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end_s


def events(cell: RecordedCell) -> list[str]:
    return [event.text for event in cell.client.status().events]


def test_only_the_node_s_own_user_may_record_and_one_at_a_time(cell: RecordedCell, tmp_path: Path) -> None:
    path = tmp_path / "record.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    cell.begin()
    cell.ask(3, ("all",))
    with Recorder(path) as second, pytest.raises(LostLinkError, match="recorded already: stop the other"):
        list(second.batches(lambda: False))
    assert any(f"process {os.getpid()} of user {os.getuid()}" in text for text in events(cell))
    assert cell.stop().requests == 3
    assert "recording stopped" in events(cell)[0]


def test_a_node_that_names_no_socket_lets_nobody_in() -> None:
    door = Door("")
    assert door.descriptor is None
    assert door.let_in() is None
    door.close()
    with pytest.raises(InputError, match="no node lets this user record there"):
        Recorder(Path("/nowhere/record.sock"))


def test_the_socket_of_a_dead_node_is_taken_over_and_that_of_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "record.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    door = Door(str(path))
    with pytest.raises(AddressError, match="another node listens there"):
        Door(str(path))
    door.close()
    assert not path.exists()
    with pytest.raises(InputError, match="cannot listen there"):
        Door(str(tmp_path / "absent" / "record.sock"))


def test_a_recorder_that_does_not_read_loses_records_and_no_answer(
    cell: RecordedCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most_bytes = 300_000
    monkeypatch.setattr(tap, "BACKLOG_BYTES", most_bytes)
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.connect(str(tmp_path / "record.sock"))
        until(lambda: any("is told all" in text for text in events(cell)))
        for _ in range(3):
            answers = cell.ask(300, ("all",))
            assert {answer.state.name for answer in answers} == {"FULL"}
        stuck.settimeout(DEADLINE_S)
        batches, found = Batches(), []
        decode = msgspec.msgpack.Decoder(list[records.Record]).decode
        read_bytes = 0
        while not any(isinstance(each, records.Snapshot) and each.lost for each in found):
            data = stuck.recv(1 << 20)
            read_bytes += len(data)
            batches.add(data)
            while (batch := batches.take()) is not None:
                found += decode(batch)
        assert read_bytes < 4 * most_bytes  # the system keeps some too
    until(lambda: "its recorder has gone" in events(cell)[0] or "recording stopped" in events(cell)[0])
    cell.ask(3, ("all",))


def test_a_full_disk_ends_the_recording_with_one_event_and_the_node_goes_on(cell: RecordedCell, tmp_path: Path) -> None:
    """A limit of the file's size, as a disk has one."""
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(
        'schema = 2\n[node]\nendpoint = "tcp://127.0.0.1:1"\nclient_endpoint = "tcp://127.0.0.1:2"\n'
        f'[[device]]\nname = "jetson0"\nsubmodel = 0\n[record]\nsocket = "{tmp_path}/record.sock"\n'
    )
    entry = "import signal as s; s.signal(s.SIGXFSZ, s.SIG_IGN); from devit_pipeline.entry import devit; devit()"
    limited = ["prlimit", "--fsize=200000", sys.executable, "-c", entry]
    command = [*limited, "record", "--fleet", fleet, "--out", cell.folder]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        until(lambda: any("is told all" in text for text in events(cell)))
        while child.poll() is None:
            cell.ask(50, ("all",))
        assert child.stderr is not None
        last = child.stderr.read().splitlines()[-1]
    assert child.returncode == 1
    assert last.startswith(f"error: {cell.folder}: cannot be written (File too large): make room")
    stopped = [text for text in events(cell) if text.startswith("recording stopped")]
    assert stopped == ["recording stopped: File too large: make room, and start devit record again"]
    assert {answer.state.name for answer in cell.ask(5, ("all",))} == {"FULL"}
    kept = Recording(cell.folder)
    assert sum(isinstance(each, records.RequestCame) for each in kept) > 50
    assert kept.damage


@given(batches=st.lists(st.binary(max_size=60), max_size=8), cuts=st.lists(st.integers(0, 500), max_size=8))
def test_batches_are_whole_wherever_the_stream_is_cut(batches: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(struct.pack("<I", len(batch)) + batch for batch in batches)
    reader, found, start = Batches(), [], 0
    for end in sorted({min(cut, len(stream)) for cut in cuts} | {len(stream)}):
        reader.add(stream[start:end])
        start = end
        while (batch := reader.take()) is not None:
            found.append(batch)
    assert found == batches


def test_nothing_secret_is_told(cell: RecordedCell) -> None:
    cell.begin()
    cell.ask(2, ("all",))
    cell.stop()
    start = next(iter(Recording(cell.folder)))
    assert isinstance(start, records.Start)
    assert (start.fleet.node.public_key, start.fleet.node.endpoint, start.fleet.record.socket) == ("", "", "")
    assert np.frombuffer(bytes.fromhex(next(iter(start.digests.values()))), np.uint8).size == 32
