"""A log of ``tegrastats`` or ``hwmon-power``, in a file or a pipe: its samples with the total of their board."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from devit_contract.errors import InputError
from devit_profiling.log.text import MAX_LINE_CHARS
from devit_profiling.sensor.board_table import Board
from devit_profiling.sensor.boards import BoardTotal
from devit_profiling.sensor.sample import Sample
from devit_profiling.sensor.sensor_lines import note_of, parse_sensor_line

_SHOWN_CHARS = 30


class Reading(msgspec.Struct, frozen=True):
    """One sample of a log."""

    line: int
    """Number of its line, from 1."""
    sample: Sample
    total_mw: int | None
    """``None`` where the board is not known, or a rail of its rule is missing."""


class LogReader:
    """Gives the readings of a log in one pass; its attributes are of the lines read so far."""

    def __init__(self, name: str, lines: Iterable[str], board: Board | None = None) -> None:
        """Keep the lines, with their line ends, so that a last line that was cut off is seen; nothing is read yet.

        The total is made by the board's rule; without a board, by that of the first one that a sample fits.
        """
        self.total = BoardTotal(board=board)
        self.unparsed_lines = 0
        """Lines with text that are no samples."""
        self.first_unparsed = ""
        """Where the first of them is, why it is none, and how it begins."""
        self._name = name
        self._lines = lines

    def __iter__(self) -> Iterator[Reading]:
        """Read to the end.

        Raises:
            InputError: There was no sample.
        """
        samples = 0
        for number, line in enumerate(self._lines, 1):
            sample = parse_sensor_line(line)
            if sample is not None:
                samples += 1
                yield Reading(number, sample, self.total.add(sample))
            elif line.strip() and note_of(line) is None:
                self.unparsed_lines += 1
                self.first_unparsed = self.first_unparsed or _why_unparsed(number, line)
        if not samples:
            first = f" (the first: {self.first_unparsed})" if self.first_unparsed else ""
            raise InputError(
                f"{self._name}: expected lines of tegrastats (RAM 1697/7620MB ...), found "
                f"{self.unparsed_lines} others{first}: record some with tegrastats --logfile FILE"
            )


def _why_unparsed(number: int, line: str) -> str:
    text = line.strip()
    if "\0" in text or "\ufffd" in text:
        why = "is no text in UTF-8 or UTF-16"
    elif len(line) >= MAX_LINE_CHARS:
        why = f"is longer than {MAX_LINE_CHARS} characters"
    else:
        why = "has no RAM 1697/7620MB"
    return f"line {number} {why}: {text[:_SHOWN_CHARS]!r}{'...' if len(text) > _SHOWN_CHARS else ''}"
