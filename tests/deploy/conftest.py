from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.deploy.hosts import PYTHON, Host, free_port
from tests.deploy.releases import allowed_signers, break_agent, lighten_wheel, make_bundle, signing_key

from devit_contract.artefacts.fleet import load_fleet
from devit_contract.artefacts.keys import load_keys, new_keys
from devit_contract.wire.client import Client

DEPLOY = Path(__file__).parents[2] / "deploy"
DEVICES = ("jetson1", "jetson2", "jetson3", "jetson4")
PROGRAMS = Path(sys.executable).parent
_DEADLINE_S = 240.0


@dataclass(frozen=True)
class Played:
    """What became of a playbook."""

    code: int
    said: str
    changed: dict[str, int]
    """Host to tasks that changed something."""


@dataclass(frozen=True)
class Release:
    """A wheel and a bundle under one name."""

    version: str
    wheel: Path
    bundle: Path


@dataclass(frozen=True)
class Fleet:
    """Five running hosts, and how playbooks reach them."""

    folder: Path
    hosts: dict[str, Host]
    key: Path
    """The operator's, for ssh."""
    signer: Path
    """The one for bundles."""
    good_wheel: Path
    bad_wheel: Path
    ports: tuple[int, int]

    def release(self, version: str, serial: int, *, agent: str = "good", bundle: str = "good") -> Release:
        """Make a release; its agent may be ``bad``, its bundle ``unsigned``, ``untrue`` or ``other``."""
        folder = self.folder / "bundles" / version
        key = None if bundle == "unsigned" else self.signer
        made = make_bundle(folder, serial, key, kind=bundle)
        return Release(version, self.good_wheel if agent == "good" else self.bad_wheel, made)

    @contextmanager
    def playing(self, playbook: str, release: Release, *words: str) -> Iterator[subprocess.Popen[str]]:
        """Start a playbook; it and all that it started end with the context."""
        inventory = self.folder / f"inventory-{release.version}.json"
        inventory.write_text(json.dumps(self._inventory(release)))
        environment = os.environ | {
            "ANSIBLE_CONFIG": str(DEPLOY / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }
        child = subprocess.Popen(
            [str(PROGRAMS / "ansible-playbook"), "-i", str(inventory), *words, str(DEPLOY / playbook)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield child
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait(_DEADLINE_S)

    def play(self, playbook: str, release: Release, *words: str) -> Played:
        """Run a playbook to its end."""
        with self.playing(playbook, release, *words) as child:
            return finish(child)

    def client(self) -> Client:
        """Connect to the cell as the operator's desk."""
        fleet = load_fleet(self.hosts["node1"].root / "etc/devit/fleet.toml")
        return Client.of_fleet(fleet, load_keys(self.folder / "desk/desk.key_secret"), timeout_s=30.0)

    @property
    def releases_in_use(self) -> dict[str, str]:
        """Host to the release that its link names."""
        return {name: host.current for name, host in self.hosts.items()}

    @property
    def started(self) -> dict[str, int]:
        """Host to how often its service was started."""
        return {name: sum(a.startswith("start") for a in host.actions) for name, host in self.hosts.items()}

    def _inventory(self, release: Release) -> dict[str, object]:
        options = (
            f"-F none -i {self.key} -o IdentityAgent=none "
            f"-o UserKnownHostsFile={self.folder / 'known_hosts'} -o StrictHostKeyChecking=yes"
        )
        desk = (self.folder / "desk/desk.key").read_text().strip()
        device_port, client_port = self.ports
        node = {
            "devit_address": self.hosts["node1"].address,
            "devit_device_port": device_port,
            "devit_client_port": client_port,
            "devit_deadline_ms": 5000,  # two cores run it all
            "devit_queue": 1536,  # at 50 frames/s, half a minute without a node
            "devit_startup_grace_ms": 30000,  # long enough for a whole cell to be switched
            "devit_certain": {"flips": 0.003, "stages": [1, 2]},
            "devit_liars": False,  # what YAML makes of off
            "devit_clients": [{"name": "desk", "public_key": desk}],
        }
        devices = {
            name: self.hosts[name].inventory | {"devit_submodel": index, "devit_node": "node1"}
            for index, name in enumerate(DEVICES)
        }
        common = {
            "ansible_user": "root",
            "ansible_ssh_common_args": options,
            "ansible_python_interpreter": PYTHON,
            "devit_python": PYTHON,
            "devit_venv_arguments": ["--without-pip"],
            "devit_pip": [PYTHON, "-m", "pip", "--python", "{{ devit_release }}/venv/bin/python"],
            "devit_pip_arguments": ["--no-deps", "--no-index"],
            "devit_tegrastats": [],
            "devit_version": release.version,
            "devit_wheel": str(release.wheel),
            "devit_bundle": str(release.bundle),
            "devit_allowed_signers": str(self.folder / "allowed_signers"),
        }
        nodes = {"node1": self.hosts["node1"].inventory | node}
        return {"all": {"vars": common, "children": {"nodes": {"hosts": nodes}, "devices": {"hosts": devices}}}}


def finish(child: subprocess.Popen[str]) -> Played:
    """Wait for a playbook's end."""
    said, _ = child.communicate(timeout=_DEADLINE_S)
    recap = said.rpartition("PLAY RECAP")[2]
    changed = {name: int(count) for name, count in re.findall(r"^(\w+)\s+: ok=\d+\s+changed=(\d+)", recap, re.M)}
    return Played(child.returncode, said, changed)


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Iterator[Fleet]:
    """Five hosts with nothing on them."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for namespaces")
    for program in ("/usr/sbin/sshd", "systemctl"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: apt-get install openssh-server systemd")
    if not (PROGRAMS / "ansible-playbook").exists():
        pytest.skip("needs Ansible, which needs Python 3.11: make install")
    folder = tmp_path_factory.mktemp("fleet")
    key = folder / "operator"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    public = key.with_suffix(".pub").read_text()
    names = ("node1", *DEVICES)
    hosts = {
        name: Host(name, f"127.0.0.{10 + number}", folder / "hosts" / name, public) for number, name in enumerate(names)
    }
    new_keys(folder / "desk", "desk")
    good_wheel = lighten_wheel(wheel, folder)
    signer = signing_key(folder)
    allowed_signers(make_bundle(folder / "bundles/none", 0, signer), folder / "allowed_signers")
    bad_wheel = break_agent(good_wheel, folder / "bad")
    with ExitStack() as stack:
        for host in hosts.values():
            (folder / "hosts").mkdir(exist_ok=True)
            stack.enter_context(host)
        known = [f"[{host.address}]:{host.port} {host.host_key}" for host in hosts.values()]
        (folder / "known_hosts").write_text("\n".join(known) + "\n")
        ports = (free_port(hosts["node1"].address), free_port(hosts["node1"].address))
        yield Fleet(folder, hosts, key, signer, good_wheel, bad_wheel, ports)
