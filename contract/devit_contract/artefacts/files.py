"""Files that are whole or absent: atomic writes, digests, and typed reading with errors that name the field."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from devit_contract.artefacts.regular import open_regular, read_regular
from devit_contract.errors import DevitError, InputError, ManifestError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
Tensors = dict[str, npt.NDArray[Any]]

_CHUNK_BYTES = 1 << 20
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # renameat2(2)


@contextmanager
def named_failure(what: str, hint: str = "") -> Iterator[None]:
    """Turn an ``OSError`` of this block into an :class:`InputError`: ``what`` failed, why, and what to run."""
    try:
        yield
    except OSError as err:
        raise InputError(f"{what} ({err.strerror}): {hint}" if hint else f"{what}: {err.strerror}") from err


def sha256_of_file(path: Path) -> str:
    """Digest a file, as 64 hex digits.

    Raises:
        InputError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with named_failure(f"{path}: cannot be read"), open_regular(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def read_bytes(path: Path, hint: str, *, sha256: str = "") -> bytes:
    """Read a file; with ``sha256``, the bytes returned have that digest.

    Raises:
        InputError: The file cannot be read.
        ManifestError: It has another digest.
    """
    with named_failure(f"{path}: cannot be read", hint):
        content = read_regular(path)
    if sha256:
        check_digest(path, sha256, hashlib.sha256(content).hexdigest(), hint)
    return content


def check_digest(path: Path, expected: str, found: str, hint: str) -> None:
    """Compare a file's digest with the one it was listed with; a :class:`ManifestError` says that they differ."""
    if found != expected:
        raise ManifestError(f"{path}: expected sha256 {expected[:12]}, found {found[:12]}: {hint}")


def write_bytes(path: Path, content: bytes | Iterable[bytes], *, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old content or the new, never a part, with the given permissions.

    Content that memory should not hold comes in parts.

    Raises:
        InputError: The disk is full or the folder cannot be written; nothing half-written stays.
    """
    with named_failure(f"{path}: cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.writelines([content] if isinstance(content, bytes) else content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def make_folder(path: Path) -> None:
    """Make a folder, before long work, or find that files can be written to it.

    Raises:
        InputError: It can't be made, or no file of a megabyte can be written to it.
    """
    with named_failure(f"{path}: cannot be written", "choose another folder"):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(_CHUNK_BYTES))


def check_replaceable(path: Path, marker: str) -> None:
    """Check, before long work, that a folder may be written: absent, empty, or an older one of the same kind.

    Raises:
        InputError: It holds something else than what has a file ``marker``.
    """
    is_free = not path.exists() or (path.is_dir() and (_is_own(path / marker) or not any(path.iterdir())))
    if not is_free:
        raise InputError(
            f"{path}: expected no folder, an empty one or an older one with {marker}, found something else: "
            "choose another --out"
        )


def refuse_finished(path: Path, marker: str, *, force: bool) -> None:
    """Check, before long work, that a command does not replace what an earlier one made, unless by ``force``.

    Raises:
        InputError: The folder has a file ``marker``, which is written last.
    """
    if not force and _is_own(path / marker):
        raise InputError(f"{path}: what is there is finished: choose another --out, or add --force to replace it")


def _is_own(marker: Path) -> bool:
    """Tell whether a marker is this project's: others have a file ``manifest.json`` too."""
    if marker.suffix != ".json":
        return marker.exists()
    try:
        content = msgspec.json.decode(read_regular(marker))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(content, dict) and {"schema", "code_version", "files"} <= content.keys()


@contextmanager
def exclusive_lock(
    path: Path, *, busy: DevitError | None = None, on_wait: Callable[[], None] = lambda: None
) -> Iterator[int]:
    """Keep other processes of this project out while the block runs; the kernel frees the lock of a killed one.

    ``path`` is a folder that exists, or a file, which is made if it is absent; its descriptor is yielded. If another
    process has the lock, ``busy`` is raised, or without it ``on_wait`` is called, and then the lock waited for.

    Raises:
        InputError: It cannot be opened.
    """
    flags = os.O_CLOEXEC | (os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT)
    with named_failure(f"{path}: cannot be opened"):
        try:
            handle = os.open(path, flags, 0o644)
        except PermissionError:
            handle = os.open(path, os.O_CLOEXEC | os.O_RDONLY)  # another user's in a shared folder; enough for flock(2)
    try:
        _lock(handle, busy, on_wait)
        yield handle
    finally:
        os.close(handle)


def remove_file(path: Path) -> None:
    """Remove a file; an :class:`InputError` says that it cannot be removed, or is not there."""
    with named_failure(f"{path}: cannot be removed", "remove it by hand"):
        path.unlink()


def _lock(handle: int, busy: DevitError | None, on_wait: Callable[[], None]) -> None:
    with suppress(OSError):  # some file systems have no locks, e.g. NFS for folders: they are for one writer at a time
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            if busy is not None:
                raise busy from err
            on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary folder; on success it takes the name ``path``, on failure it is removed.

    An existing folder of that name is replaced only at the end, so a reader finds the old or the new one; on a file
    system that cannot exchange names, there is neither for some microseconds.
    """
    with named_failure(f"{path}: cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        old = draft.with_name(draft.name + ".old")
        try:
            shared = path.parent.stat().st_mode & 0o2020
            draft.chmod(0o755 | (shared if shared == 0o2020 else 0))  # what is shared with a group stays so
            yield draft
            if not (path.is_dir() and exchange(draft, path)):
                if path.exists():
                    path.rename(old)
                draft.rename(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise
        finally:
            for left in (old, draft):  # of these one at most is there: the old folder, or what was not finished
                shutil.rmtree(left, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names at one stroke, so that a reader of either always finds one of both; tell whether it was done.

    Not every C library and file system can (NFS cannot).
    """
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def read_json(path: Path, kind: type[T], *, schema: int, hint: str) -> T:
    """Decode a JSON file into a frozen msgspec struct whose field ``schema`` must have the given number.

    Every error ends with ``hint``: what to run next.

    Raises:
        InputError: The file cannot be read.
        ManifestError: It is no JSON, has another schema version, or a field is missing or of the wrong type.
    """
    return decode_json(path, read_bytes(path, hint), kind, schema=schema, hint=hint)


def decode_json(path: Path, content: bytes, kind: type[T], *, schema: int, hint: str) -> T:
    """Decode what was read from a JSON file as :func:`read_json` does."""
    try:
        raw = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ManifestError(f"{path}: not a JSON file ({err}): {hint}") from err
    return convert(path, raw, kind, schema=schema, hint=hint)


def read_toml(path: Path, kind: type[T], *, schema: int, hint: str) -> T:
    """Decode a TOML file as :func:`read_json` decodes JSON."""
    return convert(path, read_toml_tables(path, hint), kind, schema=schema, hint=hint)


def read_toml_tables(path: Path, hint: str) -> dict[str, Any]:
    """Read a TOML file as plain tables, e.g. to join several before :func:`convert`.

    Raises:
        InputError: The file cannot be read.
        ManifestError: It is no TOML.
    """
    return decode_toml(path, read_bytes(path, hint), hint)


def decode_toml(path: Path, content: bytes, hint: str) -> dict[str, Any]:
    """Decode what was read from a TOML file as :func:`read_toml_tables` does."""
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as err:
        raise ManifestError(f"{path}: not a TOML file ({err}): {hint}") from err


def convert(path: Path, raw: object, kind: type[T], *, schema: int, hint: str) -> T:
    """Turn what was read from ``path`` into a struct, as :func:`read_json` does."""
    found = raw.get("schema") if isinstance(raw, dict) else None
    if found != schema:
        raise ManifestError(f"{path}: field schema: expected {schema}, found {found!r}: {hint}")
    try:
        return msgspec.convert(raw, kind, str_keys=True)  # keys of JSON and TOML are text, numbers too
    except msgspec.ValidationError as err:
        match = re.fullmatch(r"(?P<what>.*?)(?: - at `\$\.?(?P<where>.*)`)?", str(err), re.DOTALL)
        what, where = (match["what"], match["where"] or "(top level)") if match is not None else (str(err), "")
        if wrong := re.fullmatch(r"Invalid enum value (?P<value>.*)", what, re.DOTALL):
            *most, last = _allowed(kind, where)
            what = f"expected {', '.join(most)}{' or ' if most else ''}{last}, found {wrong['value']}"
        raise ManifestError(f"{path}: field {where}: {what}: {hint}") from err
    except DevitError as err:  # raised by a struct's own __post_init__
        raise type(err)(f"{path}: {err}") from err


def _allowed(kind: type, where: str) -> list[str]:
    """List the values of a closed set by its place in a struct, as msgspec names it: ``files[0].role``."""
    types: list[Any] = [msgspec.inspect.type_info(kind)]
    for step in re.findall(r"\[.*?\]|[^.\[]+", where):
        if step.startswith("["):  # of a list, or of a table
            types = [getattr(each, "item_type", None) or getattr(each, "value_type", None) for each in types]
        else:
            types = [field.type for each in types for field in getattr(each, "fields", ()) if field.name == step]
        types = [part for each in types for part in getattr(each, "types", (each,))]  # X | None has two
    return [str(value) for each in types for value in getattr(each, "values", ())]


def write_json(path: Path, value: msgspec.Struct) -> None:
    """Write a struct as indented JSON, atomically, with the same bytes for the same value."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def read_tensors(path: Path, hint: str, *, sha256: str = "") -> Tensors:
    """Read a safetensors file; with ``sha256``, the bytes read have that digest.

    Raises:
        InputError: The file cannot be read.
        ManifestError: It is no safetensors file, or has another digest.
    """
    try:
        return safetensors.numpy.load(read_bytes(path, hint, sha256=sha256))
    except safetensors.SafetensorError as err:
        raise ManifestError(f"{path}: not a safetensors file ({err}): {hint}") from err
    except KeyError as err:  # a type that numpy does not have
        raise ManifestError(f"{path}: expected number types of numpy, found {err}: {hint}") from err


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file atomically; arrays are made contiguous first."""
    whole = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    write_bytes(path, safetensors.numpy.save(whole))
