"""``devit keys`` as a user types it: data on stdout, one line per failure on stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from devit_contract.artefacts.keys import KeyPair, load_keys, new_keys
from devit_contract.artefacts.revoked import RevokedKeys

DEVIT = [sys.executable, "-c", "from devit_pipeline.cli import main; main()"]


def devit(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [*DEVIT, "keys", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """Check that a command failed as it should, and give its one line."""
    assert (done.returncode, done.stdout) == (1, ""), done
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


class Fleet:
    """A folder with fleet.toml and the keys of its node, two devices and a client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pairs = {name: new_keys(folder / "keys", name) for name in ("node", "jetson1", "jetson2", "desk")}
        self.write(self.pairs)

    def write(self, pairs: dict[str, KeyPair]) -> None:
        keys = {name: pair.public.decode() for name, pair in pairs.items()}
        text = (
            "schema = 2\n"
            '[node]\nendpoint = "tcp://127.0.0.1:7711"\nclient_endpoint = "tcp://127.0.0.1:7712"\n'
            f"public_key = '{keys['node']}'\n"
        )
        for number, name in enumerate(("jetson1", "jetson2")):
            text += f"[[device]]\nname = '{name}'\nsubmodel = {number}\npublic_key = '{keys[name]}'\n"
        text += f"[[client]]\nname = 'desk'\npublic_key = '{keys['desk']}'\n"
        (self.folder / "fleet.toml").write_text(text)

    def revoked(self) -> set[str]:
        found = RevokedKeys(self.folder / "revoked_keys").keys
        return {name for name, pair in self.pairs.items() if pair.public in found}


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def listed(cwd: Path, *options: str | Path) -> dict[str, dict[str, object]]:
    done = devit("list", "--json", *options, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return {row.pop("name"): row for row in json.loads(done.stdout)}


def test_new_keys_are_listed_and_never_overwritten(tmp_path: Path) -> None:
    done = devit("new", "jetson1", cwd=tmp_path)
    assert done.returncode == 0
    public = done.stdout.strip()
    secret = tmp_path / "keys" / "jetson1.key_secret"
    assert load_keys(secret).public.decode() == public
    assert secret.read_text().strip() not in done.stdout + done.stderr
    assert listed(tmp_path) == {
        "jetson1": {"public_key": public, "secret_mode": "0600", "fleet": None, "revoked": False, "problem": ""}
    }
    assert "a key of that name already exists" in failure(devit("new", "jetson1", cwd=tmp_path))
    assert "expected at most 63 small letters" in failure(devit("new", "../evil", cwd=tmp_path))
    assert list(tmp_path.iterdir()) == [tmp_path / "keys"]
    assert load_keys(secret).public.decode() == public


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    assert "keys: no folder with keys" in failure(devit("list", cwd=tmp_path))
    (tmp_path / "keys").write_text("no folder")
    assert "keys: no folder with keys" in failure(devit("list", cwd=tmp_path))
    assert "keys: cannot be made" in failure(devit("new", "jetson1", cwd=tmp_path))


def test_what_is_no_key_is_named_in_one_line_and_the_others_are_listed(tmp_path: Path) -> None:
    good = new_keys(tmp_path / "keys", "good")
    (tmp_path / "keys" / "a.key").write_text("hunter2")
    (tmp_path / "keys" / "x.key").mkdir()
    for options in ([], ["--json"]):
        done = devit("list", *options, cwd=tmp_path)
        assert done.returncode == 1
        assert good.public.decode() in done.stdout
        assert done.stderr.startswith("error: keys/a.key: expected a key of 40 Z85 characters")
        assert done.stderr.endswith("(and 1 more)\n")
        assert done.stderr.count("\n") == 1
        assert "hunter2" not in done.stdout + done.stderr
    problems = {row["name"]: row["problem"] for row in json.loads(done.stdout)}
    assert problems["good"] == ""
    assert "x.key: expected a file with a public key, found something else" in problems["x"]


def test_the_list_says_whose_a_key_is_in_the_fleet_and_whether_it_is_revoked(fleet: Fleet) -> None:
    """jetson1's secret half lies on jetson1, jetson2's file has another name here, nobody knows the stranger."""
    keys = fleet.folder / "keys"
    new_keys(keys, "stranger")
    (keys / "jetson1.key_secret").unlink()
    for suffix in ("key", "key_secret"):
        (keys / f"jetson2.{suffix}").rename(keys / f"old.{suffix}")
        (keys / f"desk.{suffix}").unlink()
    assert devit("revoke", "jetson1", cwd=fleet.folder).returncode == 0
    rows = listed(fleet.folder)
    assert {name: (row["secret_mode"], row["fleet"], row["revoked"]) for name, row in rows.items()} == {
        "desk": (None, "client", False),
        "jetson1": (None, "device", True),
        "node": ("0600", "node", False),
        "old": ("0600", "device jetson2", False),
        "stranger": ("0600", None, False),
    }
    assert rows["desk"]["public_key"] == fleet.pairs["desk"].public.decode()
    done = devit("list", "--dir", "nowhere", "--fleet", fleet.folder / "fleet.toml", cwd=fleet.folder)
    lines = {words[0]: words[1:] for line in done.stdout.splitlines() if len(words := line.split()) == 5}
    assert lines["jetson1"] == [fleet.pairs["jetson1"].public.decode(), "-", "device", "revoked"]
    assert set(lines) == {"desk", "jetson1", "jetson2", "node"}
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_revoking_says_what_happens_once_and_can_be_undone(fleet: Fleet) -> None:
    done = devit("revoke", "jetson1", cwd=fleet.folder)
    assert (done.returncode, done.stdout) == (
        0,
        "jetson1: revoked: fusion-node cuts its link within a second and refuses its key, until --undo\n",
    )
    assert done.stderr == "written to revoked_keys, which the node reads while it runs\n"
    assert fleet.revoked() == {"jetson1"}
    written = (fleet.folder / "revoked_keys").read_bytes()
    done = devit("revoke", "jetson1", cwd=fleet.folder)
    assert (done.returncode, done.stdout) == (0, "jetson1: was revoked already\n")
    assert (fleet.folder / "revoked_keys").read_bytes() == written
    assert devit("revoke", "desk", "--fleet", fleet.folder / "fleet.toml", cwd=Path("/")).returncode == 0
    assert fleet.revoked() == {"jetson1", "desk"}
    undone = [devit("revoke", "jetson1", "--undo", cwd=fleet.folder) for _ in range(2)]
    assert [done.stdout for done in undone] == [
        "jetson1: let in again: fusion-node accepts its key\n",
        "jetson1: was not revoked\n",
    ]
    assert fleet.revoked() == {"desk"}


def test_everybody_may_read_the_file_whatever_the_umask(fleet: Fleet) -> None:
    """The operator may be root, and the node is not."""
    before = os.umask(0o077)
    try:
        assert devit("revoke", "jetson1", cwd=fleet.folder).returncode == 0
    finally:
        os.umask(before)
    assert (fleet.folder / "revoked_keys").stat().st_mode & 0o777 == 0o644


def test_a_new_key_of_a_revoked_device_is_another_key(fleet: Fleet) -> None:
    devit("revoke", "jetson1", cwd=fleet.folder)
    renewed = new_keys(fleet.folder / "new", "jetson1")
    fleet.write(fleet.pairs | {"jetson1": renewed})
    assert listed(fleet.folder, "--dir", "new")["jetson1"]["revoked"] is False
    assert devit("revoke", "jetson1", "--undo", cwd=fleet.folder).stdout == "jetson1: was not revoked\n"
    assert fleet.revoked() == {"jetson1"}
    assert devit("revoke", "jetson1", cwd=fleet.folder).returncode == 0
    assert RevokedKeys(fleet.folder / "revoked_keys").keys == {renewed.public, fleet.pairs["jetson1"].public}


def test_who_cannot_be_revoked_is_said_in_one_line_and_nothing_is_written(fleet: Fleet) -> None:
    said = failure(devit("revoke", "jetson3", cwd=fleet.folder))
    assert "jetson3: expected a device or client of the fleet, one of jetson1, jetson2, desk" in said
    assert "node: expected the key of a device or client, found the node's own" in failure(
        devit("revoke", "node", cwd=fleet.folder)
    )
    fleet.write(fleet.pairs | {"desk": fleet.pairs["node"]})  # a client that asks with the node's own key
    assert "desk: expected the key of a device or client, found the node's own" in failure(
        devit("revoke", "desk", cwd=fleet.folder)
    )
    text = (fleet.folder / "fleet.toml").read_text()
    keyless = "".join(line + "\n" for line in text.split("[[client]]")[0].splitlines() if "public_key" not in line)
    (fleet.folder / "fleet.toml").write_text(keyless)
    assert "this fleet has no keys" in failure(devit("revoke", "jetson1", cwd=fleet.folder))
    assert "fleet.toml: cannot be read" in failure(devit("revoke", "jetson1", cwd=fleet.folder / "keys"))
    assert not (fleet.folder / "revoked_keys").exists()


def test_the_key_of_a_standby_node_is_listed_and_not_revoked(fleet: Fleet) -> None:
    public = new_keys(fleet.folder / "keys", "standby1").public.decode()
    with (fleet.folder / "fleet.toml").open("a") as file:
        endpoints = "endpoint = 'tcp://127.0.0.1:7713'\nclient_endpoint = 'tcp://127.0.0.1:7714'\n"
        file.write(f"[[standby]]\n{endpoints}public_key = '{public}'\n")
    assert listed(fleet.folder)["standby1"]["fleet"] == "node"
    said = failure(devit("revoke", "standby1", cwd=fleet.folder))
    assert "standby1: expected the key of a device or client, found the node's own" in said


def test_a_damaged_file_of_revoked_keys_is_named_and_left_as_it_is(fleet: Fleet) -> None:
    (fleet.folder / "revoked_keys").write_text("hunter2\n")
    for words in (["revoke", "jetson1"], ["revoke", "jetson1", "--undo"], ["list"]):
        assert "revoked_keys: line 1: expected a key" in failure(devit(*words, cwd=fleet.folder))
    assert (fleet.folder / "revoked_keys").read_text() == "hunter2\n"
