"""A device's part of a bundle, fetched from a node that pairs: whole and checked, or absent."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from devit_contract.artefacts.file_list import FileEntry
from devit_contract.artefacts.files import check_digest, decode_json, new_folder, write_bytes
from devit_contract.artefacts.manifest import FILE_NAME, SCHEMA, Bundle, Manifest, write_part
from devit_contract.artefacts.signing import SIGNATURE_NAME, accept_serial, check_signature
from devit_contract.errors import InputError
from devit_contract.service.progress import Progress
from devit_contract.wire.pairing import Ask
from devit_edge_agent.join.guest import Guest

_MOST_MANIFEST_BYTES = 64 << 20
_MOST_SIGNATURE_BYTES = 64 << 10
_MOST_FILE_BYTES = 16 << 30
"""Of a file whose manifest, of an older version, names no size."""
_SPARE_BYTES = 64 << 20
_HINT = "run devit pair with another bundle"


def fetch_bundle(
    guest: Guest, folder: Path, *, allowed_signers: Path | None, memory: Path, progress: Progress
) -> tuple[Bundle, str]:
    """Fetch what the device needs of the node's bundle, and tell who signed it; empty if nobody has.

    With ``allowed_signers``, one of them has to have signed it, and the bundle must not be older than what ``memory``
    holds; without, a signature that is there has to be right, whoever made it. Each file has the manifest's digest.

    Raises:
        InputError: A file is not offered, it cannot be written, or the bundle is older than one accepted before.
        ManifestError: The manifest or a file breaks its format, digest or signature.
        LinkError: As of :class:`Guest`.
    """
    submodel = guest.welcome.submodel
    with new_folder(folder) as draft:
        content = _fetch_bytes(guest, FILE_NAME, _MOST_MANIFEST_BYTES)
        if content is None:
            raise InputError(f"{FILE_NAME}: the node does not offer it: {_HINT}")
        write_bytes(draft / FILE_NAME, content)
        signature = _fetch_bytes(guest, SIGNATURE_NAME, _MOST_SIGNATURE_BYTES)
        if signature is not None:
            write_bytes(draft / SIGNATURE_NAME, signature)
        is_checked = allowed_signers is not None or signature is not None
        signer = check_signature(draft, allowed_signers) if is_checked else ""
        manifest = decode_json(folder / FILE_NAME, content, Manifest, schema=SCHEMA, hint=_HINT)
        manifest.graph("submodel", submodel)  # that there is one
        part = write_part(draft, (submodel,))
        files = [file for file in manifest.files if part.takes(file)]
        _check_room(draft, sum(file.size_bytes or 0 for file in files))
        for file in files:
            _fetch_file(guest, file, draft, progress)
        Bundle(draft, content)
        if allowed_signers is not None:
            accept_serial(memory, manifest.name, manifest.serial)
    return Bundle(folder, content), signer


def _fetch_file(guest: Guest, file: FileEntry, draft: Path, progress: Progress) -> None:
    most_bytes = _MOST_FILE_BYTES if file.size_bytes is None else file.size_bytes
    chunks = guest.fetch(Ask("bundle", file.name), most_bytes, partial(progress, file.name))
    if chunks is None:
        raise InputError(f"{file.name}: the node does not offer it: {_HINT}")
    write_bytes(draft / file.name, _digested(chunks, file))


def _digested(chunks: Iterator[bytes], file: FileEntry) -> Iterator[bytes]:
    """Pass a file on; a :class:`ManifestError` at its end says that its digest is another one."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    check_digest(Path(file.name), file.sha256, digest.hexdigest(), "run devit join again")


def _fetch_bytes(guest: Guest, name: str, most_bytes: int) -> bytes | None:
    chunks = guest.fetch(Ask("bundle", name), most_bytes)
    return None if chunks is None else b"".join(chunks)


def _check_room(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes + _SPARE_BYTES:
        raise InputError(
            f"{folder.parent}: expected {(needed_bytes + _SPARE_BYTES) >> 20} MiB of free disk, found "
            f"{free_bytes >> 20} MiB: make room, or choose another --dir"
        )
