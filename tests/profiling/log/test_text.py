"""Files and pipes as lines of text, whatever wrote them."""

from __future__ import annotations

import codecs
import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from devit_contract.errors import InputError
from devit_profiling.log.text import LogText, open_lines

LINES = ["RAM 1697/7620MB tj@41.5C VDD_IN 4361mW/4361mW\n", "Grüße, \U0001f600\r\n", "\n", "RAM 1/2MB"]
TEXT = "".join(LINES)


def lines_of(path: Path | str) -> list[str]:
    with open_lines(str(path)) as lines:
        return list(lines)


@pytest.mark.parametrize(
    "pack",
    [
        lambda text: text.encode(),
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
        lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        lambda text: text.encode("utf-16-le"),
        lambda text: text.encode("utf-16-be"),
        lambda text: gzip.compress(text.encode()),
        lambda text: gzip.compress(text.encode("utf-16")),
        lambda text: gzip.compress(text[:60].encode()) + gzip.compress(text[60:].encode()),
    ],
    ids=[
        "UTF-8",
        "UTF-8 BOM",
        "UTF-16 LE BOM",
        "UTF-16 BE BOM",
        "UTF-16 LE",
        "UTF-16 BE",
        "gzip",
        "both",
        "appended gzip",
    ],
)
def test_lines_keep_their_ends_whatever_they_are_packed_in(pack: Callable[[str], bytes], tmp_path: Path) -> None:
    """By the content: a rotated log has any name."""
    path = tmp_path / "log.1"
    path.write_bytes(pack(TEXT))
    assert lines_of(path) == LINES


def test_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\xfa\xfb\r\nend")
    assert lines_of(path) == ["\ufffd\ufffd\r\n", "end"]
    path.write_bytes(b"")
    assert lines_of(path) == []


def test_file_without_line_ends_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(bytes(150_000))
    assert [len(piece) for piece in lines_of(path)] == [65536, 65536, 150_000 - 2 * 65536]


def test_a_packed_bomb_is_read_in_pieces_too(tmp_path: Path) -> None:
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress(bytes(10_000_000)))
    assert max(len(piece) for piece in lines_of(path)) == 65536


def test_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"one\ntwo")))
    assert lines_of("-") == ["one\n", "two"]


def test_a_line_of_a_pipe_comes_before_the_next_is_written() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as source, open(writing, "wb", buffering=0) as end:  # noqa: PTH123 - of descriptors
        lines = iter(LogText("pipe", source))
        for line in (b"one\n", b"two\n"):
            end.write(line)
            assert next(lines).encode() == line


def test_log_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=rf"^{path}: expected a log, cannot be read \({why}"):
            lines_of(path)


@pytest.mark.parametrize("content", [b"\x1f\x8b", b"\x1f\x8bnonsense", gzip.compress(b"one\n", mtime=0)[:12]])
def test_packed_file_without_a_line_is_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{path}: the gzip file is damaged or cut off \("):
        lines_of(path)


def test_error_of_the_block_keeps_its_name(tmp_path: Path) -> None:
    """A closed pipe behind the command is none of the log's errors."""
    path = tmp_path / "log"
    path.write_text(LINES[0])
    with pytest.raises(BrokenPipeError), open_lines(str(path)):
        raise BrokenPipeError
