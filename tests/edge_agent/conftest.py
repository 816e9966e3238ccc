from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.edge_agent.hand_made_node import HandMadeNode


@pytest.fixture
def node(tmp_path: Path, store: Path) -> Iterator[HandMadeNode]:
    made = HandMadeNode(tmp_path, store)
    yield made
    made.close()
