"""The console scripts: Ctrl-C ends them quietly, even during imports, and what is not installed is told."""

from __future__ import annotations

import importlib
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn


def _run(module: str) -> NoReturn:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until terminal.run takes over; during an import there is nothing to clean up.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
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


devit = partial(_run, "devit_pipeline.cli")
edge_agent = partial(_run, "devit_edge_agent.cli")
fusion_node = partial(_run, "devit_fusion.cli")
profile = partial(_run, "devit_profiling.cli")
