"""``profile sweep``: measures this device in several power modes."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devit_contract.extras import require
from devit_contract.service import terminal

if TYPE_CHECKING:
    from devit_profiling.record.record import Plan
    from devit_profiling.sweep.sweep import SweepTarget
    from devit_profiling.sweep.verdict import Sweep


_Board = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which board this is, where its device tree does not say.")
]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as err:
        raise typer.BadParameter(f"expected numbers of power modes such as 0,1,2, found {text!r}") from err


def sweep(
    power_modes: Annotated[
        str | None, typer.Option(metavar="N,...", help="Power modes of this device, as nvpmodel numbers them.")
    ] = None,
    deadline_ms: Annotated[
        float | None, typer.Option(metavar="MS", min=0.0, help="Deadline that 99 of 100 inferences must keep.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(metavar="DIR", help="Bundle folder, built on this device.")] = None,
    submodel: Annotated[int, typer.Option(metavar="N", min=0, help="Which submodel runs.")] = 0,
    store: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Engine store (default: ~/.cache/devit/engines, of root).")
    ] = None,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="CPU threads of ONNX Runtime.")] = 1,
    engine: Annotated[
        str, typer.Option(metavar="CHOICE", help="built: what devit build made; busy:MS: a busy core instead.")
    ] = "built",
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of this device, to find its calibration.")] = "local",
    duration_s: Annotated[float, typer.Option("--duration", metavar="S", help="Length of a window.")] = 10.0,
    windows: Annotated[int, typer.Option(metavar="N", help="Windows in each mode.")] = 5,
    idle_s: Annotated[float, typer.Option("--idle", metavar="S", help="Length of an idle phase.")] = 10.0,
    settle_s: Annotated[float, typer.Option("--settle", metavar="S", help="Rest after a change of the mode.")] = 3.0,
    interval_ms: Annotated[int, typer.Option(metavar="MS", help="Sampling period.")] = 100,
    board: _Board = None,
    calibrations: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with calibrations (default: ~/.config/devit/calibrations)."),
    ] = None,
    state: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder that keeps the mode to restore after a killed sweep.")
    ] = Path("/var/lib/devit"),
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the runs.")] = Path("runs"),
    restore: Annotated[
        bool, typer.Option("--restore", help="Only restore the mode that a killed sweep has changed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON on standard output.")] = False,
) -> None:
    """Measure this device in several power modes, as root, and name the cheapest that keeps a deadline.

    Run it on the device itself. The mode before the sweep is restored at the end, after Ctrl-C too, and by the next
    start after a kill. Modes that need a reboot are left out and named.
    """
    from devit_engines.bench.child import engine_command
    from devit_profiling.record.calibration import default_folder
    from devit_profiling.record.record import Plan
    from devit_profiling.sensor.boards import board_of_key
    from devit_profiling.sweep.nvpmodel import NvpModel, restore_stale
    from devit_profiling.sweep.sweep import SweepTarget

    if note := restore_stale(NvpModel(), state):
        typer.echo(f"note: {note}", err=True)
    if restore:
        return
    if power_modes is None or deadline_ms is None or bundle is None:
        raise typer.BadParameter("give --power-modes, --deadline-ms and --bundle, or --restore alone")
    require("profile")
    numbers = _numbers(power_modes)
    command = engine_command(bundle, submodel, store, threads, engine)
    plan = Plan(settle_s=settle_s, idle_s=idle_s, duration_s=duration_s, windows=windows, interval_ms=interval_ms)
    choice = board_of_key(board).key if board is not None else "auto"
    folder = calibrations or default_folder()
    target = SweepTarget(name, submodel, command, NvpModel(), state, calibrations=folder, board_choice=choice)
    _measure(target, numbers, deadline_ms, plan, out, as_json=as_json)


def _measure(
    target: SweepTarget, modes: Sequence[int], deadline_ms: float, plan: Plan, out: Path, *, as_json: bool
) -> None:

    from devit_profiling.load.schedule import planned_s
    from devit_profiling.record.record import Scenario
    from devit_profiling.sweep.sweep import sweep as run_sweep

    _end_with_the_terminal()
    scenarios = [Scenario(f"mode {number}", 1 << target.submodel, target.name) for number in modes]
    typer.echo(f"{len(modes)} modes, about {planned_s(plan, scenarios) / 60:.1f} min", err=True)
    with terminal.progress_bar(quiet=as_json) as progress:
        folder, found = run_sweep(target, modes, deadline_ms, plan, out, progress)
    if as_json:
        terminal.print_json(found)
    else:
        show(folder, found)
    if not found.is_whole:
        typer.echo("interrupted: the figures cover the modes that were measured to their end", err=True)
        raise typer.Exit(130)


def show(folder: Path, found: Sweep) -> None:
    """Print a verdict for people."""
    from devit_profiling.sweep.verdict import SWEEP_HEADER, sweep_rows

    simulated = ": SIMULATED power, no measurement of a board" if found.is_simulated else ""
    title = f"Power modes of {found.device}{simulated}"
    terminal.print_table(title, SWEEP_HEADER, sweep_rows(found), numbers=(1, 2, 4, 5, 6))
    typer.echo(found.verdict)
    for line in found.refused:
        typer.echo(f"note: {line}")
    calibrated = "calibrated" if found.is_calibrated else "not calibrated"
    typer.echo(f"note: joules of {found.scope or 'no total'}, {calibrated}; back to back, one image at a time")
    typer.echo(f"note: {found.found} is restored")
    typer.echo(f"report: {folder / 'report.html'}")
    if found.cheapest is not None:
        terminal.print_next("sudo", "nvpmodel", "-m", str(found.cheapest))


def _end_with_the_terminal() -> None:
    """End the sweep at a lost connection as at Ctrl-C; under nohup it continues."""
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
