"""Recordings on disk: MCAP files, each of them whole in itself, the oldest removed where they take too much room."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from devit_contract.errors import InputError
from devit_fusion.record.records import CHANNELS, Record, Snapshot, Start

if TYPE_CHECKING:
    from mcap.records import Chunk
    from mcap.writer import Writer

CHUNK_BYTES = 1 << 18
"""What a recorder that is killed may lose, before it is compressed."""
_SEGMENTS = 16
"""A ring has about as many files."""
_MOST_OVER = 1.5
"""So many times its size a file may have until a moment comes in which no frame is under way."""
_LEAST_SEGMENT_BYTES, _MOST_SEGMENT_BYTES = 1 << 20, 1 << 28
_MOST_RECORD_BYTES = 1 << 28
_RECORD, _MESSAGE = struct.Struct("<BQ"), struct.Struct("<HIQQ")
"""What stands before each record of a chunk, and before the data of a message (MCAP's specification)."""
_PREFIX, _SUFFIX = "devit-", ".mcap"


class Ring:
    """The files of one recording in a folder; a context manager.

    A new file begins with a snapshot, so that each can be replayed alone.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Write to a folder, which is made if need be; the recordings in it count towards ``max_bytes``."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._max_bytes = folder, max_bytes
        self._segment_bytes = min(max(max_bytes // _SEGMENTS, _LEAST_SEGMENT_BYTES), _MOST_SEGMENT_BYTES)
        self._segment: _Segment | None = None
        self._start: Start | None = None
        self._others_bytes = 0
        self.records = 0
        self.files = 0

    @property
    def path(self) -> Path | None:
        """The file that is written now."""
        return None if self._segment is None else self._segment.path

    def add(self, record: Record) -> None:
        """Write a record; the first is a :class:`Start`."""
        if isinstance(record, Start):
            self._start = record
        if self._start is not None and (self._segment is None or self._may_end(record)):
            self.close()
            self._make_room(self._segment_bytes)
            self._segment = _Segment(self.folder, self._start)
            self.files += 1
        if self._segment is not None and not isinstance(record, Start):
            self._segment.add(record)
            self.records += 1

    def flush(self) -> None:
        """Hand what is compressed to the system, and keep within the room."""
        if self._segment is not None:
            self._segment.flush()
            if self._others_bytes + self._segment.size_bytes > self._max_bytes:
                self._make_room(self._segment.size_bytes)

    def close(self) -> None:
        """End the file that is written now."""
        if self._segment is not None:
            segment, self._segment = self._segment, None
            segment.close()

    def abandon(self) -> None:
        """Leave the file as it is: there is no room for its end."""
        if self._segment is not None:
            segment, self._segment = self._segment, None
            segment.abandon()

    def _may_end(self, record: Record) -> bool:
        """Tell whether a file is large enough, and another may begin here: best where no frame is under way."""
        if self._segment is None or not isinstance(record, Snapshot):
            return False
        enough_bytes = self._segment_bytes * (1.0 if record.under_way == 0 else _MOST_OVER)
        return self._segment.size_bytes >= enough_bytes

    def _make_room(self, needed_bytes: int) -> None:
        """Remove the oldest files beside the present one, so that it may have so many bytes."""
        sizes = {path: path.stat().st_size for path in segments(self.folder) if path != self.path}
        while sizes and sum(sizes.values()) + needed_bytes > self._max_bytes:
            oldest = next(iter(sizes))
            oldest.unlink(missing_ok=True)
            del sizes[oldest]
        self._others_bytes = sum(sizes.values())


def segments(folder: Path) -> list[Path]:
    """List the files of a folder's recordings, oldest first."""
    return sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}"))


class _Segment:
    def __init__(self, folder: Path, start: Start) -> None:
        from mcap.writer import CompressionType, Writer

        name = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%f")
        self.path = folder / f"{_PREFIX}{name}{_SUFFIX}"
        self._offset_ns = start.utc_offset_ns
        self._file: IO[bytes] = self.path.open("xb")
        self._writer: Writer = Writer(self._file, chunk_size=CHUNK_BYTES, compression=CompressionType.ZSTD)
        self._writer.start(library=f"devit {start.software}")
        self._channels = {kind: self._channel(name, kind) for name, kind in CHANNELS.items()}
        self._encode = msgspec.json.Encoder().encode
        self.size_bytes = 0
        self.add(start)

    def add(self, record: Record) -> None:
        time_ns = record.at_ns + self._offset_ns
        self._writer.add_message(self._channels[type(record)], time_ns, self._encode(record), time_ns)

    def flush(self) -> None:
        self._file.flush()
        self.size_bytes = os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        try:
            self._writer.finish()  # type: ignore[no-untyped-call]
        finally:
            self._file.close()

    def abandon(self) -> None:
        with suppress(OSError):  # the buffer does not fit either
            self._file.close()

    def _channel(self, name: str, kind: type[Record]) -> int:
        schema = self._writer.register_schema(f"devit.{kind.__name__}", "jsonschema", json_schema(kind))
        return self._writer.register_channel(f"/devit/{name}", "json", schema)


