"""Signed bundles: who made a bundle, proved by OpenSSH, and never an older one than was accepted before.

``manifest.json.sig`` is what ``ssh-keygen -Y sign -n devit-bundle`` writes for ``manifest.json``. The manifest holds
the digest of every file, so its signature covers them all. A device knows its signers by a file of OpenSSH's *allowed
signers* (ssh-keygen(1)), one a line::

    desk namespaces="devit-bundle" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA...

Options such as ``valid-before`` count; a signer whose line is gone is refused. ssh-keygen passes over a line that it
cannot read, which lets in nobody.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import tempfile
from pathlib import Path

import msgspec

from devit_contract.artefacts.files import exclusive_lock, named_failure, read_bytes, read_json, write_bytes, write_json
from devit_contract.artefacts.manifest import FILE_NAME, Bundle
from devit_contract.errors import InputError, ManifestError

NAMESPACE = "devit-bundle"
"""Part of what is signed: a signature made for git or a letter opens nothing here."""
SIGNATURE_NAME = "manifest.json.sig"
MEMORY_NAME = "accepted_serials.json"
"""In the engine store: the highest serial that this device has accepted of each bundle name."""
_SIGN_HINT = "sign it with devit sign"
_MEMORY_SCHEMA = 1


def sign_manifest(bundle_folder: Path, key: Path, identity: str) -> Path:
    """Sign a bundle whose digests hold, and return the signature's file; an older signature of it is replaced.

    ``key`` is OpenSSH's secret key file, or the public one of a key that ssh-agent holds; ssh-keygen asks for a
    passphrase on the terminal. ``identity``, the signer's name in devices' files of allowed signers, is no part of the
    signature.

    Raises:
        InputError: ssh-keygen is missing or cannot sign with this key, or a file cannot be read or written.
        ManifestError: The bundle is broken.
    """
    check_signer(key, identity)
    content = _manifest_bytes(bundle_folder)
    Bundle(bundle_folder, content).verify()
    with tempfile.TemporaryDirectory() as folder:
        copy, signature, signers = (Path(folder) / name for name in (FILE_NAME, SIGNATURE_NAME, "signers"))
        write_bytes(copy, content)
        done = _ssh_keygen("sign", "-n", NAMESPACE, "-f", key, copy)
        if done.returncode != 0:
            raise InputError(f"{key}: expected a key to sign with, found: {_words(done)}")
        write_bytes(signers, f"{signer_line(signature, identity)}\n".encode())
        _verify(content, signature, signers)
        write_bytes(bundle_folder / SIGNATURE_NAME, signature.read_bytes())
    return bundle_folder / SIGNATURE_NAME


def check_signer(key: Path, identity: str) -> None:
    """Check, before long work, that a key file and ssh-keygen are there, and that the name can stand in a list.

    Raises:
        InputError: One of them is not usable.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9@._+-]{0,127}", identity):
        raise InputError(
            f"identity: expected letters, digits or any of '@._+-', a letter or digit first, found {identity!r}"
        )
    if not key.is_file():
        raise InputError(f"{key}: there is no such key file: make one with ssh-keygen -t ed25519")
    _ssh_keygen("sign")  # says that words are missing, or is missing itself


def signer_line(signature: Path, identity: str) -> str:
    """Write the line of an allowed-signers file that lets in the key behind a signature, for bundles alone.

    Raises:
        InputError: The signature cannot be read, or was made with a certificate, whose authority would have to be
            listed.
    """
    try:
        blob = base64.b64decode(signature.read_bytes().split(b"-----")[2])
        # PROTOCOL.sshsig: "SSHSIG", uint32 version, string public key; this one begins with string key type.
        public = blob[14 : 14 + int.from_bytes(blob[10:14], "big")]
        kind = public[4 : 4 + int.from_bytes(public[:4], "big")].decode("ascii")
    except (OSError, IndexError, ValueError) as err:
        raise InputError(f"{signature}: expected a signature of ssh-keygen, found none: {_SIGN_HINT}") from err
    if "-cert-" in kind:
        raise InputError(f"{signature}: made with a certificate: sign with its key file")
    return f'{identity} namespaces="{NAMESPACE}" {kind} {base64.b64encode(public).decode()}'


def verify_bundle(folder: Path, allowed_signers: Path) -> tuple[Bundle, str]:
    """Open a bundle whose signature and digests hold; tell who signed it, as ``allowed_signers`` calls them.

    ``manifest.json`` is read once: the bundle has the manifest of the bytes whose signature was verified. Later reads
    are checked against that manifest again, so a file that changes after this is refused when it is read.

    Raises:
        InputError: ssh-keygen or a file is missing.
        ManifestError: The bundle is broken, not signed, has changed since, or its signer is not allowed, or not now.
    """
    content = _manifest_bytes(folder)
    signer = _verify(content, folder / SIGNATURE_NAME, allowed_signers)
    bundle = Bundle(folder, content)
    bundle.verify()
    return bundle, signer


