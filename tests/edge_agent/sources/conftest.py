"""Sources that are closed whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devit_contract.artefacts.manifest import Preprocess
from devit_edge_agent.sources.open import open_source
from devit_edge_agent.sources.source import Source

RGB = Preprocess(height=3, width=5, colour="rgb")


@pytest.fixture
def opened() -> Iterator[Callable[..., Source]]:
    """Open sources that are closed whatever happens; nothing may be left of them."""
    sources: list[Source] = []

    def open_one(text: str, spec: Preprocess = RGB, base: Path = Path()) -> Source:
        sources.append(open_source(text, spec, base=base))
        return sources[-1]

    yield open_one
    for source in sources:
        source.close()
        source.close()
    assert not [thread for thread in threading.enumerate() if "(read)" in thread.name]
