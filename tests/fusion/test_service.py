"""The node as systemd sees it: readiness, watchdog, end, exit codes; each with a real process."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from devit_contract.artefacts.fleet import parse_endpoint
from devit_contract.artefacts.keys import new_keys
from devit_contract.artefacts.revoked import FILE_NAME

TINY = Path(__file__).parents[1] / "data" / "tiny-bundle"
RUN = "from devit_fusion.cli import main; main()"


def command(folder: Path, *, endpoint: str = "tcp://127.0.0.1:0", serving: str = "") -> list[str]:
    """Write a fleet of one device, with keys, and say how its node is started."""
    folder.mkdir(exist_ok=True)
    node, device = new_keys(folder / "keys", "node"), new_keys(folder / "keys", "jetson1")
    fleet = folder / "fleet.toml"
    fleet.write_text(
        f'schema = 2\n[node]\nendpoint = "{endpoint}"\nclient_endpoint = "tcp://127.0.0.1:0"\n'
        f'public_key = "{node.public.decode()}"\n[serving]\n{serving}\n'
        f'[[device]]\nname = "jetson1"\nsubmodel = 0\npublic_key = "{device.public.decode()}"\n'
    )
    options = ["--bundle", str(TINY), "--fleet", str(fleet), "--key", str(folder / "keys/node.key_secret")]
    return [sys.executable, "-c", RUN, *options]


@contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that takes no byte more until it is read: whoever writes waits."""
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, b".")
        os.set_blocking(writer, True)
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def test_ready_comes_with_both_ports_open_and_a_loop_that_hangs_starves_the_watchdog(tmp_path: Path) -> None:
    """It hangs for real: whoever reads its log has stopped to, and it has something to say."""
    with full_pipe() as (reader, writer), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        told = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
        child = subprocess.Popen(command(tmp_path), env=told, stdout=subprocess.PIPE, stderr=writer, text=True)
        try:
            assert systemd.recv(4096) == b"READY=1\nSTATUS=serving tiny 1"
            assert child.stdout is not None
            addresses = json.loads(child.stdout.readline())
            for name in ("endpoint", "client_endpoint"):
                socket.create_connection(parse_endpoint(addresses[name], name), timeout=10).close()
            assert [systemd.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            (tmp_path / FILE_NAME).write_text("no key")  # looked at five times a second, and complained of
            while select.select([systemd], [], [], 1.2)[0]:  # systemd's patience twice over
                assert systemd.recv(4096) == b"WATCHDOG=1"
            assert child.poll() is None
            os.read(reader, 4096)
            assert systemd.recv(4096) == b"WATCHDOG=1"
            assert os.read(reader, 4096).startswith(b"fusion-node: ")
            child.send_signal(signal.SIGTERM)
            while (said := systemd.recv(4096)) == b"WATCHDOG=1":
                pass
            assert said == b"STOPPING=1"
            assert child.wait(timeout=10) == 0
        finally:
            child.kill()
            child.communicate()


def test_a_bad_fleet_file_ends_it_for_good_and_an_address_in_use_does_not(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        runs = {
            78: command(tmp_path / "bad", serving="min_devices = 9"),
            1: command(tmp_path / "taken", endpoint=f"tcp://127.0.0.1:{taken.getsockname()[1]}"),
        }
        for expected, words in runs.items():
            done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
            assert done.returncode == expected, done.stderr
            assert done.stderr.count("\n") == 1


def test_a_key_that_systemd_hands_over_is_taken_in_the_place_of_the_file(tmp_path: Path) -> None:
    """The file is root's alone; here it is not even there, and without the credential the node says so."""
    words = command(tmp_path)
    secret = tmp_path / "keys" / "node.key_secret"
    (tmp_path / "credentials").mkdir()
    secret.rename(tmp_path / "credentials" / secret.name)
    told = os.environ | {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
    child = subprocess.Popen(words, env=told, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["ready"] is True
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=10) == 0
    finally:
        child.kill()
        child.communicate()
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (78, "")
    assert "devit keys new" in done.stderr


def test_connections_take_no_descriptor_that_the_list_of_revoked_keys_needs(tmp_path: Path) -> None:
    """With 96 of 160 descriptors for them, they run out long before strangers are too many."""
    child = subprocess.Popen(
        command(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160)),
    )
    with ExitStack() as stack:
        stack.callback(child.communicate)
        stack.callback(child.kill)
        assert child.stdout is not None
        assert child.stderr is not None
        address = parse_endpoint(json.loads(child.stdout.readline())["endpoint"], "endpoint")
        for _ in range(150):
            stack.enter_context(socket.create_connection(address, timeout=10))
        (tmp_path / FILE_NAME).write_text("no key")
        assert "line 1: expected a key" in child.stderr.readline()
