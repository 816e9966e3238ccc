from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.gateway.running import Gateway

from devit_contract.artefacts.manifest import Bundle
from devit_pipeline.local_cell import LocalCell, LocalDevice

TINY = Path(__file__).parents[1] / "data" / "tiny-bundle"


@pytest.fixture(scope="session")
def images(bundle: Bundle) -> npt.NDArray[np.uint8]:
    """Shape ``(64, 6, 8, 1)``."""
    return np.asarray(bundle.golden()["images"], np.uint8)


@pytest.fixture(scope="session")
def cell(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[LocalCell]:
    """A healthy cell, for tests that leave it so."""
    devices = [LocalDevice(f"jetson{index + 1}", index) for index in range(2)]
    with LocalCell(TINY, tmp_path_factory.mktemp("cell"), devices, store=store) as running:
        yield running


@pytest.fixture(scope="session")
def gateway(cell: LocalCell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway to the healthy cell, for tests that leave it so."""
    with Gateway(cell, tmp_path_factory.mktemp("gateway") / "log") as running:
        yield running


@pytest.fixture
def start(cell: LocalCell, tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Start further gateways, by default to the healthy cell."""
    logs = (tmp_path / f"log{number}" for number in count())
    with ExitStack() as stack:

        def started(*options: str, to: LocalCell = cell, key: Path | None = None) -> Gateway:
            return stack.enter_context(Gateway(to, next(logs), *options, key=key))

        yield started


@pytest.fixture
def make_cell(tmp_path: Path, store: Path) -> Iterator[Callable[..., LocalCell]]:
    """Bring up a cell of two agents that a test may break."""
    with ExitStack() as stack:

        def make(*, tegrastats: tuple[str, ...] = (), root: str = "/", **settings: Any) -> LocalCell:  # noqa: ANN401 - passed on as it is
            devices = [LocalDevice(f"jetson{index + 1}", index, tegrastats=tegrastats, root=root) for index in range(2)]
            return stack.enter_context(LocalCell(TINY, tmp_path / "cell", devices, store=store, **settings))

        yield make
