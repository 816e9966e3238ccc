"""The engine store: one folder per key, whole or absent, and never loaded when its digest does not hold.

::

    <store>/<key digest>/engine.json    all of the key, and how the engine was built and checked
    <store>/<key digest>/model.onnx     the engine itself, under the name that its back end gives it
    <store>/locks/<key digest>          there while a process builds that key
    <store>/choice.<digest>.json        which variant of a model this device runs, see ``building/kept.py``
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from devit_contract.artefacts.files import exclusive_lock, new_folder, read_json, write_bytes, write_json
from devit_contract.artefacts.gate import AccuracyResult
from devit_contract.artefacts.regular import read_regular
from devit_contract.choices import Variant
from devit_contract.errors import InputError, ManifestError, NotBuiltError

SCHEMA = 4
RECORD_NAME = "engine.json"
_DIGEST = "([0-9a-f]{64})"
_HINT = "build it again with devit build"


class EngineKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that an engine depends on; the order of the fields is part of the digest."""

    model_sha256: str
    """Of the bundle's ONNX file."""
    backend: str
    backend_version: str
    device_name: str
    compute_capability: str
    variant: Variant
    options: tuple[str, ...]
    """Build options, ``name=value``."""

    @property
    def digest(self) -> str:
        """Name of the folder, 64 hex digits."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()

    @property
    def revision(self) -> int:
        """Name of the build on the wire, an unsigned 32-bit number."""
        return int(self.digest[:8], 16)


class EngineFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The engine's own file."""

    name: str
    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        """Refuse names that lead out of the folder."""
        if not re.fullmatch(r"[a-z][a-z0-9.-]*", self.name):
            raise ValueError(f"name: expected a plain file name, found {self.name!r}")


