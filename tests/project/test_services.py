"""The units, looked at by systemd's own tools, and held against what the services really do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from devit_contract.artefacts.keys import new_keys
from devit_contract.artefacts.manifest import Bundle
from devit_contract.wire.client import Client
from devit_pipeline.service import agent_files, fusion_files, install

TINY = Path(__file__).parents[1] / "data" / "tiny-bundle"
UNITS = ("edge-agent@.service", "fusion-node.service")
MOST_EXPOSED = {"edge-agent@.service": 2.0, "fusion-node.service": 1.5}
MDWE = "import ctypes; assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0; "
"""PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN: what MemoryDenyWriteExecute= asks of the kernel."""

pytestmark = pytest.mark.system


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A device with both services; the installation that they run is the present one."""
    (tmp_path / "root/dev").mkdir(parents=True)
    (tmp_path / "root/dev/nvmap").touch()
    prefix = tmp_path / "venv"
    (prefix / "bin").mkdir(parents=True)
    for program in ("edge-agent", "fusion-node"):
        (prefix / "bin" / program).symlink_to(Path(sys.prefix) / "bin" / program)
    install([*agent_files(prefix, tmp_path / "root"), *fusion_files(prefix, TINY)], tmp_path / "root")
    return tmp_path / "root"


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_no_fault_with_a_unit_nor_with_its_drop_in(root: Path, unit: str) -> None:
    folder = root / "etc/systemd/system"
    done = analyze("verify", "--man=no", folder / unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    drop_in = folder / f"{unit}.d" / "10-devices.conf"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text("[Service]\nDevicesAllow=/dev/nvmap\n")
    assert "10-devices.conf:2: Unknown key" in analyze("verify", "--man=no", folder / unit).stderr


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_is_closed_and_says_why_each_point_that_is_left_is_open(root: Path, unit: str) -> None:
    path = root / "etc/systemd/system" / unit
    said = analyze("security", "--offline=true", path).stdout
    overall = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert overall is not None, said
    print(f"{unit}: exposure {overall[1]}")
    assert float(overall[1]) <= MOST_EXPOSED[unit]
    points = json.loads(analyze("security", "--offline=true", "--json=short", path).stdout)
    left = {point["name"].partition("=")[0] for point in points if point["exposure"] not in (None, "0.0")}
    assert left
    _, _, reasons = path.read_text().partition("# What systemd-analyze security still counts, and why:\n")
    assert {name for name in left if name not in reasons} == set()


def test_users_and_folders_are_made_by_systemd_as_the_services_want_them(root: Path) -> None:
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nvideo:x:44:\n")
    for command in (["systemd-sysusers"], ["systemd-tmpfiles", "--create"]):
        done = subprocess.run([*command, f"--root={root}", "devit.conf"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    groups = dict(line.split(":x:") for line in (root / "etc/group").read_text().split())
    assert groups["video"] == "44:"
    number, _, members = groups["devit-engines"].partition(":")
    assert members == "devit"
    for name in ("", "locks", "timing"):
        found = (root / "var/lib/devit/engines" / name).stat()
        assert (found.st_mode & 0o7777, found.st_gid) == (0o2775, int(number))
    assert (root / "etc/devit/keys").stat().st_mode & 0o777 == 0o700


def allowed_calls(unit: Path) -> set[str]:
    """The system calls that a unit's SystemCallFilter= lets through."""
    sets: dict[str, list[str]] = {}
    for line in analyze("syscall-filter").stdout.splitlines():
        if line.startswith("@"):
            members = sets.setdefault(line.strip(), [])
        elif line.startswith("    ") and not line.strip().startswith("#"):
            members.append(line.strip())

    def whole(name: str) -> set[str]:
        return set().union(*map(whole, sets[name])) if name.startswith("@") else {name}

    allowed = whole("@default")
    for text in re.findall(r"^SystemCallFilter=(.+)$", unit.read_text(), re.MULTILINE):
        named = set().union(*map(whole, text.removeprefix("~").split()))
        allowed = allowed - named if text.startswith("~") else allowed | named
    return allowed


@contextmanager
def traced(calls: Path, code: str, *options: str) -> Iterator[dict[str, object]]:
    """Run a service as its unit does, as near as it can be without systemd, and count its system calls.

    Without any capability, and with a /proc that shows processes alone where the unit says so.
    """
    pid_only = "mount -t proc -o subset=pid proc /proc && " if "fusion" in code else ""
    inner = f'{pid_only}exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"'
    strace = ["strace", "-f", "-c", "-S", "name", "-U", "name", "-o", str(calls)]
    command = ["unshare", "--mount", "sh", "-c", inner, "sh", *strace, sys.executable, "-c", code, *options]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        ready = json.loads(child.stdout.readline())
        yield ready
        os.kill(ready["pid"], signal.SIGTERM)
        assert child.wait(timeout=30) == 0
    finally:
        child.kill()
        child.communicate()


def calls_made(path: Path) -> set[str]:
    return set(re.findall(r"^(\w+)$", path.read_text().replace(" ", ""), re.MULTILINE)) - {"syscall", "total"}


def test_all_that_a_serving_cell_asks_of_the_kernel_is_what_its_units_allow(
    root: Path, tmp_path: Path, store: Path, bundle: Bundle
) -> None:
    """With ONNX Runtime, as no GPU is here; the node without memory that is both writable and executable."""
    node, device, client = (new_keys(tmp_path / "keys", name) for name in ("node", "jetson1", "desk"))
    fleet, config = tmp_path / "fleet.toml", tmp_path / "jetson1.toml"
    fleet.write_text(
        'schema = 2\n[node]\nendpoint = "tcp://127.0.0.1:0"\nclient_endpoint = "tcp://127.0.0.1:0"\n'
        f'public_key = "{node.public.decode()}"\n[serving]\ndeadline_ms = 20000\n'
        f'[[device]]\nname = "jetson1"\nsubmodel = 0\npublic_key = "{device.public.decode()}"\n'
        f'[[client]]\nname = "desk"\npublic_key = "{client.public.decode()}"\n'
    )
    options = ["--bundle", str(TINY), "--fleet", str(fleet), "--key", str(tmp_path / "keys/node.key_secret")]
    fuse = MDWE + "from devit_fusion.cli import main; main()"
    with traced(tmp_path / "node-calls", fuse, *options) as ports:
        config.write_text(
            f'schema = 1\nname = "jetson1"\nsubmodel = 0\nnode = "{ports["endpoint"]}"\ntegrastats = []\n'
            f'node_public_key = "{node.public.decode()}"\nsecret_key = "keys/jetson1.key_secret"\n'
            f'bundle = "{TINY}"\nstore = "{store}"\n'
        )
        run = "from devit_edge_agent.cli import main; main()"
        with (
            traced(tmp_path / "agent-calls", run, "--config", str(config)),
            Client(str(ports["client_endpoint"]), keys=client, node_key=node.public) as asking,
        ):
            for image in bundle.golden()["images"][:20]:
                assert asking.classify(image).mask == 1
    for unit, name in zip(UNITS, ("agent-calls", "node-calls"), strict=True):
        made = calls_made(tmp_path / name)
        print(f"{unit}: {len(made)} kinds of system calls")
        assert {"epoll_wait", "sendto"} & made  # else nothing was counted
        assert made - allowed_calls(root / "etc/systemd/system" / unit) == set()
