"""The console scripts: Ctrl-C ends them quietly, even during imports."""

from __future__ import annotations

import importlib
import signal
from functools import partial
from typing import NoReturn


def _run(module: str) -> NoReturn:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until terminal.run takes over; during an import there is nothing to clean up.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    importlib.import_module(module).main()
    raise AssertionError("main never returns")


devit = partial(_run, "devit_pipeline.cli")
edge_agent = partial(_run, "devit_edge_agent.cli")
fusion_node = partial(_run, "devit_fusion.cli")
profile = partial(_run, "devit_profiling.cli")
