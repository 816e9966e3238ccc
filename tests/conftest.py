from __future__ import annotations

import signal
from pathlib import Path

import pytest

from devit_contract.manifest import Bundle
from devit_engines.build import build_engines
from devit_engines.store import Store

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs so, and every process that a test starts would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

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
