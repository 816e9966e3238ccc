from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from devit_pipeline.local_cell import LocalCell, LocalDevice

TINY = Path(__file__).parents[1] / "data" / "tiny-bundle"


@pytest.fixture(scope="package")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCell]:
    """A running cell of two devices, jetson1 and jetson2, that answer at once with zeros."""
    devices = [LocalDevice(f"jetson{index + 1}", index, engine="null") for index in range(2)]
    with LocalCell(TINY, tmp_path_factory.mktemp("cell"), devices) as running:
        yield running
