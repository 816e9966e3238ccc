"""The console scripts: Ctrl-C ends them quietly, even during imports, and what is not installed is told."""

from __future__ import annotations

import gc
import importlib
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from devit_contract.service.plain import Options


def _run(module: str) -> NoReturn:
    _end_quietly()
    try:
        program = importlib.import_module(module)
    except ImportError as err:  # typer, without which terminal.run cannot say so
        from devit_contract.extras import missing_package

        text = missing_package(err)
        if not text:
            raise
        sys.exit(f"error: {text}")
    program.main()
    raise AssertionError("main never returns")


def _serve(place: str, service: str, options: Options, required: tuple[str, ...]) -> NoReturn:
    """Run a service: straight away where its options are plain, else by its command line."""
    _end_quietly()
    from devit_contract.service.plain import plain_options
    from devit_contract.service.terminal import run_program

    found = plain_options(sys.argv[1:], options, required)
    if found is None:
        _run(f"{place}.cli")
    run_program(lambda: _function(place, service)(**found))


def _function(place: str, name: str) -> Callable[..., None]:
    module, _, function = name.partition(":")
    gc.disable()  # what an import makes is no garbage, and looking for some takes 5 % of a start
    try:
        found: Callable[..., None] = getattr(importlib.import_module(f"{place}.{module}"), function)
    finally:
        gc.enable()
    return found


def _end_quietly() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until terminal.run takes over; during an import there is nothing to clean up.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


_AGENT: Options = {"config": Path, "engine": str, "stop_with_stdin": bool}
_NODE: Options = {"bundle": Path, "fleet": Path, "key": Path, "stop_with_stdin": bool}

devit = partial(_run, "devit_pipeline.cli")
edge_agent = partial(_serve, "devit_edge_agent", "start:run_agent", _AGENT, ("config",))
fusion_node = partial(_serve, "devit_fusion", "node:run_node", _NODE, ("bundle", "fleet"))
gateway = partial(_run, "devit_gateway.cli")
profile = partial(_run, "devit_profiling.cli")
