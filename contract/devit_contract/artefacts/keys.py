"""CURVE keys: made, written so that only their owner can read them, read back strictly.

A key pair is two files: ``NAME.key`` with the public key, ``NAME.key_secret`` (mode 0600) with the secret one; each
holds 40 characters of Z85 (https://rfc.zeromq.org/spec/32) and a line feed.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils import z85

from devit_contract.artefacts.files import exclusive_lock, named_failure, read_bytes, write_bytes
from devit_contract.artefacts.regular import read_regular
from devit_contract.errors import InputError

NAME_PATTERN = r"[a-z0-9][a-z0-9_.-]{0,62}"
"""Names of devices and clients: what also fits a host name, a file name and a metric label."""
_PLACEHOLDER = b"paste-the-public-key"
"""What stands in the examples in a key's place."""
_Z85_KEY = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair as Z85 text."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        """Show the public half only, so that a log never holds the secret."""
        return f"KeyPair(public={self.public!r})"


@dataclass(frozen=True)
class StoredKey:
    """What a folder holds under one name."""

    name: str
    public: str = ""
    """Empty where no public key can be read."""
    secret_mode: int | None = None
    """Permissions of the secret half; absent where that half lies elsewhere."""
    problem: str = ""
    """Why it cannot be used, in one line; empty where it can."""


def new_keys(folder: Path, name: str) -> KeyPair:
    """Make a key pair and write both files, or none; a folder that has to be made is its owner's alone.

    Raises:
        InputError: The name is not usable, one half of that name is there already (it is kept), or nothing can be
            written.
    """
    check_name(name)
    secret_path, public_path = folder / f"{name}.key_secret", folder / f"{name}.key"
    with named_failure(f"{folder}: cannot be made", "choose another folder with --dir"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with exclusive_lock(folder):
        for path in (secret_path, public_path):
            if path.exists() or path.is_symlink():
                raise InputError(f"{path}: a key of that name already exists: choose another name or remove it")
        public, secret = zmq.curve_keypair()
        # The secret half first: a process killed here leaves a key that works, since its public half can be computed.
        write_bytes(secret_path, secret + b"\n", mode=0o600)
        try:
            write_bytes(public_path, public + b"\n")
        except BaseException:
            secret_path.unlink()
            raise
    return KeyPair(public, secret)


def stored_keys(folder: Path) -> list[StoredKey]:
    """Look at every key of a folder, in the order of their names; what cannot be used says why.

    Raises:
        InputError: There is no such folder, or it cannot be read.
    """
    with named_failure(f"{folder}: no folder with keys", "make a key with devit keys new"):
        names = {path.stem for path in folder.iterdir() if path.suffix in (".key", ".key_secret")}
    return [_stored_key(folder, name) for name in sorted(names)]


def load_keys(secret_path: Path) -> KeyPair:
    """Read a secret key; the public half is computed from it.

    Where systemd hands a credential of the file's name to this service (``LoadCredential=`` in systemd.exec(5)), that
    is read: the file itself may be root's alone.

    Raises:
        InputError: The file is missing, readable for others than its owner, the public half, or no key.
    """
    if secret_path.suffix == ".key":
        raise InputError(
            f"{secret_path}: expected the secret half of a key, found by its name the public one: "
            f"give {secret_path.with_suffix('.key_secret')}"
        )
    credential = Path(os.environ.get("CREDENTIALS_DIRECTORY", "")) / secret_path.name
    is_credential = credential.is_absolute() and credential.exists()
    if is_credential:
        secret_path = credential
    with named_failure(f"{secret_path}: cannot be read", "make one with devit keys new"):
        mode = secret_path.stat().st_mode & 0o777
        text = read_regular(secret_path).strip()
    # systemd 254 and later lets the service in by an access list, which stat shows as 0440: systemd/systemd#29435.
    if mode & (0o037 if is_credential else 0o077):
        raise InputError(f"{secret_path}: expected mode 0600, found {mode:04o}: chmod 600 {secret_path}")
    secret = check_key(text, str(secret_path))
    return KeyPair(zmq.curve_public(secret), secret)


def check_key(text: bytes | str, where: str) -> bytes:
    """Check that a text is a Z85 key of 40 characters and give it as bytes.

    Raises:
        InputError: It is not; the message never holds the text.
    """
    raw = text.encode("ascii", "replace") if isinstance(text, str) else text
    if raw.startswith(_PLACEHOLDER):
        raise InputError(f"{where}: still the placeholder of the example: paste the key that devit keys list shows")
    if not _Z85_KEY.fullmatch(raw) or not _is_number(raw):
        raise InputError(
            f"{where}: expected a key of 40 Z85 characters, found other text of {len(raw)}: "
            "make one with devit keys new"
        )
    return raw


def _stored_key(folder: Path, name: str) -> StoredKey:
    """Look at both halves of a name, whichever are there."""
    public_path, secret_path = folder / f"{name}.key", folder / f"{name}.key_secret"
    public, mode = b"", None
    try:
        check_name(name, str(public_path))
        if public_path.exists():
            public = _read_public(public_path)
        if secret_path.exists():
            mode = secret_path.stat().st_mode & 0o777
            computed = load_keys(secret_path).public
            if public not in (b"", computed):
                raise InputError(f"{public_path}: not the public half of {secret_path.name}: remove it")
            public = computed
    except InputError as err:
        return StoredKey(name, public.decode(), mode, str(err))
    return StoredKey(name, public.decode(), mode)


def _read_public(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path}: expected a file with a public key, found something else: remove it")
    return check_key(read_bytes(path, "let this user read it, or remove it").strip(), str(path))


def _is_number(raw: bytes) -> bool:
    """Tell whether every five characters stand for 32 bits: some, like ``#####``, stand for more."""
    try:
        z85.decode(raw)
    except struct.error:
        return False
    return True


def check_name(name: str, where: str = "name") -> None:
    """Check the name of a device or client; ``where`` says in an error where it stands.

    Raises:
        InputError: It is not usable as host name, file name and metric label.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise InputError(
            f"{where}: expected at most 63 small letters, digits, '-', '_' or '.', a letter or digit first, "
            f"found {name!r}"
        )
