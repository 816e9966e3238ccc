"""Build submodel 0 in a process of its own, pausing or dying on the way; run by ``test_build_processes.py``.

Prints ``building`` when a build starts, ``waiting`` when another process holds the key, and at the end ``built`` or
``cached`` with the key.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from devit_contract.artefacts.manifest import Bundle
from devit_engines.board import Board
from devit_engines.building import store as store_module
from devit_engines.building.backends import BACKENDS
from devit_engines.building.build_all import build_engines
from devit_engines.building.store import Store
from devit_engines.trt.request import BuildRequest, Built, Report


def say(text: str) -> None:
    """Print a line that the parent sees at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def die(*_: object) -> None:
    """End as kill -9 does: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def write_half_and_die(path: Path, content: bytes) -> None:
    """Leave half of a file behind."""
    path.write_bytes(content[: len(content) // 2])
    die()


def pause(request: BuildRequest, report: Report) -> Built:
    """Build only after the parent has written a line."""
    say("building")
    sys.stdin.readline()
    return Built(request.graph.read())


def die_at(moment: str) -> None:
    """Put the end of this process into the build."""
    if moment == "in the build":
        BACKENDS["ort"] = replace(BACKENDS["ort"], build=die)  # type: ignore[arg-type]
    elif moment == "in the middle of the model":
        store_module.write_bytes = write_half_and_die  # type: ignore[attr-defined,assignment]
    elif moment == "before the record":
        store_module.write_json = die  # type: ignore[attr-defined,assignment]
    elif moment == "before the rename":
        Path.rename = die  # type: ignore[method-assign,assignment]


def tell(stage: str, done: float, total: float, note: str = "") -> None:
    """Tell the parent of waiting."""
    if note.startswith("waiting"):
        say("waiting")


def main(bundle: str, store: str, moment: str) -> None:
    """Build, with ``moment`` one of the above, ``pause``, or ``straight``."""
    if moment == "pause":
        BACKENDS["ort"] = replace(BACKENDS["ort"], build=pause)
    die_at(moment)
    board = Board("test machine", "cpu", None)
    (engine,) = build_engines(Bundle(Path(bundle)), Store(Path(store)), submodels=[0], board=board, progress=tell)
    say(f"{'cached' if engine.was_cached else 'built'} {engine.digest}")


if __name__ == "__main__":
    main(*sys.argv[1:])
