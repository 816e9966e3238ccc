"""Signed bundles, with the real ssh-keygen: whatever is changed, unsigned, unknown or older is refused in one line."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from devit_contract.artefacts.manifest import Bundle, write_manifest
from devit_contract.artefacts.signing import (
    MEMORY_NAME,
    accept_serial,
    open_admitted,
    sign_manifest,
    signer_line,
    verify_bundle,
)
from devit_contract.errors import DevitError, InputError, ManifestError

TINY = Path(__file__).parents[2] / "data" / "tiny-bundle"
DEVIT = [sys.executable, "-c", "from devit_pipeline.cli import main; main()"]


def devit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*DEVIT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def new_key(path: Path, passphrase: str = "", kind: str = "ed25519") -> Path:
    ssh_keygen("-q", "-t", kind, "-N", passphrase, "-f", path)
    return path


def ssh_keygen(*words: str | Path) -> None:
    subprocess.run(["ssh-keygen", *words], check=True, timeout=60, capture_output=True)


def public(key: Path) -> str:
    """Key type and key, as OpenSSH writes them."""
    return " ".join(key.with_suffix(".pub").read_text().split()[:2])


class Desk:
    """A bundle, the key of who signs it, and what a device knows."""

    def __init__(self, folder: Path) -> None:
        self.bundle = folder / "bundle"
        shutil.copytree(TINY, self.bundle)
        self.key = new_key(folder / "desk")
        self.signers = folder / "allowed_signers"
        self.allow(f'desk namespaces="devit-bundle" {public(self.key)}')
        self.memory = folder / "store" / MEMORY_NAME

    def allow(self, *lines: str) -> None:
        self.signers.write_text("".join(f"{line}\n" for line in lines))

    def sign(self, serial: int = 1, name: str = "tiny") -> None:
        """Give the bundle a serial, as a new export would, and sign it."""
        manifest = msgspec.structs.replace(Bundle(self.bundle).manifest, serial=serial, name=name)
        write_manifest(self.bundle, manifest)
        sign_manifest(self.bundle, self.key, "desk")

    def admit(self, *, allow_older: bool = False) -> str:
        return open_admitted(self.bundle, self.signers, self.memory, allow_older=allow_older)[1]

    def refusal(self) -> str:
        """The one line that the device refuses with."""
        with pytest.raises(DevitError) as error:
            self.admit()
        assert "\n" not in str(error.value)
        return str(error.value)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_signed_bundle_is_admitted_and_its_signer_named(desk: Desk) -> None:
    path = sign_manifest(desk.bundle, desk.key, "desk")
    assert path == desk.bundle / "manifest.json.sig"
    assert verify_bundle(desk.bundle, desk.signers)[1] == "desk"
    assert desk.admit() == "desk"
    bundle, signer = open_admitted(desk.bundle, desk.signers, desk.memory)
    assert (bundle.manifest, signer) == (Bundle(desk.bundle).manifest, "desk")


def test_the_signature_is_openssh_s_own_and_holds_for_its_own_command(desk: Desk) -> None:
    path = sign_manifest(desk.bundle, desk.key, "desk")
    with (desk.bundle / "manifest.json").open("rb") as manifest:
        subprocess.run(
            ["ssh-keygen", "-Y", "verify", "-n", "devit-bundle", "-I", "desk", "-f", desk.signers, "-s", path],
            stdin=manifest,
            check=True,
            timeout=60,
            capture_output=True,
        )
    ssh_keygen("-Y", "sign", "-n", "devit-bundle", "-f", desk.key, desk.bundle / "manifest.json")
    assert desk.admit() == "desk"


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_the_line_for_devices_is_the_public_key_as_openssh_writes_it(desk: Desk, tmp_path: Path, kind: str) -> None:
    key = new_key(tmp_path / kind, kind=kind)
    line = signer_line(sign_manifest(desk.bundle, key, "lab@example"), "lab@example")
    assert line == f'lab@example namespaces="devit-bundle" {public(key)}'
    desk.allow(line)
    assert desk.admit() == "lab@example"


def test_one_flipped_bit_of_any_file_is_refused(desk: Desk) -> None:
    """The manifest's by its signature, every other file's by the digest in the manifest."""
    desk.sign()
    files = [*(file.name for file in Bundle(desk.bundle).manifest.files), "manifest.json"]
    assert {*files, "manifest.json.sig"} == {path.name for path in desk.bundle.iterdir()}
    for name in files:
        path = desk.bundle / name
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            said = desk.refusal()
            assert "incorrect signature" in said if name == "manifest.json" else f"{path}: expected sha256" in said
        path.unlink()
        assert f"{path}: cannot be read" in desk.refusal()
        path.write_bytes(content)
    assert not desk.memory.exists()
    assert desk.admit() == "desk"


def test_one_flipped_bit_of_the_signature_is_refused(desk: Desk) -> None:
    desk.sign()
    path = desk.bundle / "manifest.json.sig"
    armour = path.read_bytes().split(b"-----")
    blob = base64.b64decode(armour[2])
    for place in range(len(blob)):
        # Not the lowest bit: OpenSSH takes version 0 for 1, which is no part of what is signed.
        broken = blob[:place] + bytes([blob[place] ^ 2]) + blob[place + 1 :]
        armour[2] = b"\n" + base64.b64encode(broken) + b"\n"
        path.write_bytes(b"-----".join(armour))
        assert "manifest.json.sig: expected a signature by one of" in desk.refusal(), place


def test_files_exchanged_for_each_other_are_refused(desk: Desk) -> None:
    desk.sign()
    first, second = (desk.bundle / f"submodel-{number}.fp32.onnx" for number in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert "submodel-0.fp32.onnx: expected " in desk.refusal()


def test_an_unsigned_bundle_is_refused(desk: Desk) -> None:
    assert desk.refusal() == (
        f"{desk.bundle}: expected a signed bundle, found no manifest.json.sig: sign it with devit sign"
    )
    (desk.bundle / "manifest.json.sig").write_text("hello")
    assert "found: Couldn't parse signature" in desk.refusal()


def test_a_signature_of_another_bundle_is_refused(desk: Desk) -> None:
    desk.sign(serial=1)
    other = (desk.bundle / "manifest.json.sig").read_bytes()
    desk.sign(serial=2)
    (desk.bundle / "manifest.json.sig").write_bytes(other)
    assert "incorrect signature" in desk.refusal()


def test_a_signature_made_for_something_else_is_refused(desk: Desk) -> None:
    """Whoever signs git commits with the same key has not signed a bundle."""
    desk.allow(f"desk {public(desk.key)}")
    ssh_keygen("-Y", "sign", "-n", "git", "-f", desk.key, desk.bundle / "manifest.json")
    assert "namespace does not match" in desk.refusal()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "No principal matched"),
        ("desk {other}", "No principal matched"),
        ('desk namespaces="git" {key}', "key is not permitted for use in signature namespace"),
        ('desk valid-before="20200101" {key}', "key has expired"),
        ('desk valid-after="20990101" {key}', "key is not yet valid"),
        ("desk cert-authority {key}", "No principal matched"),
        ("desk bogus=1 {key}", "bad options: unknown key option"),
        ("garbage", "missing key"),
        ("desk ssh-ed25519 AAAAgarbage", "invalid key"),
    ],
)
def test_a_signer_who_is_not_allowed_or_not_now_is_refused_with_the_reason(
    desk: Desk, tmp_path: Path, line: str, said: str
) -> None:
    desk.sign()
    other = public(new_key(tmp_path / "other"))
    desk.allow(line.format(key=public(desk.key), other=other))
    refusal = desk.refusal()
    assert said in refusal
    assert f"expected a signature by one of {desk.signers}, found: " in refusal


def test_a_signer_is_found_among_others_patterns_and_lines_that_cannot_be_read(desk: Desk, tmp_path: Path) -> None:
    desk.sign()
    other = public(new_key(tmp_path / "other"))
    desk.allow("garbage", f"lab {other}", "# comment", f"!bob,desk,*@lab {public(desk.key)}")
    assert desk.admit() == "desk"


def test_a_missing_file_of_allowed_signers_is_named(desk: Desk) -> None:
    desk.sign()
    desk.signers.unlink()
    assert f"{desk.signers}: expected a file of allowed signers, found none" in desk.refusal()


def test_without_openssh_the_cure_is_said(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.sign()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "expected ssh-keygen of OpenSSH 8.2 or later, found none" in desk.refusal()
    with pytest.raises(InputError, match="run sudo apt install openssh-client"):
        sign_manifest(desk.bundle, desk.key, "desk")


@pytest.mark.parametrize("identity", ["", "a b", "a,b", "*", "!desk", "#desk", "-I", 'a"b', "a\nb", "ä"])
def test_a_name_that_cannot_stand_in_a_list_of_signers_is_refused(desk: Desk, identity: str) -> None:
    with pytest.raises(InputError, match="identity: expected letters"):
        sign_manifest(desk.bundle, desk.key, identity)
    assert not (desk.bundle / "manifest.json.sig").exists()


def test_a_key_that_cannot_sign_is_refused_with_openssh_s_words(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent: expected a key file of OpenSSH, found none"):
        sign_manifest(desk.bundle, tmp_path / "absent", "desk")
    desk.key.chmod(0o644)
    with pytest.raises(InputError, match=r"Permissions 0644 for .* are too open") as error:
        sign_manifest(desk.bundle, desk.key, "desk")
    assert "\n" not in str(error.value)
    (tmp_path / "text").write_text("hunter2")
    with pytest.raises(InputError, match="expected a key to sign with, found: ") as error:
        sign_manifest(desk.bundle, tmp_path / "text", "desk")
    assert "hunter2" not in str(error.value)
    assert not (desk.bundle / "manifest.json.sig").exists()


def test_a_certificate_is_refused_for_signing_but_its_authority_may_be_allowed(desk: Desk, tmp_path: Path) -> None:
    authority = new_key(tmp_path / "authority")
    ssh_keygen("-q", "-s", authority, "-I", "id", "-n", "desk", desk.key.with_suffix(".pub"))
    certificate = tmp_path / "desk-cert.pub"
    with pytest.raises(InputError, match="expected one made with a plain key, found a certificate"):
        sign_manifest(desk.bundle, certificate, "desk")
    ssh_keygen("-Y", "sign", "-n", "devit-bundle", "-f", certificate, desk.bundle / "manifest.json")
    desk.allow(f"desk cert-authority {public(authority)}")
    assert desk.admit() == "desk"


def test_a_broken_bundle_is_not_signed(desk: Desk) -> None:
    (desk.bundle / "fusion.safetensors").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"fusion\.safetensors: expected 952 bytes, found 0"):
        sign_manifest(desk.bundle, desk.key, "desk")
    assert not (desk.bundle / "manifest.json.sig").exists()


@pytest.mark.parametrize(("answer", "code"), [(b"sesame\n", 0), (b"wrong\n", 1)])
def test_a_passphrase_is_asked_for_on_the_terminal(desk: Desk, tmp_path: Path, answer: bytes, code: int) -> None:
    """On a real terminal of its own, as a person meets it."""
    key = new_key(tmp_path / "locked", passphrase="sesame")
    ours, theirs = pty.openpty()
    take_terminal = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{take_terminal}; {DEVIT[2]}", "sign", desk.bundle, "--key", key, "--identity", "lab"],
        start_new_session=True,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as signing:
        os.close(theirs)
        said = read_terminal(ours, until=b"Enter passphrase")
        os.write(ours, answer)
        said += read_terminal(ours, until=b"never said")
        assert signing.wait(60) == code, said
    os.close(ours)
    assert b"sesame" not in said
    if code == 0:
        assert signer_line(desk.bundle / "manifest.json.sig", "lab").encode() in said
    else:
        assert b"error: " in said
        assert b"incorrect passphrase supplied" in said


def read_terminal(terminal: int, until: bytes) -> bytes:
    """Read what is written to a terminal, until some words come or it is closed."""
    said, deadline = b"", time.monotonic() + 60
    while until not in said and time.monotonic() < deadline and select.select([terminal], [], [], 60)[0]:
        try:
            said += os.read(terminal, 4096)
        except OSError:  # how Linux tells that the other end is closed
            break
    return said


def test_a_key_that_the_agent_holds_signs_by_its_public_half(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket = tmp_path / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        assert "SSH_AUTH_SOCK" in agent.stdout.readline()
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        try:
            subprocess.run(["ssh-add", "-q", desk.key], check=True, timeout=60)
            desk.key.unlink()
            sign_manifest(desk.bundle, desk.key.with_suffix(".pub"), "desk")
            assert desk.admit() == "desk"
        finally:
            agent.terminate()
            agent.communicate(timeout=30)


def test_an_older_bundle_is_refused_after_a_newer_one_and_across_restarts(desk: Desk) -> None:
    for serial in (3, 3, 7):
        desk.sign(serial)
        assert desk.admit() == "desk"
    desk.sign(6)
    assert desk.refusal() == (
        "bundle tiny: expected serial 7 or later, as this device has accepted before, found 6: "
        "to go back on purpose, run devit build with --allow-older"
    )
    assert json.loads(desk.memory.read_text()) == {"schema": 1, "serials": {"tiny": 7}}
    desk.sign(1, name="other")
    assert desk.admit() == "desk"
    assert json.loads(desk.memory.read_text())["serials"] == {"tiny": 7, "other": 1}


def test_going_back_on_purpose_is_remembered_too(desk: Desk) -> None:
    """An agent that starts anew on the older bundle needs no word more."""
    desk.sign(7)
    desk.admit()
    desk.sign(6)
    assert desk.admit(allow_older=True) == "desk"
    assert desk.admit() == "desk"
    desk.sign(5)
    assert "expected serial 6 or later" in desk.refusal()


def test_a_bundle_that_is_refused_leaves_no_memory(desk: Desk) -> None:
    """A newer one that came damaged must not lock out the one before."""
    desk.sign(1)
    desk.admit()
    desk.sign(9)
    head = desk.bundle / "fusion.safetensors"
    content = head.read_bytes()
    head.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert "expected sha256" in desk.refusal()
    head.write_bytes(content)
    desk.sign(1)
    assert desk.admit() == "desk"


def test_a_memory_that_is_damaged_or_cannot_be_written_admits_nothing(desk: Desk, tmp_path: Path) -> None:
    desk.memory.parent.mkdir()
    desk.memory.write_text("{")
    with pytest.raises(ManifestError, match=f"{desk.memory}: not a JSON file .*: put back a copy, or delete it"):
        accept_serial(desk.memory, "tiny", 1)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        accept_serial(tmp_path / "file" / "memory", "tiny", 1)


def test_many_who_accept_at_once_forget_nothing(tmp_path: Path) -> None:
    memory = tmp_path / "store" / MEMORY_NAME
    code = (
        "import sys; from pathlib import Path; from devit_contract.artefacts.signing import accept_serial\n"
        "for serial in range(1, 11): accept_serial(Path(sys.argv[1]), sys.argv[2], serial)"
    )
    names = ["a", "b", "c"]
    children = [subprocess.Popen([sys.executable, "-c", code, memory, name]) for name in names]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert json.loads(memory.read_text())["serials"] == dict.fromkeys(names, 10)


def test_devit_sign_prints_the_line_by_which_devit_build_admits_the_bundle(desk: Desk, tmp_path: Path) -> None:
    """The commands, end to end: the workstation signs, the device builds, and refuses what is older or changed."""
    signed = devit("sign", desk.bundle, "--key", desk.key, "--identity", "lab")
    assert (signed.returncode, signed.stdout) == (0, f'lab namespaces="devit-bundle" {public(desk.key)}\n')
    desk.signers.write_text(signed.stdout)
    store = tmp_path / "a store"
    build = ["build", desk.bundle, "--submodels", "0", "--backend", "ort", "--store", store]
    signers: list[str | Path] = ["--allowed-signers", desk.signers]
    done = devit(*build, *signers, "--json")
    assert done.returncode == 0, done.stderr
    assert f"{desk.bundle}: signed by lab" in done.stderr
    assert len(json.loads(done.stdout)) == 1
    assert json.loads((store / MEMORY_NAME).read_text())["serials"] == {"tiny": 1}
    desk.sign(2)
    desk.signers.write_text(signed.stdout)
    assert devit(*build, *signers).returncode == 0
    desk.sign(1)
    refused = devit(*build, *signers)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "error: bundle tiny: expected serial 2 or later" in refused.stderr
    assert devit(*build, *signers, "--allow-older").returncode == 0
    (desk.bundle / "manifest.json.sig").unlink()
    refused = devit(*build, *signers)
    assert re.fullmatch(r"error: .*: expected a signed bundle, found no manifest\.json\.sig: .*\n", refused.stderr)
    assert devit(*build, "--allow-older").returncode == 2
    listed = devit("engines", "verify", "--store", store)
    assert (listed.returncode, listed.stderr) == (0, "")
