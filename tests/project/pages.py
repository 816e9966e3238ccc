"""The README and the pages of docs/: their blocks, and the command lines in them."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
GENERATED: dict[str, Any] = runpy.run_path(str(DOCS / "generated.py"))

_BLOCK = re.compile(r"^```(\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TWINS = {"profile": ("profile",), "edge-agent": ("agent",), "fusion-node": ("fuse",)}


def blocks(page: Path, *languages: str) -> list[str]:
    """Find the blocks of a page in these languages."""
    return [text for language, text in _BLOCK.findall(page.read_text()) if language in languages]


def commands_and_outputs(block: str) -> list[tuple[str, str]]:
    """Split a ``console`` block into commands (``$ ``) and what each shows; ``...`` stands for anything."""
    found: list[tuple[str, str]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        else:
            command, shown = found[-1]
            found[-1] = (command, f"{shown}{line}\n")
    return found


def command_lines(page: Path) -> list[str]:
    """Find all lines of a page that are meant for a shell, those that cannot be run here too."""
    shown = [command for block in blocks(page, "console") for command, _ in commands_and_outputs(block)]
    return shown + [line for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]


def our_commands(line: str) -> Iterator[list[str]]:
    """Find in a line of shell those of its commands that are this project's."""
    words = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    words.whitespace_split = True
    simple: list[list[str]] = [[]]
    for word in words:
        if set(word) <= set("();<>|&"):
            simple.append([])
        else:
            simple[-1].append(word)
    for command in simple:
        while command and (command[0] == "sudo" or "=" in command[0]):
            command = command[1:]
        program = Path(command[0]).name if command else ""
        if program in _TWINS:
            yield [*_TWINS[program], *command[1:]]
        elif program == "devit":
            yield command[1:]
        elif program in GENERATED["PROGRAMS"]:
            yield [program, *command[1:]]


def parse(words: list[str]) -> None:
    """Take a command line apart as the program would, and run nothing.

    Raises:
        Exception: A command or an option is not there, or a value does not fit.
    """
    name, *arguments = words
    if name in GENERATED["PROGRAMS"]:
        known = GENERATED["help_text"](GENERATED["PROGRAMS"][name])
        unknown = [word for word in arguments if word.startswith("--") and f"{word} " not in f"{known} "]
        assert not unknown, unknown
    elif name != "--help":
        _parse(GENERATED["command_line"](name), name, arguments)


def _parse(command: Any, name: str, arguments: list[str]) -> None:  # noqa: ANN401 - typer keeps its types private
    children = getattr(command, "commands", {})
    arguments = getattr(command, "spelled_out", list)(arguments)
    if arguments and arguments[0] in children:
        _parse(children[arguments[0]], arguments[0], arguments[1:])
        return
    try:
        left = command.make_context(name, arguments).args
    except typer.Exit:  # --help
        return
    assert not left, f"{name}: expected no {left}"
