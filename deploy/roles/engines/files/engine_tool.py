"""Questions about engines, answered on the device by devit itself.

python engine_tool.py kind BACKEND                             the kind of device: equal kinds share their engines
python engine_tool.py take FOLDER STORE                        an engine's files, moved into the store
python engine_tool.py check BUNDLE STORE SUBMODEL BACKEND KEY  the stored engine of that key, on the golden images
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from devit_contract.artefacts.files import read_bytes, read_json
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import DevitError, EngineError
from devit_engines.accuracy import require_accuracy
from devit_engines.board import detect_board
from devit_engines.building.backends import backend_of
from devit_engines.building.build_all import find_engine
from devit_engines.building.kept import forget
from devit_engines.building.store import RECORD_NAME, SCHEMA, EngineRecord, Store


def kind(backend: str) -> str:
    """Name what an engine's key names of its device, and the JetPack line beside it."""
    row, board = backend_of(backend), detect_board()
    return f"{row.name} {row.version()}, {board.device_name}, {board.compute_capability}, L4T {board.l4t or 'none'}"


def take(folder: str, store: str) -> str:
    """Put an engine in the place of an older one, so that an agent that starts meanwhile finds one of them.

    Raises:
        DevitError: A file cannot be read or written, or is damaged.
    """
    hint = "roll out again"
    record = read_json(Path(folder, RECORD_NAME), EngineRecord, schema=SCHEMA, hint=hint)
    content = read_bytes(Path(folder, record.file.name), hint, sha256=record.file.sha256)
    opened = Store(Path(store))
    with opened.lock(record.key.digest):  # which deletes the folder, a draft beside the key's own
        opened.keep(record, content)
    return f"{record.title}: taken"


def check(bundle: str, store: str, submodel: str, backend: str, digest: str) -> str:
    """Send the golden images through the stored engine that this device takes, and forget a choice of another one.

    Raises:
        EngineError: It cannot be loaded, does not compute what was trained, or an agent would load another one.
    """
    opened, model = Bundle(Path(bundle)), int(submodel)
    stored = find_engine(opened, Store(Path(store)), model, backend=backend)
    if stored.key.digest != digest:  # the reference device has lost the choice that was copied from it
        forget(stored.target)
        stored = find_engine(opened, Store(Path(store)), model, backend=backend)
    if stored.key.digest != digest:
        raise EngineError(
            f"submodel {submodel}: expected engine {digest[:12]} to be loaded, found {stored.key.digest[:12]}: "
            f"remove {store}/{stored.key.digest}, then roll out again"
        )
    with stored.load() as engine:
        result = require_accuracy(engine, opened, model, stored.key.variant, f"submodel {submodel}")
    return f"submodel {submodel}: {result.images} golden images, smallest cosine {result.cosine_min:.6f}"


if __name__ == "__main__":
    tools: dict[str, Callable[..., str]] = {"kind": kind, "take": take, "check": check}
    question, *words = sys.argv[1:]
    try:
        told = tools[question](*words)
        sys.stdout.write(told + "\n")
    except DevitError as err:
        sys.exit(str(err))
