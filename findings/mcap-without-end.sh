#!/usr/bin/env bash
# mcap 1.6.0 in Python: `make_reader` finds no message in a file whose writer was killed, though the format is made to be
# read from the front and most chunks are whole. It looks for the index at the end first, and does not go back. The
# reader of streams gives all messages of the whole chunks, and then an error.
# Our answer: fusion/devit_fusion/record/file.py reads recordings as streams, and takes the end as that of the recording.
# Source: `SeekingReader` in mcap/reader.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mcap==1.6.0
cat >"$folder/read.py" <<'PY'
import io
from collections.abc import Callable, Iterable

from mcap.reader import make_reader
from mcap.records import Message
from mcap.stream_reader import StreamReader
from mcap.writer import Writer

file = io.BytesIO()
writer = Writer(file, chunk_size=1000)
writer.start()
channel = writer.register_channel("numbers", "json", 0)
for number in range(100):
    writer.add_message(channel, number, b'{"n": %d}' % number, number)
killed = file.getvalue()  # what a power cut leaves: every chunk that was written, and no end
writer.finish()


def count(read: Callable[[io.BytesIO], Iterable[object]], data: bytes) -> str:
    found = 0
    try:
        for _ in read(io.BytesIO(data)):
            found += 1
    except Exception:
        return f"{found} messages, then an error"
    return f"{found} messages"


for name, data in (("whole file", file.getvalue()), ("file of a killed writer", killed)):
    print(f"{name}: make_reader", count(lambda stream: make_reader(stream).iter_messages(), data))
    print(f"{name}: StreamReader", count(lambda s: (r for r in StreamReader(s).records if isinstance(r, Message)), data))
PY
found=$("$folder/venv/bin/python" "$folder/read.py")
printf '%s\n' "$found"
diff <(printf '%s\n' "$found") - <<'EXPECTED'
whole file: make_reader 100 messages
whole file: StreamReader 100 messages
file of a killed writer: make_reader 0 messages, then an error
file of a killed writer: StreamReader 77 messages, then an error
EXPECTED
