"""A user account made for one test, and commands run in it with a clean environment."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

GROUP = 61_000
"""The number of a group that shares an engine store."""
OTHER_USER = 61_002
_PIP = ("PIP_", "SSL_CERT", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
"""How this machine reaches its package index: all that is kept of the environment."""


_SHOW = """
if [ "$2" ]; then
    mkdir -p "$3" && mount --bind "$1" "$3" && mount -t tmpfs -o mode=755 tmpfs "$2" &&
        mkdir -p "$1" && mount --bind "$3" "$1" || exit
fi
shift 3
exec setpriv "$@"
"""
"""Shows one folder of a home that is closed to others, as ProtectHome=tmpfs with BindReadOnlyPaths= does."""


class Account:
    """A new user with an empty home; close it to remove it."""

    def __init__(self, python: str) -> None:
        """Make it; ``python`` is an interpreter that may lie where only root can see it: the user is shown it."""
        self.name = f"devit-{os.getpid()}"
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", self.name], check=True, timeout=60)
        self.home = Path(pwd.getpwnam(self.name).pw_dir)
        self.home.chmod(0o755)
        place = subprocess.check_output([python, "-c", "import sys; print(sys.base_prefix)"], text=True, timeout=60)
        self.python = python
        self._shown = Path(place.strip())
        closed = [folder for folder in self._shown.parents if not folder.stat().st_mode & 0o001]
        self._closed = str(closed[-1]) if closed else ""

    def close(self) -> None:
        """Remove it."""
        subprocess.run(["userdel", "--remove", self.name], check=True, timeout=60, capture_output=True)
        shutil.rmtree(f"/run/{self.name}", ignore_errors=True)

    def command(self, *words: str | Path, user: int | None = None, **environment: str) -> list[str]:
        """Say how root runs a command as this user, or as another by number; the process is that of the command."""
        found = pwd.getpwnam(self.name)
        number, group = (found.pw_uid, found.pw_gid) if user is None else (user, user)
        kept = {name: value for name, value in os.environ.items() if name.startswith(_PIP)}
        variables = [f"{name}={value}" for name, value in (kept | environment).items()]
        ids = ["--reuid", str(number), "--regid", str(group), "--groups", str(GROUP), "--inh-caps=-all"]
        as_user = [*ids, "--no-new-privs", "--reset-env", "--", "env", f"--chdir={self.home}", *variables]
        show = ["sh", "-c", _SHOW, "sh", str(self._shown), self._closed, f"/run/{self.name}"]
        return ["unshare", "--mount", *show, *as_user, *map(str, words)]

    def run(self, *words: str | Path, user: int | None = None, **environment: str) -> str:
        """Run a command to its good end, and give what it printed."""
        command = self.command(*words, user=user, **environment)
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, f"{words}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout
