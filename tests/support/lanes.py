"""Which tests may run side by side.

Two things slow tests down: work and waiting. Tests that own processes, ports or clocks mostly wait, and would disturb
one another's timing; they take turns in one lane. All others fill the remaining workers, a file at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

MACHINE = (
    "tests/contract/test_cli.py",
    "tests/contract/wire/",
    "tests/edge_agent/",
    "tests/fusion/",
    "tests/gateway/",
    "tests/network/",
    "tests/pipeline/",
    "tests/profiling/load/",
    "tests/profiling/sensor/test_sampler.py",
    "tests/profiling/simulator/test_program.py",
    "tests/profiling/sweep/",
)
"""Folders and files whose tests take turns."""
TOGETHER = ("tests/decompose/training", "tests/export/")
"""Folders whose tests share a session fixture that is dear: one worker makes it."""


def lane(nodeid: str) -> str:
    """Name the group of tests that run one after another on one worker."""
    path = nodeid.partition("::")[0]
    if path.startswith(MACHINE):
        return "machine"
    return next((folder for folder in TOGETHER if path.startswith(folder)), path)


def make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Deal out whole lanes, the longest list of tests first."""
    from xdist.scheduler import LoadScopeScheduling

    class LaneScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return lane(nodeid)

    return LaneScheduling(config, log)
