"""``profile`` and ``devit profile``: what they take and what they print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from devit_contract.service import terminal
from devit_profiling.calibrate.cli import calibrate
from devit_profiling.compare_cli import compare
from devit_profiling.log.cli import parse
from devit_profiling.sweep.cli import sweep

if TYPE_CHECKING:
    from devit_contract.service.progress import Progress
    from devit_profiling.figures.analysis import Report
    from devit_profiling.record.record import Plan

app = typer.Typer(invoke_without_command=True, no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(parse)
app.command()(compare)
app.command()(calibrate)
app.command()(sweep)


@app.callback()
def profile(
    ctx: typer.Context,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Devices of the fleet file, comma separated; or local: this machine, without a node.",
        ),
    ] = None,
    fleet: Annotated[Path, typer.Option(metavar="PATH", help="Fleet file.")] = Path("fleet.toml"),
    key: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Client's secret key file; none without encryption.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Take a quick look: all devices together, 5 s idle, one window, 20 s in all."),
    ] = False,
    duration_s: Annotated[
        float | None, typer.Option("--duration", metavar="S", help="Length of a window in seconds (default: 10).")
    ] = None,
    windows: Annotated[
        int | None, typer.Option(metavar="N", help="Windows per scenario (default: 5; quick: 1).")
    ] = None,
    idle_s: Annotated[
        float | None,
        typer.Option("--idle", metavar="S", help="Length of an idle phase in seconds (default: 10; quick: 5)."),
    ] = None,
    settle_s: Annotated[
        float | None,
        typer.Option("--settle", metavar="S", help="Rest before an idle phase in seconds (default: 3; quick: 0)."),
    ] = None,
    warm_up_s: Annotated[
        float | None, typer.Option("--warm-up", metavar="S", help="Least time of the warm-up in seconds (default: 3).")
    ] = None,
    interval_ms: Annotated[
        int | None, typer.Option(metavar="MS", help="Sampling period in milliseconds (default: 100).")
    ] = None,
    in_flight: Annotated[
        int | None,
        typer.Option(metavar="N", help="Requests under way at once (default: 1, latency without queueing)."),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="HZ|max",
            help="Requests per second, sent whatever has been answered, latency counted from when each was due; max: "
            "as many as the cell takes (default: an answer makes the next request due).",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE",
            help="Run the bundle's undivided model on this device too, to compare: devit build --baseline makes it.",
        ),
    ] = None,
    sustained_min: Annotated[
        float | None,
        typer.Option(
            "--sustained",
            metavar="MIN",
            help="Repeat the windows of all devices together until the temperature settles, at most so many minutes.",
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --devices local: bundle whose engine runs here (default: none runs)."),
    ] = None,
    submodel: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="With --bundle: which submodel runs (default: 0).")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --bundle: engine store (default: ~/.cache/devit/engines).")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Picture file or folder to send; may be repeated (default: random images)."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the runs.")] = Path("runs"),
    calibrations: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder with calibrations, NAME.json each (default: ~/.config/devit/calibrations).",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on standard output.")] = False,
    from_run: Annotated[
        Path | None,
        typer.Option("--from-log", "--from", metavar="RUNDIR", help="Make a run's report again from its raw files."),
    ] = None,
) -> None:
    """Measure latency and energy of a running cell, each named device alone and all together.

    Writes a folder of raw files with report.json and report.html, one page that opens offline.

    --devices local measures this machine by itself: its idle power, or with --bundle an engine back to back.

    A device without a power sensor is measured in milliseconds alone. Ctrl-C, once, ends the run early and keeps what
    was measured.
    """
    from devit_profiling.report.report import write_report

    if ctx.invoked_subcommand is not None:
        if devices is not None or from_run is not None:
            raise typer.BadParameter(f"give --devices or --from-log to measure, or {ctx.invoked_subcommand}, not both")
        return
    if (devices is None) == (from_run is None):
        raise typer.BadParameter("give --devices NAME,... to measure, or --from-log RUNDIR to make a report again")
    if from_run is not None:
        _show(from_run, write_report(from_run), as_json=as_json)
        return
    from devit_profiling.load.local_profile import LocalEngine, measure_local, planned_s
    from devit_profiling.load.measure import raise_if_cut_short
    from devit_profiling.record.calibration import default_folder
    from devit_profiling.record.record import LOCAL

    names = [name.strip() for name in (devices or "").split(",")]
    changes: dict[str, float | int | str | None] = {
        "duration_s": duration_s,
        "windows": windows,
        "idle_s": idle_s,
        "settle_s": settle_s,
        "warm_up_s": warm_up_s,
        "interval_ms": interval_ms,
        "in_flight": in_flight,
        "undivided": baseline,
        "sustained_s": 60 * sustained_min if sustained_min is not None else None,
    }
    is_local = names == [LOCAL]
    of_cell: dict[str, object] = {
        "--rate": rate,
        "--in-flight": in_flight,
        "--baseline": baseline,
        "--images": images,
        "--key": key,
    }
    of_cell["--sustained"] = sustained_min
    of_local = {"--bundle": bundle, "--submodel": submodel, "--store": store}
    if LOCAL in names and not is_local:
        raise typer.BadParameter("local stands alone: this machine is measured by itself, without the cell")
    if wrong := [name for name, value in (of_cell if is_local else of_local).items() if value is not None]:
        raise typer.BadParameter(f"{', '.join(wrong)}: {'not with' if is_local else 'only with'} --devices local")
    if bundle is None and (submodel is not None or store is not None):
        raise typer.BadParameter("--submodel and --store belong to --bundle DIR")
    if quick and sustained_min is not None:
        raise typer.BadParameter("give --quick or --sustained, not both: a quick look is one window")
    if rate is not None:
        if in_flight is not None:
            raise typer.BadParameter("give --rate or --in-flight, not both: a rate does not wait for answers")
        changes |= _load_of(rate, fleet)
    plan = _plan(quick, {name: value for name, value in changes.items() if value is not None})
    with terminal.progress_bar(quiet=as_json) as progress:
        if is_local:
            engine = LocalEngine(bundle, submodel or 0, store) if bundle is not None else None
            _announce(planned_s(plan, engine))
            folder, report = measure_local(engine, plan, out, progress, calibrations=calibrations or default_folder())
        else:
            folder, report = _measure(fleet, key, names, images or [], plan, out, progress, calibrations)
    _show(folder, report, as_json=as_json)
    raise_if_cut_short(report)


def main() -> NoReturn:
    """Run as a console script."""
    terminal.run(app, "profile")


def _load_of(rate: str, fleet: Path) -> dict[str, float | int]:
    """Read ``--rate``: ``max`` keeps every device's credit used, and as much again waiting at the node."""
    from devit_contract.artefacts.fleet import load_fleet

    if rate == "max":
        return {"in_flight": 2 * load_fleet(fleet).serving.credit}
    try:
        return {"rate_hz": float(rate)}
    except ValueError as err:
        raise typer.BadParameter(f"--rate: expected requests per second, or max, found {rate!r}") from err


