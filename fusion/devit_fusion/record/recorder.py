"""The recorder: a process beside the node, which writes what the node tells it."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from devit_contract.errors import InputError, LostLinkError, WireError
from devit_contract.service.closing import Closing
from devit_contract.wire.messages import Telemetry
from devit_fusion.record.file import Ring
from devit_fusion.record.records import PowerSampled, Record, RequestCame, Snapshot

Images = Literal["whole", "digest"]
"""What is kept of clients' images."""
_LENGTH = struct.Struct("<I")
_MOST_BATCH_BYTES = 64 << 20
_WAIT_S, _PATIENCE_S = 0.2, 2.0
"""How soon it sees that it should stop, and how long it then waits for the last records."""


@dataclass
class Recorded:
    """What a recording has come to."""

    records: int = 0
    requests: int = 0
    lost: int = 0
    """Records that this process was too slow for."""


class Batches:
    """What has come of a stream of batches, each of them behind its length."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """Take in what has come."""
        self._data += data

    def take(self) -> bytes | None:
        """Take one batch off what has come, if it is whole.

        Raises:
            WireError: It is longer than a node's.
        """
        data = self._data
        if len(data) < _LENGTH.size:
            return None
        end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        if end > _MOST_BATCH_BYTES:
            raise WireError("size", f"expected at most {_MOST_BATCH_BYTES} bytes of records, found {end}")
        if len(data) < end:
            return None
        batch = bytes(data[_LENGTH.size : end])
        del data[:end]
        return batch


class Recorder(Closing):
    """A connection to a node's socket; a context manager."""

    def __init__(self, path: Path) -> None:
        """Connect; an :class:`InputError` says why that cannot be."""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(os.fspath(path))
        except OSError as err:
            self._socket.close()
            raise InputError(
                f"{path}: no node lets this user record there ({err.strerror or err}): start the node with this "
                "fleet.toml, and run devit record on its machine as its user"
            ) from err
        self._socket.settimeout(_WAIT_S)
        self._batches = Batches()

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()

    def batches(self, should_stop: Callable[[], bool]) -> Iterator[list[Record]]:
        """Give what the node tells, some records at a time, until it ends or ``should_stop``.

        Raises:
            LostLinkError: The node took nobody in, as another recorder is there.
        """
        decode = msgspec.msgpack.Decoder(list[Record]).decode
        heard = is_ending = False
        while True:
            if not is_ending and should_stop():
                is_ending = True
                with suppress(OSError):  # it may have gone
                    self._socket.shutdown(socket.SHUT_WR)  # the node sends what it still has
                self._socket.settimeout(_PATIENCE_S)
            try:
                data = self._socket.recv(1 << 20)
            except TimeoutError:
                if is_ending:
                    return
                yield []
                continue
            except OSError:  # the node was killed
                data = b""
            if not data:
                if not heard:
                    raise LostLinkError("the node is being recorded already: stop the other devit record")
                return
            heard = True
            self._batches.add(data)
            while (batch := self._batches.take()) is not None:
                yield decode(batch)

    def tell(self, why: str) -> None:
        """Tell the node why the recording ends, for its log."""
        try:
            self._socket.sendall(why.encode()[:400])
        except OSError:  # it has gone: nobody to tell
            return


def record(recorder: Recorder, ring: Ring, images: Images, should_stop: Callable[[], bool]) -> Recorded:
    """Write what a node tells until it or the user ends it.

    Raises:
        InputError: The disk is full, or cannot be written; the node is told.
    """
    done = Recorded()
    try:
        for batch in recorder.batches(should_stop):
            for each in batch:
                ring.add(_kept(each, images))
                done.requests += isinstance(each, RequestCame)
                if isinstance(each, Snapshot):
                    done.lost += each.lost
            ring.flush()
            done.records = ring.records
        ring.close()
    except OSError as err:
        why = err.strerror or str(err)
        ring.abandon()
        recorder.tell(f"{why}: make room, and start devit record again")
        raise InputError(f"{ring.folder}: cannot be written ({why}): make room, and start devit record again") from err
    return done


def _kept(record: Record, images: Images) -> Record:
    if isinstance(record, RequestCame) and images == "digest":
        digest = hashlib.sha256(record.image).hexdigest() if record.image_bytes else ""
        return msgspec.structs.replace(record, image=b"", image_sha256=digest)
    if isinstance(record, PowerSampled):
        try:
            lines = msgspec.msgpack.decode(record.body, type=Telemetry).lines
        except msgspec.MsgspecError:  # checked by the node; a line of a newer agent is left out rather than all
            lines = ()
        return msgspec.structs.replace(record, lines=lines, body=b"")
    return record
