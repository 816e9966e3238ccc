"""The command line ``devit``: every command by name, its module loaded only when it runs."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.main

from devit_contract.service import terminal
from devit_contract.service.application_cli import Application, Command, Group

if TYPE_CHECKING:
    from devit_engines.building.side_by_side import Meter

COMMANDS: dict[str, tuple[str, str]] = {
    # In the order of the pipeline: name to (module:application, one line of help).
    "decompose": ("devit_decompose.cli:app", "Train N submodels and their fusion head from one large ViT."),
    "assemble": ("devit_decompose.cli:assemble_app", "Make a cell from pretrained timm backbones, in minutes."),
    "evaluate": (
        "devit_decompose.evaluation.cli:evaluate_app",
        "Measure trained models on their test images.",
    ),
    "export": ("devit_export.cli:app", "Turn trained models into an ONNX bundle for devices."),
    "sign": ("devit_export.cli:sign_app", "Sign a bundle, for devices that accept only signed ones."),
    "build": ("devit_engines.cli:app", "Build the engines of a bundle on this device, and check them."),
    "engines": ("devit_engines.cli:engines_app", "Manage the engines stored on this device."),
    "doctor": ("devit_engines.doctor.cli:app", "Say what this machine can build and run, and what stands in the way."),
    "selftest": ("devit_engines.selftest.cli:app", "Build and check a small ViT on this device, for a report."),
    "keys": ("devit_contract.keys_cli:app", "Make, list and revoke CURVE keys."),
    "fleet": ("devit_fusion.roster.fleet_cli:app", "Change the devices and clients of a fleet, while it runs too."),
    "pair": ("devit_fusion.pairing.cli:app", "Show a short code by which one fresh device joins the fleet."),
    "join": ("devit_edge_agent.join.cli:app", "Make this machine a device of the fleet whose node shows a code."),
    "fuse": ("devit_fusion.cli:app", "Join the features of all devices into answers (= fusion-node)."),
    "gateway": ("devit_gateway.cli:app", "Serve HTTP for a fusion node: inference protocol, health, metrics."),
    "views": ("devit_edge_agent.sources.views_cli:app", "Simulate the cameras of a cell with own views."),
    "agent": ("devit_edge_agent.cli:app", "Run one submodel and send its features (= edge-agent)."),
    "install-service": ("devit_pipeline.service_cli:app", "Write systemd units for an agent or a fusion node."),
    "status": ("devit_contract.cli:status_app", "Show what a fusion node knows of its devices."),
    "classify": ("devit_contract.cli:classify_app", "Ask a running cell what is in pictures."),
    "profile": ("devit_profiling.cli:app", "Measure latency and energy of a running cell (= profile)."),
    "bench-device": ("devit_profiling.bench.cli:app", "Measure one model of a bundle on this device, for devit plan."),
    "plan": ("devit_profiling.plan.cli:app", "Pick the mode of a fleet that keeps a goal, from measured profiles."),
    "record": ("devit_fusion.record.cli:app", "Write what the node on this machine sees and does, for devit replay."),
    "replay": ("devit_pipeline.replay_cli:app", "Answer a recording again, with other devices, rules or bundle."),
    "demo": ("devit_pipeline.demo_cli:app", "Run the whole pipeline on this machine, on real images."),
}


class LazyCommands(Group):
    """All commands by name and one line of help; each is loaded when it runs."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - typer's
        """Hold a placeholder of each command, for the overview and for what was meant by another name."""
        super().__init__(**settings)
        self.commands = {name: Command(name, help=summary) for name, (_, summary) in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - typer keeps its context type private
        """Load the command to run."""
        if args[0] not in COMMANDS:
            return super().resolve_command(ctx, args)
        module, _, attribute = COMMANDS[args[0]][0].partition(":")
        application = getattr(importlib.import_module(module), attribute)
        return args[0], typer.main.get_command(application), args[1:]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"devit {version_of('devit')}")
        raise typer.Exit


app = Application(cls=LazyCommands, no_args_is_help=True, add_completion=True)


def _open_meter() -> AbstractContextManager[Meter]:
    """Start this device's power sensor, which ``devit build`` itself, of a lower layer, does not know."""
    from devit_profiling.bench.meter import open_meter

    return open_meter()


@app.callback()
def devit(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Run one large Vision Transformer on several edge devices, and know what every answer costs in ms and joules."""
    context.obj = _open_meter


def main() -> NoReturn:
    """Run as a console script."""
    terminal.run(app, "devit")
