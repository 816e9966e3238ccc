"""Two questions about engines, answered on the device by devit itself.

python engine_tool.py kind BACKEND                           the kind of device: equal kinds share their engines
python engine_tool.py check BUNDLE STORE SUBMODEL BACKEND    the stored engine, loaded, on the golden images
"""

from __future__ import annotations

import sys
from pathlib import Path

from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import DevitError
from devit_engines.accuracy import require_accuracy
from devit_engines.board import detect_board
from devit_engines.building.backends import backend_of
from devit_engines.building.build_all import load_engine
from devit_engines.building.store import Store


def kind(backend: str) -> str:
    """Name what an engine's key names of its device, and the JetPack line beside it."""
    row, board = backend_of(backend), detect_board()
    return f"{row.name} {row.version()}, {board.name}, {board.compute_capability}, L4T {board.l4t or 'none'}"


def check(bundle: Path, store: Path, submodel: int, backend: str) -> str:
    """Send the golden images through the stored engine.

    Raises:
        EngineError: It cannot be loaded, or does not compute what was trained.
    """
    opened = Bundle(bundle)
    with load_engine(opened, Store(store), submodel, backend=backend) as engine:
        result = require_accuracy(engine, opened, submodel, f"submodel {submodel}")
    return f"submodel {submodel}: {result.images} golden images, smallest cosine {result.cosine_min:.6f}"


if __name__ == "__main__":
    question, *words = sys.argv[1:]
    try:
        told = kind(words[0]) if question == "kind" else check(Path(words[0]), Path(words[1]), int(words[2]), words[3])
        sys.stdout.write(told + "\n")
    except DevitError as err:
        sys.exit(str(err))
