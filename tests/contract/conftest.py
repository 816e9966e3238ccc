from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.cell import TINY, tiny_devices

from devit_pipeline.local_cell import LocalCell


@pytest.fixture(scope="package")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCell]:
    """A running cell of two devices, jetson1 and jetson2, that answer at once with zeros."""
    with LocalCell(TINY, tmp_path_factory.mktemp("cell"), tiny_devices("null")) as running:
        yield running
