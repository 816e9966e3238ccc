from __future__ import annotations

import signal
from pathlib import Path

import pytest

from devit_contract.artefacts.manifest import Bundle
from devit_engines.building.build_all import build_engines
from devit_engines.building.store import Store

# Background jobs of a shell ignore one of them, what nohup starts the other, and so would all processes under test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests send it to this process too
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)  # these tests still outlive their terminal

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
