"""CURVE keys: made, written so that only their owner can read them, read back strictly.

A key pair is two files: ``NAME.key`` with the public key, ``NAME.key_secret`` (mode 0600) with the secret one; each
holds 40 characters of Z85 (https://rfc.zeromq.org/spec/32) and a line feed.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils import z85

from devit_contract.errors import InputError
from devit_contract.files import write_bytes

NAME_PATTERN = r"[a-z0-9][a-z0-9_.-]{0,62}"
"""Names of devices and clients: what also fits a host name, a file name and a metric label."""
_Z85_KEY = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair as Z85 text."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        """Show the public half only, so that a log never holds the secret."""
        return f"KeyPair(public={self.public!r})"


def new_keys(folder: Path, name: str) -> KeyPair:
    """Make a key pair and write both files.

    Raises:
        InputError: The name is not usable, or a secret key of that name is there already (it is kept).
    """
    check_name(name)
    secret_path = folder / f"{name}.key_secret"
    if secret_path.exists():
        raise InputError(f"{secret_path}: expected no key of that name, found one: choose another name or remove it")
    public, secret = zmq.curve_keypair()
    write_bytes(secret_path, secret + b"\n", mode=0o600)
    write_bytes(folder / f"{name}.key", public + b"\n")
    return KeyPair(public, secret)


def load_keys(secret_path: Path) -> KeyPair:
    """Read a secret key; the public half is computed from it.

    Raises:
        InputError: The file is missing, readable for others than its owner, or no key.
    """
    try:
        mode = secret_path.stat().st_mode & 0o777
        text = secret_path.read_bytes().strip()
    except OSError as err:
        raise InputError(f"{secret_path}: cannot be read ({err.strerror}): make one with devit keys new") from err
    if mode & 0o077:
        raise InputError(f"{secret_path}: expected mode 0600, found {mode:04o}: chmod 600 {secret_path}")
    secret = check_key(text, str(secret_path))
    return KeyPair(zmq.curve_public(secret), secret)


def check_key(text: bytes | str, where: str) -> bytes:
    """Check that a text is a Z85 key of 40 characters and give it as bytes.

    Raises:
        InputError: It is not; the message never holds the text.
    """
    raw = text.encode("ascii", "replace") if isinstance(text, str) else text
    if not _Z85_KEY.fullmatch(raw) or not _is_number(raw):
        raise InputError(
            f"{where}: expected a key of 40 Z85 characters, found other text of {len(raw)}: "
            "make one with devit keys new"
        )
    return raw


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
