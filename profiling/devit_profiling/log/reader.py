"""A log of ``tegrastats`` or ``hwmon-power``, in a file or a pipe: its samples with the total of their board."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from devit_contract.errors import InputError
from devit_profiling.sensor.board_table import Board
from devit_profiling.sensor.boards import BoardTotal
from devit_profiling.sensor.sample import Sample
from devit_profiling.sensor.sensor_lines import note_of, parse_sensor_line

STANDARD_INPUT = "-"
# Longer than any line of tegrastats; a file without line ends is read in pieces.
_MAX_LINE_BYTES = 1 << 16


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
        if not samples:
            raise InputError(
                f"{self._name}: expected lines of tegrastats (RAM 1697/7620MB ...), found "
                f"{self.unparsed_lines} others: record some with tegrastats --logfile FILE"
            )


@contextmanager
def open_lines(path: str) -> Iterator[Iterable[str]]:
    """Open a log, ``-`` for standard input, as lines with their line ends.

    Raises:
        InputError: It cannot be opened; or, later, be read.
    """
    if path == STANDARD_INPUT:
        yield _lines("standard input", sys.stdin.buffer)
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below; what the block itself raises is not ours to name
    except OSError as err:
        raise _unreadable(path, err) from err
    with file:
        yield _lines(path, file)


def _lines(name: str, file: BinaryIO) -> Iterator[str]:
    while True:
        try:
            line = file.readline(_MAX_LINE_BYTES)
        except OSError as err:
            raise _unreadable(name, err) from err
        if not line:
            return
        yield line.decode("utf-8", "replace")


def _unreadable(name: str, err: OSError) -> InputError:
    return InputError(f"{name}: expected a log of tegrastats, cannot be read ({err.strerror}): correct the path")
