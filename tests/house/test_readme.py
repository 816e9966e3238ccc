"""The README's `console` blocks do what they show."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
BLOCKS = re.findall(r"^```console\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands_and_outputs(block: str) -> list[tuple[str, str]]:
    """Split a block into commands (``$ ``) and what each shows; ``...`` stands for anything."""
    found: list[tuple[str, str]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        else:
            command, shown = found[-1]
            found[-1] = (command, f"{shown}{line}\n")
    return found


def matches(shown: str, printed: str) -> bool:
    """Whether what stands between each ``...`` is printed, in that order; spaces and line ends count as one space."""
    rest = " ".join(printed.split())
    for part in filter(str.strip, shown.split("...")):
        _, found, rest = rest.partition(" ".join(part.split()))
        if not found:
            return False
    return True


@pytest.mark.system
@pytest.mark.timeout(240)
def test_the_console_blocks_print_what_the_readme_shows(tmp_path: Path) -> None:
    """In the order of the page; what is said to go on in another terminal goes on in the background."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    served: list[subprocess.Popen[str]] = []
    try:
        for block in BLOCKS:
            for command, shown in commands_and_outputs(block):
                words = shlex.split(command)
                if "decompose" in words and not FASHION_MNIST.exists():
                    print(f"not run, as {FASHION_MNIST} is absent (apt install dataset-fashion-mnist): {command}")
                    continue
                if "--serve" in words:
                    served.append(subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=PIPE, text=True))
                    stdout = served[-1].stdout
                    assert stdout is not None
                    printed = stdout.readline()
                else:
                    done = subprocess.run(
                        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
                    )
                    assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
                    printed = done.stdout
                assert matches(shown, printed), f"$ {command}\n{printed}"
    finally:
        for child in served:
            child.send_signal(signal.SIGINT)
            child.communicate(timeout=30)


def test_every_command_is_named_in_the_readme() -> None:
    from devit_pipeline.cli import COMMANDS

    services = {"fuse": "fusion-node", "agent": "edge-agent", "engines": "engines/build-engines.sh"}
    for command in COMMANDS:
        assert f"devit {command}" in README or services.get(command, command) in README, command


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
