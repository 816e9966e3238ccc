from __future__ import annotations

import signal
from pathlib import Path

import pytest

from devit_contract.manifest import Bundle
from devit_engines.build import build_engines
from devit_engines.store import Store

for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        # A shell's background jobs and what nohup starts ignore them, and so would every process that a test starts.
        # With a handler that does nothing, this process goes on as it was told to, and its children start afresh.
        signal.signal(number, lambda *_: None)

TINY = Path(__file__).parent / "data" / "tiny-bundle"


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return Bundle(TINY)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    """A store with the tiny bundle's engines."""
    folder = tmp_path_factory.mktemp("store")
    build_engines(bundle, Store(folder))
    return folder
