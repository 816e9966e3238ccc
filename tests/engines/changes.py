"""What tests change: the tiny bundle's manifest and golden set, and the engines that a machine loads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.artefacts.file_list import describe_file
from devit_contract.artefacts.files import Tensors, read_tensors, write_tensors
from devit_contract.artefacts.manifest import Bundle, write_manifest
from devit_engines import ort
from devit_engines.accuracy import verdict_digest
from devit_engines.building import backends
from devit_engines.building.store import Store
from devit_engines.engine import CheckedEngine, EngineSpec


class Perturbed(ort.OrtEngine):
    """The right graph on a device that computes wrongly."""

    def __init__(self, model: bytes, spec: EngineSpec, change: Callable[[Float32Array], Float32Array]) -> None:
        """Pass every output through ``change``."""
        super().__init__(model, spec)
        self.change = change

    def _run(self, images: UInt8Array) -> Float32Array:
        return self.change(super()._run(images))


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[Float32Array], Float32Array]) -> None:
    """Let every engine that loads from now on compute wrongly."""

    def load(content: bytes, spec: EngineSpec, settings: backends.RunSettings) -> CheckedEngine:
        return Perturbed(content, spec, change)

    monkeypatch.setitem(backends.BACKENDS, "ort", replace(backends.BACKENDS["ort"], load=load))


def rewrite(bundle: Bundle, **changes: object) -> Bundle:
    """Change fields of the manifest and open the bundle again."""
    write_manifest(bundle.folder, msgspec.structs.replace(bundle.manifest, **changes))
    return Bundle(bundle.folder)


def with_golden(bundle: Bundle, change: Callable[[Tensors], Tensors]) -> Bundle:
    """Change the golden set, digest it again, and open the bundle again."""
    path = bundle.path("golden")
    write_tensors(path, change(read_tensors(path, "")))
    golden = describe_file(bundle.folder, path.name, "golden")
    return rewrite(bundle, files=tuple(golden if file.role == "golden" else file for file in bundle.manifest.files))


def fewer_images(count: int) -> Callable[[Tensors], Tensors]:
    """Keep the first golden images alone."""
    return lambda tensors: {name: tensor[:count] for name, tensor in tensors.items()}


def plant(store: Store, bundle: Bundle, digest: str, content: bytes) -> None:
    """Put another engine under a key, with a record that looks right, as whoever may write to the store can."""
    record, _ = store.read(digest)
    sha256 = hashlib.sha256(content).hexdigest()
    file = msgspec.structs.replace(record.file, sha256=sha256, size_bytes=len(content))
    verdict = verdict_digest(bundle, sha256)
    store.keep(msgspec.structs.replace(record, file=file, validated_against=verdict), content)
