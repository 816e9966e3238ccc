"""The readings of a log as JSON lines and as a table of CSV, for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from devit_profiling.log.reader import LogReader, Reading

_PLAIN = ("stamp", "ram_used_mb", "ram_total_mb", "swap_used_mb", "emc_percent", "gpu_percent")


def json_lines(reader: LogReader) -> Iterator[str]:
    """Give one object a sample: its fields, the total and what makes it; ``null`` where the line does not say.

    Raises:
        InputError: The log has no sample.
    """
    for reading in reader:
        board, has_total = reader.board, reading.total_mw is not None
        yield msgspec.json.encode(
            {
                "line": reading.line,
                **msgspec.structs.asdict(reading.sample),
                "total_mw": reading.total_mw,
                "total_rails": reader.total_rails if has_total else (),
                "scope": board.scope if board is not None and has_total else None,
                "board": board.key if board is not None else None,
                "is_board_guessed": reader.is_board_guessed,
            }
        ).decode()


def csv_table(readings: Sequence[Reading]) -> Iterator[str]:
    """Give a header and a row a sample, without line ends; a cell is empty where the line does not say.

    The columns are those of all samples together: a zone may appear and vanish, as its part is powered on and off.
    """
    rails = _names(reading.sample.rails_mw for reading in readings)
    zones = _names(reading.sample.temperatures_c for reading in readings)
    yield _row(["line", *_PLAIN, "total_mw", *(f"{rail}_mw" for rail in rails), *(f"{zone}_c" for zone in zones)])
    for reading in readings:
        sample = reading.sample
        yield _row(
            [
                reading.line,
                *(getattr(sample, field) for field in _PLAIN),
                reading.total_mw,
                *(sample.rails_mw.get(rail) for rail in rails),
                *(sample.temperatures_c.get(zone) for zone in zones),
            ]
        )


def _names(mappings: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for mapping in mappings for name in mapping))


def _row(cells: Sequence[str | float | None]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()
