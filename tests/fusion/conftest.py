from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from devit_pipeline.local_cell import LocalCell, LocalDevice

TINY = Path(__file__).parents[1] / "data" / "tiny-bundle"


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
