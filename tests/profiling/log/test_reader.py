"""Logs of tegrastats: their samples, totals, and what is no sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from devit_contract.errors import InputError
from devit_profiling.log.reader import LogReader
from devit_profiling.log.text import open_lines
from devit_profiling.sensor.board_table import AGX_ORIN, AGX_THOR, ORIN_NANO, TX2

DATA = Path(__file__).parents[2] / "data" / "tegrastats"
LINE = "RAM 1697/7620MB (lfb 42x4MB) tj@41C VDD_IN 4361mW/4361mW VDD_CPU_GPU_CV 483mW/483mW VDD_SOC 1373mW/1373mW"
BARE = "RAM 3276/7859MB CPU [1%@2031] VDD_IN 5297/5000 VDD_SYS_DDR 1241/1200"


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
    with pytest.raises(
        InputError, match=rf"^some.log: expected lines of tegrastats .*, found {found} others.*: record"
    ):
        list(LogReader("some.log", lines))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("Tue Jan 26 18:22:31 UTC 2021\n", "line 2 has no RAM 1697/7620MB: 'Tue Jan 26 18:22:31 UTC 2021'"),
        ("\x1b[31mred\x1b[0m\n", r"line 2 has no RAM 1697/7620MB: '\x1b[31mred\x1b[0m'"),
        ("R\0A\0M\0\n", r"line 2 is no text in UTF-8 or UTF-16: 'R\x00A\x00M\x00'"),
        ("x" * 70_000, f"line 2 is longer than 65536 characters: '{'x' * 30}'..."),
    ],
)
def test_the_first_line_that_is_no_sample_is_shown_with_the_reason(line: str, told: str) -> None:
    """Escaped: what a log holds is not for the terminal to obey."""
    reader = LogReader("log", ["\n", line, LINE, "another\n"])
    assert len(list(reader)) == 1
    assert (reader.unparsed_lines, reader.first_unparsed) == (2, told)
    with pytest.raises(InputError) as error:
        list(LogReader("log", ["\n", line]))
    assert f"found 1 others (the first: {told}): record" in str(error.value)


def test_named_thor_kit_without_its_rail_has_another_total_and_a_note() -> None:
    reader = LogReader(
        "log", ["RAM 1/125773MB VDD_GPU 0mW/0mW VDD_CPU_SOC_MSS 41mW/1mW VIN_SYS_5V0 42mW/1mW"], AGX_THOR
    )
    assert [reading.total_mw for reading in reader] == [83]
    assert "lack VIN" in reader.total.note


def test_log_of_the_power_chips_is_read_too_and_its_notes_are_not_unparsed_lines() -> None:
    lines = ["INA3221 note: VDD_SOC is left out\n", "INA3221 86400123456789ns VDD_IN 4361mW\n", "Tue Jan 26\n"]
    reader = LogReader("log", lines, ORIN_NANO)
    assert [(reading.line, reading.total_mw) for reading in reader] == [(2, 4361)]
    assert reader.unparsed_lines == 1