def json_schema(kind: type[Record]) -> bytes:
    """Describe a record's JSON, with its definitions in place: viewers read an object at the top."""
    (schema,), definitions = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    top = definitions.pop(schema["$ref"].rpartition("/")[2])
    return msgspec.json.encode({"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "$defs": definitions})


class Recording:
    """The records of a file, or of all files in a folder, as one stream."""

    def __init__(self, path: Path) -> None:
        """Find the files; an :class:`InputError` says that there are none."""
        self.paths = segments(path) if path.is_dir() else [path]
        if not self.paths:
            raise InputError(f"{path}: expected recordings of devit record, found none: name the folder given as --out")
        self.damage: list[str] = []
        """What could not be read, a line for each file."""

    def __iter__(self) -> Iterator[Record]:
        """Give the records in the order in which the node told them.

        Raises:
            InputError: A file is no recording of a node, or cannot be read at all.
        """
        for path in self.paths:
            yield from self._of_file(path)

    def _of_file(self, path: Path) -> Iterator[Record]:
        from mcap.exceptions import McapError
        from mcap.records import Chunk
        from mcap.stream_reader import StreamReader
        from zstandard import ZstdError

        channels = _Channels()
        try:
            with path.open("rb") as file:
                reader = StreamReader(file, emit_chunks=True, validate_crcs=True, record_size_limit=_MOST_RECORD_BYTES)
                for found in reader.records:
                    if isinstance(found, Chunk):
                        yield from channels.read(found)
        except OSError as err:
            raise InputError(f"{path}: cannot be read: {err.strerror}") from err
        except msgspec.MsgspecError as err:
            text = f"{path}: expected a recording of this version: {err}: use the release of devit that made it"
            raise InputError(text) from err
        except (McapError, ZstdError, struct.error, ValueError, KeyError) as err:
            if channels.count:
                self.damage.append(f"{path}: cut off or damaged behind {channels.count} records")
                return
            raise InputError(f"{path}: expected an MCAP file of devit record, found none that can be read") from err
        if not channels.count:
            what = f"another one's, with {channels.foreign}" if channels.foreign else "an empty one"
            raise InputError(f"{path}: expected an MCAP file of devit record, found {what}")


class _Channels:
    """Reads the messages of chunks: record by record, the library takes ten times as long."""

    def __init__(self) -> None:
        self._decoders = {f"/devit/{name}": msgspec.json.Decoder(kind).decode for name, kind in CHANNELS.items()}
        self._by_id: dict[int, Callable[[memoryview], Record]] = {}
        self.foreign = ""
        """A topic that is none of ours."""
        self.count = 0

    def read(self, chunk: Chunk) -> Iterator[Record]:
        from mcap.data_stream import ReadDataStream
        from mcap.opcode import Opcode
        from mcap.records import Channel
        from mcap.stream_reader import get_chunk_data_stream

        stream, size_bytes = get_chunk_data_stream(chunk, validate_crc=True)
        view, at = memoryview(stream.read(size_bytes)), 0
        while at < size_bytes:
            opcode, length = _RECORD.unpack_from(view, at)
            start, at = at + _RECORD.size, at + _RECORD.size + length
            if opcode == Opcode.MESSAGE:
                decode = self._by_id.get(_MESSAGE.unpack_from(view, start)[0])
                if decode is not None:
                    yield decode(view[start + _MESSAGE.size : at])
                    self.count += 1
            elif opcode == Opcode.CHANNEL:
                channel = Channel.read(ReadDataStream(io.BytesIO(view[start:at])))
                if channel.topic in self._decoders:
                    self._by_id[channel.id] = self._decoders[channel.topic]
                else:
                    self.foreign = channel.topic