def _plan(quick: bool, changes: dict[str, float | int | str]) -> Plan:
    import msgspec

    from devit_profiling.record.record import QUICK, Plan

    return msgspec.structs.replace(QUICK if quick else Plan(), **changes)


def _measure(
    fleet_path: Path,
    key: Path | None,
    names: Sequence[str],
    images: Sequence[Path],
    plan: Plan,
    out: Path,
    progress: Progress,
    calibrations: Path | None,
) -> tuple[Path, Report]:
    from devit_contract.artefacts.fleet import load_fleet
    from devit_contract.artefacts.keys import load_keys
    from devit_contract.wire.client import Client
    from devit_profiling.load.cell_run import planned_s
    from devit_profiling.load.images import load_pictures, random_pictures
    from devit_profiling.load.measure import measure_cell
    from devit_profiling.record.calibration import default_folder

    fleet = load_fleet(fleet_path)
    devices = [fleet.find_device(name) for name in names]  # a wrong name is told before anything is connected
    pictures = load_pictures(images) if images else None
    with Client.of_fleet(fleet, load_keys(key) if key is not None else None) as client:
        if pictures is None:
            pictures = random_pictures(client.status().image_shape)
        _announce(planned_s(devices, plan))
        return measure_cell(client, fleet, names, pictures, plan, out, progress, calibrations or default_folder())


def _announce(duration_s: float) -> None:
    """Say before it starts how long it will take, and when it ends."""
    from datetime import datetime, timedelta

    from devit_profiling.report.text import duration_text

    end = datetime.now() + timedelta(seconds=duration_s)
    typer.echo(f"this takes about {duration_text(duration_s)}, until {end:%H:%M:%S} local time", err=True)


def _show(folder: Path, report: Report, *, as_json: bool) -> None:
    import textwrap

    from devit_profiling.report.report import HTML_FILE
    from devit_profiling.report.text import (
        PAPER,
        SUMMARY_HEADER,
        against_undivided_text,
        calibration_notes,
        doubts,
        legend,
        pace_text,
        summary_rows,
    )
    from devit_profiling.report.thermal_text import HEAT_HEADER, heat_rows, heat_text, heat_title

    if as_json:
        terminal.print_json(report)
        return
    kind = "Quick look" if report.is_quick else "Profile"
    title = f"{kind}: SIMULATED power, no measurement of a board" if report.is_simulated else kind
    terminal.print_table(title, SUMMARY_HEADER, summary_rows(report), numbers=(3, 4, 5, 6))
    typer.echo(textwrap.fill(legend(report), 80))
    if heat := heat_rows(report):
        terminal.print_table(heat_title(report), HEAT_HEADER, heat, numbers=(2, 3, 5, 6))
        typer.echo(f"{heat_text(report)}.")
    if report.against_undivided is not None:
        typer.echo(f"{against_undivided_text(report)}.\n{PAPER}.")
    for scenario in report.scenarios:
        if scenario.pace is not None:
            typer.echo(f"{scenario.name}: {pace_text(scenario)}")
    for note in (*calibration_notes(report), *doubts(report)):
        typer.echo(f"note: {note}")
    typer.echo(f"report: {folder / HTML_FILE}")
