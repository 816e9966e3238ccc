"""Hosts of a fleet on one machine: a real sshd for each, in a mount and process namespace of its own.

A host has its own /etc, /opt, /var/lib and /run, so that playbooks run with the paths of a real fleet, and its own
process tree, so that cutting its power ends all that runs on it. What is not real: the network is the loopback of this
machine, and ``systemctl`` is ``simulated_systemctl.py``.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

SYSTEMCTL = Path(__file__).with_name("simulated_systemctl.py")
PYTHON = str(Path(sys.executable).resolve())
"""Outside of any virtual environment."""
_OWN = ("etc", "opt", "var/lib", "run")
_DEADLINE_S = 20.0


@dataclass
class Host:
    """One machine to be; a context manager that has it running."""

    name: str
    address: str
    root: Path
    """Folder of what is its own."""
    authorized_key: str
    port: int = 0
    host_key: str = ""
    """Public, as it stands in known_hosts."""
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __enter__(self) -> Host:
        """Make its folders and keys, and boot it."""
        for name in _OWN[1:]:
            (self.root / name).mkdir(parents=True)
        shutil.copytree("/etc", self.root / "etc", symlinks=True, ignore=lambda *_: ["devit"])
        (self.root / "run/sshd").mkdir()
        (self.root / "run/home").mkdir()
        # A shell that reads no file of whoever runs the tests, and a home that is not theirs.
        users = self.root / "etc/passwd"
        users.write_text(re.sub(r"^(root:.*):[^:]*:[^:]*$", r"\1:/run/home:/bin/sh", users.read_text(), flags=re.M))
        shim = self.root / "systemctl"
        shim.write_text(f'#!/bin/sh\nexec {PYTHON} -I -S {SYSTEMCTL} "$@"\n')
        shim.chmod(0o755)
        key = self.root / "host_key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        self.host_key = key.with_suffix(".pub").read_text().strip()
        (self.root / "authorized_keys").write_text(self.authorized_key)
        self.port = free_port(self.address)
        lines = [
            f"ListenAddress {self.address}:{self.port}",
            f"HostKey {key}",
            f"AuthorizedKeysFile {self.root / 'authorized_keys'}",
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            "StrictModes no",  # the folder of a test
            "UsePAM no",
            "MaxStartups 100",
            "Subsystem sftp internal-sftp",
        ]
        (self.root / "sshd_config").write_text("\n".join(lines) + "\n")
        self.boot()
        return self

    def __exit__(self, *_: object) -> None:
        """Cut its power."""
        self.cut_power()

    def boot(self) -> None:
        """Start sshd in namespaces of its own, and wait until it listens.

        It ends with whoever runs the tests, however that ends.
        """
        for stale in (self.root / "run/simulated-systemd").glob("*.pid"):
            stale.unlink()  # a number that another process may have by now
        mounts = [f"mount --bind {self.root / name} /{name}" for name in _OWN]
        mounts.append(f"mount --bind {self.root / 'systemctl'} {shutil.which('systemctl')}")
        script = " && ".join([*mounts, f"exec /usr/sbin/sshd -D -e -f {self.root / 'sshd_config'}"])
        with (self.root / "sshd.log").open("ab") as log:
            self._child = subprocess.Popen(
                [
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    "unshare",
                    "--mount",
                    "--pid",
                    "--fork",
                    "--kill-child",
                    "--mount-proc",
                    "sh",
                    "-c",
                    script,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end_s = time.monotonic() + _DEADLINE_S
        while True:
            try:
                socket.create_connection((self.address, self.port), timeout=1.0).close()
                return
            except OSError:
                assert self._child.poll() is None, (self.root / "sshd.log").read_text()
                assert time.monotonic() < end_s
                time.sleep(0.02)  # nothing tells when a port is open

    def cut_power(self) -> None:
        """End every process of the host at once."""
        if self._child is not None:
            self._child.kill()  # --kill-child: the first process of its tree, and with that all others
            self._child.wait(_DEADLINE_S)
            self._child = None

    @property
    def current(self) -> str:
        """Name of the release in use; empty before the first."""
        link = self.root / "opt/devit/current"
        return os.readlink(link).removeprefix("releases/") if link.is_symlink() else ""  # noqa: PTH115 - the text

    @property
    def switched_unix_s(self) -> float:
        """When the link to the release in use was made."""
        return (self.root / "opt/devit/current").lstat().st_mtime

    @property
    def actions(self) -> list[str]:
        """What systemctl was asked to do, in order: ``start UNIT``, ``stop UNIT``."""
        path = self.root / "run/simulated-systemd/actions"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def inventory(self) -> dict[str, object]:
        """What Ansible has to know."""
        return {"ansible_host": self.address, "ansible_port": self.port}


def free_port(address: str) -> int:
    """Find a port that nobody listens on now."""
    with socket.create_server((address, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