class Latency(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one image from the CPU's memory to its features there, right after the build."""

    p50_ms: float
    p99_ms: float
    runs: int
    run_options: tuple[str, ...]
    """How the engine was run, as far as that decides the figures: ``name=value``, e.g. ``threads=4``."""


class FailedVariant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A faster variant that did not pass the accuracy check on this device."""

    variant: Variant
    failures: tuple[str, ...]
    latency: Latency | None = None
    """What the variant that was taken costs is the difference to this; absent where none could be built."""
    accuracy: AccuracyResult | None = None
    """Absent where none could be built, or where its outputs were not finite."""
    digest: str = ""
    """Of its key: the same variant of another graph has not failed yet."""


class EngineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``engine.json``."""

    schema: int
    title: str
    """For people: ``submodel 0 of fashion-mnist``. Other bundles may hold the same graph under another name."""
    key: EngineKey
    file: EngineFile
    build_s: float
    """Seconds from the ONNX file to the engine, without the accuracy check."""
    accuracy: AccuracyResult
    validated_against: tuple[str, ...]
    """What it has passed: of golden set, fusion head and engine the digest, the one that gave ``accuracy`` last. An
    agent of an older bundle with the same graph may start still."""
    created: str
    """UTC, ``2026-01-31T12:00:00Z``."""
    latency: Latency
    l4t: str | None = None
    power_mode: str | None = None
    """As nvpmodel calls it; it decides latency and joules."""
    cuda: str | None = None
    """The toolkit's release."""
    precision_method: str = ""
    """How the back end got its precision, where there is more than one way."""
    warnings: tuple[str, ...] = ()
    """What the back end said while it built."""
    failed_variants: tuple[FailedVariant, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One folder of the store and its state."""

    digest: str
    folder: Path
    record: EngineRecord | None
    """Absent where the record itself is damaged."""
    damage: str | None
    """Why the engine cannot be loaded; absent where it can."""

    @property
    def title(self) -> str:
        """For people: ``submodel 0 of fashion-mnist``."""
        return "unknown" if self.record is None else self.record.title


class Store:
    """A folder of engines; every process may read it, and each key has one builder at a time."""

    def __init__(self, folder: Path | None = None) -> None:
        """Open a store; it need not exist yet. Without a folder, the user's own store."""
        self.folder = default_folder() if folder is None else folder

    def find(self, digest: str) -> Entry | None:
        """Look at one key, reading its engine whole; None where the store does not hold it."""
        folder = self.folder / digest
        if not folder.is_dir():
            return None
        try:
            record, _ = self.read(digest)
        except NotBuiltError as err:
            return Entry(digest, folder, self.record(digest), str(err))
        return Entry(digest, folder, record, None)

    def entries(self) -> list[Entry]:
        """Look at every key, in the order of their names.

        Raises:
            InputError: The store is no folder.
        """
        found = (self.find(digest) for digest in self._digests())
        return [entry for entry in found if entry is not None]

    def record(self, digest: str) -> EngineRecord | None:
        """Read what is known of a key without its engine; None where it is absent or its record damaged."""
        try:
            return self._record(digest, _HINT)
        except NotBuiltError:
            return None

    def records(self) -> list[EngineRecord]:
        """Read what is known of every key, without the engines."""
        found = (self.record(digest) for digest in self._digests())
        return [record for record in found if record is not None]

    def read(self, digest: str, hint: str = _HINT) -> tuple[EngineRecord, bytes]:
        """Read an engine whose digest holds; one that is replaced meanwhile is read again.

        Raises:
            NotBuiltError: It is absent or damaged; the text ends with ``hint``.
        """
        record = self._record(digest, hint)
        while True:
            try:
                return record, self._content(digest, record, hint)
            except NotBuiltError:
                before, record = record, self._record(digest, hint)
                if record == before:
                    raise

    def keep(self, record: EngineRecord, content: bytes) -> Path:
        """Write an engine under its key, in the place of an older one; call it under the key's :meth:`lock`.

        Raises:
            InputError: The disk is full or the store cannot be written.
        """
        folder = self.folder / record.key.digest
        with new_folder(folder) as draft:
            write_bytes(draft / record.file.name, content)
            write_json(draft / RECORD_NAME, record)
        return folder

    def remove(self, digest: str) -> None:
        """Delete an engine, and what killed builds of its key left behind."""
        with self.lock(digest):
            self.drop(digest)

    def drop(self, digest: str) -> None:
        """Delete an engine; call it under the key's :meth:`lock`."""
        shutil.rmtree(self.folder / digest, ignore_errors=True)

    def leftovers(self) -> list[str]:
        """Keys with drafts in the store: of a build that was killed, or of one that is running."""
        return self._digests(rf"\.{_DIGEST}\..+")

    @contextmanager
    def lock(self, digest: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Be the only builder of a key in all processes; the kernel frees the lock of a killed one.

        ``on_wait`` is called before waiting for another builder.

        Raises:
            InputError: The store cannot be written.
        """
        path = self.folder / "locks" / digest
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise InputError(
                f"{self.folder}: the store cannot be written ({err.strerror}): choose another with --store"
            ) from err
        while True:
            with exclusive_lock(path, on_wait=on_wait) as file:
                if not _is_at(path, file):
                    continue  # its holder has removed it; the next process may lock another file by now
                try:
                    for draft in self.folder.glob(f".{digest}.*"):  # of killed builds: under the lock none is running
                        shutil.rmtree(draft, ignore_errors=True)
                    yield
                finally:
                    with suppress(OSError):  # a file more does no harm
                        path.unlink()
                return

    def _digests(self, pattern: str = _DIGEST) -> list[str]:
        if not self.folder.exists():
            return []
        if not self.folder.is_dir():
            raise InputError(f"{self.folder}: expected a folder of engines, found a file: choose another with --store")
        matches = (re.fullmatch(pattern, path.name) for path in self.folder.iterdir())
        return sorted({match[1] for match in matches if match is not None})

    def _record(self, digest: str, hint: str) -> EngineRecord:
        path = self.folder / digest / RECORD_NAME
        try:
            record = read_json(path, EngineRecord, schema=SCHEMA, hint=hint)
        except (InputError, ManifestError) as err:
            raise NotBuiltError(str(err)) from err
        if record.key.digest != digest:
            raise NotBuiltError(f"{path}: expected key {digest[:12]}, found {record.key.digest[:12]}: {hint}")
        return record

    def _content(self, digest: str, record: EngineRecord, hint: str) -> bytes:
        path = self.folder / digest / record.file.name
        try:
            content = read_regular(path)
        except OSError as err:
            raise NotBuiltError(f"{path}: cannot be read ({err.strerror}): {hint}") from err
        found = hashlib.sha256(content).hexdigest()
        if found != record.file.sha256:
            raise NotBuiltError(f"{path}: expected sha256 {record.file.sha256[:12]}, found {found[:12]}: {hint}")
        return content


def _is_at(path: Path, file: int) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def default_folder() -> Path:
    """Find the store of the user or service that runs this.

    A service's is in its state directory, as systemd names it (``StateDirectory=`` in systemd.exec(5)); a user's is
    ``$XDG_CACHE_HOME/devit/engines``, else ``~/.cache/devit/engines``.
    """
    state = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if state:
        return Path(state) / "engines"
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # XDG base directory specification: a relative path is invalid and has to be ignored.
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "devit" / "engines"
