"""``revoked_keys``: public keys that no longer open the door, read again while the node runs.

The file lies beside ``fleet.toml``. Each line holds a key of 40 Z85 characters, the name it had, and the day it was
revoked, with one space between; lines that begin with ``# ``, and empty ones, are for people (no key begins with
``#``: five such characters would stand for more than 32 bits). The first line may be a seal::

    # sealed by devit keys revoke, crc32 1a2b3c4d

with the CRC32 of all that follows its line feed. ``devit keys revoke`` writes it always, so that no damage to the file
lets a key in again: not a lost line, nor one changed character. Only a node that starts on a file whose seal is lost
too cannot tell. Whoever edits by hand deletes the seal.
"""

from __future__ import annotations

import re
import stat
import time
import zlib
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from devit_contract.artefacts.files import exclusive_lock, write_bytes
from devit_contract.artefacts.keys import NAME_PATTERN, check_key
from devit_contract.descriptors import in_reserve
from devit_contract.errors import InputError

FILE_NAME = "revoked_keys"
_LINE = re.compile(rb"(\S{40}) " + NAME_PATTERN.encode() + rb" \d{4}-\d{2}-\d{2}")
_SEAL = re.compile(rb"# sealed by devit keys revoke, crc32 ([0-9a-f]{8})\n")
_INTRODUCTION = b"# Keys that the fusion node refuses: devit keys revoke NAME adds one, with --undo it removes it.\n"
_HINT = "put back a copy of it, or mend it and delete the seal in its first line"
_STAY = "keys revoked before stay revoked until a sealed file comes, or the node is restarted"
_MAX_BYTES = 1 << 20
_SETTLED_NS = 2_000_000_000
"""Two changes may have one time stamp; the coarsest clock of a file system in use, FAT's, ticks every two seconds."""


class RevokedKeys:
    """The revoked keys as the file says; damage to the file revokes no less than before."""

    def __init__(self, path: Path) -> None:
        """Read the file; without one, nothing is revoked.

        Raises:
            InputError: It cannot be read, or breaks its format.
        """
        self._path = path
        self._stamp = stamp_of(path)
        found = _read(path)
        if found.problem:
            raise InputError(found.problem)
        self.keys = found.keys
        """Public keys, Z85."""
        self.problem = ""
        """What the last :meth:`refresh` found wrong with the file, in one line, and told for the first time."""
        self._told = ""
        self._is_sealed = found.is_sealed
        self._trust_stamp_if_settled(time.time_ns())

    def refresh(self) -> frozenset[bytes]:
        """Read the file again if it has changed: one stat of it while it has not.

        A key is let in again only by a file in good order without it. As long as the file is damaged, cannot be read,
        or is gone, its valid lines count, and so does every key that was revoked before; :attr:`problem` says so. The
        keys returned are those revoked since the last call, whose links are to be cut.
        """
        self.problem = ""
        now_ns = time.time_ns()
        stamp = stamp_of(self._path)
        if stamp is not None and stamp == self._stamp:
            return frozenset()
        before, found = self.keys, _read(self._path)
        problem = found.problem or self._loss(found)
        self._stamp = stamp
        if problem:
            self.keys = before | found.keys
            self._stamp = None  # what went wrong may go right next time, without a change to the file
        else:
            self.keys = found.keys
            self._is_sealed |= found.is_sealed
            self._trust_stamp_if_settled(now_ns)
        if problem != self._told:
            self.problem = self._told = problem
        return self.keys - before

    def _loss(self, found: _Content) -> str:
        """Say what a file in good order has lost that no editor would take away."""
        is_unsealed = self._is_sealed and not found.is_sealed
        if (is_unsealed or not found.body) and self.keys - found.keys:
            instead = "none" if found.body else "an empty file or no file"
            return f"{self._path}: expected the seal of devit keys revoke, found {instead}: {_STAY}"
        return ""

    def _trust_stamp_if_settled(self, now_ns: int) -> None:
        if self._stamp and now_ns - self._stamp[0] < _SETTLED_NS:
            self._stamp = None


def revoked_path(fleet: Path) -> Path:
    """Find the file that belongs to a ``fleet.toml``."""
    return fleet.with_name(FILE_NAME)


def revoke(path: Path, key: bytes, name: str) -> bool:
    """Write a key into the file, with the day of today (UTC); tell whether it was not there before.

    Raises:
        InputError: The file breaks its format (it is left as it is), or cannot be written.
    """
    line = b"%s %s %s\n" % (key, name.encode(), datetime.now(timezone.utc).date().isoformat().encode())
    with exclusive_lock(path.parent):
        found = _read_sound(path)
        if key in found.keys:
            return False
        _write(path, (found.body or _INTRODUCTION) + line)
    return True


def restore(path: Path, key: bytes) -> bool:
    """Take a key out of the file; tell whether it was there. It raises what :func:`revoke` does."""
    with exclusive_lock(path.parent):
        found = _read_sound(path)
        if key not in found.keys:
            return False
        kept = [line for line in found.body.splitlines(keepends=True) if not line.startswith(key + b" ")]
        _write(path, b"".join(kept) or _INTRODUCTION)
    return True


@dataclass(frozen=True)
class _Content:
    """A file, read."""

    keys: frozenset[bytes] = frozenset()
    """Of all lines that are valid, even where others are not."""
    body: bytes = b""
    """All but the seal."""
    is_sealed: bool = False
    """Whether it begins with a seal, and the seal holds."""
    problem: str = ""


def stamp_of(path: Path) -> tuple[int, ...] | None:
    """What changes when the file does, the time of its last change first; empty where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _read(path: Path) -> _Content:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            return _Content(problem=f"{path}: expected a file, found something else: {_HINT}")
        with in_reserve(), path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return _Content()
    except OSError as err:
        return _Content(problem=f"{path}: cannot be read ({err.strerror}): let the node read it")
    if len(content) > _MAX_BYTES:
        return _Content(problem=f"{path}: expected at most {_MAX_BYTES} bytes, found more: {_HINT}")
    return _parse(content, path)


def _parse(content: bytes, path: Path) -> _Content:
    seal = _SEAL.match(content)
    body = content if seal is None else content[seal.end() :]
    keys, broken = set(), 0
    lines = body.split(b"\n")
    for number, line in enumerate(lines, start=1 if seal is None else 2):
        match = _LINE.fullmatch(line)
        if match is not None and _is_key(match[1]):
            keys.add(match[1])
        elif line.strip() and not (line + b" ").startswith(b"# "):
            broken = broken or number
    problem = ""
    if broken:
        problem = f"line {broken}: expected a key, its name and a day such as 2026-01-31, or '# ', found other text"
    elif lines[-1]:
        problem = "has no line feed at its end, as if it was cut off"
    elif seal is not None and int(seal[1], 16) != zlib.crc32(body):
        problem = "its lines are not those that its seal was made for"
    return _Content(frozenset(keys), body, seal is not None and not problem, problem and f"{path}: {problem}: {_HINT}")


def _is_key(text: bytes) -> bool:
    try:
        check_key(text, "")
    except InputError:
        return False
    return True


def _read_sound(path: Path) -> _Content:
    found = _read(path)
    if found.problem:
        raise InputError(found.problem)
    return found


def _write(path: Path, body: bytes) -> None:
    seal = b"# sealed by devit keys revoke, crc32 %08x\n" % zlib.crc32(body)
    write_bytes(path, seal + body, mode=0o644)
