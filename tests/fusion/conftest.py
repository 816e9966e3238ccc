from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from devit_contract.manifest import Bundle
from devit_engines.build import build_engines
from devit_engines.store import Store
from devit_pipeline.local_cell import LocalCell, LocalDevice

TINY = Path(__file__).parents[1] / "data" / "tiny-bundle"


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return Bundle(TINY)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    """A store with the tiny bundle's engines."""
    folder = tmp_path_factory.mktemp("store")
    build_engines(bundle, Store(folder))
    return folder


@pytest.fixture
def make_cell(tmp_path: Path, store: Path) -> Iterator[Callable[..., LocalCell]]:
    """Bring up a cell of two agents; ``engine`` is theirs, the rest goes to LocalCell."""
    with ExitStack() as stack:

        def make(engine: str = "built", tegrastats: tuple[str, ...] = (), **settings: Any) -> LocalCell:  # noqa: ANN401 - passed on as it is
            devices = [
                LocalDevice(f"jetson{index + 1}", index, engine=engine, tegrastats=tegrastats) for index in range(2)
            ]
            return stack.enter_context(LocalCell(TINY, tmp_path / "cell", devices, store=store, **settings))

        yield make
