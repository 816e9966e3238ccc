from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests.gateway.running import Gateway
from tests.support.cell import TINY, tiny_devices

from devit_contract.artefacts.manifest import Bundle
from devit_pipeline.local_cell import LocalCell


@pytest.fixture(scope="session")
def images(bundle: Bundle) -> npt.NDArray[np.uint8]:
    """Shape ``(64, 6, 8, 1)``."""
    return np.asarray(bundle.golden()["images"], np.uint8)


@pytest.fixture(scope="session")
def cell(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[LocalCell]:
    """A healthy cell, for tests that leave it so."""
    with LocalCell(TINY, tmp_path_factory.mktemp("cell"), tiny_devices(), store=store) as running:
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
