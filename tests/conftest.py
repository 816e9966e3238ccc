from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support import lanes, properties
from tests.support.cell import TINY, MakeCell, cell_maker
from tests.support.once import made_once

from devit_contract.artefacts.manifest import Bundle
from devit_engines.building.build_all import build_engines
from devit_engines.building.store import Store

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

# Background jobs of a shell ignore one of them, what nohup starts the other, and so would all processes under test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests send it to this process too
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)  # these tests still outlive their terminal

properties.register()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Keep tests of one lane on one worker."""
    return lanes.make_scheduler(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long lanes first."""
    lanes.sort(items)


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return Bundle(TINY)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    """A store with the tiny bundle's engines; only read by tests."""
    return made_once(tmp_path_factory, "store", lambda folder: build_engines(bundle, Store(folder)))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This repository's wheel; only read by tests."""

    def build(folder: Path) -> None:
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True, timeout=100)

    (built,) = made_once(tmp_path_factory, "wheel", build).glob("devit-*.whl")
    return built


@pytest.fixture
def make_cell(tmp_path: Path, store: Path) -> Iterator[MakeCell]:
    """Bring up a cell of two agents that a test may break."""
    with cell_maker(tmp_path, store) as make:
        yield make
