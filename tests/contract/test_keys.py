"""Keys: secrets stay secret, and what is no key is refused without being shown."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import zmq

from devit_contract.errors import InputError
from devit_contract.keys import check_key, check_name, load_keys, new_keys


def test_a_new_pair_is_two_files_and_only_the_owner_reads_the_secret_one(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        pair = new_keys(tmp_path / "keys", "jetson1")
    finally:
        os.umask(before)
    secret = tmp_path / "keys" / "jetson1.key_secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert secret.read_bytes() == pair.secret + b"\n"
    assert (tmp_path / "keys" / "jetson1.key").read_bytes() == pair.public + b"\n"


def test_the_public_half_is_computed_from_the_secret_one(tmp_path: Path) -> None:
    """A swapped or stale NAME.key beside it must not matter."""
    pair = new_keys(tmp_path, "jetson1")
    (tmp_path / "jetson1.key").unlink()
    assert load_keys(tmp_path / "jetson1.key_secret") == pair
    assert zmq.curve_public(pair.secret) == pair.public


def test_the_text_of_a_pair_hides_the_secret(tmp_path: Path) -> None:
    pair = new_keys(tmp_path, "jetson1")
    assert pair.secret.decode() not in f"{pair} {pair!r}"
    assert pair.public.decode() in repr(pair)


def test_an_existing_secret_is_never_overwritten(tmp_path: Path) -> None:
    pair = new_keys(tmp_path, "jetson1")
    with pytest.raises(InputError, match="expected no key of that name"):
        new_keys(tmp_path, "jetson1")
    assert load_keys(tmp_path / "jetson1.key_secret") == pair


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_secret_that_others_may_read_is_refused_with_the_cure(tmp_path: Path, mode: int) -> None:
    new_keys(tmp_path, "jetson1")
    path = tmp_path / "jetson1.key_secret"
    path.chmod(mode)
    with pytest.raises(InputError, match=f"expected mode 0600, found {mode:04o}: chmod 600 {path}"):
        load_keys(path)


def test_a_missing_secret_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent: cannot be read .*: make one with devit keys new"):
        load_keys(tmp_path / "absent")


@pytest.mark.parametrize(
    "text", [b"", b"hunter2", b"x" * 39, b"x" * 41, b"x" * 39 + b" ", b"\xff" * 40, b"#" * 40, b"x" * 39 + b"\n"]
)
def test_what_is_no_key_is_refused_without_being_shown(tmp_path: Path, text: bytes) -> None:
    """``#`` is a Z85 character, but five of them stand for more than 32 bits."""
    with pytest.raises(InputError, match="expected a key of 40 Z85 characters") as error:
        check_key(text, "here")
    assert str(error.value).startswith("here: ")
    assert not text or text.decode("latin1") not in str(error.value)
    path = tmp_path / "k.key_secret"
    path.write_bytes(b"z" * 45 if text.endswith(b"\n") else text)
    path.chmod(0o600)
    with pytest.raises(InputError, match=r"k\.key_secret: expected a key"):
        load_keys(path)


@pytest.mark.parametrize("name", ["", "Jetson", "-a", "../a", "a/b", "a b", "ä", "a" * 64, "a\n"])
def test_names_that_fit_no_host_file_or_label_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="expected at most 63 small letters"):
        check_name(name)
    with pytest.raises(InputError):
        new_keys(tmp_path / "keys", name)
    assert not (tmp_path / "keys").exists()
