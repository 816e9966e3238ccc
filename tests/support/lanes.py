"""Which tests run one after another, and in which order workers take them.

Workers take whole lanes. A lane is a file, so that what a module sets up is set up once, with three exceptions: tests
that hold processes against a clock take turns in one lane, as they would disturb one another; folders whose tests share
a dear session fixture are one lane; long tests that share nothing have a lane each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.once import is_worker

if TYPE_CHECKING:
    import pytest
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

MACHINE = (
    "tests/edge_agent/",
    "tests/export/test_latency.py",
    "tests/fusion/",
    "tests/project/test_network_benchmarks.py",
    "tests/project/test_peer_benchmarks.py",
    "tests/project/test_services.py",
    "tests/network/",
    "tests/profiling/figures/test_baseline_model.py",
    "tests/profiling/figures/test_thermal.py",
    "tests/profiling/load/",
    "tests/profiling/sensor/test_sampler.py",
    "tests/profiling/simulator/test_program.py",
    "tests/profiling/sweep/",
)
"""Folders and files whose tests hold processes against a clock."""
TOGETHER = ("tests/export/",)
"""Folders whose tests share a dear session fixture."""
APART = (
    "tests/decompose/test_examples.py",
    "tests/engines/trt/test_real_wheels.py",
    "tests/project/test_console_blocks.py",
    "tests/project/test_light_install.py",
    "tests/network/test_fuzz.py",
)
"""Files of long tests that share nothing."""
LONG = (
    "machine",
    "tests/export/",
    "tests/pipeline/test_demo.py",
    "tests/decompose/test_stages.py",
    "tests/engines/trt/test_trt_chain.py",
    "tests/engines/trt/test_child.py",
    "tests/decompose/models/test_weights.py",
    "tests/pipeline/test_cli.py",
    "tests/pipeline/test_own_views.py",
    "tests/gateway/test_faults.py",
    "tests/profiling/report/test_report.py",
    "tests/project/test_docs.py",
)
"""Lanes of many seconds: they begin first, so that workers end together."""


def lane(nodeid: str) -> str:
    """Name the lane of a test."""
    path = nodeid.partition("::")[0]
    if path in APART:
        return nodeid
    if path.startswith(MACHINE):
        return "machine"
    return next((folder for folder in TOGETHER if path.startswith(folder)), path)


def sort(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put long lanes first where there are workers; alone, tests keep their order."""
    if is_worker(config):
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
