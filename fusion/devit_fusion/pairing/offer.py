"""What the node offers to a device that joins: a place in the fleet, the bundle's files, built engines."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from devit_contract.artefacts.files import decode_json, named_failure, read_bytes
from devit_contract.artefacts.fleet import Device, Fleet, load_fleet
from devit_contract.artefacts.keys import check_key, check_name
from devit_contract.artefacts.manifest import FILE_NAME, Bundle
from devit_contract.artefacts.regular import open_regular, regular_size
from devit_contract.artefacts.revoked import RevokedKeys, revoked_path
from devit_contract.artefacts.signing import SIGNATURE_NAME
from devit_contract.errors import DevitError, InputError
from devit_contract.wire.pairing import CHUNK_BYTES, Ask, Introduction, NodeAddress, Welcome
from devit_fusion.roster.fleet_file import add_device

_ENGINE_NAME = "engine.json"
"""As the engine store calls the record of each engine, see ``devit_engines``' ``building/store.py``."""
_ENGINE_SCHEMA = 4
_MOST_SIGNERS_BYTES = 1 << 16


@dataclass(frozen=True)
class File:
    """A file to send."""

    path: Path
    size_bytes: int

    def chunks(self) -> Iterator[bytes]:
        """Read it, as many bytes as were told.

        Raises:
            InputError: It cannot be read, or is shorter now.
        """
        left = self.size_bytes
        with named_failure(f"{self.path}: cannot be read"), open_regular(self.path) as file:
            while left:
                chunk = file.read(min(left, CHUNK_BYTES))
                if not chunk:
                    raise InputError(f"{self.path}: has become shorter meanwhile: run devit pair again")
                left -= len(chunk)
                yield chunk


class _EngineFile(msgspec.Struct):
    name: str


class _Record(msgspec.Struct):
    """Of an engine's record, what names its file; the device checks the rest."""

    schema: int
    file: _EngineFile


class Offer:
    """Looks at the fleet file anew for each device, since it may change meanwhile."""

    def __init__(
        self,
        fleet_path: Path,
        bundle: Path,
        *,
        submodel: int | None = None,
        engines: Path | None = None,
        allowed_signers: Path | None = None,
    ) -> None:
        """Check what can be checked before anybody comes.

        Without ``submodel``, a device gets the first one that no other device has.

        Raises:
            InputError: A file cannot be read or written, the fleet has no keys, or there is no such submodel.
            ManifestError: A file breaks its format.
        """
        self._fleet_path, self._bundle = fleet_path, Bundle(bundle)
        self._submodel, self._engines = submodel, engines
        self._names = {file.name for file in self._bundle.files} | {FILE_NAME, SIGNATURE_NAME}
        fleet = self.fleet()
        if not fleet.has_keys:
            raise InputError(
                f"{fleet_path}: expected a fleet with keys, found none: make the node's with devit keys new node, and "
                "write it into [node]"
            )
        self._check_writable()
        count = len(self._bundle.manifest.submodels)
        if submodel is not None and submodel >= count:
            raise InputError(f"submodel {submodel}: the bundle has 0 to {count - 1}: choose another")
        self.is_full = submodel is None and self._free(fleet) == []
        """Whether only a device that the fleet has already may join, again."""
        self._signers = ""
        if allowed_signers is not None:
            content = read_bytes(allowed_signers, "devit sign prints a line for it")
            if len(content) > _MOST_SIGNERS_BYTES:
                raise InputError(f"{allowed_signers}: expected 64 KiB at most, found {len(content) >> 10}: shorten it")
            self._signers = content.decode("utf-8", "replace")
        if engines is not None and not engines.is_dir():
            raise InputError(f"{engines}: expected a store of engines, found none: build them with devit build --store")

    def fleet(self) -> Fleet:
        """Read the fleet file as it is now."""
        return load_fleet(self._fleet_path)

    def place(self, introduction: Introduction) -> tuple[Device, Welcome]:
        """Say what a device will be; one that the fleet has under this name and key keeps its place.

        Raises:
            InputError: Its name or key cannot be taken, or no submodel is free; the text is for its user.
            ManifestError: The fleet file is broken now.
        """
        fleet = self.fleet()
        check_name(introduction.name)
        check_key(introduction.public_key, f"public key of {introduction.name}")
        name, key = introduction.name, introduction.public_key
        if key.encode() in RevokedKeys(revoked_path(self._fleet_path)).keys:
            raise InputError(f"{name}: its key is revoked: remove the key on the device and join again")
        known = next((each for each in fleet.device if each.name == name and each.public_key == key), None)
        if known is None:
            names = {each.name for each in fleet.device} | {each.name for each in fleet.client}
            keys = {each.public_key for each in fleet.device} | {each.public_key for each in fleet.client}
            if name in names:
                raise InputError(
                    f"{name}: the fleet has that name with another key: join with --name, or take it out of fleet.toml"
                )
            if key in keys | {node.public_key for node in fleet.nodes}:
                raise InputError(f"{name}: the fleet has its key under another name: make another with devit keys new")
        device = known or Device(name, self._free_submodel(fleet), key)
        nodes = tuple(NodeAddress(node.endpoint, node.public_key) for node in fleet.nodes)
        return device, Welcome(device.submodel, nodes, self._signers)

    def find(self, ask: Ask) -> File | None:
        """Find a file that is offered; ``None`` if it is not."""
        if ask.what == "bundle":
            path = self._bundle.folder / ask.name if ask.name in self._names else None
        elif self._engines is None or not re.fullmatch("[0-9a-f]{64}", ask.name):
            path = None
        else:
            record = self._engines / ask.name / _ENGINE_NAME
            path = record if ask.what == "record" else _engine_path(record)
        try:
            return None if path is None else File(path, regular_size(path))
        except OSError:  # a bundle that is not signed, an engine that was not built
            return None

    def enrol(self, device: Device) -> None:
        """Write a device into the fleet file, unless it is there.

        Raises:
            InputError: The file cannot be written, or has changed so that it takes the device no more.
            ManifestError: The file is broken now.
        """
        if device not in self.fleet().device:
            add_device(self._fleet_path, device)

    def _free_submodel(self, fleet: Fleet) -> int:
        if self._submodel is not None:
            return self._submodel
        if free := self._free(fleet):
            return free[0]
        raise InputError(
            f"{self._fleet_path}: every submodel has a device: name the one of a spare with --submodel, on the node"
        )

    def _free(self, fleet: Fleet) -> list[int]:
        taken = {device.submodel for device in fleet.device}
        return [each for each in range(len(self._bundle.manifest.submodels)) if each not in taken]

    def _check_writable(self) -> None:
        if not os.access(self._fleet_path, os.W_OK) or not os.access(self._fleet_path.absolute().parent, os.W_OK):
            raise InputError(
                f"{self._fleet_path}: expected a file that this user may write: run devit pair as its owner"
            )


def _engine_path(record: Path) -> Path | None:
    """Where the engine of a record lies; ``None`` if the record cannot be read, or names no plain file."""
    try:
        content = read_bytes(record, "")
        name = decode_json(record, content, _Record, schema=_ENGINE_SCHEMA, hint="").file.name
    except DevitError:
        return None
    return record.with_name(name) if re.fullmatch(r"[a-z][a-z0-9.-]*", name) else None
