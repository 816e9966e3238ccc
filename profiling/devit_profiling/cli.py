"""``profile`` and ``devit profile``: measures a running cell, or this machine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from devit_contract.extras import require
from devit_contract.service import terminal
from devit_contract.service.application_cli import Application, Group
from devit_contract.service.progress import Progress
from devit_profiling.calibrate.cli import calibrate
from devit_profiling.log.cli import parse
from devit_profiling.report.cli import Json, compare, report, show_report
from devit_profiling.sweep.cli import sweep

if TYPE_CHECKING:
    from devit_profiling.record.record import Plan, Scenario

_GROUP_OPTIONS = ("--help",)
_cell = partial(typer.Option, rich_help_panel="Cell")
_load = partial(typer.Option, rich_help_panel="Load")
_engine = partial(typer.Option, rich_help_panel="Engine")
_plan_option = partial(typer.Option, rich_help_panel="Plan")
_sampling = partial(typer.Option, rich_help_panel="Sampling")

Devices = Annotated[str, _cell(metavar="NAME,...", help="Devices of the fleet file, comma separated.")]
FleetFile = Annotated[Path, _cell(metavar="PATH", help="Fleet file.")]
Key = Annotated[Path | None, _cell(metavar="PATH", help="Client's secret key file, if the cell is encrypted.")]
InFlight = Annotated[
    int | None, _load(metavar="N", help="Concurrent requests (default: 1, so that latency contains no queueing).")
]
Rate = Annotated[
    str | None,
    _load(
        metavar="HZ|max",
        help="Requests per second, sent without waiting for answers; latency counts from when each was due. "
        "max: enough concurrent requests to keep all devices busy (default: an answer makes the next request due).",
    ),
]
Images = Annotated[
    list[Path] | None,
    _load(metavar="PATH", help="Image file or folder to send; may be repeated (default: random images)."),
]
Baseline = Annotated[
    str | None,
    _load(metavar="DEVICE", help="Run the baseline model on this device too; needs devit build --baseline there."),
]
Bundle = Annotated[
    Path | None, _engine(metavar="DIR", help="Bundle whose engine runs here (default: none, idle power only).")
]
Submodel = Annotated[int, _engine(metavar="N", min=0, help="Which submodel of the bundle runs.")]
EngineStore = Annotated[Path | None, _engine(metavar="DIR", help="Engine store (default: ~/.cache/devit/engines).")]
Quick = Annotated[bool, _plan_option("--quick", help="Take a quick look: one window, short idle phases.")]
Windows = Annotated[int | None, _plan_option(metavar="N", help="Windows per scenario (default: 5; quick: 1).")]
Duration = Annotated[
    float | None, _plan_option("--duration", metavar="S", help="Length of a window in seconds (default: 10).")
]
Idle = Annotated[
    float | None,
    _plan_option("--idle", metavar="S", help="Length of an idle phase in seconds (default: 10; quick: 5)."),
]
Settle = Annotated[
    float | None,
    _plan_option("--settle", metavar="S", help="Rest before an idle phase in seconds (default: 3; quick: 0)."),
]
WarmUp = Annotated[
    float | None, _plan_option("--warm-up", metavar="S", help="Minimum warm-up time in seconds (default: 3).")
]
Sustained = Annotated[
    float | None,
    _plan_option(
        "--sustained",
        metavar="MIN",
        help="Repeat the windows of all devices together until the temperature settles, for at most MIN minutes.",
    ),
]
NoPower = Annotated[bool, _sampling("--no-power", help="Measure milliseconds alone.")]
Board = Annotated[
    str | None,
    _sampling(metavar="NAME", help="Which board this is, e.g. orin-nano (default: by its device tree, else guessed)."),
]
Interval = Annotated[int | None, _sampling(metavar="MS", help="Sampling period in milliseconds (default: 100).")]
Calibrations = Annotated[
    Path | None,
    _sampling(metavar="DIR", help="Folder with calibrations, NAME.json each (default: ~/.config/devit/calibrations)."),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder for the runs.", rich_help_panel="Output")]


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """Name the command where it is left out: ``--devices local`` is ``local``, ``--from-log`` is ``report``.

    >>> spelled_out(["--devices", "jetson1", "--quick"]), spelled_out(["compare", "runs/a", "runs/b"])
    (['cell', '--devices', 'jetson1', '--quick'], ['compare', 'runs/a', 'runs/b'])
    >>> spelled_out(["--quick", "--devices=local"]), spelled_out(["--from-log", "runs/a", "--json"])
    (['local', '--quick'], ['report', 'runs/a', '--json'])
    """
    if not arguments or not arguments[0].startswith("--") or arguments[0] in _GROUP_OPTIONS:
        return list(arguments)
    parts = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for place, (option, value) in enumerate(itertools.pairwise(parts)):
        if option == "--devices" and value.strip() == "local":
            return ["local", *parts[:place], *parts[place + 2 :]]
        if option in ("--from-log", "--from"):
            return ["report", *parts[:place], *parts[place + 1 :]]
    return ["cell", *arguments]


class ProfileCommands(Group):
    """Accepts ``profile --devices ...`` without the name of a command."""

    spelled_out = staticmethod(spelled_out)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer keeps its context type private
        """Name the command before the group reads the line."""
        return super().parse_args(ctx, spelled_out(args))


app = Application(
    cls=ProfileCommands,
    no_args_is_help=True,
    help="""Measure latency and energy of a running cell, or of this machine.

    Without a command, `--devices NAME,...` means `cell`,
    `--devices local` means `local`, and `--from-log RUNDIR` means `report`.
    """,
)


@app.command()
def cell(
    ctx: typer.Context,
    devices: Devices,
    fleet: FleetFile = Path("fleet.toml"),
    key: Key = None,
    in_flight: InFlight = None,
    rate: Rate = None,
    images: Images = None,
    baseline: Baseline = None,
    quick: Quick = False,
    windows: Windows = None,
    duration_s: Duration = None,
    idle_s: Idle = None,
    settle_s: Settle = None,
    warm_up_s: WarmUp = None,
    sustained: Sustained = None,
    interval_ms: Interval = None,
    no_power: NoPower = False,
    calibrations: Calibrations = None,
    out: Out = Path("runs"),
    as_json: Json = False,
) -> None:
    """Measure a running cell: each named device alone, then all together.

    Writes a folder of raw files with report.json and report.html.
    A quick look takes about 20 s, and measures all devices together only.
    A device without a power sensor is measured in milliseconds only.
    Press Ctrl-C once to end the run early and keep what was measured.
    """
    require("profile")
    from devit_contract.artefacts.fleet import load_fleet
    from devit_contract.artefacts.keys import load_keys
    from devit_contract.wire.client import Client
    from devit_profiling.load.cell_run import cell_scenarios, measure_cell
    from devit_profiling.load.load_generator import OWN_CAMERAS, load_images, random_images
    from devit_profiling.record.calibration import default_folder

    if quick and sustained is not None:
        raise typer.BadParameter("give --quick or --sustained, not both: a quick look is one window")
    sustained_s = 60 * sustained if sustained is not None else None
    plan = _plan(
        ctx.params,
        baseline=baseline,
        sustained_s=sustained_s,
        has_power=not no_power,
        **load_of(rate, in_flight, fleet),
    )
    whole = load_fleet(fleet)
    names = [name.strip() for name in devices.split(",")]
    scenarios = cell_scenarios([whole.find_device(name) for name in names], plan)  # refuses a wrong name
    pictures = load_images(images) if images else None
    keys = load_keys(key) if key is not None else None
    with _measuring(quiet=as_json) as progress, Client.of_fleet(whole, keys, tell=terminal.tell) as client:
        if pictures is None:
            status = client.status()
            pictures = OWN_CAMERAS if status.views == "own" else random_images(status.image_shape)
        announce = partial(_announce, plan, scenarios)
        folders = calibrations or default_folder()
        folder = measure_cell(client, whole, names, pictures, plan, out, progress, folders, announce)
    _report(folder, as_json=as_json)


@app.command()
def local(
    ctx: typer.Context,
    bundle: Bundle = None,
    submodel: Submodel = 0,
    store: EngineStore = None,
    quick: Quick = False,
    windows: Windows = None,
    duration_s: Duration = None,
    idle_s: Idle = None,
    settle_s: Settle = None,
    warm_up_s: WarmUp = None,
    interval_ms: Interval = None,
    no_power: NoPower = False,
    board: Board = None,
    calibrations: Calibrations = None,
    out: Out = Path("runs"),
    as_json: Json = False,
) -> None:
    """Measure this machine without a node: its idle power, or with --bundle an engine back to back.

    Writes the same files as `cell`.
    Press Ctrl-C once to end the run early and keep what was measured.
    """
    require("profile")
    from devit_engines.bench.child import engine_command
    from devit_profiling.load.local_profile import local_scenario, measure_local
    from devit_profiling.record.calibration import default_folder
    from devit_profiling.sensor.boards import board_of_key

    plan = _plan(ctx.params, has_power=not no_power)
    command = engine_command(bundle, submodel, store, 1, "built") if bundle is not None else ()
    with _measuring(quiet=as_json) as progress:
        folder = measure_local(
            command,
            submodel,
            plan,
            out,
            progress,
            calibrations=calibrations or default_folder(),
            board_choice=board_of_key(board).key if board is not None else "auto",
            on_start=partial(_announce, plan, [local_scenario(command, submodel)]),
        )
    _report(folder, as_json=as_json)


app.command()(report)
app.command()(compare)
app.command()(parse)
app.command()(calibrate)
app.command()(sweep)


def main() -> NoReturn:
    """Run as a console script."""
    terminal.run(app, "profile")


def load_of(rate: str | None, in_flight: int | None, fleet: Path) -> dict[str, float | None]:
    """Read ``--rate``: ``max`` keeps every device's credit used, and as many requests again waiting at the node."""
    from devit_contract.artefacts.fleet import load_fleet

    if rate is None:
        return {"in_flight": in_flight}
    if in_flight is not None:
        raise typer.BadParameter("give --rate or --in-flight, not both: a rate does not wait for answers")
    if rate == "max":
        return {"in_flight": 2 * load_fleet(fleet).serving.credit}
    try:
        return {"rate_hz": float(rate)}
    except ValueError as err:
        raise typer.BadParameter(f"--rate: expected requests per second, or max, found {rate!r}") from err


def _plan(options: Mapping[str, Any], **changes: float | str | None) -> Plan:
    """Change the full plan, or that of a quick look, by the options of the same names that were given, and more."""
    from msgspec import structs

    from devit_profiling.record.record import QUICK, Plan

    given = {name: value for name, value in {**options, **changes}.items() if value is not None}
    known = {name: value for name, value in given.items() if name in Plan.__struct_fields__}
    return structs.replace(QUICK if options["quick"] else Plan(), **known)


def _announce(plan: Plan, scenarios: Sequence[Scenario]) -> None:
    """Say before it starts how long it will take, and when it ends."""
    from datetime import datetime, timedelta

    from devit_profiling.load.schedule import planned_s
    from devit_profiling.report.number_format import duration_text

    duration_s = planned_s(plan, scenarios)
    end = datetime.now() + timedelta(seconds=duration_s)
    typer.echo(f"this takes about {duration_text(duration_s)}, until {end:%H:%M:%S} local time", err=True)


@contextmanager
def _measuring(*, quiet: bool) -> Iterator[Progress]:
    """Show a bar; Ctrl-C gets out of the block only before there is something to keep."""
    nothing = terminal.on_interrupt("no phase was measured to its end, so nothing is kept")
    with nothing, terminal.progress_bar(quiet=quiet) as progress:
        yield progress


def _report(folder: Path, *, as_json: bool) -> None:
    """Write and print the report of a run, and end as the run did."""
    from devit_profiling.load.cell_run import raise_if_cut_short
    from devit_profiling.report.report import write_report

    found = write_report(folder)
    show_report(folder, found, as_json=as_json)
    raise_if_cut_short(found.cut_short)
