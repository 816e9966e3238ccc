"""One finding of the doctor, and the machine that it is about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from devit_engines.board import Board, detect_board
from devit_engines.doctor.interpreter import Interpreter
from devit_engines.doctor.jetpack import JetPack, jetpack_of

PYTHON_FLOOR = (3, 10)
State = Literal["good", "warning", "refused"]


@dataclass(frozen=True)
class Finding:
    """What was examined, and what was found."""

    name: str
    found: str
    state: State = "good"
    cure: str | None = None
    """What to do, in one line; present exactly where the state is not good."""


@dataclass(frozen=True)
class Machine:
    """What every finding is made from."""

    root: Path
    python: Interpreter
    board: Board
    jetpack: JetPack | None
    in_container: bool


def read_machine(root: Path, python: Interpreter) -> Machine:
    """Read what several findings need."""
    board = detect_board(root)
    jetpack = None if board.l4t is None else jetpack_of(board.l4t)
    # Docker's and Podman's own marks.
    in_container = any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv"))
    return Machine(root, python, board, jetpack, in_container)


def major(version: str) -> int:
    """Take the first number of a version; 0 where it starts with none."""
    return next(iter(numbers(version)), 0)


def numbers(version: str) -> tuple[int, ...]:
    """Split a version for comparing, up to the first part that is no number.

    >>> numbers("12.6.77"), numbers("10.3.0+cuda12.5"), numbers("2024.1rc2")
    ((12, 6, 77), (10, 3), (2024,))
    """
    found = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        found.append(int(part))
    return tuple(found)
