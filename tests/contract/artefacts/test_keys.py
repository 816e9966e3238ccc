"""Keys: secrets stay secret, and what is no key is refused without being shown."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from devit_contract.artefacts.keys import StoredKey, check_key, check_name, load_keys, new_keys, stored_keys
from devit_contract.errors import InputError

EXAMPLES = Path(__file__).parents[3] / "examples"
MAKE = (
    "import sys; from pathlib import Path; from devit_contract.artefacts.keys import new_keys; "
    "new_keys(Path(sys.argv[1]), 'a')"
)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_a_new_pair_is_two_files_and_only_the_owner_reads_the_secret_one(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        pair = new_keys(tmp_path / "keys", "jetson1")
    finally:
        os.umask(before)
    secret = tmp_path / "keys" / "jetson1.key_secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert secret.read_bytes() == pair.secret + b"\n"
    assert (tmp_path / "keys" / "jetson1.key").read_bytes() == pair.public + b"\n"


@pytest.mark.parametrize(("mode", "is_taken"), [(0o400, True), (0o440, True), (0o444, False), (0o460, False)])
def test_a_credential_of_the_files_name_is_taken_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, is_taken: bool
) -> None:
    """From systemd 254 on, an access list lets the service in, which stat shows as 0440."""
    file, credential = (new_keys(tmp_path / folder, "node") for folder in ("keys", "credentials"))
    path = tmp_path / "keys" / "node.key_secret"
    assert load_keys(path) == file
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    (tmp_path / "credentials" / "node.key_secret").chmod(mode)
    if is_taken:
        assert load_keys(path) == credential
    else:
        with pytest.raises(InputError, match=f"found 0{mode:o}"):
            load_keys(path)
    (tmp_path / "keys" / "other.key_secret").write_bytes(file.secret)
    (tmp_path / "keys" / "other.key_secret").chmod(0o440)
    with pytest.raises(InputError, match="expected mode 0600, found 0440"):
        load_keys(tmp_path / "keys" / "other.key_secret")  # no credential of that name: its own file, strictly


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
    with pytest.raises(InputError, match="a key of that name already exists"):
        new_keys(tmp_path, "jetson1")
    assert load_keys(tmp_path / "jetson1.key_secret") == pair


@pytest.mark.parametrize("in_the_way", ["jetson1.key", "jetson1.key_secret"])
def test_whatever_has_the_name_of_one_half_is_kept_and_the_other_half_is_not_written(
    tmp_path: Path, in_the_way: str
) -> None:
    """A folder, a link that leads nowhere, another machine's public key: none is written over, or to."""
    for number, make in enumerate((Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        make(folder / in_the_way)
        with pytest.raises(InputError, match=f"{in_the_way}: a key of that name already exists"):
            new_keys(folder, "jetson1")
        assert [path.name for path in folder.iterdir()] == [in_the_way]


def test_where_no_folder_can_be_made_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "keys"):
        with pytest.raises(InputError, match=f"{folder}: cannot be made"):
            new_keys(folder, "jetson1")


def test_a_secret_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """The kernel refuses every byte, as on a full disk."""
    done = subprocess.run(
        [sys.executable, "-c", f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); {MAKE}", tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert re.search(r"InputError: .*a\.key_secret: cannot be written: File too large", done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.system
def test_a_disk_that_is_full_after_the_secret_half_leaves_nothing(tmp_path: Path) -> None:
    """A real file system of one block: the secret fits, the public half does not."""
    script = f'mount -t tmpfs -o nr_blocks=1 none {tmp_path} && {{ "$@"; ls -A {tmp_path}; }}'
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", MAKE, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert re.search(r"InputError: .*a\.key: cannot be written: No space left on device", done.stderr), done
    assert done.stdout == ""


def test_of_many_that_make_one_name_at_once_one_does_and_its_halves_belong_together(tmp_path: Path) -> None:
    makers = [
        subprocess.Popen([sys.executable, "-c", MAKE, tmp_path], stderr=subprocess.PIPE, text=True) for _ in range(6)
    ]
    said = [maker.communicate(timeout=60)[1] for maker in makers]
    assert sorted(maker.returncode for maker in makers) == [0, 1, 1, 1, 1, 1]
    assert sum("a key of that name already exists" in text for text in said) == 5
    assert stored_keys(tmp_path) == [StoredKey("a", load_keys(tmp_path / "a.key_secret").public.decode(), 0o600)]


def test_stored_keys_are_told_with_the_half_that_is_not_here(tmp_path: Path) -> None:
    whole, public, secret = (new_keys(tmp_path, name) for name in ("whole", "public", "secret"))
    (tmp_path / "public.key_secret").unlink()
    (tmp_path / "secret.key").unlink()
    (tmp_path / "notes.txt").write_text("no key")
    assert stored_keys(tmp_path) == [
        StoredKey("public", public.public.decode()),
        StoredKey("secret", secret.public.decode(), 0o600),
        StoredKey("whole", whole.public.decode(), 0o600),
    ]


def test_a_stored_key_that_cannot_be_used_says_why_and_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / "folder.key").mkdir()
    (tmp_path / "text.key").write_text("hunter2")
    (tmp_path / "Bad Name.key").write_text("x")
    good, wide, other = (new_keys(tmp_path, name) for name in ("good", "wide", "other"))
    (tmp_path / "wide.key_secret").chmod(0o644)
    (tmp_path / "other.key").write_bytes(good.public)
    found = {key.name: key for key in stored_keys(tmp_path)}
    assert found["good"].problem == ""
    expected = {
        "folder": "expected a file with a public key, found something else",
        "text": "expected a key of 40 Z85 characters",
        "Bad Name": "expected at most 63 small letters",
        "wide": "expected mode 0600, found 0644",
        "other": "not the public half of other.key_secret",
    }
    assert found.keys() == {"good", *expected}
    for name, said in expected.items():
        assert said in found[name].problem
        assert "\n" not in found[name].problem
    assert (found["wide"].public, found["wide"].secret_mode) == (wide.public.decode(), 0o644)
    assert not any(pair.secret.decode() in repr(found) for pair in (good, wide, other))


@given(st.binary(min_size=32, max_size=32))
def test_no_key_begins_like_a_comment(raw: bytes) -> None:
    """Files of keys have comments; 2^32 - 1, the largest group, begins with ``%``, two below ``#``."""
    assert not z85.encode(raw).startswith(b"#")
    assert z85.encode(b"\xff" * 4) == b"%nSc0"


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


def test_the_public_half_in_place_of_the_secret_one_is_told(tmp_path: Path) -> None:
    new_keys(tmp_path, "desk")
    (tmp_path / "desk.key").chmod(0o600)
    with pytest.raises(InputError, match=r"desk\.key: expected the secret half .* give .*desk\.key_secret$"):
        load_keys(tmp_path / "desk.key")


def test_the_placeholder_of_an_example_is_told() -> None:
    """It has 40 characters of Z85, so that it would pass for a key."""
    files = [EXAMPLES / "fleet.toml", EXAMPLES / "agent.toml"]
    found = [line.split('"')[1] for path in files for line in path.read_text().splitlines() if "public_key = " in line]
    assert len(found) == 5
    for text in found:
        with pytest.raises(InputError, match="here: still the placeholder of the example: paste the key"):
            check_key(text, "here")


@pytest.mark.parametrize("name", ["", "Jetson", "-a", "../a", "a/b", "a b", "ä", "a" * 64, "a\n"])
def test_names_that_fit_no_host_file_or_label_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="expected at most 63 small letters"):
        check_name(name)
    with pytest.raises(InputError):
        new_keys(tmp_path / "keys", name)
    assert not (tmp_path / "keys").exists()
