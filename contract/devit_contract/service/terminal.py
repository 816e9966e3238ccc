"""The terminal of every command: one line for an error, a bar for long work, a table or JSON for results.

Beside the ``cli`` modules this is the only one that imports typer or rich.
"""

from __future__ import annotations

import errno
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TextIO

from devit_contract.errors import ConfigurationError, DeviceLostError, DevitError, SourceLostError
from devit_contract.extras import missing_package
from devit_contract.printable import fit_to_store, printable, printable_line
from devit_contract.service.progress import Progress, no_progress

if TYPE_CHECKING:
    import typer

_AROUND = 40
"""Characters shown on both sides of one that cannot be stored."""
_WHOLE_WORD = 24
"""Longest word that a table keeps whole; a path may be broken."""
_REFUSALS = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Failures that any given path and any output may have; other ones are named by the code that opens it, or are bugs."""


def run(app: typer.Typer, name: str) -> NoReturn:
    """Run a command line as :func:`run_program` does; ``name`` is what its usage line calls it."""
    run_program(lambda: app(prog_name=name))


def run_program(program: Callable[[], None]) -> NoReturn:
    """Run a command line to its exit code.

    0 done, 1 a named failure (one line on stderr), 2 wrong usage, 70 the GPU or a camera is lost to this process (one
    line too): the same command in a new one may succeed, so a service manager should restart it; 78 a service's
    configuration is invalid (one line), and a restart would not help; 130 Ctrl-C or SIGTERM. Every other exception is
    a bug and keeps its traceback, but for what the machine refuses (see :func:`_refusal`) and a package that an extra
    would bring.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # until now it ended the process, see devit_pipeline.entry
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _fill_standard_streams()
    try:
        try:
            program()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has gone
        _discard(sys.stdout)
        sys.exit(1)
    except DevitError as err:
        _print_error(str(err))
        # EX_SOFTWARE and EX_CONFIG of sysexits.h, so that a unit file can tell them from 1.
        is_lost = isinstance(err, DeviceLostError | SourceLostError)
        sys.exit(70 if is_lost else 78 if isinstance(err, ConfigurationError) else 1)
    except UnicodeEncodeError as err:
        part = err.object[max(0, err.start - _AROUND) : err.end + _AROUND]
        _print_error(f"{part}: expected UTF-8, which files and messages hold: rename that file or folder")
        sys.exit(1)
    except (ImportError, OSError) as err:
        text = missing_package(err) if isinstance(err, ImportError) else _refusal(err)
        if not text:
            raise
        _print_error(text)
        sys.exit(1)
    sys.exit(0)


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[Progress]:
    """Show stages on stderr while the block runs: bars on a terminal, else a line for each that is done.

    With ``quiet`` nothing is shown.
    """
    if quiet:
        yield no_progress
        return
    if not sys.stderr.isatty():
        yield _line_per_stage()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, int] = {}

        def report(stage: str, done: float, total: float, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note=note)
            bars.update(tasks[stage], completed=done, total=total, note=note)  # type: ignore[arg-type]

        yield report


def tell(text: str) -> None:
    """Print one line on stderr, for the user who waits."""
    _echo(printable_line(text), err=True)


@contextmanager
def on_interrupt(advice: str) -> Iterator[None]:
    """Say what to run next where Ctrl-C or SIGTERM ends the block."""
    try:
        yield
    except KeyboardInterrupt:
        _echo(f"stopped: {advice}", err=True)
        raise


def print_next(*command: str | Path, where: str = "") -> None:
    """Print the command that follows in the pipeline, ready to paste."""
    _echo(f"next{where}: {shlex.join(map(str, command))}")


def print_json(value: object, *, indent: int = 2) -> None:
    """Print a value as JSON on stdout, paths as text; ``indent`` 0 keeps it on one line."""
    import msgspec

    plain = fit_to_store(value, enc_hook=os.fspath)
    _echo(msgspec.json.format(msgspec.json.encode(plain), indent=indent))


def print_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()
) -> None:
    """Print a table that fits 80 columns on stdout; the columns in ``numbers`` are right-aligned."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 80, highlight=False, markup=False)
    table = Table(title=printable(title) or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    rows = [["\n".join(map(printable, cell.split("\n"))) for cell in row] for row in rows]
    room = console.width - (3 * len(header) - 1)  # three characters between two columns, one at each edge
    widths = _column_widths(list(zip(header, *rows, strict=True)), room)
    for column, (name, width) in enumerate(zip(header, widths, strict=True)):
        table.add_column(name, justify="right" if column in numbers else "left", overflow="fold", width=width)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _column_widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Narrow the widest columns until all fit, those first that break no word."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, cells)) for cells in columns]
    words = [max((cell_len(word) for cell in cells for word in cell.split()), default=0) for cells in columns]
    words = [min(word, _WHOLE_WORD) for word in words]
    while sum(widths) > max(room, len(widths)):
        wide = [place for place, width in enumerate(widths) if width > words[place]] or range(len(widths))
        widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def _echo(text: str | bytes, *, err: bool = False) -> None:
    stream = sys.stderr if err else sys.stdout
    if isinstance(text, bytes):  # UTF-8, whatever the terminal's encoding is
        stream.flush()
        stream.buffer.write(text + b"\n")
    else:
        stream.write(f"{text}\n")
    stream.flush()


def _print_error(text: str) -> None:
    try:
        _echo(f"error: {printable_line(text)}", err=True)
    except OSError:  # stderr is closed
        _discard(sys.stderr)


def _fill_standard_streams() -> None:
    """Open the streams that the caller has closed, or the next opened file would take their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - stays open as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is


def _refusal(error: OSError) -> str:
    """Describe in one line what the machine refused, if it did: a path, or output that cannot be written."""
    if error.errno not in _REFUSALS:
        return ""
    if error.filename is not None:
        return f"{error.filename}: cannot be used ({error.strerror}): choose another path"
    _discard(sys.stdout)
    return f"the output cannot be written ({error.strerror}): free some room, or send it elsewhere"


def _discard(stream: TextIO) -> None:
    """Discard the rest of its buffer, which would fail once more when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _line_per_stage() -> Progress:
    shown: set[str] = set()

    def report(stage: str, done: float, total: float, note: str = "") -> None:
        if done >= total and stage not in shown:
            shown.add(stage)
            _echo(f"{stage}: done{', ' if note else ''}{note}", err=True)

    return report


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
