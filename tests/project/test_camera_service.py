"""A CSI camera under a real systemd, all SIMULATED that is NVIDIA's: whatever restarts, images come again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.booted import Booted
from tests.support.cell import TINY

from devit_contract.errors import DevitError
from devit_contract.wire.client import Client
from devit_pipeline.service import agent_files, install

AGENT, CAMERAS = "edge-agent@jetson1", "nvargus-daemon"
# Unlinks the socket of the one before, as NVIDIA's does, and again on SIGUSR1, of which systemd knows nothing.
DAEMON = """\
#!/usr/bin/python3
import os, signal, socket, threading, time
def serve():
    with socket.socket(socket.AF_UNIX) as listener:
        if os.path.exists("/tmp/argus_socket"):
            os.unlink("/tmp/argus_socket")
        listener.bind("/tmp/argus_socket")
        os.chmod("/tmp/argus_socket", 0o666)
        listener.listen()
        listener.settimeout(0.1)
        clients, end = [], len(renewals)
        while end == len(renewals):
            try:
                clients.append(listener.accept()[0])
            except TimeoutError:
                pass
            for client in clients:
                try:
                    client.send(b"x")
                except OSError:
                    pass
        for client in clients:
            client.close()
renewals = []
signal.signal(signal.SIGUSR1, lambda *_: renewals.append(1))
while True:
    serve()
"""
UNIT = """\
[Unit]
Description=Argus daemon, SIMULATED
[Service]
ExecStart=/usr/local/sbin/nvargus-daemon
Restart=on-failure
RestartSec=1
[Install]
WantedBy=multi-user.target
"""
GST_LAUNCH = """\
#!/usr/bin/python3
import os, socket, sys
pipe = int(next(word[3:] for word in sys.argv if word.startswith("fd=")))
service = socket.socket(socket.AF_UNIX)
try:
    service.connect("/tmp/argus_socket")
except OSError as err:
    sys.exit(print("(Argus) Error FileOperationFailed: Connecting to nvargus-daemon failed:", err.strerror))
while service.recv(1):
    os.write(pipe, bytes(64 * 48 * 3))
print("(Argus) Error EndOfFile: Unexpected error in reading socket")
"""
IN_A_TEST = """\
[Service]
# The checkout may lie in a home.
ProtectHome=no
RestartSec=1
"""

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real fusion node on this machine, whose network the copy shares."""
    fleet = tmp_path_factory.mktemp("node") / "fleet.toml"
    fleet.write_text(
        'schema = 2\n[node]\nendpoint = "tcp://127.0.0.1:0"\nclient_endpoint = "tcp://127.0.0.1:0"\n'
        "[serving]\ndeadline_ms = 2000\nmin_devices = 1\nstartup_grace_ms = 0\n"
        '[[device]]\nname = "jetson1"\nsubmodel = 0\npublic_key = ""\n'
    )
    code = "from devit_fusion.cli import main; main()"
    command = [sys.executable, "-c", code, "--bundle", str(TINY), "--fleet", str(fleet), "--stop-with-stdin"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        yield json.loads(child.stdout.readline())
    finally:
        child.kill()
        child.communicate(timeout=30)


@pytest.fixture(scope="module")
def jetson(tmp_path_factory: pytest.TempPathFactory, node: dict[str, str], store: Path) -> Iterator[Booted]:
    """A device with an agent whose source is a CSI camera, booted."""
    machine = Booted(tmp_path_factory.mktemp("jetson") / "machine")
    try:
        for folder in (Path(sys.prefix), Path(sys.base_prefix)):
            for parent in folder.parents:  # users of services may look into no home of root's
                with suppress(ValueError):
                    (machine.root / parent.relative_to("/")).chmod(0o755)
        shutil.copytree(TINY, machine.root / "srv/bundle")
        shutil.copytree(store, machine.root / "srv/store")
        subprocess.run(["chmod", "-R", "a+rX", machine.root / "srv"], check=True, timeout=60)
        machine.write(f"/etc/systemd/system/{AGENT}.service.d/90-test.conf", IN_A_TEST)
        machine.write(f"/etc/systemd/system/{CAMERAS}.service", UNIT)
        machine.write("/usr/local/sbin/nvargus-daemon", DAEMON, 0o755)
        machine.write("/usr/local/bin/gst-launch-1.0", GST_LAUNCH, 0o755)
        machine.write("/etc/devit/keys/jetson1.key_secret", "of no use: on loopback there is none", 0o600)
        machine.write(
            "/etc/devit/jetson1.toml",
            f'schema = 1\nname = "jetson1"\nsubmodel = 0\nnode = "{node["endpoint"]}"\nbundle = "/srv/bundle"\n'
            'store = "/srv/store"\ntegrastats = []\nsource = "gst:csi?size=64x48"\n',
        )
        install(agent_files(Path(sys.prefix), machine.root), machine.root)
        for command in (["systemd-sysusers", "devit.conf"], ["systemctl", "enable", AGENT, CAMERAS]):
            subprocess.run([command[0], f"--root={machine.root}", *command[1:]], check=True, timeout=60)
        machine.boot(f"{CAMERAS}.service", f"{AGENT}.service")
        yield machine
    finally:
        machine.close()


def images_come(jetson: Booted, node: dict[str, str]) -> None:
    """Ask for images of the device's own until one has come."""
    deadline = time.monotonic() + 90
    with Client(node["client_endpoint"]) as client:
        while True:
            with suppress(DevitError):
                if client.classify(None).mask == 1:
                    return
            assert time.monotonic() < deadline, jetson.run("journalctl", "-u", AGENT, "-n", "30")


def restart(machine: Booted) -> None:
    machine.systemctl("restart", CAMERAS)


def stop_and_start(machine: Booted) -> None:
    """As an upgrade of its package does."""
    machine.systemctl("stop", CAMERAS)
    machine.systemctl("start", CAMERAS)


def crash(machine: Booted) -> None:
    machine.systemctl("kill", "--signal=KILL", CAMERAS)


def renew_the_socket(machine: Booted) -> None:
    """Systemd knows nothing of it: the agent itself has to find out."""
    machine.systemctl("kill", "--signal=USR1", CAMERAS)


def test_at_boot_an_agent_waits_for_the_socket_of_the_camera_service(jetson: Booted, node: dict[str, str]) -> None:
    """That service is started before it has made its socket: for systemd it is up as soon as it runs."""
    images_come(jetson, node)
    assert "silent" not in jetson.run("journalctl", "-u", AGENT)


@pytest.mark.parametrize(
    ("event", "limit_s"), [(restart, 20), (stop_and_start, 20), (crash, 20), (renew_the_socket, 60)]
)
def test_a_csi_camera_comes_back_after(
    event: Callable[[Booted], None], limit_s: float, jetson: Booted, node: dict[str, str]
) -> None:
    images_come(jetson, node)
    agent = jetson.systemctl("show", "--property=MainPID", AGENT)
    start_s = time.monotonic()
    event(jetson)
    while jetson.systemctl("show", "--property=MainPID", AGENT) in (agent, "MainPID=0"):
        assert time.monotonic() < start_s + 90, jetson.run("journalctl", "-u", AGENT, "-n", "30")
    images_come(jetson, node)
    took_s = time.monotonic() - start_s
    print(f"{event.__name__}: images come again after {took_s:.1f} s")
    assert took_s < limit_s
