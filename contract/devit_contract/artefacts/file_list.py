"""The list of a folder's files, with what each is for and its digest: of a bundle, and of a models folder."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from devit_contract.artefacts.files import check_digest, named_failure, sha256_of_file
from devit_contract.artefacts.regular import regular_size
from devit_contract.choices import Role, Variant
from devit_contract.errors import ManifestError


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
    variant: Variant | None = None

    def __post_init__(self) -> None:
        """Refuse names that lead out of the folder."""
        if not re.fullmatch(r"([A-Za-z0-9_-][A-Za-z0-9._-]*/)?[A-Za-z0-9_-][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name: expected a plain file name, found {self.name!r}")


def find_entry(
    files: tuple[FileEntry, ...], role: Role, device: int | None, variant: Variant | None, *, list_name: str, hint: str
) -> FileEntry:
    """Find a file by what it is for; a :class:`ManifestError` says that ``list_name`` lists none."""
    for file in files:
        if (file.role, file.device, file.variant) == (role, device, variant):
            return file
    raise ManifestError(f"{list_name}: lists no file of role {role}, device {device}, variant {variant}: {hint}")


def describe_file(
    folder: Path, name: str, role: Role, *, device: int | None = None, variant: Variant | None = None
) -> FileEntry:
    """Digest a file that was written, and describe it for the list."""
    path = folder / name
    return FileEntry(role, name, sha256_of_file(path), path.stat().st_size, device, variant)


def check_listing(folder: Path, files: tuple[FileEntry, ...], hint: str, *, with_digests: bool = False) -> None:
    """Check that every listed file is there and has its size; no content is read unless digests are asked for.

    Raises:
        InputError: A file is missing.
        ManifestError: A file has another size or digest, or is listed more than once.
    """
    names = [file.name for file in files]
    for file in files:
        path = folder / file.name
        if names.count(file.name) > 1:
            raise ManifestError(f"{path}: listed more than once: {hint}")
        with named_failure(f"{path}: cannot be read", hint):
            size_bytes = regular_size(path)
        if file.size_bytes not in (None, size_bytes):
            raise ManifestError(f"{path}: expected {file.size_bytes} bytes, found {size_bytes}: {hint}")
        if with_digests:
            check_digest(path, file.sha256, sha256_of_file(path), hint)
