"""``devit join --start`` under a real systemd: two commands on a fresh machine that has devit, and it serves."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.edge_agent.join.test_commands import pairing
from tests.fusion.pairing.hosted import write_fleet
from tests.support.booted import Booted
from tests.support.cell import TINY

from devit_contract.artefacts.files import write_bytes
from devit_contract.artefacts.fleet import load_fleet
from devit_contract.artefacts.keys import load_keys, new_keys
from devit_contract.artefacts.manifest import Bundle
from devit_contract.wire.client import Client
from devit_contract.wire.codec import State

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
IN_A_TEST = "[Service]\n# The checkout may lie in a home.\nProtectHome=no\nRestartSec=1\n"


@pytest.fixture
def jetson(tmp_path: Path) -> Iterator[Booted]:
    machine = Booted(tmp_path / "machine")
    try:
        for folder in (Path(sys.prefix), Path(sys.base_prefix)):
            for parent in folder.parents:  # users of services may look into no home of root's
                with suppress(ValueError):
                    (machine.root / parent.relative_to("/")).chmod(0o755)
        machine.write("/etc/systemd/system/edge-agent@.service.d/90-test.conf", IN_A_TEST)
        machine.boot()
        yield machine
    finally:
        machine.close()


def write_fleet_of_two(folder: Path) -> Path:
    """Write a fleet with a client and with ports that are free now."""
    fleet, desk = write_fleet(folder), new_keys(folder / "keys", "desk")
    text = fleet.read_text()
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        text = text.replace("7711", str(one.getsockname()[1])).replace("7712", str(other.getsockname()[1]))
    write_bytes(fleet, f'{text}\n[[client]]\nname = "desk"\npublic_key = "{desk.public.decode()}"\n'.encode())
    return fleet


def test_two_commands_make_a_serving_device_of_a_fresh_machine(tmp_path: Path, jetson: Booted, store: Path) -> None:
    fleet = write_fleet_of_two(tmp_path)
    told: list[str] = []
    start_s = time.monotonic()
    with pairing(fleet, TINY, "--engines", str(store)) as running:
        line = [str(Path(sys.prefix, "bin/devit")), *running.line.split()[1:], "--name", "jetson2", "--start"]
        joining = threading.Thread(target=lambda: told.append(jetson.run(*line)))
        joining.start()
        assert running.end()[0] == 0, told
    node = [sys.executable, "-c", "from devit_fusion.cli import main; main()", "--bundle", str(TINY)]
    node += ["--fleet", str(fleet), "--key", str(tmp_path / "keys/node.key_secret"), "--stop-with-stdin"]
    with subprocess.Popen(node, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["ready"] is True
            joining.join(120)
            assert "edge-agent@jetson2 serves" in told[0]
            print(f"from devit pair to a serving device: {time.monotonic() - start_s:.1f} s")
            assert jetson.systemctl("is-enabled", "edge-agent@jetson2") == "enabled"
            with Client.of_fleet(load_fleet(fleet), load_keys(tmp_path / "keys/desk.key_secret")) as client:
                answer = client.classify(Bundle(TINY).golden()["images"][0])
            assert (answer.state, answer.mask) == (State.PARTIAL, 0b10)
        finally:
            process.terminate()
    modes = jetson.run("stat", "-c", "%a %U %n", "/etc/devit/keys/jetson2.key_secret", "/etc/devit/jetson2.toml")
    assert modes == "600 root /etc/devit/keys/jetson2.key_secret\n644 root /etc/devit/jetson2.toml"
