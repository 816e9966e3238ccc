"""What a session makes once, however many workers it has."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of several that run the tests; tests that it starts inherit no sign of that."""
    return hasattr(config, "workerinput")


def made_once(request: pytest.FixtureRequest, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that ``make`` has filled; the first worker fills it, the others wait. Only read it."""
    factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
    folder = factory.getbasetemp().parent / name if is_worker(request.config) else factory.mktemp(name)
    folder.mkdir(exist_ok=True)
    with folder.with_name(f"{name}.made").open("a+") as made:
        fcntl.flock(made, fcntl.LOCK_EX)
        if not made.seek(0, os.SEEK_END):  # what another worker wrote while this one waited
            make(folder)
            made.write("whole\n")
    return folder
