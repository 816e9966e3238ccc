"""Whether a running node has taken a changed fleet file: asked of the node itself."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from devit_contract.artefacts.files import read_bytes
from devit_contract.artefacts.fleet import load_fleet
from devit_contract.artefacts.keys import load_keys
from devit_contract.errors import DevitError
from devit_contract.wire.client import Client
from devit_contract.wire.status import FleetStatus

_PATIENCE_S, _PERIOD_S = 3.0, 0.1
"""How long the node may take, and how often it is asked: it looks at the file five times a second."""


@dataclass(frozen=True)
class Asked:
    """What the node says, or why it says nothing."""

    node: Literal["taken", "refused", "not taken", "no answer", "not asked"]
    text: str
    """The same for people, in one line."""
    needs_restart: tuple[str, ...] = ()
    """Tables that have changed since the node's start, and are applied when it starts again."""


def ask_node(path: Path, key: Path | None) -> Asked:
    """Ask the node of a fleet file whether it has taken the file as it is now, for some seconds if need be."""
    fleet = load_fleet(path)
    if fleet.has_keys and key is None:
        return Asked("not asked", "a running node takes it within a second: ask with --key, or see devit status")
    digest = hashlib.sha256(read_bytes(path, "")).hexdigest()
    end_s = time.monotonic() + _PATIENCE_S
    try:
        with Client.of_fleet(fleet, load_keys(key) if key is not None else None, timeout_s=_PATIENCE_S) as client:
            while (found := client.status().fleet) is not None and found.sha256 != digest and time.monotonic() < end_s:
                client.wait(_PERIOD_S)
    except DevitError as err:
        return Asked("no answer", f"a node takes it when it starts: none has answered here ({err})")
    return _judged(found, digest, fleet.node.client_endpoint)


def _judged(found: FleetStatus | None, digest: str, endpoint: str) -> Asked:
    if found is None:
        return Asked("not taken", f"{endpoint}: that node reads fleet.toml at its start alone: restart fusion-node")
    if found.sha256 != digest:
        return Asked("not taken", f"{endpoint}: that node has another fleet.toml: copy this one to it")
    if found.problem:
        return Asked("refused", f"the node keeps its fleet as it was: {found.problem}")
    if found.needs_restart:
        text = f"the node has taken it; restart fusion-node to apply {', '.join(found.needs_restart)}, changed before"
        return Asked("taken", text, found.needs_restart)
    return Asked("taken", "the node has taken it")