def check_signature(folder: Path, allowed_signers: Path | None) -> str:
    """Check the signature of a manifest alone, before its files are there, and tell who signed it.

    Without ``allowed_signers`` it only has to be a signature of these bytes, and the key's fingerprint is told.

    Raises:
        InputError: ssh-keygen or a file is missing.
        ManifestError: It is not signed, has changed since, or its signer is not allowed, or not now.
    """
    content, signature = _manifest_bytes(folder), folder / SIGNATURE_NAME
    if allowed_signers is not None:
        return _verify(content, signature, allowed_signers)
    done = _ssh_keygen("check-novalidate", "-n", NAMESPACE, "-s", signature, content=content)
    if done.returncode != 0:
        raise ManifestError(f"{signature}: expected a signature of this manifest, found: {_words(done)}: {_SIGN_HINT}")
    return done.stdout.decode(errors="replace").split()[-1]


def accept_serial(memory: Path, name: str, serial: int, *, allow_older: bool = False) -> None:
    """Accept a bundle's serial, and remember it: from now on nothing below it is accepted under this name.

    ``memory`` is the file of all names and serials, made at the first call. With ``allow_older``, a lower serial is
    accepted and remembered too.

    Raises:
        InputError: A higher one was accepted before, or the memory cannot be read or written.
        ManifestError: The memory breaks its format.
    """
    with named_failure(f"{memory}: cannot be written"):
        memory.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(memory.parent):
        serials = _read_memory(memory)
        if serials.get(name) == serial:
            return
        if not allow_older and serial < serials.get(name, serial):
            raise InputError(
                f"bundle {name}: expected serial {serials[name]} or later, as this device has accepted before, "
                f"found {serial}: to go back on purpose, run devit build with --allow-older"
            )
        write_json(memory, _Memory(_MEMORY_SCHEMA, serials | {name: serial}))


def open_admitted(
    bundle_folder: Path, allowed_signers: Path, memory: Path, *, allow_older: bool = False
) -> tuple[Bundle, str]:
    """Open a bundle as :func:`verify_bundle` does, unless it is older than one that this device has accepted.

    The serial is remembered last, so that a bundle that came damaged does not lock out the one before. Anyone who may
    write to ``memory`` or ``allowed_signers`` decides what is admitted. It raises what :func:`verify_bundle` and
    :func:`accept_serial` do.
    """
    bundle, signer = verify_bundle(bundle_folder, allowed_signers)
    accept_serial(memory, bundle.manifest.name, bundle.manifest.serial, allow_older=allow_older)
    return bundle, signer


class _Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    serials: dict[str, int]
    """Bundle name to serial."""


def _read_memory(path: Path) -> dict[str, int]:
    if not path.exists():
        return {}
    hint = "put back a copy, or delete it and run devit build to accept the bundle as it is now"
    return read_json(path, _Memory, schema=_MEMORY_SCHEMA, hint=hint).serials


def _manifest_bytes(folder: Path) -> bytes:
    return read_bytes(folder / FILE_NAME, "give a bundle from devit export")


def _verify(content: bytes, signature: Path, allowed_signers: Path) -> str:
    """Ask ssh-keygen whose key it is, then whether that signer's signature holds, for these bytes and today."""
    if not signature.is_file():
        raise ManifestError(f"{signature.parent}: not a signed bundle, as {signature.name} is missing: {_SIGN_HINT}")
    if not allowed_signers.is_file():
        raise InputError(f"{allowed_signers}: no such file of allowed signers: devit sign prints a line for it")
    found = _ssh_keygen("find-principals", "-s", signature, "-f", allowed_signers)
    words = _words(found)
    # One a line; some may be patterns that do not match themselves.
    for principal in found.stdout.decode(errors="replace").splitlines() if found.returncode == 0 else []:
        done = _ssh_keygen(
            "verify", "-n", NAMESPACE, "-I", principal, "-s", signature, "-f", allowed_signers, content=content
        )
        if done.returncode == 0:
            return principal
        words = _words(done)
    raise ManifestError(f"{signature}: expected a signature by one of {allowed_signers}, found: {words}: {_SIGN_HINT}")


def _ssh_keygen(action: str, *words: str | Path, content: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run ``ssh-keygen -Y``; without ``content`` it has this process's standard input, to ask for a passphrase."""
    command = ["ssh-keygen", "-Y", action, *map(str, words)]
    try:
        return subprocess.run(
            command, input=content, capture_output=True, check=False, env=os.environ | {"LC_ALL": "C"}
        )
    except OSError as err:
        raise InputError(
            f"expected ssh-keygen of OpenSSH 8.2 or later, found none ({err.strerror}): "
            "on Debian and Ubuntu run sudo apt install openssh-client"
        ) from err


def _words(done: subprocess.CompletedProcess[bytes]) -> str:
    """What ssh-keygen said went wrong, in one line."""
    said = [line.strip() for line in done.stderr.decode(errors="replace").splitlines()]
    told = [line for line in said if line and not line.startswith(("@", "Signing file", "Could not verify signature"))]
    return "; ".join(dict.fromkeys(told))[:400] or f"ssh-keygen ended with {done.returncode}"
