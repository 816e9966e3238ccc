"""What a node says of itself at the start of a recording."""

from __future__ import annotations

import time

import msgspec

from devit_contract.artefacts.fleet import Fleet, Node
from devit_contract.artefacts.manifest import Bundle, Manifest
from devit_fusion.record.records import Start

_RUNS = ("submodel", "fusion", "calibration")
"""Roles of the files that answers depend on."""


def start_record(bundle: Bundle, fleet: Fleet, run_id: int, software: str) -> Start:
    """Describe a node, now; what is secret or private in ``fleet.toml`` is left out."""
    now_ns, manifest = time.monotonic_ns(), bundle.manifest
    return Start(
        at_ns=now_ns,
        software=software,
        run_id=run_id,
        bundle=f"{manifest.name} {manifest.serial}",
        bundle_folder=str(bundle.folder.absolute()),
        digests=digests(manifest),
        fleet=msgspec.structs.replace(
            fleet,
            node=Node("", ""),
            device=tuple(msgspec.structs.replace(device, public_key="", host="") for device in fleet.device),
            client=tuple(msgspec.structs.replace(client, public_key="") for client in fleet.client),
            record=msgspec.structs.replace(fleet.record, socket=""),
        ),
        utc_offset_ns=time.time_ns() - now_ns,
    )


def digests(manifest: Manifest) -> dict[str, str]:
    """Digest of each file that answers depend on, by its path in the bundle."""
    return {file.name: file.sha256 for file in manifest.files if file.role in _RUNS}
