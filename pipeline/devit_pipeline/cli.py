"""The one command line ``devit``: every command by name, its module loaded only when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any, NoReturn

import typer
import typer.core
import typer.main

from devit_contract import terminal
from devit_contract.errors import InputError

COMMANDS: dict[str, tuple[str, str]] = {
    # In the order of the pipeline: name to (module:application, one line of help).
    "decompose": ("devit_decompose.cli:app", "Train N submodels and their fusion head from one large ViT."),
    "export": ("devit_export.cli:app", "Turn trained models into an ONNX bundle for devices."),
    "build": ("devit_engines.cli:app", "Build this device's engines from a bundle, and check them."),
    "engines": ("devit_engines.cli:engines_app", "List, verify and prune the engine store."),
    "keys": ("devit_contract.cli:keys_app", "Make and list CURVE keys."),
    "fuse": ("devit_fusion.cli:app", "Run the fusion node (= fusion-node)."),
    "agent": ("devit_edge_agent.cli:app", "Run one device's edge agent (= edge-agent)."),
    "status": ("devit_contract.cli:status_app", "Show what a fusion node knows of its devices."),
    "classify": ("devit_contract.cli:classify_app", "Ask a running cell what is in pictures."),
    "profile": ("devit_profiling.cli:app", "Measure latency and energy of a running cell (= profile)."),
    "demo": ("devit_pipeline.demo_cli:app", "Run the whole pipeline on this machine, on real images."),
}


class LazyCommands(typer.core.TyperGroup):
    """Knows all commands by name and one line of help, and loads one when it is run."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 - typer keeps its context type private
        """Name all commands, in the order of the pipeline."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401 - as above
        """Stand in for a command in the overview."""
        if cmd_name not in COMMANDS:
            return None
        return typer.core.TyperCommand(cmd_name, help=COMMANDS[cmd_name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - as above
        """Load the command that is to run."""
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


app = typer.Typer(cls=LazyCommands, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=True)


@app.callback()
def devit() -> None:
    """One large Vision Transformer on several cheap edge devices, every answer's cost known in ms and joules."""


def main() -> NoReturn:
    """Run as a console script."""
    terminal.run(app, "devit")
