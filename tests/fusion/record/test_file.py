"""Recordings on disk: whole after a kill, bounded, and one line for whatever is wrong with a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import jsonschema
import msgspec
import numpy as np
import pytest
from mcap.reader import make_reader
from mcap.writer import Writer

from devit_contract.artefacts.fleet import Device, Fleet, Node
from devit_contract.errors import InputError
from devit_contract.wire.messages import DeviceTiming, Hello, PowerLine
from devit_contract.wire.words import MissingReason
from devit_fusion.record import records
from devit_fusion.record.file import CHUNK_BYTES, Recording, Ring, segments

START = records.Start(
    at_ns=5,
    software="0",
    run_id=7,
    bundle="tiny 1",
    bundle_folder="",
    digests={},
    fleet=Fleet(2, Node("", ""), (Device("jetson0", 0),)),
    utc_offset_ns=10**18,
)
IMAGE = bytes(np.random.default_rng(1).integers(0, 256, 3072, np.uint8))


def snapshot(at_ns: int) -> records.Snapshot:
    link = records.LinkState(
        device=0, name="jetson0", hello=None, boot_id=0, engine_revision=0, links=0, is_leaving=False, is_revoked=False,
        is_excluded=False, overdue=0, probe_id=-1, probed_ns=0, in_flight=(), pace=(2, 0, 0, 0, 0, *[0.0] * 5),
    )  # fmt: skip
    return records.Snapshot(
        at_ns=at_ns,
        turn=0,
        seed=1,
        next_frame_id=1,
        grace_end_ns=0,
        links=(link,),
        asked={},
        promise=(0, 0, 0, 0, 0.0, 0),
    )


def request(number: int) -> records.RequestCame:
    return records.RequestCame(
        at_ns=10 + number, turn=1, client="client", route=b"\0abcd", run_id=1, number=number, mask=0, dtype=1,
        dims=(32, 32, 3), policy="all", image=IMAGE, image_bytes=len(IMAGE),
    )  # fmt: skip


def told() -> Iterator[records.Record]:
    """What a node tells without end, a snapshot every hundred requests."""
    yield START
    for number in count():
        if number % 100 == 0:
            yield snapshot(10 + number)
        yield request(number)


def write(folder: Path, how_many: int, max_bytes: int = 1 << 30) -> Path:
    ring = Ring(folder, max_bytes)
    for record in islice(told(), how_many):
        ring.add(record)
        ring.flush()
    ring.close()
    return segments(folder)[-1]


def test_each_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    hello = Hello("jetson0", 0, 6, "ab", "null", ("float32",), "0")
    feature, timing = np.arange(6, dtype="<f4").tobytes(), DeviceTiming(0, 1, 2, 3, 4, 5)
    written: list[records.Record] = [
        START,
        snapshot(6),
        request(1),
        records.FeatureCame(at_ns=7, turn=1, device=0, frame_id=1, timing=timing, feature=feature),
        records.SkipCame(at_ns=8, turn=1, device=0, frame_id=2, why=MissingReason.ENGINE, is_counted=True),
        records.LinkChanged(at_ns=9, turn=2, device=0, change="restarted", hello=hello, boot_id=2**64 - 1),
        records.Tended(at_ns=10, turn=3),
        records.Dispatched(at_ns=11, turn=3, frame_id=1, client="", run_id=1, number=1, devices=(0,), deadline_ns=99),
        records.NotSent(at_ns=12, frame_id=1, device=0, sent="full"),
        records.Answered(
            at_ns=13, client="", run_id=1, number=1, frame_id=1, state="full", mask=1, asked=1, logits=feature,
            missing={1: MissingReason.ABSENT}, wait_us=1, collect_us=2, fuse_us=3, spent_ns=4, score=0.1, threshold=0.3,
        ),
        records.EventNoted(at_ns=14, device="jetson0", text="ready\u00e9", priority=6),
        records.PowerSampled(at_ns=15, device="jetson0", lines=(PowerLine(1, "VDD_IN 4000mW"),)),
    ]  # fmt: skip
    ring = Ring(tmp_path, 1 << 30)
    for record in written:
        ring.add(record)
    ring.close()
    assert list(Recording(tmp_path)) == written
    assert {type(record) for record in written} == set(records.CHANNELS.values())


def test_the_library_s_own_reader_finds_channels_that_keep_to_their_schemas(tmp_path: Path) -> None:
    """As Foxglove wants them: JSON, with a schema of an object at the top, and references within it alone."""
    path = write(tmp_path, 50)
    with path.open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        summary = reader.get_summary()
        assert summary is not None
        assert summary.statistics is not None
        assert summary.statistics.message_count == 50
        assert {channel.topic for channel in summary.channels.values()} == {
            f"/devit/{name}" for name in records.CHANNELS
        }
        for schema in summary.schemas.values():
            content = json.loads(schema.data)
            assert (schema.encoding, content["type"]) == ("jsonschema", "object")
            jsonschema.Draft202012Validator.check_schema(content)
            assert all(reference.startswith("#/$defs/") for reference in references(content))
        for found, channel, message in reader.iter_messages():
            assert found is not None
            assert channel.message_encoding == "json"
            jsonschema.validate(json.loads(message.data), json.loads(found.data))
            assert message.log_time > 10**18


def references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"]
        for each in schema.values():
            yield from references(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from references(each)


def test_the_oldest_files_go_and_each_that_stays_begins_with_a_snapshot(tmp_path: Path) -> None:
    most_bytes = 6_000_000
    ring = Ring(tmp_path, most_bytes)
    for record in islice(told(), 8000):
        ring.add(record if not isinstance(record, records.RequestCame) else noisy(record))
        ring.flush()
        assert sum(path.stat().st_size for path in segments(tmp_path)) <= most_bytes
    ring.close()
    files = segments(tmp_path)
    assert len(files) >= 3
    assert ring.files > len(files)
    for path in files:
        first, second = islice(Recording(path), 2)
        assert first == START
        assert isinstance(second, records.Snapshot)


def noisy(record: records.RequestCame) -> records.RequestCame:
    return msgspec.structs.replace(record, image=os.urandom(3072))


def test_a_recorder_that_is_killed_leaves_all_but_the_last_chunk(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from pathlib import Path
from tests.fusion.record.test_file import Ring, noisy, records, told
ring = Ring(Path({str(tmp_path)!r}), 1 << 30)
for number, record in enumerate(told()):
    ring.add(noisy(record) if isinstance(record, records.RequestCame) else record)
    ring.flush()
    if number == 1000:
        print("written", flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"written\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    recording = Recording(tmp_path)
    found = sum(isinstance(record, records.RequestCame) for record in recording)
    assert found >= 990 - CHUNK_BYTES // 3072
    assert len(recording.damage) == 1
    assert "cut off or damaged behind" in recording.damage[0]


@pytest.mark.parametrize("kept", [0, 4, 8, 9, 40])
def test_a_file_that_ends_before_its_first_chunk_is_refused_in_one_line(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path, 50)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match="expected an MCAP file of devit record, found none that can be read"):
        list(Recording(path))


def test_a_chunk_whose_bytes_changed_ends_the_recording_there(tmp_path: Path) -> None:
    ring = Ring(tmp_path, 1 << 30)
    for record in islice(told(), 400):
        ring.add(noisy(record) if isinstance(record, records.RequestCame) else record)
    ring.close()
    path = segments(tmp_path)[-1]
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 0xFF
    path.write_bytes(data)
    recording = Recording(path)
    found = list(recording)
    assert 100 < len(found) < 400
    assert "damaged behind" in recording.damage[0]


def test_another_one_s_file_is_refused_by_its_topic(tmp_path: Path) -> None:
    path = tmp_path / "robot.mcap"
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        channel = writer.register_channel("/robot/pose", "json", 0)
        writer.add_message(channel, 1, b"{}", 1)
        writer.finish()  # type: ignore[no-untyped-call]
    with pytest.raises(InputError, match="found another one's, with /robot/pose"):
        list(Recording(path))
    path.write_bytes(b"no recording at all, but long enough to be read")
    with pytest.raises(InputError, match="found none that can be read"):
        list(Recording(path))
    with pytest.raises(InputError, match="expected recordings of devit record, found none"):
        Recording(make_folder(tmp_path / "empty"))


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path
