"""The list of a folder's files, with what each is for and its digest: of a bundle, and of a models folder."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from devit_contract.artefacts.files import check_digest, sha256_of_file
from devit_contract.choices import Role, Rung
from devit_contract.errors import InputError, ManifestError


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One file of the folder, by what it is for."""

    role: Role
    name: str
    """Plain file name, or one folder deep."""
    sha256: str
    size_bytes: int | None = None
    """Absent in lists of older versions."""
    device: int | None = None
    """Which submodel; absent where the role has only one file."""
    rung: Rung | None = None

    def __post_init__(self) -> None:
        """Refuse names that lead out of the folder."""
        if not re.fullmatch(r"([A-Za-z0-9_-][A-Za-z0-9._-]*/)?[A-Za-z0-9_-][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name: expected a plain file name, found {self.name!r}")


def find_entry(
    files: tuple[FileEntry, ...], role: Role, device: int | None, rung: Rung | None, *, list_name: str, hint: str
) -> FileEntry:
    """Find a file by what it is for.

    Raises:
        ManifestError: ``list_name`` lists none.
    """
    for file in files:
        if (file.role, file.device, file.rung) == (role, device, rung):
            return file
    raise ManifestError(f"{list_name}: lists no file of role {role}, device {device}, rung {rung}: {hint}")


def describe_file(
    folder: Path, name: str, role: Role, *, device: int | None = None, rung: Rung | None = None
) -> FileEntry:
    """Digest a file that was written, and describe it for the list."""
    path = folder / name
    return FileEntry(role, name, sha256_of_file(path), path.stat().st_size, device, rung)


def check_listing(folder: Path, files: tuple[FileEntry, ...], hint: str) -> None:
    """Check that every listed file is there and has its size; no content is read.

    Raises:
        InputError: A file is missing.
        ManifestError: A file has another size, or is listed more than once.
    """
    names = [file.name for file in files]
    for file in files:
        path = folder / file.name
        if names.count(file.name) > 1:
            raise ManifestError(f"{path}: listed more than once: {hint}")
        try:
            size_bytes = path.stat().st_size
        except OSError as err:
            raise InputError(f"{path}: cannot be read ({err.strerror}): {hint}") from err
        if file.size_bytes not in (None, size_bytes):
            raise ManifestError(f"{path}: expected {file.size_bytes} bytes, found {size_bytes}: {hint}")


def check_digests(folder: Path, files: tuple[FileEntry, ...], hint: str) -> None:
    """Check the digest of every listed file.

    Raises:
        InputError: A file cannot be read.
        ManifestError: A file has another digest.
    """
    for file in files:
        check_digest(folder / file.name, file.sha256, sha256_of_file(folder / file.name), hint)
