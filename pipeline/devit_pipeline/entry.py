"""The console scripts: Ctrl-C ends them quietly, even during imports."""

from __future__ import annotations

import importlib
import signal
from typing import NoReturn


def devit() -> NoReturn:
    """Run ``devit``."""
    _run("devit_pipeline.cli")


def edge_agent() -> NoReturn:
    """Run ``edge-agent``."""
    _run("devit_edge_agent.cli")


def fusion_node() -> NoReturn:
    """Run ``fusion-node``."""
    _run("devit_fusion.cli")


def profile() -> NoReturn:
    """Run ``profile``."""
    _run("devit_profiling.cli")


def _run(module: str) -> NoReturn:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until terminal.run takes over; during an import there is nothing to clean up.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    importlib.import_module(module).main()
    raise AssertionError("main never returns")
