"""What `docker build` would do, without an engine: each instruction carried out in a folder, RUN in a chroot.

A Debian made by debootstrap stands in for every base image. What only NVIDIA's repository has is not run, and said.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.docker.dockerfile import ROOT, Instruction, expand, read_stages

NOT_HERE = "repo.download.nvidia.com"
"""Instructions that need this host are skipped."""
_CERTIFICATES = Path("etc/certificates-of-the-test-machine.pem")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Image:
    """A file system and how its processes start."""

    root: Path
    environment: dict[str, str]
    user: str = "0:0"
    skipped: list[str] = field(default_factory=list)
    """Instructions that were not carried out."""
    stages: dict[str, Path] = field(default_factory=dict)
    """File systems of the stages that have names."""

    def run(self, *command: str, timeout_s: float = 120) -> str:
        """Run a command as a container's, with its user and environment alone; give what it printed."""
        user, group = self.user.split(":")
        identity = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs"]
        return sh("chroot", self.root, *identity, *in_environment(self.environment), *command, timeout_s=timeout_s)


class Builder:
    """Builds Dockerfiles of a fresh clone."""

    def __init__(self, folder: Path, debian: Path) -> None:
        """Work in a folder; ``debian`` stands in for base images."""
        self._folder = folder
        self._debian = debian
        self.clone = folder / "clone"
        sh("git", "clone", "--quiet", ROOT, self.clone)

    def build(self, dockerfile: str, arguments: dict[str, str] | None = None) -> Image:
        """Carry out a Dockerfile of the clone, named by its path in it, with build arguments."""
        return _Build(self.clone, self._folder, self._debian, dockerfile, arguments or {}).final()


class _Build:
    def __init__(self, clone: Path, folder: Path, debian: Path, dockerfile: str, arguments: dict[str, str]) -> None:
        self._clone, self._folder, self._debian = clone, folder, debian
        self._given = arguments
        declared, self._stages = read_stages(clone / dockerfile)
        self._global = {}
        for argument in declared:
            name, _, default = argument.text.partition("=")
            self._global[name] = arguments.get(name, default)
        self._name = "-".join([Path(dockerfile).stem, *arguments.values()]).replace(",", "-")
        self._made: dict[int, Image] = {}

    def final(self) -> Image:
        """Carry out the last stage, and those that it needs."""
        image = self._stage(len(self._stages) - 1)
        image.stages = {self._stages[number].name: made.root for number, made in self._made.items()}
        return image

    def _stage(self, number: int) -> Image:
        if number in self._made:
            return self._made[number]
        stage = self._stages[number]
        base = self._find(expand(stage.base, self._global))
        under = self._stage(base) if base is not None else Image(self._debian, {"PATH": _PATH})
        root = self._folder / f"{self._name}-{number}"
        sh("cp", "-al", under.root, root)
        image = Image(root, dict(under.environment), under.user, list(under.skipped))
        self._made[number] = image
        workdir, arguments = "/", dict[str, str]()
        for one in stage.instructions:
            text = one.text
            if NOT_HERE in text:
                image.skipped.append(f"{one.name} {text}")
            elif one.name == "ARG":
                name, _, default = text.partition("=")
                arguments[name] = self._given.get(name, default or self._global.get(name, ""))
            elif one.name == "ENV":
                values = expand(text, arguments | image.environment)
                image.environment |= dict(word.split("=", 1) for word in shlex.split(values))
            elif one.name == "WORKDIR":
                workdir = text
                (root / workdir.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif one.name == "COPY":
                self._copy(one, root, workdir)
            elif one.name == "RUN":
                environment = image.environment | arguments | _of_this_machine()
                in_chroot(root, environment, f"cd {workdir} && {text}")
            elif one.name == "USER":
                image.user = text
            else:
                assert one.name == "CMD", f"{one.name}: an instruction that this test does not know"
        return image

    def _copy(self, one: Instruction, root: Path, workdir: str) -> None:
        words = one.text.split()
        origin = self._clone
        if words[0].startswith("--from="):
            number = self._find(words.pop(0).removeprefix("--from="))
            assert number is not None
            origin = self._stage(number).root
        *sources, target = words
        place = root / workdir.lstrip("/") / target.lstrip("/") if not target.startswith("/") else root / target[1:]
        for source in sources:
            sh("cp", "-a", origin / source.lstrip("/"), place)

    def _find(self, name: str) -> int | None:
        return next((index for index, stage in enumerate(self._stages) if stage.name == name), None)


def make_debian(root: Path, cache: Path) -> None:
    """Make the smallest Debian that apt can add to, with this machine's way to the network."""
    cache.mkdir(parents=True, exist_ok=True)
    options = ("--variant=minbase", f"--cache-dir={cache}")
    sh("debootstrap", *options, "bookworm", root, timeout_s=500)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    if bundle := os.environ.get("PIP_CERT", ""):
        shutil.copy(bundle, root / _CERTIFICATES)


def in_chroot(root: Path, environment: dict[str, str], command: str) -> str:
    """Run a line of shell as root of a file system, and give what it printed."""
    return sh("chroot", root, *in_environment(environment), "/bin/sh", "-c", command, timeout_s=500)


def in_environment(variables: dict[str, str]) -> list[str]:
    """Words that start a command with these variables alone."""
    return ["env", "-i", *(f"{name}={value}" for name, value in variables.items())]


def sh(*command: str | Path, cwd: Path | None = None, timeout_s: float = 120) -> str:
    """Run a command to a good end, and give what it printed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, timeout=timeout_s)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def _of_this_machine() -> dict[str, str]:
    """What a build needs here to reach the network, and no engine would have to be told."""
    certificates = {"PIP_CERT": f"/{_CERTIFICATES}"} if os.environ.get("PIP_CERT") else {}
    proxies = {name: os.environ[name] for name in ("http_proxy", "https_proxy") if name in os.environ}
    return {"DEBIAN_FRONTEND": "noninteractive", **certificates, **proxies}
