"""From a code to a device that can serve: keys, bundle, agent.toml, engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from devit_contract.artefacts.files import check_replaceable, make_folder, read_bytes, write_bytes
from devit_contract.artefacts.fleet import parse_endpoint
from devit_contract.artefacts.keys import check_name
from devit_contract.artefacts.manifest import FILE_NAME
from devit_contract.artefacts.signing import MEMORY_NAME
from devit_contract.errors import EngineError, InputError
from devit_contract.extras import own_version
from devit_contract.service.progress import Progress
from devit_contract.wire.pairing import DEFAULT_PORT, Introduction, read_code
from devit_edge_agent.join.equal_board import fetch_engine, take_engine, target_of
from devit_edge_agent.join.fetched import fetch_bundle
from devit_edge_agent.join.guest import Guest, joined
from devit_edge_agent.join.place import Place
from devit_engines.building.backends import backend_of
from devit_engines.building.build_all import build_engines
from devit_engines.building.store import Store

EngineOrigin = Literal["fetched", "built", "stored"]


@dataclass(frozen=True)
class JoinReport:
    """What a device has become."""

    name: str
    submodel: int
    config: str
    """Path of agent.toml."""
    signer: str
    """Of the bundle, as the device knows it; empty where nobody has signed it."""
    engine: str
    """For people: ``fp16 of submodel 1``."""
    engine_digest: str
    engine_origin: EngineOrigin
    """Taken from the node, built here, or there before."""


@dataclass(frozen=True)
class Joiner:
    """A device that wants to join, and how."""

    node: str
    """``HOST`` or ``HOST:PORT``."""
    code: str
    name: str
    place: Place
    allowed_signers: Path | None = None
    """This device's own; else the node's are taken, if it gives any."""
    force: bool = False
    """Replace an agent.toml that is there."""

    def run(self, progress: Progress, tell: Callable[[str], None]) -> JoinReport:
        """Join, and make ready what an agent needs; ``tell`` is called with a line for people at each step.

        Raises:
            InputError: An argument, path or file is not usable, or something is there already.
            ManifestError: The bundle is broken, or not signed as it should be.
            LinkError: The node cannot be reached, refuses or declines this device, or does not know the code.
            EngineError: No engine can be built here.
        """
        host, port = self._check()
        keys = self.place.keys_of(self.name)
        introduction = Introduction(self.name, keys.public.decode(), own_version())
        store = Store(self.place.store)
        with joined(host, port, read_code(self.code), introduction) as guest:
            submodel = guest.welcome.submodel
            tell(f"the node takes {self.name} as submodel {submodel}")
            signers = self._write_signers(guest)
            bundle, signer = fetch_bundle(
                guest,
                self.place.bundle,
                allowed_signers=signers,
                memory=store.folder / MEMORY_NAME,
                progress=progress,
            )
            target = target_of(bundle, store, submodel)
            is_there = any(store.record(key.digest) for key in target.engine_keys())
            fetched = None if is_there else fetch_engine(guest, target, progress)
            guest.finish()
            # Last: with it, the device counts as joined. Without, it may join again by its key.
            self.place.write_config(self.name, guest.welcome, host, has_signers=signers is not None)
        tell(f"the node has added {self.name} to its fleet; written: {self.place.config}")
        origin: EngineOrigin = "built"
        if fetched is not None:
            try:
                take_engine(target, *fetched, progress)
                origin = "fetched"
            except EngineError as err:
                tell(f"the node's engine is refused, so one is built here: {err}")
        (built,) = build_engines(bundle, store, submodels=[submodel], progress=progress)
        if origin == "built" and built.was_cached:
            origin = "stored"
        title = f"{built.record.key.variant} of {target.title}"
        return JoinReport(self.name, submodel, str(self.place.config), signer, title, built.digest, origin)

    def _check(self) -> tuple[str, int]:
        """Find what is wrong with the arguments and this device before the code is used."""
        read_code(self.code)
        check_name(self.name, "--name")
        host, port = read_node(self.node)
        backend_of("auto").version()
        if self.place.config.exists() and not self.force:
            raise InputError(
                f"{self.place.config}: this device has joined already: start its agent, or add --force to join anew"
            )
        make_folder(self.place.config.parent)
        check_replaceable(self.place.bundle, FILE_NAME)
        return host, port

    def _write_signers(self, guest: Guest) -> Path | None:
        """Write this device's file of allowed signers, its own or the node's; ``None`` if there is neither."""
        if self.allowed_signers is not None:
            content = read_bytes(self.allowed_signers, "devit sign prints a line for it")
        else:
            content = guest.welcome.allowed_signers.encode()
        if not content:
            return None
        write_bytes(self.place.allowed_signers, content)
        return self.place.allowed_signers


def read_node(text: str) -> tuple[str, int]:
    """Read ``HOST`` or ``HOST:PORT``.

    >>> read_node("10.0.0.2"), read_node("node.local:99"), read_node("fd00::1"), read_node("[fd00::1]:99")
    (('10.0.0.2', 7713), ('node.local', 99), ('fd00::1', 7713), ('fd00::1', 99))

    Raises:
        InputError: It is something else.
    """
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    has_port = text.rpartition(":")[2].isdigit() and not text.endswith("]")
    try:
        return parse_endpoint(f"tcp://{text}" if has_port else f"tcp://{text}:{DEFAULT_PORT}", "node")
    except InputError as err:
        raise InputError(f"node: expected HOST or HOST:PORT, as devit pair shows it, found {text!r}") from err
