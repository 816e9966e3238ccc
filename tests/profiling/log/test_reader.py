"""Logs of tegrastats read from files and pipes."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from devit_contract.errors import InputError
from devit_profiling.log.reader import LogReader, open_lines
from devit_profiling.sensor.board_table import AGX_ORIN, ORIN_NANO, TX2

DATA = Path(__file__).parents[2] / "data" / "tegrastats"
LINE = "RAM 1697/7620MB (lfb 42x4MB) tj@41C VDD_IN 4361mW/4361mW VDD_CPU_GPU_CV 483mW/483mW VDD_SOC 1373mW/1373mW"
BARE = "RAM 3276/7859MB CPU [1%@2031] VDD_IN 5297/5000 VDD_SYS_DDR 1241/1200"


def lines_of(path: Path) -> list[str]:
    with open_lines(str(path)) as lines:
        return list(lines)


def test_samples_come_with_the_number_of_their_line_and_their_total() -> None:
    with open_lines(str(DATA / "orin_nano_l4t36_02_load_log.txt")) as lines:
        reader = LogReader("log", lines)
        readings = list(reader)
    assert [reading.line for reading in readings] == list(range(1, 19))
    assert all(reading.total_mw == reading.sample.rails_mw["VDD_IN"] for reading in readings)
    assert (reader.unparsed_lines, reader.total.board, reader.total.is_guessed) == (1, ORIN_NANO, True)


def test_named_board_is_believed_and_not_called_guessed() -> None:
    reader = LogReader("log", [LINE], AGX_ORIN)
    assert [reading.total_mw for reading in reader] == [None]
    assert (reader.total.board, reader.total.is_guessed) == (AGX_ORIN, False)


def test_board_is_guessed_from_the_first_sample_that_shows_it() -> None:
    """The end of an older file may stand before the first whole line."""
    reader = LogReader("log", ["RAM 1/7620MB VDD_IN 40mW\n", LINE])
    assert [reading.total_mw for reading in reader] == [None, 4361]


def test_empty_lines_are_not_counted() -> None:
    reader = LogReader("log", ["Tue Jan 26 18:22:31 UTC 2021\n", "\n", LINE + "\n", " \n", "done"])
    assert len(list(reader)) == 1
    assert reader.unparsed_lines == 2


def test_last_line_that_was_cut_off_loses_its_last_value() -> None:
    whole, cut = [], []
    for lines, found in (([BARE + "\n"], whole), ([BARE[:-2]], cut)):
        found += [reading.sample for reading in LogReader("log", lines, TX2)]
    assert list(whole[0].rails_average_mw) == ["VDD_IN", "VDD_SYS_DDR"]
    assert list(cut[0].rails_average_mw) == ["VDD_IN"]
    assert cut[0].rails_mw == whole[0].rails_mw


@pytest.mark.parametrize("lines", [[], ["\n"], ["hello\n", "world\n"]])
def test_log_without_any_sample_is_an_error(lines: list[str]) -> None:
    found = sum(bool(line.strip()) for line in lines)
    with pytest.raises(InputError, match=rf"^some.log: expected lines of tegrastats .*, found {found} others: record"):
        list(LogReader("some.log", lines))


def test_file_is_read_with_its_line_ends_whatever_its_bytes_are(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\xff\xfe\r\n" + LINE.encode() + b"\r\nend")
    assert lines_of(path) == ["\ufffd\ufffd\r\n", LINE + "\r\n", "end"]


def test_file_without_line_ends_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(bytes(150_000))
    assert [len(piece) for piece in lines_of(path)] == [65536, 65536, 150_000 - 2 * 65536]


def test_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"one\ntwo")))
    assert lines_of(Path("-")) == ["one\n", "two"]


def test_log_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=rf"^{path}: expected a log of tegrastats, cannot be read \({why}"):
            lines_of(path)


def test_error_of_the_block_keeps_its_name(tmp_path: Path) -> None:
    """A closed pipe behind the command is none of the log's errors."""
    path = tmp_path / "log"
    path.write_text(LINE)
    with pytest.raises(BrokenPipeError), open_lines(str(path)):
        raise BrokenPipeError


def test_log_of_the_power_chips_is_read_too_and_its_notes_are_not_unparsed_lines() -> None:
    lines = ["INA3221 note: VDD_SOC is left out\n", "INA3221 86400123456789ns VDD_IN 4361mW\n", "Tue Jan 26\n"]
    reader = LogReader("log", lines, ORIN_NANO)
    assert [(reading.line, reading.total_mw) for reading in reader] == [(2, 4361)]
    assert reader.unparsed_lines == 1
