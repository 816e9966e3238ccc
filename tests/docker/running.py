"""Services of docker/compose.yaml as processes: an image's folder as root, own mounts, user, no capabilities.

No Docker engine has part in it: what an engine adds (its own seccomp profile, init, limits, restarts) is not shown.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.docker.compose import binds
from tests.docker.image import Image, in_environment
from tests.network.namespaces import Namespace

# Arguments: root, then for each mount its kind (ro, rw, tmpfs), source or options, target; then --, the command.
_START = """
root=$1; shift
mount --bind "$root" "$root"
while [ "$1" != -- ]; do
    case $1 in
    tmpfs) mount -t tmpfs -o "$2" tmpfs "$root$3" ;;
    *) mount --bind "$2" "$root$3"; mount -o "remount,bind,$1" "$root$3" ;;
    esac
    shift 3
done
shift
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
exec chroot "$root" "$@"
"""


class Container:
    """One service; a context manager that ends it."""

    def __init__(self, image: Image, service: dict[str, Any], network: Namespace, volumes: dict[str, Path]) -> None:
        """Start it.

        Args:
            image: Its file system and environment.
            service: As in compose.yaml.
            network: Stands in for the machine's own network.
            volumes: Folders that stand in for named volumes.
        """
        self._network = network
        self._environment = image.environment | service.get("environment", {})
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed on leaving
        words = ["unshare", "--mount", "--propagation", "private", "sh", "-eu", "-c", _START, "start", str(image.root)]
        words += [*_mounts(image.root, service, volumes), "--", *_identity(service)]
        words += [*in_environment(self._environment), *service["command"]]
        with network.inside():
            self._child = subprocess.Popen(words, stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL)
        self._service = service

    def __enter__(self) -> Container:
        """Use it in a ``with`` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill what is still there."""
        self._child.kill()
        self._child.wait()
        self._log.close()

    def wait(self, timeout_s: float) -> int:
        """Give its exit code once it has ended by itself."""
        return self._child.wait(timeout_s)

    def stop(self) -> int:
        """Send what `docker stop` sends, and give the exit code within its ten seconds."""
        self._child.terminate()
        return self._child.wait(10)

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command beside the service, as `docker exec` does."""
        words = ["nsenter", f"--target={self._child.pid}", "--mount", "--net", "--root", "--wd", "--"]
        words += [*_identity(self._service), *in_environment(self._environment), *command]
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)

    def health(self) -> tuple[bool, str]:
        """Run the health check of compose.yaml once."""
        kind, *command = self._service["healthcheck"]["test"]
        assert kind == "CMD"
        done = self.execute(*command)
        return done.returncode == 0, done.stdout + done.stderr

    def wait_healthy(self, is_healthy: bool = True, timeout_s: float = 60) -> str:
        """Check its health again and again until it is as expected; give what the check said."""
        end_s, said = time.monotonic() + timeout_s, "never asked"
        while time.monotonic() < end_s and self._child.poll() is None:
            found, said = self.health()
            if found == is_healthy:
                return said
        raise AssertionError(f"health was never {is_healthy}: {said}\n{self.log()}")

    def log(self) -> str:
        """Give all that it has printed."""
        self._log.seek(0)
        return self._log.read()


def _mounts(root: Path, service: dict[str, Any], volumes: dict[str, Path]) -> list[str]:
    found = [("ro" if is_read_only else "rw", str(source), target) for source, target, is_read_only in binds(service)]
    for volume in service["volumes"]:
        source, target, *options = volume.split(":")
        if source in volumes:
            found.append((options[0] if options else "rw", str(volumes[source]), target))
    for place in service["tmpfs"]:
        target, _, options = place.partition(":")
        found.append(("tmpfs", options, target))
    for _, _, target in found:
        (root / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
    return [word for mount in found for word in mount]


def _identity(service: dict[str, Any]) -> list[str]:
    user, group = service["user"].split(":")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    nothing = ("--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all")
    return ["setpriv", f"--reuid={user}", f"--regid={group}", *nothing]


def new_volume(folder: Path, image: Image, place: str) -> Path:
    """Make what an engine makes of a named volume at its first use: a copy of the image's folder, with its owner."""
    of_image = (image.root / place.lstrip("/")).stat()
    folder.mkdir(mode=of_image.st_mode & 0o777)
    os.chown(folder, of_image.st_uid, of_image.st_gid)
    return folder
