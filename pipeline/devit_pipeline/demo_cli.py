"""The command ``devit demo``."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from devit_contract.extras import require
from devit_contract.service import terminal
from devit_contract.service.application_cli import Application, Command

if TYPE_CHECKING:
    from devit_contract.service.progress import Progress
    from devit_pipeline.demo import Figures
    from devit_pipeline.local_cell import LocalCell

_HTTP = "127.0.0.1:8080"
_IMAGES = Path(__file__).parents[2] / "examples" / "images"
"""Of a clone; an installation has none."""


class DemoCommand(Command):
    """Accepts ``--http`` without an address."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer keeps its context type private
        """Name the usual address before the line is read."""
        after = pairwise([*args, "-"])
        return super().parse_args(ctx, [f"--http={_HTTP}" if (a, b[:1]) == ("--http", "-") else a for a, b in after])


app = Application()


@app.command(cls=DemoCommand)
def demo(
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder (default: the one in this package).")] = None,
    models: Annotated[Path | None, typer.Option(help="Export these trained models first, and use that bundle.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the profiler's runs; with --serve for the cell.")] = Path(
        "demo"
    ),
    store: Annotated[Path | None, typer.Option(help="Engine store (default: ~/.cache/devit/engines).")] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Start the cell, print how to ask it, and keep it running.")
    ] = False,
    http: Annotated[
        str, typer.Option(metavar="[HOST:PORT]", help=f"With --serve: also serve HTTP, at {_HTTP} if nothing follows.")
    ] = "",
    port: Annotated[
        int, typer.Option(min=0, max=65_534, metavar="N", help="With --serve: node's port; clients use the next.")
    ] = 7711,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON; with --serve the addresses.")
    ] = False,
) -> None:
    """Run the whole pipeline on this machine: engines, four agents, a fusion node, 1,000 real images, energy.

    Power is SIMULATED, since there is no board; everything else is real. Port 0 stands for free ports.
    """
    require("demo")
    from devit_pipeline.demo import demo_cell, run_demo

    if bundle is not None and models is not None:
        raise typer.BadParameter("give --bundle or --models, not both")
    if http and not serve:
        raise typer.BadParameter("--http needs --serve")
    with ExitStack() as stack:
        exported = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "bundle"
        with terminal.progress_bar(quiet=as_json) as progress:
            chosen = _bundle(bundle, models, exported, progress)
            if serve:
                cell = stack.enter_context(demo_cell(chosen, out / "cell", progress, store, http=http, port=port))
            else:
                figures = run_demo(chosen, out, progress, store)
        if serve:  # only now, as the bars would go on moving
            _serve(cell, as_json=as_json)
        else:
            _show(figures, as_json=as_json)


def _bundle(bundle: Path | None, models: Path | None, exported: Path, progress: Progress) -> Path:
    """Find or make the bundle, and say which it is."""
    from devit_pipeline.demo import SHIPPED

    if models is not None:
        require("export")
        from devit_export.bundle import export_bundle

        typer.echo(f"bundle: exporting it from {models}", err=True)
        export_bundle(models, exported, progress=progress)
        return exported
    if bundle is not None:
        typer.echo(f"bundle: {bundle}", err=True)
        return bundle
    typer.echo("bundle: the one shipped with this package (make demo-full exports it again)", err=True)
    return SHIPPED / "bundle"


def _serve(cell: LocalCell, *, as_json: bool) -> None:
    """Say how to ask a cell, to people and to programs, until Ctrl-C."""
    from devit_contract.service.lifecycle import StopSignal

    should_stop = StopSignal()
    node = cell.fleet.node
    addresses = {"endpoint": node.endpoint, "client_endpoint": node.client_endpoint}
    if cell.http_url:
        addresses["http"] = cell.http_url
    files = {"fleet": str(cell.fleet_path), "client_key": str(cell.client_key_path)}
    if as_json or not sys.stdout.isatty():
        terminal.print_json({**addresses, **files, "pids": cell.pids}, indent=0)
    if not as_json:
        typer.echo("\n".join(_advice(cell)), err=True)
    should_stop.wait()
    typer.echo(f"stopping; the logs stay in {cell.folder / 'logs'}", err=True)


def _advice(cell: LocalCell) -> Iterator[str]:
    """Commands for another terminal, ready to paste into any folder."""
    scripts = Path(sys.executable).parent

    def line(program: str, *words: str | Path) -> str:
        path = program if shutil.which(program) == str(scripts / program) else scripts / program
        access = ("--fleet", cell.fleet_path, "--key", cell.client_key_path)
        return f"  {shlex.join(map(str, (path, *words, *access)))}"

    yield f"the cell runs until Ctrl-C; its files and logs are in {cell.folder}. In another terminal:"
    yield line("devit", "status")
    yield line("devit", "classify", _IMAGES if _IMAGES.exists() else "PICTURE")
    yield line("profile", "--devices", ",".join([*cell.devices][:2]), "--quick")
    name, pid = next((name, pid) for name, pid in cell.pids.items() if name in cell.devices)
    yield f"  kill {pid}  # {name}: answers are partial from then on"
    if cell.http_url:
        yield f"  curl {cell.http_url}/v2/health/ready"
    else:
        yield f"for HTTP too, at {_HTTP}, add --http"


def _show(figures: Figures, *, as_json: bool) -> None:
    if as_json:
        terminal.print_json(figures)
        return
    answers = ", ".join(f"{count} {state}" for state, count in figures.answers.items())
    teacher = figures.teacher_accuracy
    rows = [
        *([["accuracy, baseline model", f"{teacher:.1%}"]] if teacher is not None else []),
        ["accuracy, all devices", f"{figures.full_accuracy:.1%}"],
        [f"accuracy, without {figures.killed_device} (killed)", f"{figures.partial_accuracy:.1%}"],
        ["answers, by state", answers],
        ["frames/s, all devices", f"{figures.frames_per_s:.0f}"],
        [f"frames/s, without {figures.killed_device}", f"{figures.partial_frames_per_s:.0f}"],
        [
            "latency p50 / p95 / p99, ms",
            f"{figures.latency_p50_ms:.1f} / {figures.latency_p95_ms:.1f} / {figures.latency_p99_ms:.1f}",
        ],
        ["slowest device", figures.slowest_device],
        ["bytes per answer, node and devices", f"{figures.wire_bytes_per_answer:,.0f}"],
    ]
    for device, joules in figures.joules_per_answer.items():
        value = "not measured" if joules is None else f"{joules * 1000:.1f} SIMULATED"
        rows.append([f"mJ per answer, {device}", value])
    title = f"{figures.bundle} on {figures.images} test images, {figures.duration_s:.0f} s"
    terminal.print_table(title, ["what", "figure"], rows, numbers=(1,))
    typer.echo(f"report: {figures.report}")
    terminal.print_next("devit", "demo", "--serve")
