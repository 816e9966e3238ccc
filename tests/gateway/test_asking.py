"""The asking thread when there is a bug in it: everybody hears of it, and nobody waits for ever."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from devit_contract.client import Client
from devit_contract.errors import LinkError
from devit_gateway.asking import Asker


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_by_a_bug_fails_what_waits_and_what_comes() -> None:
    def connect() -> Client:
        raise RuntimeError("a bug")

    async def ask(asker: Asker) -> None:
        for _ in range(2):
            with pytest.raises(LinkError, match="expected"):
                await asyncio.wait_for(asker.status(), 30)
        with pytest.raises(LinkError, match="restart the gateway"):
            await asyncio.wait_for(asker.classify([np.zeros((1, 1, 1), np.uint8)]), 30)

    with Asker(connect, in_flight=1, timeout_s=30.0) as asker:
        asyncio.run(ask(asker))
        assert asker.is_over


def test_what_is_under_way_when_it_stops_ends_with_an_error() -> None:
    """Nobody listens at the address, and the time to wait is long."""

    async def ask() -> None:
        with Asker(lambda: Client("tcp://127.0.0.1:9", timeout_s=600.0), in_flight=1, timeout_s=600.0) as asker:
            asked = asyncio.ensure_future(asker.classify([np.zeros((1, 1, 1), np.uint8)] * 3))
            await asyncio.sleep(0)  # so that it has asked
        assert [type(result) for result in await asyncio.wait_for(asked, 30)] == [LinkError] * 3

    asyncio.run(ask())
