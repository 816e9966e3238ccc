"""The engine of an equal board, taken from a node that pairs: what this device would have built, and checked here."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import msgspec

from devit_contract.artefacts.files import decode_json
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import DevitError, EngineError
from devit_contract.service.progress import Progress
from devit_contract.wire.pairing import Ask
from devit_edge_agent.join.guest import Guest
from devit_engines.accuracy import check_accuracy, reference_of, verdict_digest
from devit_engines.board import detect_board
from devit_engines.building.backends import RunSettings, backend_of
from devit_engines.building.store import RECORD_NAME, SCHEMA, EngineKey, EngineRecord, Store
from devit_engines.building.target import Target

_MOST_RECORD_BYTES = 1 << 20
_MOST_ENGINE_BYTES = 4 << 30


def target_of(bundle: Bundle, store: Store, submodel: int) -> Target:
    """Say what would be built here for a submodel."""
    return Target(bundle, store, submodel, backend_of("auto"), detect_board())


def fetch_engine(guest: Guest, target: Target, progress: Progress) -> tuple[EngineKey, bytes, bytes] | None:
    """Ask for the engine of a key of this very device, the first variant first: key, record and content.

    ``None`` if the node offers none. Nothing of it is believed yet: see :func:`take_engine`.

    Raises:
        LinkError: As of :class:`Guest`.
    """
    for key in target.engine_keys():
        record = guest.fetch(Ask("record", key.digest), _MOST_RECORD_BYTES)
        if record is None:
            continue
        content = b"".join(record)
        engine = guest.fetch(Ask("engine", key.digest), _MOST_ENGINE_BYTES, partial(progress, "engine"))
        if engine is not None:
            return key, content, b"".join(engine)
    return None


def take_engine(target: Target, key: EngineKey, record: bytes, content: bytes, progress: Progress) -> None:
    """Check a fetched engine with the golden images on this device, and keep it if it passes.

    Raises:
        EngineError: It is another engine than the key says, cannot be loaded, or does not compute what was trained.
        InputError: The store cannot be written.
    """
    found = _checked_record(target, key, record, content)
    reference = reference_of(target.bundle, target.model)
    with target.store.lock(key.digest):
        # As a replayed graph too: that is how an agent runs it.
        for use_graph in (False, True) if target.backend.has_graphs else (False,):
            with target.backend.load(content, target.spec(key), RunSettings(use_graph=use_graph)) as engine:
                report = partial(progress, target.name, total=len(reference.images), note="checking the fetched engine")
                accuracy = check_accuracy(engine.unchecked_features, reference, report)
            if failures := accuracy.failures(key.variant):
                raise EngineError(f"{target.name}: expected what was trained, found {'; '.join(failures)}")
        target.store.keep(
            msgspec.structs.replace(
                found,
                title=target.title,
                accuracy=accuracy,
                validated_against=(verdict_digest(target.bundle, found.file.sha256),),
                latency=msgspec.structs.replace(found.latency, run_options=()),  # so that the build measures it here
            ),
            content,
        )


def _checked_record(target: Target, key: EngineKey, record: bytes, content: bytes) -> EngineRecord:
    path = Path(key.digest, RECORD_NAME)
    try:
        found = decode_json(path, record, EngineRecord, schema=SCHEMA, hint="build it here")
    except DevitError as err:
        raise EngineError(str(err)) from err
    sha256 = hashlib.sha256(content).hexdigest()
    if found.key != key or found.file.name != target.backend.file_name:
        raise EngineError(f"{path}: expected the record of another engine")
    if found.file.sha256 != sha256 or target.is_other_graph(found):
        raise EngineError(f"{path}: expected sha256 {found.file.sha256[:12]}, found {sha256[:12]}")
    return found
