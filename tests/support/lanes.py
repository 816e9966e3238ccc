"""Which tests run one after another, and in which order workers take them.

Workers take whole lanes. A lane is a file, so that what a module sets up is set up once, but for two kinds: tests that
hold processes against a clock take turns in one lane, as they would disturb one another, and folders whose tests share
a dear session fixture are one lane.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

MACHINE = (
    "tests/edge_agent/",
    "tests/fusion/",
    "tests/network/",
    "tests/profiling/load/",
    "tests/profiling/sensor/test_sampler.py",
    "tests/profiling/simulator/test_program.py",
    "tests/profiling/sweep/",
)
"""Folders and files whose tests hold processes against a clock."""
TOGETHER = ("tests/export/",)
"""Folders whose tests share a dear session fixture."""
LONG = (
    "machine",
    "tests/export/",
    "tests/pipeline/test_demo.py",
    "tests/decompose/test_stages.py",
    "tests/engines/trt/test_trt_chain.py",
    "tests/engines/trt/test_child.py",
    "tests/decompose/models/test_weights.py",
    "tests/pipeline/test_cli.py",
    "tests/gateway/test_faults.py",
    "tests/profiling/report/test_report.py",
    "tests/house/test_docs.py",
)
"""Lanes of many seconds: they begin first, so that workers end together."""


def lane(nodeid: str) -> str:
    """Name the lane of a test."""
    path = nodeid.partition("::")[0]
    if path.startswith(MACHINE):
        return "machine"
    return next((folder for folder in TOGETHER if path.startswith(folder)), path)


def sort(items: list[pytest.Item]) -> None:
    """Put long lanes first where there are workers; alone, tests keep their order."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        ranks = {name: rank for rank, name in enumerate(LONG)}
        items.sort(key=lambda item: ranks.get(lane(item.nodeid), len(LONG)))


def make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Deal out whole lanes, in the order of the tests."""
    from xdist.scheduler import LoadScopeScheduling

    class LaneScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return lane(nodeid)

    config.option.loadscopereorder = False  # by the number of tests, which says little of their length
    return LaneScheduling(config, log)
