"""``hwmon-power``: prints the power of a Jetson's rails from its monitor chips, faster than ``tegrastats`` can.

It is a drop-in for ``tegrastats`` in ``agent.toml``: a child process that prints a line every ``--interval``
milliseconds until its reader closes. The lines' format is specified in ``sensor_lines.py``.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from devit_contract.errors import DevitError, EnergyError
from devit_profiling.sensor.hwmon_rails import PowerChips, RailReader, find_rails
from devit_profiling.sensor.sensor_lines import note_line, sample_line

_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STDOUT, _STDERR = 1, 2
_STATE = Path("/run/devit")
_MAX_LINE_BYTES = 4000


def main(argv: Sequence[str] | None = None) -> int:
    """Print lines until the reader closes, or SIGTERM, SIGINT or SIGHUP comes.

    Returns:
        0 when the reader has closed, 130 after a signal, 1 after a named failure.
    """
    options = _parser().parse_args(argv)
    # Blocked, they wait for `_pause`: none ends the process between changing a chip and restoring it.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    try:
        return _print_lines(options.root, options.interval, options.state, is_fast=options.fast_sensor)
    except BrokenPipeError:
        return 0
    except DevitError as err:
        with suppress(BrokenPipeError):
            os.write(_STDERR, f"error: {err}\n".encode())
        return 1


def _print_lines(root: Path, period_ms: int, state: Path, *, is_fast: bool) -> int:
    found = find_rails(root)
    if not found.rails:
        raise EnergyError(f"expected a power monitor chip below {root / 'sys/bus/i2c/drivers'}, {_why_none(found)}")
    with ExitStack() as stack:
        for note in (*found.notes, *_set_averaging(found, period_ms, state, stack, is_fast=is_fast)):
            _print(note_line(note))
        reader = stack.enter_context(RailReader(found.rails))
        return _sample(reader, period_ms, is_simulated=root != Path("/"))


def _set_averaging(found: PowerChips, period_ms: int, state: Path, stack: ExitStack, *, is_fast: bool) -> Sequence[str]:
    """Speed the chips up until the stack unwinds, with ``--fast-sensor``; else restore what a killed program left."""
    if not is_fast and not state.exists():
        return ()
    from devit_profiling.sensor.hwmon_averaging import (  # loads numpy: only where needed
        fast_averaging,
        restore_stale,
    )

    if is_fast:
        return stack.enter_context(fast_averaging(found.chips, period_ms, state))
    note = restore_stale(found.chips, state)
    return (note,) if note else ()


def _sample(reader: RailReader, period_ms: int, *, is_simulated: bool) -> int:
    period_ns = period_ms * 1_000_000
    due_ns = time.monotonic_ns()
    noted: set[str] = set()
    while not _pause(due_ns):
        time_ns, rails_mw = reader.read()
        for rail in reader.problems.keys() - noted:
            noted.add(rail)
            _print(note_line(f"{rail} is missing from some samples: {reader.problems[rail]}"))
        if not rails_mw:
            raise EnergyError(f"expected power of {', '.join(reader.problems)}, found none: {_first(reader)}")
        _print(sample_line(time_ns, rails_mw, is_simulated=is_simulated))
        due_ns = max(due_ns + period_ns, time.monotonic_ns())  # samples that are missed are not made up for
    return 130


def _pause(due_ns: int) -> bool:
    """Wait until the monotonic clock shows ``due_ns``; true if this process shall end."""
    left_s = max(0, due_ns - time.monotonic_ns()) / 1e9
    return signal.sigtimedwait(_ENDS, left_s) is not None


def _print(line: str) -> None:
    """Write a line, or none while the reader does not read: a full pipe must not hold up the end."""
    # poll(2): a pipe counts as writable when a whole page is free, and a line is shorter.
    if select.select((), (_STDOUT,), (), 0)[1]:
        os.write(_STDOUT, line.encode()[:_MAX_LINE_BYTES] + b"\n")


def _first(reader: RailReader) -> str:
    return next(iter(reader.problems.values()))


def _why_none(found: PowerChips) -> str:
    return "; ".join(found.notes) if found.notes else "found none: this is no Jetson, or its sensor is not on I2C"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hwmon-power", description="Print the power of a Jetson's rails from its monitor chips (INA3221)."
    )
    parser.add_argument(
        "--interval", type=_period, default=100, metavar="MS", help="period in milliseconds (default: %(default)s)"
    )
    parser.add_argument(
        "--fast-sensor",
        action="store_true",
        help="experimental, no board has run it: let the chips average no longer than the period; root only",
    )
    parser.add_argument(
        "--state",
        type=Path,
        default=_STATE,
        metavar="DIR",
        help="folder that keeps what --fast-sensor must restore, lost at a reboot (default: %(default)s)",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="where sys is looked for; the lines of any other folder say SIMULATED (default: %(default)s)",
    )
    return parser


def _period(text: str) -> int:
    value = int(text)
    if not 20 <= value <= 60_000:
        raise argparse.ArgumentTypeError(f"expected 20 to 60000, found {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
