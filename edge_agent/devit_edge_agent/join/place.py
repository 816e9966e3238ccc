"""Where a device that joins keeps its files, what its agent.toml says, and how its service is started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from devit_contract.artefacts.files import write_bytes
from devit_contract.artefacts.fleet import parse_endpoint
from devit_contract.artefacts.keys import KeyPair, load_keys, new_keys
from devit_contract.errors import InputError
from devit_contract.wire.pairing import Welcome
from devit_edge_agent.config import AGENT_SCHEMA, load_agent_config

UNIT = Path("/etc/systemd/system/edge-agent@.service")
_ANY = ("*", "0.0.0.0", "::")


@dataclass(frozen=True)
class Place:
    """Paths of one device, all absolute."""

    config: Path
    keys: Path
    """Folder of its key pair."""
    bundle: Path
    store: Path | None
    """``None`` is the user's own."""
    allowed_signers: Path

    @classmethod
    def of_folder(cls, folder: Path, store: Path | None) -> Place:
        """All in a folder, but for the engines."""
        folder = folder.absolute()
        store = None if store is None else store.absolute()
        return cls(folder / "agent.toml", folder / "keys", folder / "bundle", store, folder / "allowed_signers")

    @classmethod
    def of_service(cls, name: str, root: Path = Path("/")) -> Place:
        """Where ``edge-agent@NAME`` looks."""
        etc, state = root / "etc/devit", root / "var/lib/devit"
        bundle, signers = state / "bundles" / name, etc / f"{name}.allowed_signers"
        return cls(etc / f"{name}.toml", etc / "keys", bundle, state / "engines", signers)

    def keys_of(self, name: str) -> KeyPair:
        """Read the device's keys, or make them."""
        path = self.keys / f"{name}.key_secret"
        return load_keys(path) if path.exists() else new_keys(self.keys, name)

    def write_config(self, name: str, welcome: Welcome, host: str, *, has_signers: bool) -> None:
        """Write agent.toml; ``host`` is where the node was found, for a node that listens everywhere.

        Raises:
            InputError: It cannot be written, or the node gave what is not usable: nothing is written then.
            ManifestError: The same.
        """
        node = welcome.nodes[0]
        lines: dict[str, object] = {
            "schema": AGENT_SCHEMA,
            "name": name,
            "submodel": welcome.submodel,
            "node": _reachable(node.endpoint, host),
            "node_public_key": node.public_key,
            "secret_key": self._named(self.keys / f"{name}.key_secret"),
            "bundle": self._named(self.bundle),
            "store": "" if self.store is None else self._named(self.store),
            "tegrastats": ["tegrastats"] if shutil.which("tegrastats") else [],
            "allowed_signers": self._named(self.allowed_signers) if has_signers else "",
        }
        text = _toml(lines)
        for standby in welcome.nodes[1:]:
            at = {"node": _reachable(standby.endpoint, host), "node_public_key": standby.public_key}
            text += f"\n[[standby]]\n{_toml(at)}"
        draft = self.config.with_name(f".{self.config.name}.new")  # in its folder, since paths are relative to it
        write_bytes(draft, f"# Written by devit join; the other fields: examples/agent.toml.\n{text}".encode())
        try:
            load_agent_config(draft)
            draft.replace(self.config)
        finally:
            draft.unlink(missing_ok=True)

    def _named(self, path: Path) -> str:
        folder = self.config.parent
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _toml(lines: Mapping[str, object]) -> str:
    return "".join(f"{field} = {json.dumps(value, ensure_ascii=False)}\n" for field, value in lines.items())


def prepare_service() -> None:
    """Make the unit of agents, their user and their folders, as ``devit install-service`` says, unless it is there.

    Raises:
        InputError: A command fails; the text says which.
    """
    os.umask(0o022)  # the service, another user, has to read what is written from now on; keys have modes of their own
    if not UNIT.exists():
        _run(str(Path(sys.prefix, "bin/devit")), "install-service", "agent")
        _run("systemd-sysusers", "devit.conf")
        _run("systemd-tmpfiles", "--create", "devit.conf")
        _run("systemctl", "daemon-reload")


def start_service(name: str) -> None:
    """Start edge-agent@NAME, now and at each boot, and wait until its node has accepted it.

    It raises what :func:`prepare_service` does.
    """
    _run("systemctl", "enable", "--now", f"edge-agent@{name}")


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as err:
        raise InputError(f"{command[0]}: cannot be run ({err.strerror}): --start needs systemd") from err
    if done.returncode != 0:
        said = " ".join(done.stderr.split())[-400:] or f"exit code {done.returncode}"
        raise InputError(f"{' '.join(command)}: failed ({said}): look at it, then run it again")


def _reachable(endpoint: str, host: str) -> str:
    """Put the host under which the node was found in the place of a wildcard."""
    listed, port = parse_endpoint(endpoint, "the node's endpoint")
    host = host if listed in _ANY else listed
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
