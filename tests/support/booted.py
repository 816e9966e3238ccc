"""A copy of this machine with a systemd of its own, booted: what units really do, with the host's network."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

TARGET = """\
[Unit]
Description=A test's machine
Requires=basic.target
After=basic.target
"""


class Booted:
    """Files over those of this machine, in :attr:`root`, and a systemd that boots from them; needs root and nspawn."""

    def __init__(self, folder: Path) -> None:
        """Lay an empty layer over this machine's files; the changes stay in memory, and are lost at the end."""
        self.folder, self.root = folder, folder / "root"
        folder.mkdir(parents=True)
        _run("mount", "-t", "tmpfs", "tmpfs", folder)
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        try:
            for name in ("upper", "work", "root"):
                (folder / name).mkdir()
            layers = f"lowerdir=/,upperdir={folder}/upper,workdir={folder}/work"
            _run("mount", "-t", "overlay", "-o", layers, "overlay", self.root)
        except BaseException:
            self.close()
            raise

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the copy, by its absolute path."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def boot(self, *units: str) -> None:
        """Boot to a target that wants these units and no others of this machine."""
        self.write("/etc/systemd/system/booted.target", TARGET + "".join(f"Wants={unit}\n" for unit in units))
        self._log = (self.folder / "log").open("wb")
        name = f"devit-{os.getpid()}"
        command = ["systemd-nspawn", "--register=no", "--keep-unit", f"--directory={self.root}", f"--machine={name}"]
        self._nspawn = subprocess.Popen(
            [*command, "--boot", "systemd.unit=booted.target"],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 60
        while self._leader() == 0 or self.systemctl("is-system-running") not in ("running", "degraded"):
            assert self._nspawn.poll() is None, (self.folder / "log").read_text(errors="replace")
            assert time.monotonic() < deadline, "systemd does not boot"
            with suppress(subprocess.TimeoutExpired):
                self._nspawn.wait(0.1)

    def systemctl(self, *words: str) -> str:
        """Run systemctl in there, and give what it says."""
        return self.run("systemctl", *words)

    def run(self, *words: str) -> str:
        """Run a program in there, and give what it prints."""
        inside = ["nsenter", "--target", str(self._leader()), "--mount", "--pid", "--ipc", "--uts", "--cgroup"]
        done = subprocess.run([*inside, *words], capture_output=True, text=True, timeout=60, check=False)
        return (done.stdout + done.stderr).strip()

    def close(self) -> None:
        """Switch it off, and forget its files."""
        if self._nspawn is not None:
            self._nspawn.terminate()  # asks its systemd to power off
            try:
                self._nspawn.wait(20)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
        if self._log is not None:
            self._log.close()
        for mounted in (self.root, self.folder):
            subprocess.run(["umount", "--lazy", mounted], capture_output=True, timeout=60, check=False)

    def _leader(self) -> int:
        """The process number of its systemd, 0 before there is one."""
        assert self._nspawn is not None
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        is_booted = children and Path(f"/proc/{children[0]}/comm").read_text() == "systemd\n"
        return int(children[0]) if is_booted else 0


def _run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True, timeout=60)
