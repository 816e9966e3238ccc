"""Turning a source as an agent's loop does, until something has come."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

from devit_edge_agent.sources.source import Source

T = TypeVar("T")


def wait_for(source: Source, what: Callable[[], T | None], seconds: float = 30.0) -> T:
    """Turn the loop as an agent does until ``what`` gives something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        select.select([source.fileno()], [], [], 0.02)
        source.pump()
        if (found := what()) is not None:
            return found
    pytest.fail(f"nothing within {seconds} s, problem: {source.problem!r}")


def problem_of(source: Source) -> str | None:
    return source.problem or None
