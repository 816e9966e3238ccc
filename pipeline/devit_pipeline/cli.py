"""The command line ``devit``: every command by name, its module loaded only when it runs."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.core
import typer.main

from devit_contract.errors import InputError
from devit_contract.service import terminal

if TYPE_CHECKING:
    from devit_pipeline.demo import Figures
    from devit_pipeline.local_cell import LocalCell

COMMANDS: dict[str, tuple[str, str]] = {
    # In the order of the pipeline: name to (module:application, one line of help).
    "decompose": ("devit_decompose.cli:app", "Train N submodels and their fusion head from one large ViT."),
    "assemble": ("devit_decompose.cli:assemble_app", "Make a cell from pretrained timm backbones, in minutes."),
    "evaluate": ("devit_decompose.cli:evaluate_app", "Measure trained models on their test images."),
    "export": ("devit_export.cli:app", "Turn trained models into an ONNX bundle for devices."),
    "sign": ("devit_export.cli:sign_app", "Sign a bundle, for devices that accept only signed ones."),
    "build": ("devit_engines.cli:app", "Build the engines of a bundle on this device, and check them."),
    "engines": ("devit_engines.cli:engines_app", "Manage the engines stored on this device."),
    "doctor": ("devit_engines.doctor.cli:app", "Say what this machine can build and run, and what stands in the way."),
    "selftest": ("devit_engines.selftest.cli:app", "Build and check a small ViT on this device, for a report."),
    "keys": ("devit_contract.keys_cli:app", "Make, list and revoke CURVE keys."),
    "fuse": ("devit_fusion.cli:app", "Join the features of all devices into answers (= fusion-node)."),
    "gateway": ("devit_gateway.cli:app", "Serve HTTP for a fusion node: inference protocol, health, metrics."),
    "agent": ("devit_edge_agent.cli:app", "Run one submodel and send its features (= edge-agent)."),
    "install-service": ("devit_pipeline.service_cli:app", "Write systemd units for an agent or a fusion node."),
    "status": ("devit_contract.cli:status_app", "Show what a fusion node knows of its devices."),
    "classify": ("devit_contract.cli:classify_app", "Ask a running cell what is in pictures."),
    "profile": ("devit_profiling.cli:app", "Measure latency and energy of a running cell (= profile)."),
    "demo": ("devit_pipeline.cli:demo_app", "Run the whole pipeline on this machine, on real images."),
}


class LazyCommands(typer.core.TyperGroup):
    """All commands by name and one line of help; each is loaded when it runs."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 - typer keeps its context type private
        """List all commands in the order of the pipeline."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401 - as above
        """Make a placeholder of a command for the overview."""
        if cmd_name not in COMMANDS:
            return None
        return typer.core.TyperCommand(cmd_name, help=COMMANDS[cmd_name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - as above
        """Load the command to run."""
        if args[0] not in COMMANDS:
            return super().resolve_command(ctx, args)
        module, _, attribute = COMMANDS[args[0]][0].partition(":")
        try:
            application = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as err:
            if err.name is None or err.name.startswith("devit"):
                raise
            raise InputError(f"devit {args[0]}: expected the package {err.name}, found none: run make install") from err
        return args[0], typer.main.get_command(application), args[1:]


demo_app = typer.Typer(pretty_exceptions_enable=False)


@demo_app.command()
def demo(
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder (default: the one in this package).")] = None,
    models: Annotated[Path | None, typer.Option(help="Export these trained models first, and use that bundle.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the profiler's runs; with --serve for the cell.")] = Path(
        "demo"
    ),
    store: Annotated[Path | None, typer.Option(help="Engine store (default: ~/.cache/devit/engines).")] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Start the cell, print its addresses, and keep it running.")
    ] = False,
    http: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="With --serve: also serve HTTP (Open Inference Protocol, metrics).")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Run the whole pipeline on this machine: engines, four agents, a fusion node, 1,000 real images, energy.

    Power is SIMULATED, since there is no board; everything else is real.
    """
    from devit_pipeline.demo import SHIPPED, demo_cell, run_demo

    if bundle is not None and models is not None:
        raise typer.BadParameter("give --bundle or --models, not both")
    if http and not serve:
        raise typer.BadParameter("--http needs --serve")
    with terminal.progress_bar(quiet=as_json) as progress, tempfile.TemporaryDirectory() as folder:
        if models is not None:
            from devit_export.bundle import export_bundle

            typer.echo(f"bundle: exporting it from {models}", err=True)
            bundle = Path(folder) / "bundle"
            for reason in export_bundle(models, bundle, progress=progress).left_out:
                typer.echo(reason, err=True)
        elif bundle is None:
            typer.echo("bundle: the one shipped with this package (make demo-full exports it again)", err=True)
            bundle = SHIPPED / "bundle"
        else:
            typer.echo(f"bundle: {bundle}", err=True)
        if serve:
            with demo_cell(bundle, out / "cell", progress, store, http=http) as cell:
                _serve(cell)
            return
        figures = run_demo(bundle, out, progress, store)
    _show(figures, as_json=as_json)


app = typer.Typer(cls=LazyCommands, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=True)


@app.callback()
def devit() -> None:
    """Run one large Vision Transformer on several edge devices, and know what every answer costs in ms and joules."""


def main() -> NoReturn:
    """Run as a console script."""
    terminal.run(app, "devit")


def _serve(cell: LocalCell) -> None:
    from devit_contract.service.lifecycle import StopSignal

    should_stop = StopSignal()
    node = cell.fleet.node
    addresses = {"endpoint": node.endpoint, "client_endpoint": node.client_endpoint}
    if cell.http_url:
        addresses["http"] = cell.http_url
    files = {"fleet": str(cell.fleet_path), "client_key": str(cell.client_key_path)}
    terminal.print_json({**addresses, **files, "pids": cell.pids}, indent=0)
    should_stop.wait()


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
