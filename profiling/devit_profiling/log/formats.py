"""The three forms in which ``profile parse`` prints a log: a summary, JSON lines and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from statistics import fmean, median

import msgspec

from devit_profiling.log.reader import LogReader, Reading
from devit_profiling.sensor.sample import Sample

_PLAIN_COLUMNS = ("stamp", "ram_used_mb", "ram_total_mb", "swap_used_mb", "emc_percent", "gpu_percent")


class Spread(msgspec.Struct, frozen=True):
    """What the samples show of one quantity."""

    name: str
    unit: str
    samples: int
    least: float
    mean: float
    """Of the samples, each with the same weight."""
    most: float


class SamplingPeriod(msgspec.Struct, frozen=True):
    """How far apart the samples are, by their own stamps of whole seconds."""

    period_s: float
    error_s: float
    """What a second more or less between the first and the last stamp would change."""
    pauses: int
    """Places where the stamps go back, or leave out more than three usual periods; they do not count."""


class LogSummary(msgspec.Struct, frozen=True):
    """A log at a glance."""

    samples: int
    is_simulated: bool
    period: SamplingPeriod | None
    """``None`` without stamps, or where they all show the same second."""
    total: Spread | None
    rails: tuple[Spread, ...]
    others: tuple[Spread, ...]
    """Load of the GPU, memory, temperatures."""


def summarise(readings: Iterable[Reading]) -> LogSummary:
    """Sum up the readings of one log, in one pass."""
    totals, rails, others = _Columns(), _Columns(), _Columns()
    stamps: list[datetime] = []
    samples = 0
    is_simulated = False
    for reading in readings:
        samples += 1
        sample = reading.sample
        is_simulated = is_simulated or sample.is_simulated
        totals.add("total", "mW", reading.total_mw)
        for rail, power_mw in sample.rails_mw.items():
            rails.add(rail, "mW", power_mw)
        others.add("GPU load", "%", sample.gpu_percent)
        others.add("memory in use", "MB", sample.ram_used_mb)
        for zone, degrees_c in sample.temperatures_c.items():
            others.add(zone, "C", degrees_c)
        stamp = _time(sample)
        if stamp is not None:
            stamps.append(stamp)
    total = next(iter(totals.spreads()), None)
    return LogSummary(samples, is_simulated, sampling_period(stamps), total, rails.spreads(), others.spreads())


def sampling_period(stamps: list[datetime]) -> SamplingPeriod | None:
    """Work out the period from stamps of whole seconds, several of which may be equal.

    >>> sampling_period([datetime(2026, 1, 1, 0, 0, second // 2) for second in range(101)])
    SamplingPeriod(period_s=0.5, error_s=0.01, pauses=0)
    """
    steps_s = [(later - earlier).total_seconds() for earlier, later in pairwise(stamps)]
    rising_s = [step_s for step_s in steps_s if step_s > 0]
    if not rising_s:
        return None
    longest_s = 3 * median(rising_s)
    whole_s = [step_s for step_s in steps_s if 0 <= step_s <= longest_s]
    return SamplingPeriod(period_s=fmean(whole_s), error_s=1 / len(whole_s), pauses=len(steps_s) - len(whole_s))


def json_lines(reader: LogReader) -> Iterator[str]:
    """Give one object per sample: its fields, the total and its rails; ``null`` where the line does not say.

    Raises:
        InputError: The log has no sample.
    """
    for reading in reader:
        board, has_total = reader.total.board, reading.total_mw is not None
        yield msgspec.json.encode(
            {
                "line": reading.line,
                **msgspec.structs.asdict(reading.sample),
                "total_mw": reading.total_mw,
                "total_rails": board.total_rails if board is not None and has_total else (),
                "scope": board.scope if board is not None and has_total else None,
                "board": board.key if board is not None else None,
                "is_board_guessed": reader.total.is_guessed,
            }
        ).decode()


def csv_table(readings: Sequence[Reading]) -> Iterator[str]:
    """Give a header and a row per sample, without line ends; a cell is empty where the line does not say.

    The columns are those of all samples together: a zone comes and goes as its part of the chip is powered on and off.
    """
    rails = _names(reading.sample.rails_mw for reading in readings)
    zones = _names(reading.sample.temperatures_c for reading in readings)
    yield _csv_row(
        ["line", *_PLAIN_COLUMNS, "total_mw", *(f"{rail}_mw" for rail in rails), *(f"{zone}_c" for zone in zones)]
    )
    for reading in readings:
        sample = reading.sample
        yield _csv_row(
            [
                reading.line,
                *(getattr(sample, field) for field in _PLAIN_COLUMNS),
                reading.total_mw,
                *(sample.rails_mw.get(rail) for rail in rails),
                *(sample.temperatures_c.get(zone) for zone in zones),
            ]
        )


class _Columns(dict[tuple[str, str], list[float]]):
    """Values by name and unit, in the order in which they came up."""

    def add(self, name: str, unit: str, value: float | None) -> None:
        if value is not None:
            self.setdefault((name, unit), []).append(value)

    def spreads(self) -> tuple[Spread, ...]:
        return tuple(
            Spread(name, unit, len(values), min(values), fmean(values), max(values))
            for (name, unit), values in self.items()
        )


def _time(sample: Sample) -> datetime | None:
    if sample.stamp is None:
        return None
    try:
        return datetime.strptime(sample.stamp, "%m-%d-%Y %H:%M:%S")
    except ValueError:
        return None  # a date that no calendar has: the board's clock, or another format


def _names(mappings: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for mapping in mappings for name in mapping))


def _csv_row(cells: Sequence[str | float | None]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()
