"""A Python for arm64 that runs here under qemu-user: Debian's packages unpacked, the built wheel installed into it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from devit_contract.artefacts.files import write_bytes

ROOT = Path(__file__).parents[2]
QEMU = "qemu-aarch64-static"
ONNXRUNTIME = "1.20.1"
"""The newest that qemu 7.2 runs; 1.32.0 ends it with a segmentation fault."""
_DEBIAN_PACKAGES = ("python3", "libstdc++6")
_DEADLINE_S = 150.0


class Arm64Python:
    """The interpreter of an unpacked Debian, with ``devit[agent]`` from the wheel; nothing of this machine changes."""

    def __init__(self, folder: Path, cache: Path) -> None:
        """Fetch, unpack and install.

        Args:
            folder: Where all of it goes.
            cache: Keeps what apt downloads for the next time.
        """
        start_s = time.monotonic()
        self._root = folder / "root"
        _unpack_debian(self._root, cache)
        unpacked_s = time.monotonic()
        (self._python,) = (path for path in self._root.glob("usr/bin/python3.*") if path.suffix[1:].isdigit())
        self._packages = self._root / "opt/devit"
        _install(_wheel(folder / "wheel"), self._packages, folder, self._python.name.removeprefix("python"))
        self.unpacking_s, self.installing_s = unpacked_s - start_s, time.monotonic() - unpacked_s

    def command(self, *arguments: str | Path) -> list[str]:
        """Words that run Python with arguments under qemu."""
        return [QEMU, "-L", str(self._root), str(self._python), *map(str, arguments)]

    def script(self, name: str) -> Path:
        """Find a console script of the wheel."""
        return self._packages / "bin" / name

    @property
    def environment(self) -> dict[str, str]:
        """What it needs, and nothing that was meant for this machine's processor or Python."""
        return {"PATH": os.environ["PATH"], "PYTHONPATH": str(self._packages), "OMP_NUM_THREADS": "1"}

    def run(self, *arguments: str | Path) -> str:
        """Run to the end, and give what was printed."""
        return _run(*self.command(*arguments), environment=self.environment)


def _unpack_debian(root: Path, cache: Path) -> None:
    """Have apt fetch arm64 packages with all that they need, by its own state of an empty arm64 machine."""
    for name in ("state/lists/partial", "archives/partial"):
        (cache / name).mkdir(parents=True, exist_ok=True)
    lines = (
        'APT::Architecture "arm64"',
        'APT::Architectures { "arm64"; }',
        'APT::Install-Recommends "false"',
        'APT::Sandbox::User "root"',
        f'Dir::State "{cache}/state"',
        'Dir::State::status "/dev/null"',
        f'Dir::Cache "{cache}"',
    )
    write_bytes(cache / "apt.conf", "".join(f"{line};\n" for line in lines).encode())
    environment = os.environ | {"APT_CONFIG": str(cache / "apt.conf")}
    _run("apt-get", "update", "-q", environment=environment)
    # What an earlier run fetched may be out of date; apt fetches only what is not there.
    _run("apt-get", "autoclean", "-q", environment=environment)
    _run("apt-get", "install", "-q", "-y", "--download-only", *_DEBIAN_PACKAGES, environment=environment)
    for package in (cache / "archives").glob("*.deb"):
        _run("dpkg-deb", "--extract", str(package), str(root))


def _wheel(folder: Path) -> Path:
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (wheel,) = folder.glob("devit-*.whl")
    return wheel


def _install(wheel: Path, target: Path, folder: Path, python_version: str) -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in pins if not line.startswith("onnxruntime==")]
    constraints = folder / "constraints.txt"
    write_bytes(constraints, "\n".join([*pins, f"onnxruntime=={ONNXRUNTIME}", ""]).encode())
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 26, 27, 28, 34)]
    _run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(target)),
        *("--only-binary=:all:", *platforms, "--platform=manylinux2014_aarch64", f"--python-version={python_version}"),
        *("--constraint", str(constraints), f"{wheel}[agent]"),
    )


def _run(*command: str, environment: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(
        command, env=environment, cwd=cwd, capture_output=True, text=True, check=False, timeout=_DEADLINE_S
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout
